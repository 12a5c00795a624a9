"""Several ways to the same features, and the comparison of their bits."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.features import FeatureConfig, FeatureStream, find_feature
from tests.core.samples import INPUTS, bits

DEFAULT = FeatureConfig()
SCALE_FREE = FeatureConfig.scale_free()
ALL = FeatureConfig(tuple(dict.fromkeys([*DEFAULT.features, *SCALE_FREE.features])))
CALENDAR = tuple(name for name in ALL.features if find_feature(name).group == "calendar")


@dataclass
class Comparison:
    """Compares bits, and counts the values that it compared, and those of them that are not missing."""

    values: int = 0
    numbers: int = 0

    def same(self, actual: np.ndarray, expected: np.ndarray, config: FeatureConfig) -> None:
        """Rows of the features of `config`: every double must have the bits it is expected to have."""
        assert actual.shape == expected.shape
        different = bits(actual) != bits(expected)
        if different.any():
            names = np.array(config.features)[different.any(axis=0)].tolist()
            row, column = np.argwhere(different)[0]
            raise AssertionError(
                f"{different.sum()} of {different.size} values have other bits, of {', '.join(names)}; the first:"
                f" {actual[row, column]!r} in place of {expected[row, column]!r} in row {row}"
            )
        self.values += actual.size
        self.numbers += actual.size - int(np.isnan(expected).sum())


def assert_same_bits(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert actual.index.equals(expected.index) and actual.columns.equals(expected.columns)
    Comparison().same(actual.to_numpy(), expected.to_numpy(), FeatureConfig(tuple(expected.columns)))


def symbol_rows(bars: pd.DataFrame) -> dict[str, np.ndarray]:
    """Positions of each symbol's rows."""
    return {symbol: np.flatnonzero(bars["symbol"] == symbol) for symbol in bars["symbol"].unique()}


def as_symbols(bars: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """The bars at `rows`, a line of positions for each symbol of the new frame."""
    slices, length = rows.shape
    return bars.iloc[rows.ravel()].assign(symbol=np.repeat(np.arange(slices), length)).reset_index(drop=True)


def from_stream(bars: pd.DataFrame, config: FeatureConfig, stream: FeatureStream | None = None) -> np.ndarray:
    """The features of every row of `bars`, fed one bar after the other in time order; all symbols interleaved."""
    stream = stream or FeatureStream(config)
    order = np.argsort(bars["time"].to_numpy(), kind="stable")
    columns = [bars[name].to_numpy() for name in ("symbol", *INPUTS)]
    times = bars["time"].dt.to_pydatetime() if bars["time"].dt.unit != "ns" else bars["time"].tolist()
    values = np.empty((len(bars), len(config.features)))
    for row in order:
        symbol, *bar = [column[row] for column in columns]
        values[row] = stream.push(symbol, times[row], *bar).values
    return values
