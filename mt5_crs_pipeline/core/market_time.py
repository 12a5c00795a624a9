"""When a market is open, which bars it owes for that, and what it means when one of them is missing.

A market's time is a frame of sessions with `open` and `close` (datetime64[us, UTC], sorted, half-open). Two calendars
are made here, "fx" and "24/7"; those of exchanges are handed in as sessions too. When bars opened is told in
microseconds since 1970 in UTC: arrays of numbers, for a thousand symbols are a thousand of them.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.bars import TIMEFRAME_MINUTES, check_symbol
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.revisions import microseconds

ALWAYS_OPEN: Final = "24/7"
FX: Final = "fx"
STOCKS: Final = "XNYS"

# What has not come this long after it closed has not been delivered, by whatever daily job brings the bars.
ALLOWANCE: Final = timedelta(days=1)
# A symbol that missed more sessions than this in the end is no longer delivered, which somebody will have meant.
ENDED_AFTER_SESSIONS: Final = 10
# What most symbols lack together is the broker's holiday, unless it lasts longer than holidays do.
LONGEST_HOLIDAY: Final = timedelta(days=4)

Microseconds = np.ndarray[Any, np.dtype[np.int64]]

_MINUTE_US: Final = 60_000_000
_DAY_US: Final = 1440 * _MINUTE_US
# 1 January 1970 was a Thursday; a week begins on Monday, with 0.
_EPOCH_DAY: Final = 3
_SATURDAY: Final = 5
_FX_HOLIDAYS: Final = ((12, 25), (1, 1))
_FX_HOUR: Final = pd.Timedelta(hours=17)
_FX_ZONE: Final = "America/New_York"
# A time of day at which a symbol has a bar on fewer sessions than this is a daily break of its own.
_BREAK_BELOW: Final = 0.1
# A weekend day with less than this part of all bars is closed: single bars there are stray.
_OPEN_FROM: Final = 0.05
_AROUND_THE_CLOCK_HOURS: Final = 20
_METALS: Final = ("XAU", "XAG", "XPT", "XPD")
# Active codes of ISO 4217.
_ISO_4217: Final = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF"
    " CLP CNH CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL"
    " HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL"
    " MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON"
    " RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH"
    " UGX USD UYU UZS VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG"
)
_CURRENCIES: Final = frozenset(_ISO_4217.split())
_PAIR: Final = re.compile(r"([A-Z]{3})([A-Z]{3})(?![A-Z])")
_STOCK: Final = re.compile(r"#?[A-Z]{1,5}([._-].*)?")


@dataclass(frozen=True)
class Calendar:
    """The calendar a symbol is held against, and whether that was guessed."""

    name: str
    is_guess: bool = True


@dataclass(frozen=True)
class Gap:
    """Expected bars that are missing one after the other: when the first and the last would have opened."""

    first: pd.Timestamp
    last: pd.Timestamp
    bars: int


@dataclass(frozen=True)
class Attendance:
    """How the bars of a symbol compare with its market's time.

    state: "current"; "outage" when the newest bars have not come (what is missing is `outage`); "ended" when they have
    not come for so long that nobody waits for them. `holiday_bars` are missing from most symbols of the calendar.
    """

    symbol: str
    calendar: Calendar
    state: Literal["current", "outage", "ended"]
    last: pd.Timestamp
    gaps: tuple[Gap, ...] = ()
    outage: Gap | None = None
    holiday_bars: int = 0

    def within(self, start: datetime, end: datetime) -> "Attendance":
        """Return this with only the gaps that begin in [start, end)."""
        return replace(self, gaps=tuple(gap for gap in self.gaps if start <= gap.first < end))


def parse_calendars(text: str) -> dict[str, str]:
    """Return the calendar per symbol of a text such as 'EURUSD=fx,BTCUSD=24/7,SAP=XETR'.

    Raises ConfigurationError for what is no such pair or repeats a symbol.
    """
    chosen: dict[str, str] = {}
    for pair in (part.strip() for part in text.split(",")):
        if not pair:
            continue
        symbol, separator, name = (part.strip() for part in pair.partition("="))
        if not separator or not name:
            raise ConfigurationError(f"{pair!r} names no calendar: write symbols like EURUSD=fx,BTCUSD=24/7,SAP=XETR")
        if check_symbol(symbol) in chosen:
            raise ConfigurationError(f"{pair!r}: the symbol has the calendar {chosen[symbol]} already")
        chosen[symbol] = name
    return chosen


def guess_calendar(symbol: str, opened: Microseconds) -> Calendar:
    """Return the calendar that a symbol's name and when its bars `opened` suggest.

    Two currencies, or a metal and a currency, make the FX week, whatever follows after a dot; bars on Saturdays and on
    Sundays 24/7; the rest is open on five days: around the clock like FX, or, with the name of a stock, like New York.
    """
    pair = _PAIR.match(symbol.upper())
    if pair and pair[1] in _CURRENCIES.union(_METALS) and pair[2] in _CURRENCIES:
        return Calendar(FX)
    if len(opened):
        days = np.bincount((opened // _DAY_US + _EPOCH_DAY) % 7, minlength=7) / len(opened)
        if days[_SATURDAY:].min() >= _OPEN_FROM:
            return Calendar(ALWAYS_OPEN)
        if np.count_nonzero(np.bincount(opened % _DAY_US // (60 * _MINUTE_US))) >= _AROUND_THE_CLOCK_HOURS:
            return Calendar(FX)
    return Calendar(STOCKS if _STOCK.fullmatch(symbol.upper()) else FX)


def own_sessions(name: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the sessions of "fx" or "24/7" that overlap [start, end).

    FX: Sunday 17:00 to Friday 17:00 in New York, one session from 17:00 to 17:00 named by the day it ends on; none on
    25 December and 1 January. 24/7: days in UTC.
    """
    first, last = pd.Timestamp(start).tz_convert(None).normalize(), pd.Timestamp(end).tz_convert(None).normalize()
    days = pd.date_range(first - pd.Timedelta(days=2), last + pd.Timedelta(days=2), freq="D")
    if name == ALWAYS_OPEN:
        opens, closes = days.tz_localize("UTC"), (days + pd.Timedelta(days=1)).tz_localize("UTC")
    else:
        holiday = np.logical_or.reduce([(days.month == month) & (days.day == day) for month, day in _FX_HOLIDAYS])
        days = days[(days.dayofweek < 5) & ~holiday]
        opens = (days - pd.Timedelta(days=1) + _FX_HOUR).tz_localize(_FX_ZONE).tz_convert("UTC")
        closes = (days + _FX_HOUR).tz_localize(_FX_ZONE).tz_convert("UTC")
    sessions = pd.DataFrame({"open": opens.as_unit("us"), "close": closes.as_unit("us")})
    return sessions[(sessions["close"] > start) & (sessions["open"] < end)].reset_index(drop=True)


def expected_bars(sessions: pd.DataFrame, timeframe: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the bars that the sessions owe and that open in [start, end), sorted.

    Columns: open, close (datetime64[us, UTC]; the last of a session closes with it), session (its number in
    `sessions`) and slot (the bar's number in its session). A session owes one D1 bar, and of an intraday timeframe one
    every so many minutes from its open on. W1 and MN1 begin where the broker likes: nothing is expected of them.
    """
    opens, closes = microseconds(sessions["open"]), microseconds(sessions["close"])
    step = TIMEFRAME_MINUTES.get(timeframe, 0) * _MINUTE_US
    if timeframe in ("W1", "MN1"):
        counts = np.zeros(len(opens), dtype=np.int64)
    elif timeframe == "D1":
        counts = np.ones(len(opens), dtype=np.int64)
        step = int((closes - opens).max(initial=0))
    else:
        counts = -((opens - closes) // step)
    session = np.repeat(np.arange(len(opens)), counts)
    slot = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
    bar_opens = opens[session] + slot * step
    bars = pd.DataFrame(
        {
            "open": _utc(bar_opens),
            "close": _utc(np.minimum(bar_opens + step, closes[session])),
            "session": session,
            "slot": slot,
        }
    )
    return bars[(bars["open"] >= start) & (bars["open"] < end)].reset_index(drop=True)


def are_there(expected: pd.DataFrame, opened: Microseconds, timeframe: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say of each expected bar whether one of the bars that `opened` (sorted) covers its middle.

    Not whether it opens at the same instant: a daily bar may be stamped by the broker's midnight, by that of UTC or of
    the exchange, and an hour may be counted from the open or from the full hour.
    """
    return _cover(opened, _middles(expected), timeframe)


def _middles(expected: pd.DataFrame) -> Microseconds:
    middles: Microseconds = (microseconds(expected["open"]) + microseconds(expected["close"])) // 2
    return middles


def _cover(opened: Microseconds, middles: Microseconds, timeframe: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    length = TIMEFRAME_MINUTES[timeframe] * _MINUTE_US
    before = np.searchsorted(opened, middles, side="right") - 1
    there: np.ndarray[Any, np.dtype[np.bool_]] = before >= 0
    there[there] = middles[there] - opened[before[there]] < length
    return there


def closing_times(expected: pd.DataFrame, opened: Microseconds, timeframe: str) -> pd.DataFrame:
    """Return `market` and `bar` (UTC) of each expected bar: when the market closes it, and when it ends as stamped.

    A day stamped by its midnight in New York ends there hours after the market has closed. Stamps are taken to lie as
    far from the session's open as that of the newest bar that was expected; without one, a day ends with the market's.
    """
    opens, market = microseconds(expected["open"]), microseconds(expected["close"])
    there = np.flatnonzero(are_there(expected, opened, timeframe))
    return pd.DataFrame({"market": expected["close"], "bar": _utc(_bar_ends(opens, market, opened, there, timeframe))})


def _bar_ends(
    opens: Microseconds, market: Microseconds, opened: Microseconds, there: np.ndarray[Any, Any], timeframe: str
) -> Microseconds:
    """Return when each expected bar (`opens`, closed by `market`) ends as stamped; those `there` are in `opened`."""
    ends = market
    if timeframe != "D1":
        ends = opens + TIMEFRAME_MINUTES[timeframe] * _MINUTE_US
    elif len(there):
        newest = there[-1]
        stamp = opened[opened <= (opens[newest] + market[newest]) // 2][-1]
        stamps = opens + (stamp - opens[newest])
        # Whether stamps move with the clocks in summer cannot be known: the earlier is taken.
        ends = stamps + np.minimum((stamp - stamps + _DAY_US // 2) % _DAY_US - _DAY_US // 2, 0) + _DAY_US
    return np.maximum(ends, market)


def attendance(
    opened: Mapping[str, Microseconds],
    calendars: Mapping[str, Calendar],
    sessions: Callable[[str, datetime, datetime], pd.DataFrame],
    timeframe: str,
    now: datetime,
) -> list[Attendance]:
    """Compare when the bars of every symbol `opened` (sorted, at least one) with its calendar until `now`.

    `sessions(name, start, end)` returns those of a calendar. A missing bar is a holiday's when most other symbols of
    the calendar, among those that had bars before and after, lack it too, for at most LONGEST_HOLIDAY. What else is
    missing between a symbol's bars is a gap; after them an outage, once it closed ALLOWANCE ago.
    """
    found = []
    for name in sorted({calendars[symbol].name for symbol in opened}):
        members = {symbol: times for symbol, times in opened.items() if calendars[symbol].name == name}
        start = _timestamp(min(times[0] for times in members.values())) - pd.Timedelta(days=1)
        expected = expected_bars(sessions(name, start, now), timeframe, start, now)
        found += _of_calendar(members, calendars, expected[expected["close"] <= now], timeframe, now)
    return sorted(found, key=lambda one: one.symbol)


def _of_calendar(
    opened: Mapping[str, Microseconds],
    calendars: Mapping[str, Calendar],
    expected: pd.DataFrame,
    timeframe: str,
    now: datetime,
) -> list[Attendance]:
    alive, lacking = np.zeros(len(expected), dtype=np.int64), np.zeros(len(expected), dtype=np.int64)
    missing: dict[str, np.ndarray[Any, Any]] = {}
    ends: dict[str, Attendance] = {}
    slots, sessions, middles = expected["slot"].to_numpy(), expected["session"].to_numpy(), _middles(expected)
    opens, market = microseconds(expected["open"]), microseconds(expected["close"])
    closed_by = pd.Timestamp(now - ALLOWANCE).value // 1_000
    # Most symbols of a market open at the same instants: what is found of one is found of all of them.
    together: dict[bytes, list[str]] = {}
    for symbol, times in opened.items():
        together.setdefault(hashlib.blake2b(times.data).digest(), []).append(symbol)
    for symbol, *others in together.values():
        times = opened[symbol]
        ends[symbol] = Attendance(symbol, calendars[symbol], "current", _timestamp(times[-1]))
        there = _cover(times, middles, timeframe) if len(expected) else np.zeros(0, dtype=bool)
        positions = np.flatnonzero(there)
        if not len(positions):
            if len(np.unique(sessions[opens > times[-1]])) > ENDED_AFTER_SESSIONS:
                ends[symbol] = replace(ends[symbol], state="ended")
            continue
        first, last = positions[0], positions[-1]
        there |= _in_daily_break(slots, there, first, last)
        missing[symbol] = first + np.flatnonzero(~there[first:last])
        alive[first : last + 1] += 1 + len(others)
        lacking[missing[symbol]] += 1 + len(others)
        awaited = last + 1 + np.flatnonzero(~there[last + 1 :])
        if np.count_nonzero(np.diff(sessions[awaited], prepend=-1)) > ENDED_AFTER_SESSIONS:
            ends[symbol] = replace(ends[symbol], state="ended")
        elif len(awaited):
            due = _bar_ends(opens, market, times, positions, timeframe)[awaited] <= closed_by
            if due.any():
                outage = _gap(opens, awaited[: int(np.flatnonzero(due)[-1]) + 1])
                ends[symbol] = replace(ends[symbol], state="outage", outage=outage)
    holiday = _holidays(expected, 2 * (lacking - 1) > alive - 1)
    for symbol, absent in missing.items():
        gaps = tuple(_gap(opens, run) for run in _runs(absent[~holiday[absent]]))
        ends[symbol] = replace(ends[symbol], gaps=gaps, holiday_bars=int(holiday[absent].sum()))
    return [
        replace(ends[symbols[0]], symbol=symbol, calendar=calendars[symbol])
        for symbols in together.values()
        for symbol in symbols
    ]


def _in_daily_break(slots: np.ndarray[Any, Any], there: np.ndarray[Any, Any], first: int, last: int) -> Any:
    """Say of each expected bar whether the symbol hardly ever has one at that time of the session."""
    inside = slice(first, last + 1)
    size = int(slots.max()) + 1
    if size == 1:  # A session of one bar has no time of day.
        return np.zeros(len(slots), dtype=bool)
    owed = np.bincount(slots[inside], minlength=size)
    came = np.bincount(slots[inside], weights=there[inside], minlength=size)
    return (came < _BREAK_BELOW * owed)[slots]


def _holidays(expected: pd.DataFrame, shared: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return `shared` without the stretches that last longer than a holiday."""
    holiday = shared.copy()
    for run in _runs(np.flatnonzero(shared)):
        if expected["close"].iloc[run[-1]] - expected["open"].iloc[run[0]] > LONGEST_HOLIDAY:
            holiday[run] = False
    return holiday


def _gap(opens: Microseconds, run: np.ndarray[Any, Any]) -> Gap:
    return Gap(_timestamp(opens[run[0]]), _timestamp(opens[run[-1]]), len(run))


def _runs(positions: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Return sorted positions cut where one does not follow the other."""
    return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if len(positions) else []


def _timestamp(ticks: np.int64) -> pd.Timestamp:
    return pd.Timestamp(int(ticks), unit="us", tz="UTC")


def _utc(ticks: Microseconds) -> pd.Series:
    return pd.Series(ticks.astype("datetime64[us]")).dt.tz_localize("UTC")
