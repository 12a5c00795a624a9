"""Features of bars in data frames: the public calls."""

import math
from collections.abc import Callable
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.config import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.features.declaration import find_feature
from mt5_crs_pipeline.core.features.engine import NO_ROWS, evaluate
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.labels import TARGET, direction_target
from mt5_crs_pipeline.core.panel import Array, Panel, Rows


def feature_frame(
    bars: pd.DataFrame, config: FeatureConfig | None = None, *, threads: int | None = None
) -> pd.DataFrame:
    """Return the features alone for every bar, in the frame's own row order and index; warm-up rows are NaN.

    `bars` has columns time (open, aware UTC), open, high, low, close, volume, and symbol unless there is only one; rows
    may come in any order. The input is untouched. Raises InputError as Panel does.
    """
    config = config or FeatureConfig()
    panel = Panel(bars, INPUTS)
    values = unfilled(len(config.features), len(panel))
    evaluate(config.program, panel, values, destination=panel.source, threads=threads)
    return pd.DataFrame(values.T, index=bars.index, columns=get_feature_names(config), copy=False)


def write_features(bars: pd.DataFrame, config: FeatureConfig, values: Array, destination: Rows) -> None:
    """Write the features of each bar into values[feature, destination]; a bar with a negative destination is left out.

    `bars` as for `feature_frame`; `destination` is in its row order.
    """
    panel = Panel(bars, INPUTS)
    evaluate(config.program, panel, values, destination=destination[panel.source] if len(panel.source) else destination)


def compute_features(
    df: pd.DataFrame, config: FeatureConfig | None = None, include_target: bool = False, *, threads: int | None = None
) -> pd.DataFrame:
    """Return the input's columns plus the features, without the rows whose features are incomplete.

    With `include_target` also the column `target` (1.0 when the next close is higher, else 0.0), without the rows whose
    next bar is missing. Columns as in `feature_frame`.
    """
    config = config or FeatureConfig()
    panel = Panel(df, INPUTS)
    skip = config.lookback - 1
    kept = _Kept(panel, skip)
    destination = NO_ROWS
    if len(panel.source):
        destination = np.full(len(panel), -1)
        destination[kept.rows] = np.arange(len(kept))
        destination = destination[panel.source]
    names = get_feature_names(config)
    result = _Result(df, kept, [*names, TARGET] if include_target else names)
    complete = evaluate(
        config.program,
        panel,
        result.added[: len(names)],
        skip=skip,
        destination=destination,
        threads=threads,
        meanwhile=result.copies(),
    )
    if include_target:
        result.added[-1] = direction_target(df).to_numpy()[kept.rows]
        complete &= ~np.isnan(result.added[-1])
    frame = result.frame()
    return frame if complete.all() else frame[complete]


def unfilled(*shape: int) -> Array:
    """Return an unfilled array.

    Arrow's allocator gives the pages of a result that is gone to the next one, where NumPy asks the system for zeroed
    ones: a third of the time of a million rows.
    """
    buffer = pa.allocate_buffer(8 * math.prod(shape))
    return np.frombuffer(buffer, dtype=np.float64).reshape(shape)


class _Kept:
    """The frame rows, ascending, that have at least `skip` bars of their symbol before them."""

    def __init__(self, panel: Panel, skip: int) -> None:
        starts = np.minimum(panel.starts[:-1] + skip, panel.starts[1:])
        runs = [slice(start, end) for start, end in zip(starts.tolist(), panel.starts[1:].tolist(), strict=True)]
        # Where the frame is in the panel's order and its symbols are long, they are copied as they stand.
        self._runs = runs if not len(panel.source) and 100 * len(runs) < len(panel) else []
        self._panel, self._all_runs = panel, runs
        self._count: int = sum(run.stop - run.start for run in runs)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def rows(self) -> Rows:
        """Their positions in the frame."""
        if self._runs:
            return np.concatenate([np.arange(run.start, run.stop) for run in self._runs])
        late = np.zeros(len(self._panel), dtype=np.bool_)
        for run in self._all_runs:
            late[run] = True
        return np.flatnonzero(self._panel.in_frame_order(late))

    def of(self, values: Any, out: Array | None = None) -> Any:
        """Return these rows of an array, NumPy's or pandas', in `out` if given."""
        if not self._runs or not isinstance(values, np.ndarray):
            return values.take(self.rows) if out is None else np.take(values, self.rows, out=out, mode="clip")
        return np.concatenate([values[run] for run in self._runs], out=out)


class _Result:
    """The `kept` rows of a frame with columns `names` added, which are the rows of `added`.

    The input's doubles share one array with them, so that no column is copied twice; `copies` fill in what is the
    input's. A column of the input that is called like one of them is replaced.
    """

    def __init__(self, df: pd.DataFrame, kept: _Kept, names: list[str]) -> None:
        again = [name for name in names if name in df]
        self._input = df.drop(columns=again) if again else df
        self._kept = kept
        self._names = names
        doubles = np.flatnonzero(self._input.dtypes == np.float64)
        self._block = unfilled(len(doubles) + len(names), len(kept))
        self._doubles = dict(zip(doubles.tolist(), self._block, strict=False))
        self._others: dict[int, Any] = {}
        self.added = self._block[len(doubles) :]

    def copies(self) -> list[Callable[[], None]]:
        """Return the calls that copy the input's columns."""
        return [*(partial(self._copy, at) for at in range(self._input.shape[1])), self._copy_index]

    def _copy_index(self) -> None:
        self._index = self._input.index.take(self._kept.rows)

    def _copy(self, at: int) -> None:
        column = self._input.iloc[:, at]
        values = column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array
        if at in self._doubles:
            self._kept.of(values, self._doubles[at])
        else:
            self._others[at] = self._kept.of(values)

    def frame(self) -> pd.DataFrame:
        columns = [*self._input.columns, *self._names]
        # Parts side by side: pandas copies a column that is inserted into a frame.
        parts: list[pd.DataFrame] = []
        first = 0
        for is_double, run in groupby(range(len(columns)), key=lambda at: at not in self._others):
            positions = [*run]
            if is_double:
                values = self._block[first : first + len(positions)].T
                first += len(positions)
                parts.append(pd.DataFrame(values, index=self._index, copy=False))
            else:
                others = {at: self._others[at] for at in positions}
                parts.append(pd.DataFrame(others, index=self._index, copy=False))
        # pandas 2 has `copy`, its stubs do not.
        frame: pd.DataFrame = pd.concat(parts, axis=1, copy=False)  # type: ignore[call-overload]
        frame.columns = pd.Index(columns, name=self._input.columns.name)
        frame.attrs = dict(self._input.attrs)
        return frame


def _with_group(df: pd.DataFrame, config: FeatureConfig | None, group: str) -> pd.DataFrame:
    names = [feature.name for feature in (config or FeatureConfig()).declared if feature.group == group]
    if not names:
        return df.copy()
    features = feature_frame(df, FeatureConfig(tuple(names)))
    # By position: a join would multiply the rows of a frame that repeats index labels.
    return df.assign(**{name: features[name].to_numpy() for name in names})


def compute_price_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the price features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "price")


def compute_moving_averages(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the moving averages; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "moving_average")


def compute_momentum_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the momentum features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "momentum")


def compute_volatility_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the volatility features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "volatility")


def compute_technical_indicators(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the oscillators (RSI and its kin); every row is kept, warm-up is NaN."""
    return _with_group(df, config, "technical")


def compute_volume_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus the volume features; every row is kept, warm-up is NaN."""
    return _with_group(df, config, "volume")


def compute_calendar_features(df: pd.DataFrame, config: FeatureConfig | None = None) -> pd.DataFrame:
    """Return the input's columns plus what is read from the bar's own time; every row is kept."""
    return _with_group(df, config, "calendar")


def compute_rsi(close: pd.Series, window: int = 14) -> pd.Series:
    """Return the relative strength index of one symbol's closes in time order; NaN for the first `window` rows."""
    if not isinstance(window, int) or window < 1:
        raise ConfigurationError(f"RSI window {window!r} is not a count of bars from 1")
    name = find_feature(f"rsi_{window}").name
    time = pd.to_datetime(np.arange(len(close)), unit="s", utc=True)
    panel = Panel(pd.DataFrame({"time": time, "close": close.array}, index=close.index), ("close",))
    bars = pd.DataFrame({"time": time, **dict.fromkeys(INPUTS, panel.columns["close"])}, index=close.index)
    return feature_frame(bars, FeatureConfig((name,)))[name]
