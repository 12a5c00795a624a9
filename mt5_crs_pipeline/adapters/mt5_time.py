"""Broker time to UTC: MetaTrader 5 stamps bars with server time, which is not UTC."""

import zoneinfo
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from mt5_crs_pipeline.core.errors import ConfigurationError

# The stubs of the compute functions reject plain Python arguments.
pc: Any = pyarrow.compute

SERVER_ZONE: Final = "mt5-server"
"""New York wall clock + 7 hours, so that the trading day begins at midnight: UTC+2/+3, US daylight saving."""

_SERVER_BASE: Final = "America/New_York"
_SERVER_AHEAD: Final = timedelta(hours=7)

# Days are written 2025-06-23, 2025.06.23, 2025/06/23 or 20250623. Day-first and month-first dates cannot be told apart.
_TIME_TEXT: Final = (
    r"^\s*(?P<day>\d{4}-\d{2}-\d{2}|\d{4}\.\d{2}\.\d{2}|\d{4}/\d{2}/\d{2}|\d{8})"
    r"(?:[ T](?P<clock>\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?))?"
    r"\s*(?P<offset>[Zz]|UTC|[+-]\d{2}(?::?\d{2})?)?\s*$"
)
# Nine or ten digits are seconds since 1970: from 1973 to 2286, and never a date or a row number.
_EPOCH_TEXT: Final = r"^\s*(?P<seconds>\d{9,10})(?:\.0*)?\s*$"


def check_timezone(timezone: str) -> str:
    """Return `timezone`, or raise ConfigurationError when it is neither `mt5-server` nor an IANA name."""
    if timezone == SERVER_ZONE:
        return timezone
    try:
        zoneinfo.ZoneInfo(timezone)
        pd.DatetimeIndex([]).tz_localize(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"time zone {timezone!r} is unknown: use {SERVER_ZONE} (New York + 7 hours) or an IANA name, "
            "for example Europe/Athens"
        ) from error
    return timezone


def zone_to_utc(naive: pd.Series, timezone: str) -> pd.Series:
    """Return wall-clock times of `timezone` as datetime64[us, UTC]; NaT where nonexistent or unresolvable.

    Order matters: of a wall time that occurs twice in a daylight-saving fold, the first is daylight time.
    Raises ConfigurationError for an unknown zone.
    """
    return place_in_time(naive, timezone)[0]


def place_in_time(naive: pd.Series, timezone: str) -> tuple[pd.Series, pd.Series]:
    """Return the times of `zone_to_utc`, and why a time has no place: a reason, or None where it has one.

    Reasons are unreadable_time (NaT came in), nonexistent_time and ambiguous_time.
    """
    check_timezone(timezone)
    is_server = timezone == SERVER_ZONE
    wall = pd.DatetimeIndex(naive.astype("datetime64[us]")) - (_SERVER_AHEAD if is_server else timedelta())
    # The zone goes to pandas by name: its zoneinfo path takes 70 times as long.
    zone = _SERVER_BASE if is_server else timezone
    daylight, standard = (
        wall.tz_localize(zone, ambiguous=np.full(len(wall), first), nonexistent="NaT").tz_convert("UTC")
        for first in (True, False)
    )
    times = pd.Series(daylight, index=naive.index, name=naive.name)
    reasons = pd.Series(np.full(len(wall), None, dtype=object), index=naive.index, dtype=object)
    reasons[times.isna()] = "nonexistent_time"
    reasons[naive.isna()] = "unreadable_time"
    folded = np.flatnonzero(~times.isna().to_numpy() & (daylight != standard))
    if folded.size:
        resolved = _resolve_fold(wall[folded], daylight[folded], standard[folded])
        times.iloc[folded] = resolved
        reasons.iloc[folded[resolved.isna()]] = "ambiguous_time"
    return times, reasons


def _resolve_fold(wall: pd.DatetimeIndex, daylight: pd.DatetimeIndex, standard: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Return the UTC time of each ambiguous wall time that occurs exactly twice, NaT for the others.

    A fold whose resolved times do not ascend in file order (repeated rows, newest first) is not resolved at all.
    """
    walls = pd.Series(wall)
    occurrences = walls.groupby(walls)
    first = occurrences.cumcount() == 0
    resolved = pd.Series(daylight).where(first, pd.Series(standard)).where(occurrences.transform("size") == 2)
    month = walls.dt.year * 12 + walls.dt.month
    known = resolved.dropna()
    ascends = known.groupby(month[known.index]).is_monotonic_increasing
    return pd.DatetimeIndex(resolved.where(month.isin(ascends.index[ascends])))


def parse_times(column: "pa.ChunkedArray[Any]") -> tuple[pd.Series, pd.Series]:
    """Return the wall-clock time each cell shows, and its offset from UTC: datetime64[us] and timedelta64.

    `column` holds text, numbers (seconds since 1970), dates or timestamps. The time is NaT where a cell cannot be
    read, the offset is NaT where a cell carries none.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).to_pandas()
        wall = stamps.dt.tz_localize(None).astype("datetime64[us]")
        if stamps.dt.tz is None:
            return wall, pd.Series(pd.NaT, index=wall.index, dtype="timedelta64[us]")
        return wall, wall - stamps.dt.tz_convert(None).astype("datetime64[us]")
    return _parse_time_text(_as_text(column))


def _as_text(column: "pa.ChunkedArray[Any]") -> "pa.Array[Any]":
    """Return a text or number column as text; a number that is not whole becomes null."""
    cells = column.combine_chunks()
    if pa.types.is_floating(cells.type):
        numbers = cells.to_numpy(zero_copy_only=False).astype(float)
        whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53) & (numbers == np.trunc(numbers))
        cells = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return cells.cast(pa.string())


def _parse_time_text(text: "pa.Array[Any]") -> tuple[pd.Series, pd.Series]:
    parts = pc.extract_regex(text, _TIME_TEXT)
    day = pc.replace_substring(pc.replace_substring(pc.struct_field(parts, "day"), ".", "-"), "/", "-")
    clock = pc.struct_field(parts, "clock")
    clock = pc.if_else(pc.equal(clock, ""), "00:00", clock)
    stamps = pc.binary_join_element_wise(day, clock, "T").to_pandas()
    wall = pd.to_datetime(stamps, format="ISO8601", errors="coerce").astype("datetime64[us]")
    offset = _parse_offsets(pc.struct_field(parts, "offset"))
    if wall.isna().any():
        seconds = pc.struct_field(pc.extract_regex(text, _EPOCH_TEXT), "seconds").cast(pa.int64())
        wall = wall.fillna(seconds.cast(pa.timestamp("s")).cast(pa.timestamp("us")).to_pandas())
    return wall, offset.where(wall.notna())


def _parse_offsets(text: "pa.Array[Any]") -> pd.Series:
    """Return 'Z', 'UTC', '+02', '+0200' or '+02:00' as timedelta64, NaT where empty or null."""
    distinct = text.dictionary_encode()
    known = [_offset(str(value)) for value in distinct.dictionary.to_pylist()]
    codes = distinct.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return pd.Series(np.array([*known, np.timedelta64("NaT")], dtype="timedelta64[us]")[codes])


def _offset(text: str) -> np.timedelta64:
    if not text:
        return np.timedelta64("NaT", "us")
    if text[0] not in "+-":
        return np.timedelta64(0, "us")
    digits = text[1:].replace(":", "").ljust(4, "0")
    minutes = int(digits[:2]) * 60 + int(digits[2:])
    return np.timedelta64((-minutes if text[0] == "-" else minutes) * 60_000_000, "us")


def to_server_time(instant: datetime) -> datetime:
    """Return an aware instant as MetaTrader 5 wants it asked for: server wall clock, labelled UTC.

    Raises ConfigurationError when `instant` is naive.
    """
    if instant.tzinfo is None:
        raise ConfigurationError(f"time {instant.isoformat()} has no time zone: pass an aware time, for example in UTC")
    server = pd.Timestamp(instant).tz_convert(_SERVER_BASE).tz_localize(None) + _SERVER_AHEAD
    return server.tz_localize("UTC").to_pydatetime()
