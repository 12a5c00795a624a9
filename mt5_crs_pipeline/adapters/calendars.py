"""The market time of the symbols in the lake; that of exchanges comes from the library exchange_calendars."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA
from mt5_crs_pipeline.core.market_time import (
    ALWAYS_OPEN,
    FX,
    Attendance,
    Calendar,
    Microseconds,
    attendance,
    closing_times,
    expected_bars,
    guess_calendar,
    own_sessions,
)

# Longer than any exchange is closed.
_MARGIN_DAYS: Final = 20
# Few symbols, each very often.
_SYMBOL: Final = CLOSED_BAR_SCHEMA.field("symbol").with_type(pa.dictionary(pa.int32(), pa.string()))
_OPENED: Final = pa.schema([_SYMBOL, CLOSED_BAR_SCHEMA.field("time")])


def sessions(name: str, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the sessions of calendar `name` that overlap [start, end), as core.market_time takes them.

    Where the library knows an exchange from a later day on, or up to an earlier one, there are none outside.
    """
    if name in (FX, ALWAYS_OPEN):
        return own_sessions(name, start, end)
    import exchange_calendars

    calendar = exchange_calendars.get_calendar(name)
    # Wide enough for the library, which refuses a range without a session.
    around = pd.Timedelta(days=_MARGIN_DAYS)
    first, last = (pd.Timestamp(edge).tz_convert(None).normalize() for edge in (start - around, end + around))
    if first < calendar.first_session or last > calendar.last_session:
        first = max(first, calendar.bound_min() or first)
        last = min(last, calendar.bound_max() or last)
        if last - first < around:
            return own_sessions(FX, start, start).iloc[:0]
        calendar = type(calendar)(start=first, end=last)
    known = pd.DataFrame({"open": calendar.opens.dt.as_unit("us"), "close": calendar.closes.dt.as_unit("us")})
    return known[(known["close"] > start) & (known["open"] < end)].reset_index(drop=True)


def months_since_a_year_before(month: str, lake: Lake) -> list[str]:
    """Return the lake's months from a year before `month` (or before its last, if that is earlier) on.

    A year shows what symbols there are and which hours they keep: a run of the newest months does not have to read all.
    """
    months = lake.months(MARKET_DATA)
    first = min([month, *months[-1:]])
    return [one for one in months if one >= f"{int(first[:4]) - 1:04d}{first[4:]}"]


def lake_attendance(
    lake: Lake, months: Sequence[str], timeframe: str, chosen: Mapping[str, str], now: datetime
) -> list[Attendance]:
    """Compare the bars of `months` in the lake with the market's time until `now`; see core.market_time.attendance."""
    opened = _opened(lake.read(MARKET_DATA, sorted(months), _OPENED))
    return attendance(opened, _calendars(opened, chosen), sessions, timeframe, now)


def has_news(lake: Lake, timeframe: str, chosen: Mapping[str, str], since: datetime, until: datetime) -> bool:
    """Say whether a bar of any symbol closes in (since, until], or one in the lake has been recorded since.

    Symbols are those with bars in the lake since a year before. True where that cannot be known: without bars, and of
    W1 and MN1, of which nothing is expected.
    """
    recorded = lake.greatest(MARKET_DATA, "recorded_at")
    if recorded is None or recorded > since or timeframe in ("W1", "MN1"):
        return True
    opened = _opened(lake.read(MARKET_DATA, months_since_a_year_before(f"{since:%Y-%m}", lake), _OPENED))
    start = since - pd.Timedelta(days=_MARGIN_DAYS)
    owed: dict[str, pd.DataFrame] = {}
    for symbol, calendar in _calendars(opened, chosen).items():
        if calendar.name not in owed:
            owed[calendar.name] = expected_bars(sessions(calendar.name, start, until), timeframe, start, until)
        if owed[calendar.name].empty:  # The library does not know the exchange that long.
            return True
        closes = closing_times(owed[calendar.name], opened[symbol], timeframe)
        if ((closes > since) & (closes <= until)).to_numpy().any():
            return True
    return False


def _opened(bars: pa.Table) -> dict[str, Microseconds]:
    """Return when the bars of every symbol opened, sorted; a bar with several versions comes as often."""
    symbols = bars["symbol"].unify_dictionaries().combine_chunks()
    names = symbols.dictionary.to_pylist()
    # The smallest numbers are sorted the fastest.
    codes = symbols.indices.to_numpy().astype(np.min_scalar_type(len(names)))
    # The lake's months, and the bars of each symbol in them, are in order: a stable sort by symbol is one by time.
    order = np.argsort(codes, kind="stable")
    opened = bars["time"].cast(pa.int64()).to_numpy()[order]
    bounds = pairwise(np.searchsorted(codes[order], np.arange(len(names) + 1)))
    return {name: opened[start:end] for name, (start, end) in zip(names, bounds, strict=True)}


def _calendars(opened: Mapping[str, Microseconds], chosen: Mapping[str, str]) -> dict[str, Calendar]:
    return {
        symbol: Calendar(chosen[symbol], is_guess=False) if symbol in chosen else guess_calendar(symbol, times)
        for symbol, times in opened.items()
    }
