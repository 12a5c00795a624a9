"""Bars taken over from a table somebody else fills, in chunks."""

from collections.abc import Iterator
from decimal import Decimal
from numbers import Real

import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.bar_store import foreign_columns, read_foreign_table
from mt5_crs_pipeline.adapters.mt5_time import zone_to_utc
from mt5_crs_pipeline.adapters.postgres import Connection
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, PRICE_COLUMNS, REQUIRED_COLUMNS, TIMEFRAMES, VALUE_COLUMNS
from mt5_crs_pipeline.core.errors import ConfigurationError, InputError

CHUNK_ROWS = 100_000
_OTHER_NAMES = {
    "symbol": ("ticker", "instrument"),
    "time": ("timestamp", "datetime", "date", "event_timestamp", "open_time"),
    "adjusted_close": ("adj_close", "adjclose"),
    "volume": ("tick_volume", "tickvol", "vol"),
}


def map_columns(connection: Connection, table: str, given: dict[str, str], constants: set[str]) -> dict[str, str]:
    """Return our column name -> the table's, from `given`, equal names and common other names.

    `constants` are columns the caller knows otherwise (symbol, timeframe). Raises InputError or ConfigurationError
    naming the table, its columns and what is missing.
    """
    columns = foreign_columns(connection, table)
    if not columns:
        raise InputError(f"table {table!r} does not exist in that database, or has no columns you may read")
    unknown = [ours for ours in given if ours not in BAR_COLUMNS]
    absent = [theirs for theirs in given.values() if theirs not in columns]
    if unknown or absent:
        raise ConfigurationError(
            f"column mapping names {', '.join(unknown + absent)}: left of = stands one of {', '.join(BAR_COLUMNS)},"
            f" right of it one of {', '.join(columns)}"
        )
    lower = {name.lower(): name for name in columns}
    mapping = dict(given)
    for ours in BAR_COLUMNS:
        found = next((lower[name] for name in (ours, *_OTHER_NAMES.get(ours, ())) if name in lower), None)
        if ours not in mapping and ours not in constants and found:
            mapping[ours] = found
    needed = {"symbol", "timeframe", "time", *REQUIRED_COLUMNS} - constants
    missing = sorted(needed - set(mapping))
    if missing:
        raise InputError(
            f"table {table!r} has no column for {', '.join(missing)} (it has {', '.join(columns)}):"
            f" name them with --column {missing[0]}=THEIRS, or give --symbol / --timeframe"
        )
    return mapping


def read_bars_from_table(
    connection: Connection, table: str, mapping: dict[str, str], constants: dict[str, str], timezone: str
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (timeframe, bars) chunk by chunk; bars have BAR_COLUMNS and `reason` where a row could not be read.

    Naive times are read in `timezone`, whole numbers as seconds since 1970 in that zone's wall clock.
    """
    for rows in read_foreign_table(connection, table, mapping, CHUNK_ROWS):
        bars = _as_bars(rows.assign(**constants), timezone)
        # Rows of no known timeframe go along with any: their reason keeps them out of it.
        known = bars["timeframe"].where(bars["timeframe"].isin(TIMEFRAMES), TIMEFRAMES[0])
        for timeframe, part in bars.groupby(known, sort=False):
            yield str(timeframe), part.reset_index(drop=True)


def _as_bars(rows: pd.DataFrame, timezone: str) -> pd.DataFrame:
    names = rows[["symbol", "timeframe"]].astype(object)
    bars = names.astype(str).where(names.notna(), None)
    bars["time"] = _utc(rows["time"], timezone)
    reason = pd.Series(None, index=rows.index, dtype=object)
    for name in VALUE_COLUMNS:
        given = rows[name] if name in rows else pd.Series(np.nan, index=rows.index)
        bars[name] = pd.to_numeric(given, errors="coerce").astype(float)
        reason[given.notna() & bars[name].isna() & (given.astype(str).str.lower() != "nan")] = "unreadable_number"
        if name in PRICE_COLUMNS or name == "volume":
            reason[given.isna()] = "missing_value"
    reason[rows["time"].notna() & bars["time"].isna()] = "unreadable_or_ambiguous_time"
    reason[~bars["timeframe"].isin(TIMEFRAMES)] = "unknown_timeframe"
    return bars.assign(reason=reason)


def _utc(time: pd.Series, timezone: str) -> pd.Series:
    if time.map(lambda t: isinstance(t, Real | Decimal)).any():
        time = pd.to_datetime(pd.to_numeric(time, errors="coerce"), unit="s", errors="coerce")
    parsed = pd.to_datetime(
        time, errors="coerce", utc=bool(time.map(lambda t: getattr(t, "tzinfo", None)).notna().any())
    )
    if parsed.dt.tz is None:
        parsed = zone_to_utc(parsed, timezone)
    return parsed.dt.tz_convert("UTC").dt.as_unit("us")
