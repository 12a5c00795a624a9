"""Bars of many symbols laid out for vectorised work: symbol after symbol, each in time order."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError

Array = npt.NDArray[np.float64]


class Panel:
    """Columns of a bar frame, sorted by symbol and time, with each row's age within its symbol.

    A frame without a `symbol` column is one symbol. `lagged` looks back over the previous rows without regard to
    symbols: a value is meaningful where `age` is at least the lag, and the caller blanks the rest.
    Raises InputError, naming the column and the first offending row, for a missing or non-numeric column, a missing
    symbol, times that are not aware, and repeated (symbol, time).
    """

    def __init__(self, bars: pd.DataFrame, columns: Iterable[str]) -> None:
        time = _aware_time(bars)
        symbols = _symbol_codes(bars)
        self.order = np.lexsort((time, symbols))
        symbols, time = symbols[self.order], time[self.order]
        starts = np.r_[True, symbols[1:] != symbols[:-1]] if len(bars) else np.zeros(0, dtype=bool)
        repeated = np.flatnonzero(~starts[1:] & (time[1:] == time[:-1]))
        if len(repeated):
            row = bars.iloc[self.order[repeated[0] + 1]]
            raise InputError(
                f"two rows for symbol {row.get('symbol', '(one symbol)')!r} at time {row['time']}: keep one"
            )
        position = np.arange(len(bars))
        self.age = position - np.maximum.accumulate(np.where(starts, position, 0))
        self._columns = {name: _numbers(bars, name)[self.order] for name in columns}

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, column: str) -> Array:
        return self._columns[column]

    def in_frame_order(self, values: Array) -> Array:
        """Return `values`, which follow this panel, in the row order of the frame it was made from."""
        result = np.empty_like(values)
        result[self.order] = values
        return result


def lagged(values: Array, bars: int) -> Array:
    """Return the value `bars` rows earlier (later, when negative); NaN where there is none."""
    if bars == 0:
        return values
    result = np.full(len(values), np.nan)
    if bars > 0:
        result[bars:] = values[:-bars]
    else:
        result[:bars] = values[-bars:]
    return result


def _symbol_codes(bars: pd.DataFrame) -> npt.NDArray[np.int64]:
    if "symbol" not in bars:
        return np.zeros(len(bars), dtype=np.int64)
    codes: npt.NDArray[np.int64] = pd.factorize(bars["symbol"])[0]
    if (codes < 0).any():
        raise InputError(f"column 'symbol' is missing in row {bars.index[codes < 0][0]}")
    return codes


def _aware_time(bars: pd.DataFrame) -> npt.NDArray[np.int64]:
    if "time" not in bars:
        raise InputError(f"column 'time' is missing; the frame has {', '.join(map(str, bars.columns)) or 'no columns'}")
    if not isinstance(bars["time"].dtype, pd.DatetimeTZDtype):
        raise InputError(
            f"column 'time' is {bars['time'].dtype}: make it aware UTC, for example .dt.tz_localize('UTC')"
        )
    if bars["time"].isna().any():
        raise InputError(f"column 'time' is missing in row {bars.index[bars['time'].isna()][0]}")
    return bars["time"].to_numpy(dtype="datetime64[ns]").astype(np.int64)


def _numbers(bars: pd.DataFrame, name: str) -> Array:
    if name not in bars:
        raise InputError(f"column {name!r} is missing; the frame has {', '.join(map(str, bars.columns))}")
    column = bars[name]
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        wrong = [(row, value) for row, value in column.items() if not isinstance(value, (int, float))][:1]
        found = "".join(f": row {row} holds {value!r}" for row, value in wrong)
        raise InputError(f"column {name!r} is {column.dtype}, not a number{found}")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    inexact = pd.api.types.is_integer_dtype(column.dtype) & (np.abs(values) >= 2**53)
    if inexact.any():
        first = int(inexact.argmax())
        raise InputError(
            f"column {name!r} holds {column.iloc[first]} in row {column.index[first]}:"
            " a double cannot hold integers from 2^53"
        )
    return values
