"""Bars of many symbols as the kernel reads them: each symbol's rows together, in time order."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Value = TypeVar("Value", bound=np.generic)


class Panel:
    """The columns of a bar frame, and the order in which its rows are one symbol after the other, each in time order.

    `source` is the frame row of each panel row, and empty where the frame is in that order already; `starts` the panel
    row at which each symbol starts, and the row count. `columns` and `time` (int64 ticks, UTC) are in frame order.
    A frame without a `symbol` column is one symbol. The frame is neither changed nor copied where it holds doubles.
    Raises InputError, naming the column and the first offending row, for a missing or non-numeric column, a missing
    symbol, times that are not aware, and repeated (symbol, time).
    """

    def __init__(self, bars: pd.DataFrame, columns: Iterable[str]) -> None:
        self.time, self.ticks_per_hour = _aware_time(bars)
        self.columns = {name: _numbers(bars, name) for name in columns}
        runs, codes = _symbol_runs(bars)
        # In order: no symbol comes back after another, and the time rises within each.
        falls = np.flatnonzero(self.time[1:] <= self.time[:-1]) + 1
        if codes.max(initial=-1) + 1 == len(codes) and np.isin(falls, runs).all():
            self.source, self.starts = np.zeros(0, dtype=np.int64), np.append(runs, len(bars))
            return
        by_row = np.repeat(codes, np.diff(runs, append=len(bars)))
        self.source = _sorted_rows(by_row, self.time)
        symbol, time = by_row[self.source], self.time[self.source]
        changes = symbol[1:] != symbol[:-1]
        repeated = np.flatnonzero(~changes & (time[1:] == time[:-1]))
        if len(repeated):
            row = bars.iloc[self.source[repeated[0] + 1]]
            raise InputError(
                f"two rows for symbol {row.get('symbol', '(one symbol)')!r} at time {row['time']}: keep one"
            )
        self.starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(bars)]])

    def __len__(self) -> int:
        return len(self.time)

    def in_panel_order(self, column: str) -> Array:
        """Return a column symbol after symbol, each in time order."""
        values = self.columns[column]
        return values[self.source] if len(self.source) else values

    def in_frame_order(self, values: npt.NDArray[Value]) -> npt.NDArray[Value]:
        """Return `values`, which follow the panel's order, in the frame's."""
        if not len(self.source):
            return values
        result = np.empty_like(values)
        result[self.source] = values
        return result


def _symbol_runs(bars: pd.DataFrame) -> tuple[Rows, Rows]:
    """Return where each run of rows of one symbol starts, and its symbol as a number from 0."""
    if not len(bars):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if "symbol" not in bars:
        return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    symbols = _column(bars, "symbol")
    try:
        # Comparing neighbours is cheaper than hashing every row's string.
        values = symbols.to_numpy() if symbols.dtype == object else _codes(symbols)
        changes = _changes(values)
    except (TypeError, ValueError):
        # pd.NA is neither equal nor unequal.
        values = _codes(symbols)
        changes = _changes(values)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    codes = _codes(values[starts]) if values.dtype == object else values[starts]
    if (codes < 0).any():
        raise InputError(f"column 'symbol' is missing in row {bars.index[starts[codes < 0][0]]}")
    return starts, codes


def _changes(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Return for each value but the first whether it differs from the one before it."""
    changes: npt.NDArray[np.bool_]
    if values.dtype != object:
        changes = values[1:] != values[:-1]
        return changes
    # Most neighbours are the very same object, and its address is cheaper to compare than what it says.
    address = np.asarray(SimpleNamespace(__array_interface__={**values.__array_interface__, "typestr": "<i8"}))
    changes = address[1:] != address[:-1]
    others = np.flatnonzero(changes) + 1
    if 10 * len(others) > len(values):
        changes = values[1:] != values[:-1]
    else:
        changes[others - 1] = values[others] != values[others - 1]
    return changes


def _codes(symbols: pd.Series | npt.NDArray[np.object_]) -> Rows:
    try:
        return pd.factorize(symbols)[0]
    except (TypeError, ValueError) as error:
        raise InputError(f"column 'symbol' holds what is no symbol: {error}") from error


def _sorted_rows(codes: Rows, time: Rows) -> Rows:
    """Return the rows ordered by symbol, then time."""
    # Small numbers are sorted by counting; rows that come in time order are then right.
    narrow = codes.astype(np.uint16) if len(codes) and codes.max() < 2**16 else codes
    rows = np.argsort(narrow, kind="stable")
    symbol, times = codes[rows], time[rows]
    if ((times[1:] > times[:-1]) | (symbol[1:] != symbol[:-1])).all():
        return rows
    return np.lexsort((time, codes))


def _column(bars: pd.DataFrame, name: str) -> pd.Series:
    if bars.columns.nlevels > 1:
        raise InputError(f"column {name!r} is not found: the frame's columns have {bars.columns.nlevels} levels")
    if name not in bars:
        raise InputError(f"column {name!r} is missing; the frame has {_names(bars)}")
    column = bars[name]
    if isinstance(column, pd.DataFrame):
        raise InputError(f"column {name!r} is there {column.shape[1]} times: keep one")
    return column


def _names(bars: pd.DataFrame) -> str:
    return ", ".join(map(str, bars.columns)) or "no columns"


def _aware_time(bars: pd.DataFrame) -> tuple[Rows, int]:
    """Return the times as ticks since 1970 in UTC, and how many make an hour."""
    column = _column(bars, "time")
    if isinstance(column.dtype, pd.ArrowDtype) and getattr(column.dtype.pyarrow_dtype, "tz", None):
        column = column.astype(pd.DatetimeTZDtype(column.dtype.pyarrow_dtype.unit, "UTC"))
    if not isinstance(column.dtype, pd.DatetimeTZDtype):
        raise InputError(f"column 'time' is {column.dtype}: make it aware UTC, for example .dt.tz_localize('UTC')")
    if column.isna().any():
        raise InputError(f"column 'time' is missing in row {bars.index[column.isna()][0]}")
    unit = column.dt.unit
    ticks = np.ascontiguousarray(column.array.view("i8"))
    return ticks, int(pd.Timedelta(hours=1) / pd.Timedelta(1, unit=unit))


def _numbers(bars: pd.DataFrame, name: str) -> Array:
    column = _column(bars, name)
    if column.dtype == np.float64:
        return np.ascontiguousarray(column.to_numpy())
    is_integer = pd.api.types.is_integer_dtype(column.dtype)
    if not (is_integer or pd.api.types.is_float_dtype(column.dtype)):
        wrong = [(row, value) for row, value in column.items() if not isinstance(value, (int, float))][:1]
        found = "".join(f": row {row} holds {value!r}" for row, value in wrong)
        raise InputError(f"column {name!r} is {column.dtype}, not a number{found}")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    inexact = is_integer & (np.abs(values) >= 2**53)
    if inexact.any():
        first = int(inexact.argmax())
        raise InputError(
            f"column {name!r} holds {column.iloc[first]} in row {column.index[first]}:"
            " a double cannot hold integers from 2^53"
        )
    return np.ascontiguousarray(values)
