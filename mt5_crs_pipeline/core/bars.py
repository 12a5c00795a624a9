"""What a bar is: its columns, key, close time and value rules.

A bar is stamped by its open, in UTC, and known at its close. Rows are identified by
(symbol, timeframe, time); several rows with the same key are revisions told apart by `known_at`. `recorded_at` is when
a row arrived: what was recorded later did not exist as of an earlier instant.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.core.errors import ConfigurationError

KEY_COLUMNS: Final = ("symbol", "timeframe", "time")
REVISION_KEY: Final = (*KEY_COLUMNS, "known_at")
PRICE_COLUMNS: Final = ("open", "high", "low", "close")
REQUIRED_COLUMNS: Final = (*PRICE_COLUMNS, "volume")
OPTIONAL_COLUMNS: Final = ("adjusted_close", "real_volume", "spread")
VALUE_COLUMNS: Final = (*PRICE_COLUMNS, "adjusted_close", "volume", "real_volume", "spread")
BAR_COLUMNS: Final = (*KEY_COLUMNS, *VALUE_COLUMNS)

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
BAR_SCHEMA: Final = pa.schema(
    [
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("timeframe", pa.string(), nullable=False),
        pa.field("time", TIMESTAMP, nullable=False),
        *(pa.field(name, pa.float64()) for name in VALUE_COLUMNS),
        pa.field("known_at", TIMESTAMP, nullable=False),
        pa.field("recorded_at", TIMESTAMP, nullable=False),
    ]
)
# Bars as the lake exports them: what was valid, and when each bar closed.
CLOSED_BAR_SCHEMA: Final = BAR_SCHEMA.append(pa.field("event_timestamp", TIMESTAMP, nullable=False))

# Minutes per MetaTrader 5 timeframe; MN1 is a calendar month and handled apart.
TIMEFRAME_MINUTES: Final = {
    **{f"M{n}": n for n in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30)},
    **{f"H{n}": 60 * n for n in (1, 2, 3, 4, 6, 8, 12)},
    "D1": 1440,
    "W1": 10080,
}
TIMEFRAMES: Final = (*TIMEFRAME_MINUTES, "MN1")

# A double counts integers exactly below this; a larger volume would be rounded silently.
VOLUME_LIMIT: Final = float(2**53)

_MOST_DECIMALS: Final = 8
_SYMBOL: Final = re.compile(r"[A-Za-z0-9#][A-Za-z0-9._#-]{0,31}")


def is_valid_symbol(symbol: object) -> bool:
    """True for 1 to 32 characters A-Z a-z 0-9 . _ # - that do not begin with punctuation other than #."""
    return isinstance(symbol, str) and _SYMBOL.fullmatch(symbol) is not None


def check_symbol(symbol: str) -> str:
    """Return `symbol`, or raise ConfigurationError naming it."""
    if not is_valid_symbol(symbol):
        raise ConfigurationError(
            f"symbol {symbol!r} is not allowed: use 1 to 32 of A-Z a-z 0-9 . _ # -, for example EURUSD or US30.cash"
        )
    return symbol


def check_timeframe(timeframe: str) -> str:
    """Return `timeframe`, or raise ConfigurationError naming the choices."""
    if timeframe not in TIMEFRAMES:
        raise ConfigurationError(f"timeframe {timeframe!r} is unknown: choose one of {', '.join(TIMEFRAMES)}")
    return timeframe


def close_time(time: pd.Series, timeframe: str) -> pd.Series:
    """Return when each bar opened at `time` (datetime64, UTC) closes, in microseconds; NaT stays NaT."""
    check_timeframe(timeframe)
    # Nanoseconds end in 2262, and a bar from beyond must be rejected with a reason.
    opens = time.dt.as_unit("us")
    if timeframe == "MN1":
        # A month that begins by the broker's clock may begin on the day before in UTC: March on 29 February, 22:00.
        # A month later that is 29 March, two days before the bar closes.
        day = pd.Timedelta(days=1).as_unit("us")
        closes: pd.Series = opens + day + pd.DateOffset(months=1) - day
    else:
        closes = opens + pd.Timedelta(minutes=TIMEFRAME_MINUTES[timeframe]).as_unit("us")
    return closes


def reject_reasons(bars: pd.DataFrame, timeframe: str, now: datetime, key: Sequence[str] = KEY_COLUMNS) -> pd.Series:
    """Say for each row why it is no valid closed bar, or None where it is one.

    `bars` has BAR_COLUMNS of one timeframe, `now` is aware. The first rule that fails gives the reason.
    Of rows that repeat a `key` (REVISION_KEY where revisions of a bar are no repetition) with equal values the first is
    valid; rows that repeat a key with different values contradict each other, so all of them are rejected.
    """
    prices = bars[list(PRICE_COLUMNS)].to_numpy(dtype=float)
    open_, high, low, close = prices.T
    volume = bars["volume"].to_numpy(dtype=float)
    closes = close_time(bars["time"], timeframe)
    instant = pd.Timestamp(now)
    repeats_row = bars.duplicated([*key, *VALUE_COLUMNS]).to_numpy()
    repeats_key = np.zeros(len(bars), dtype=bool)
    repeats_key[~repeats_row] = bars[~repeats_row].duplicated(list(key), keep=False)
    symbol, names = pd.factorize(bars["symbol"])
    # The last is that of a missing one, whose number is -1.
    valid_symbol = np.array([*map(is_valid_symbol, names), False])
    unusual = [bars[name].to_numpy(dtype=float) for name in OPTIONAL_COLUMNS]
    # NaN passes every comparison below as False, so finiteness comes first.
    rules: list[tuple[str, Any]] = [
        ("invalid_symbol", ~valid_symbol[symbol]),
        ("wrong_timeframe", (bars["timeframe"] != timeframe).to_numpy()),
        ("missing_time", bars["time"].isna().to_numpy()),
        ("price_not_finite", ~np.isfinite(prices).all(axis=1)),
        ("price_not_positive", (prices <= 0).any(axis=1)),
        ("high_below_low", high < low),
        ("open_outside_range", (open_ > high) | (open_ < low)),
        ("close_outside_range", (close > high) | (close < low)),
        ("volume_not_finite", ~np.isfinite(volume)),
        ("volume_negative", volume < 0),
        ("volume_not_exact", volume >= VOLUME_LIMIT),
        ("optional_value_invalid", np.any([~np.isnan(x) & (~np.isfinite(x) | (x < 0)) for x in unusual], axis=0)),
        ("adjusted_close_not_positive", unusual[0] <= 0),
        ("from_the_future", (bars["time"] > instant).to_numpy()),
        ("not_closed_yet", (closes > instant).to_numpy()),
        ("duplicate", repeats_row),
        ("contradicting_duplicate", repeats_key),
    ]
    reasons = np.full(len(bars), None, dtype=object)
    for reason, broken in reversed(rules):
        reasons[broken] = reason
    return pd.Series(reasons, index=bars.index, name="reason", dtype=object)


def adjusted(bars: pd.DataFrame) -> pd.DataFrame:
    """Return bars whose prices are scaled by adjusted_close / close, row by row, so that splits make no jump.

    Rows without an adjusted close keep their prices. The input is untouched.
    """
    if "adjusted_close" not in bars:
        return bars
    factor = (bars["adjusted_close"] / bars["close"]).fillna(1.0)
    return bars.assign(**{name: bars[name] * factor for name in PRICE_COLUMNS})


def spread_share(bars: pd.DataFrame) -> pd.Series:
    """Return each bar's recorded spread as a share of its close, NaN where none is recorded or the point is unknown.

    `bars` has symbol, open, high, low, close, spread, as the terminal gave them, not adjusted. MetaTrader 5 counts the
    spread in points, and a point is the last decimal of the symbol's prices (SYMBOL_POINT): as many decimals as its
    prices need. Where that is more than eight, prices were computed, and no point can be told from them.
    """
    prices = bars[list(PRICE_COLUMNS)].to_numpy(dtype=float)
    needed = np.zeros(len(bars))
    for decimals in range(_MOST_DECIMALS + 1):
        needed[(np.round(prices, decimals) != prices).any(axis=1)] = decimals + 1
    needed[needed > _MOST_DECIMALS] = np.inf
    # The other way round, 10 ** -decimals, would not give the nearest double to a point.
    points_per_unit = 10.0 ** pd.Series(needed, index=bars.index).groupby(bars["symbol"]).transform("max")
    share: pd.Series = bars["spread"] / points_per_unit.where(np.isfinite(points_per_unit)) / bars["close"]
    return share


def month_of(time: pd.Series) -> pd.Series:
    """Return the month each UTC time lies in, as '2024-05': the partition key of the lake; NaN for NaT."""
    # Formatted once a month, not once a row.
    codes, months = pd.factorize(time.dt.tz_localize(None).to_numpy().astype("datetime64[M]"))
    names = np.append(np.datetime_as_string(months).astype(object), np.nan)
    return pd.Series(names[codes], index=time.index, dtype=object)


def closed_revisions(revisions: pd.DataFrame, timeframe: str) -> pd.DataFrame:
    """Return valid revisions of closed bars as the lake keeps them: event_timestamp added, sorted by bar and version.

    `revisions` has the columns of BAR_SCHEMA. A bar exists from its close on: what was recorded of it while it formed
    is one version, the last, known and recorded at the close. Otherwise history would change when the bar closes.
    """
    # By the true known_at, which tells the versions of a forming bar apart.
    bars = revisions.sort_values(["symbol", "time", "known_at"], kind="stable", ignore_index=True)
    closes = close_time(bars["time"], timeframe)
    forming = bars["recorded_at"] <= closes
    bars["known_at"] = bars["known_at"].mask(forming, closes)
    bars["recorded_at"] = bars["recorded_at"].mask(forming, closes)
    bars["event_timestamp"] = closes
    return bars.drop_duplicates(list(REVISION_KEY), keep="last", ignore_index=True)


def latest_revisions(revisions: pd.DataFrame, as_of: datetime | None = None) -> pd.DataFrame:
    """Return one row per bar, sorted by symbol and time: its latest revision of those recorded by `as_of`.

    `revisions` has columns symbol, time, known_at and recorded_at (aware), of one timeframe. The latest is the last by
    known_at, then recorded_at. `as_of` is aware; None means everything.
    """
    known = revisions if as_of is None else revisions[revisions["recorded_at"] <= as_of]
    ordered = known.sort_values(["symbol", "time", "known_at", "recorded_at"], kind="stable")
    return ordered.drop_duplicates(["symbol", "time"], keep="last", ignore_index=True)


def instant(text: str) -> datetime:
    """Return an ISO 8601 time with its offset in UTC; raise ConfigurationError when it is none or has no offset."""
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ConfigurationError(
        f"{text!r} is no instant: write a time with its offset, for example 2026-01-31T18:00:00+00:00"
    )
