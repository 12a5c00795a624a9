"""What compute_features does with the columns and the index of any frame: all of it comes back as it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, compute_price_features, feature_frame
from tests.core.features.comparing import DEFAULT, Comparison
from tests.core.samples import INPUTS, random_bars

COLUMNS = ["symbol", "time", *INPUTS]
NAMES = list(DEFAULT.features)


def plain() -> pd.DataFrame:
    """Bars of three symbols in time order, so that the rows that are left out are all over the frame."""
    return random_bars(length=60, seed=2)[COLUMNS].sort_values(["time", "symbol"], ignore_index=True)


def complete(bars: pd.DataFrame) -> np.ndarray:
    """True from the bar on with which each symbol has as many as the features read."""
    return (bars.groupby("symbol", observed=True)["time"].rank() >= DEFAULT.lookback).to_numpy()


EXTRA: dict[str, Callable[[int], Any]] = {
    "object": lambda n: pd.Series([{"row": row} if row % 2 else None for row in range(n)], dtype=object),
    "bool": lambda n: np.arange(n) % 3 == 0,
    "int8": lambda n: np.arange(n, dtype="int8"),
    "uint64": lambda n: np.arange(n, dtype="uint64") + 2**63,
    "float32": lambda n: np.linspace(0, 1, n, dtype="float32"),
    "complex": lambda n: np.arange(n) * 1j,
    "naive time": lambda n: pd.date_range("2020", periods=n, unit="s"),
    "aware time": lambda n: pd.date_range("2020", periods=n, tz="Asia/Kolkata", unit="ms"),
    "duration": lambda n: pd.to_timedelta(np.arange(n), unit="h"),
    "period": lambda n: pd.period_range("2020", periods=n, freq="M"),
    "interval": lambda n: pd.interval_range(0, n),
    "category": lambda n: pd.Categorical(["b", "a", None] * (n // 3), categories=["c", "b", "a"], ordered=True),
    "string": lambda n: pd.array(["x", None, "y"] * (n // 3), dtype="string"),
    "Int64": lambda n: pd.array([1, None, 2**60] * (n // 3), dtype="Int64"),
    "Float64": lambda n: pd.array([1.5, None, 2.5] * (n // 3), dtype="Float64"),
    "boolean": lambda n: pd.array([True, None, False] * (n // 3), dtype="boolean"),
    "sparse": lambda n: pd.arrays.SparseArray([0.0, np.nan, 1.0] * (n // 3)),
    "Arrow doubles": lambda n: pd.array([1.5, None, 2.5] * (n // 3), dtype="double[pyarrow]"),
    "Arrow lists": lambda n: pd.array([[1], None, [2, 3]] * (n // 3), dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    "Arrow time": lambda n: pd.array(pd.date_range("2020", periods=n, tz="UTC"), dtype="timestamp[ns, UTC][pyarrow]"),
}


@pytest.mark.parametrize("extra", [*EXTRA, "all"])
@pytest.mark.parametrize("include_target", [False, True])
def test_a_column_keeps_its_values_type_and_place(extra: str, include_target: bool) -> None:
    bars, names = plain(), list(EXTRA) if extra == "all" else [extra]
    for place, name in enumerate(names):
        bars.insert(2 * place % 5, name, EXTRA[name](len(bars)))
    untouched = bars.copy(deep=True)
    result = compute_features(bars, include_target=include_target)
    kept = complete(bars)
    if include_target:
        kept &= (bars["time"] < bars["time"].max()).to_numpy()
    assert 0 < kept.sum() < len(bars)
    assert result.columns.tolist() == [*bars.columns, *NAMES, *(["target"] if include_target else [])]
    pd.testing.assert_frame_equal(result[bars.columns], bars[kept])
    Comparison().same(result[NAMES].to_numpy(), feature_frame(plain())[kept].to_numpy(), DEFAULT)
    pd.testing.assert_frame_equal(bars, untouched)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", ["Float64", "double[pyarrow]", "int64", "Int64", "float32"])
def test_a_column_that_is_read_keeps_its_type(name: str, dtype: str) -> None:
    bars = plain().round().astype({name: dtype})
    result = compute_features(bars)
    assert result[name].dtype == dtype
    pd.testing.assert_frame_equal(result[COLUMNS], bars[complete(bars)])


@pytest.mark.parametrize("dtype", ["category", "string", "string[pyarrow]"])
def test_symbols_keep_their_type(dtype: str) -> None:
    bars = plain().astype({"symbol": dtype})
    pd.testing.assert_series_equal(compute_features(bars)["symbol"], bars["symbol"][complete(bars)])


INDEXES: dict[str, Callable[[int], Any]] = {
    "labels": lambda n: pd.Index([f"row {row}" for row in range(n)], name="label"),
    "repeated labels": lambda n: pd.Index([1, 2, 3] * (n // 3)),
    "one label": lambda n: pd.Index(["x"] * n),
    "missing labels": lambda n: pd.Index([np.nan, 1.0, 2.0] * (n // 3)),
    "time": lambda n: pd.date_range("2020", periods=n, tz="UTC", name="when"),
    "categories": lambda n: pd.CategoricalIndex(["a", "b", "a"] * (n // 3), name="kind"),
    "two levels": lambda n: pd.MultiIndex.from_arrays([np.arange(n), ["x", "y", "x"] * (n // 3)], names=["a", "b"]),
    "backwards": lambda n: pd.RangeIndex(n, 0, -1),
}


@pytest.mark.parametrize("index", list(INDEXES))
def test_an_index_keeps_its_labels_and_names(index: str) -> None:
    bars = plain().set_axis(INDEXES[index](180))
    expected = feature_frame(plain()).set_axis(bars.index)
    result = compute_features(bars)
    pd.testing.assert_index_equal(result.index, bars.index[complete(bars)], exact="equiv")
    pd.testing.assert_frame_equal(result[COLUMNS], bars[complete(bars)])
    pd.testing.assert_frame_equal(result[NAMES], expected[complete(bars)])
    pd.testing.assert_frame_equal(feature_frame(bars), expected)


def test_a_column_called_like_a_feature_is_replaced() -> None:
    bars = plain().assign(sma_5="old", note="kept", rsi_14=pd.array([None] * 180, dtype="Int64"))
    result = compute_features(bars)
    assert result.columns.tolist() == [*COLUMNS, "note", *NAMES]
    expected = feature_frame(plain())[complete(bars)]
    pd.testing.assert_frame_equal(result[NAMES], expected)
    assert bars["sma_5"].eq("old").all()
    pd.testing.assert_frame_equal(compute_features(compute_price_features(bars)), result)


def test_columns_called_like_a_feature_more_than_once_are_all_replaced() -> None:
    bars = plain().assign(a=1.0, b=2.0).rename(columns={"a": "sma_5", "b": "sma_5"})
    assert compute_features(bars).columns.tolist() == [*COLUMNS, *NAMES]


def test_unknown_columns_of_one_name_all_stay() -> None:
    bars = plain().assign(a="x", b=2.0, c=pd.array([1, None] * 90, dtype="Int64"))
    bars.columns = [*COLUMNS, "note", "note", "note"]
    result = compute_features(bars)
    assert result.columns.tolist() == [*bars.columns, *NAMES]
    pd.testing.assert_frame_equal(result.iloc[:, : len(bars.columns)], bars[complete(bars)])


@pytest.mark.parametrize("name", [0, ("a", 1), None, 1.5])
def test_a_column_may_be_called_anything(name: Any) -> None:
    bars = plain()
    bars[name] = 7
    assert compute_features(bars)[name].eq(7).all()


def test_an_old_target_is_replaced() -> None:
    bars = plain().assign(target="old")
    assert compute_features(bars)["target"].eq("old").all()
    fresh = compute_features(bars, include_target=True)["target"]
    pd.testing.assert_series_equal(fresh, compute_features(plain(), include_target=True)["target"])


def test_old_targets_of_one_name_are_replaced() -> None:
    bars = plain().assign(a=5.0, b=6.0).rename(columns={"a": "target", "b": "target"})
    assert compute_features(bars, include_target=True).columns.tolist().count("target") == 1


def test_the_result_shares_nothing_with_the_input() -> None:
    bars = plain().assign(note=np.arange(180), spread=1.0)
    one = bars[bars["symbol"] == "AAA"].reset_index(drop=True)
    # A lookback of one bar keeps every row.
    config = FeatureConfig(("price_range",))
    before = one.copy(deep=True)
    for compute in (compute_features, compute_price_features):
        result = compute(one, config)
        assert len(result) == len(one)
        for name in [*INPUTS, "note", "spread"]:
            result.iloc[:, result.columns.get_loc(name)] = -1
        pd.testing.assert_frame_equal(one, before)


def test_the_result_can_be_written_to_without_a_warning() -> None:
    for bars in (plain(), plain().sort_values(["symbol", "time"])):
        result = compute_features(bars, include_target=True)
        result["more"] = 1.0
        result.loc[:, "close"] = 0.0
        result.iloc[0, 0] = "other"
        assert result["close"].eq(0.0).all() and result["more"].eq(1.0).all()
