"""Frames of bars of every make and order: the same numbers are the same features, to the last bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, feature_frame
from mt5_crs_pipeline.core.panel import Panel
from tests.core.features.comparing import ALL, Comparison, symbol_rows
from tests.core.samples import INPUTS, bits, random_bars, real_bars

Frame = pd.DataFrame
Change = Callable[[Frame], Frame]
COLUMNS = ["symbol", "time", *INPUTS]


def plain() -> Frame:
    """Bars of three symbols as plain doubles, with labels that are not positions and at all hours."""
    bars = random_bars(length=60, seed=2)[COLUMNS].set_axis(range(1000, 1180))
    hours = np.tile(np.arange(60) % 23, 3) + 0.25
    return bars.assign(time=(bars["time"] + pd.to_timedelta(hours, unit="h")).dt.as_unit("us"))


def columns_as(dtype: Any, *names: str) -> Change:
    return lambda bars: bars.astype(dict.fromkeys(names or INPUTS, dtype))


def read_only(bars: Frame) -> Frame:
    values, time = bars[INPUTS].to_numpy(), bars["time"].to_numpy(dtype="datetime64[us]").copy()
    values.flags.writeable = time.flags.writeable = False
    aware = pd.Series(time, bars.index, copy=False).dt.tz_localize("UTC")
    return Frame(values, bars.index, INPUTS, copy=False).assign(symbol=bars["symbol"], time=aware)


def views_of_rows(bars: Frame) -> Frame:
    """Every column a view into an array that holds a bar after the other."""
    result = Frame(np.ascontiguousarray(bars[INPUTS].to_numpy()), bars.index, INPUTS, copy=False)
    result.insert(0, "time", bars["time"])
    result.insert(0, "symbol", bars["symbol"])
    assert not result["close"].to_numpy().flags.c_contiguous
    return result


def every_other_row_of_twice_as_many(bars: Frame) -> Frame:
    result = pd.concat([bars, bars]).sort_index(kind="stable").iloc[::2]
    assert not result["close"].to_numpy().flags.c_contiguous
    return result


def times_of_two_columns(bars: Frame) -> Frame:
    """The time is a column of a block of two."""
    both = Frame({"closed": bars["time"] + pd.Timedelta(days=1), "time": bars["time"]}).copy()
    return pd.concat([both, bars.drop(columns="time")], axis=1)


def symbols_by_hand(bars: Frame) -> Frame:
    """Equal strings, each an object of its own."""
    symbols = ["".join(list(symbol)) for symbol in bars["symbol"]]
    assert symbols[0] is not symbols[1]
    return bars.assign(symbol=pd.Series(symbols, bars.index, dtype=object))


def from_polars(extension: bool) -> Change:
    def change(bars: Frame) -> Frame:
        polars = pytest.importorskip("polars")
        return polars.from_pandas(bars).to_pandas(use_pyarrow_extension_array=extension).set_axis(bars.index)

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(columns_as("Float64"), id="nullable doubles"),
        pytest.param(columns_as(pd.ArrowDtype(pa.float64())), id="Arrow doubles"),
        pytest.param(columns_as(">f8"), id="doubles of the other byte order"),
        pytest.param(columns_as(pd.SparseDtype(float)), id="sparse doubles"),
        *(
            pytest.param(columns_as(dtype, "volume"), id=f"{dtype} volumes")
            for dtype in ("int64", "uint32", "Int64", "UInt64", ">i4", "int64[pyarrow]", "uint64[pyarrow]")
        ),
        pytest.param(lambda bars: bars[[*reversed(INPUTS), "time", "symbol"]], id="column order"),
        pytest.param(lambda bars: bars.assign(note="x", spread=np.nan, extra=None), id="unknown columns"),
        pytest.param(
            lambda bars: pd.concat([bars.assign(note="x"), bars[["close"]].set_axis(["note"], axis=1)], axis=1),
            id="unknown columns of one name",
        ),
        pytest.param(read_only, id="read-only"),
        pytest.param(views_of_rows, id="views of rows"),
        pytest.param(every_other_row_of_twice_as_many, id="every other row"),
        pytest.param(lambda bars: bars.iloc[::-1].iloc[::-1], id="backwards twice"),
        pytest.param(times_of_two_columns, id="times of two columns"),
        *(
            pytest.param(lambda bars, unit=unit: bars.assign(time=bars["time"].dt.as_unit(unit)), id=unit)
            for unit in ("s", "ms", "us", "ns")
        ),
        *(
            pytest.param(lambda bars, zone=zone: bars.assign(time=bars["time"].dt.tz_convert(zone)), id=zone)
            for zone in ("America/New_York", "Asia/Kolkata", "+03:00")
        ),
        *(
            pytest.param(columns_as(f"timestamp[{unit}, {zone}][pyarrow]", "time"), id=f"Arrow {unit} {zone}")
            for unit, zone in (("s", "UTC"), ("ms", "UTC"), ("us", "Asia/Kolkata"), ("ns", "America/New_York"))
        ),
        *(
            pytest.param(columns_as(dtype, "symbol"), id=f"{dtype} symbols")
            for dtype in (
                "category",
                "string",
                "string[pyarrow]",
                pd.ArrowDtype(pa.string()),
                pd.ArrowDtype(pa.large_string()),
                pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())),
            )
        ),
        pytest.param(symbols_by_hand, id="equal strings"),
        pytest.param(lambda bars: bars.assign(symbol=bars["symbol"].map({"AAA": 3, "BBB": 1, "CCC": 2})), id="numbers"),
        pytest.param(
            lambda bars: bars.assign(symbol=bars["symbol"].astype(pd.CategoricalDtype(["Z", "CCC", "AAA", "BBB"]))),
            id="categories in another order",
        ),
        pytest.param(from_polars(extension=False), id="from polars"),
        pytest.param(from_polars(extension=True), id="from polars as Arrow"),
    ],
)  # fmt: skip
def test_the_same_bars_in_another_make_have_the_same_bits(change: Change) -> None:
    bars = plain()
    expected = feature_frame(bars, ALL)
    made = change(bars)
    before = change(bars)
    Comparison().same(feature_frame(made, ALL).to_numpy(), expected.to_numpy(), ALL)
    complete = expected.notna().all(axis=1)
    features = compute_features(made, ALL)
    assert features.index.tolist() == bars.index[complete].tolist()
    Comparison().same(features[list(ALL.features)].to_numpy(), expected[complete].to_numpy(), ALL)
    pd.testing.assert_frame_equal(made, before)
    pd.testing.assert_frame_equal(bars, plain())


@pytest.mark.parametrize("missing", [None, pd.NA, np.nan])
@pytest.mark.parametrize("dtype", ["Float64", "Int64", "double[pyarrow]", "int64[pyarrow]", "float32"])
def test_a_missing_number_is_missing_whatever_it_is_called(dtype: str, missing: Any) -> None:
    whole = np.arange(180) + 5
    volumes = pd.Series([missing if number % 7 == 3 else number for number in whole], dtype=object)
    made = pd.Series(volumes.where(volumes.notna(), None).astype(float) if dtype == "float32" else volumes, dtype=dtype)
    bars = plain().assign(volume=made.array)
    as_doubles = plain().assign(volume=np.where(whole % 7 == 3, np.nan, whole))
    Comparison().same(feature_frame(bars, ALL).to_numpy(), feature_frame(as_doubles, ALL).to_numpy(), ALL)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float16", "float32", "Float32", "float[pyarrow]"])
def test_numbers_of_fewer_bits_are_computed_as_doubles(dtype: str) -> None:
    bars = plain().assign(volume=np.arange(180) % 100).astype({"volume": dtype})
    as_doubles = plain().assign(volume=np.arange(180.0) % 100)
    Comparison().same(feature_frame(bars, ALL).to_numpy(), feature_frame(as_doubles, ALL).to_numpy(), ALL)


# Rows in other orders.


def test_a_panel_has_symbol_after_symbol_in_time_order() -> None:
    bars = random_bars(("B", "A", "C"), 40, seed=5).sample(frac=1, random_state=6)
    panel = Panel(bars, ["close", "volume"])
    assert panel.starts.tolist() == [0, 40, 80, 120] and len(panel) == 120
    rows = bars.iloc[panel.source]
    for start in (0, 40, 80):
        own = rows[start : start + 40]
        assert own["symbol"].nunique() == 1
        assert own["time"].is_monotonic_increasing
    assert rows["symbol"].nunique() == 3
    for name in ("close", "volume"):
        in_order = panel.in_panel_order(name)
        assert in_order.tolist() == rows[name].tolist()
        assert panel.in_frame_order(in_order).tolist() == bars[name].tolist()


@pytest.mark.parametrize("symbols", [("A",), ("B", "A", "C")])
def test_bars_in_order_are_not_copied(symbols: tuple[str, ...]) -> None:
    bars = random_bars(symbols, 40)[COLUMNS].astype({"symbol": "category"})
    panel = Panel(bars, INPUTS)
    assert len(panel.source) == 0 and panel.starts.tolist() == [40 * number for number in range(len(symbols) + 1)]
    assert np.shares_memory(panel.columns["close"], bars["close"].to_numpy())


def test_equal_symbols_are_one_symbol_though_they_are_other_objects() -> None:
    bars = random_bars(("AB", "CD"), 40)[COLUMNS]
    bars["symbol"] = pd.Series([str(name) for name in bars["symbol"]], dtype=object)
    bars.loc[[7, 51], "symbol"] = ["".join(["A", "B"]), "".join(["C", "D"])]
    assert bars["symbol"][7] is not bars["symbol"][6]
    panel = Panel(bars, INPUTS)
    assert len(panel.source) == 0 and panel.starts.tolist() == [0, 40, 80]


@pytest.mark.parametrize("symbol_type", [object, "category", "string", "string[pyarrow]"])
@pytest.mark.parametrize("order", ["runs", "runs that overlap", "time", "backwards"])
def test_the_rows_of_a_symbol_may_be_apart(symbol_type: Any, order: str) -> None:
    bars = plain().astype({"symbol": symbol_type})
    expected = feature_frame(plain(), ALL)
    rows = {
        "runs": [*range(20), *range(60, 90), *range(20, 60), *range(120, 180), *range(90, 120)],
        "runs that overlap": [*range(30, 60), *range(60, 120), *range(30), *range(120, 180)],
        "time": [start + bar for bar in range(60) for start in (0, 60, 120)],
        "backwards": [*range(179, -1, -1)],
    }[order]
    assert sorted(rows) == list(range(180))
    moved = bars.take(rows)
    Comparison().same(feature_frame(moved, ALL).to_numpy(), expected.take(rows).to_numpy(), ALL)
    assert feature_frame(moved).index.tolist() == moved.index.tolist()


@pytest.mark.parametrize("turned", [slice(None, None, -1), slice(None, None, -3), slice(1, None, 2)])
def test_a_frame_of_every_nth_row_or_turned_around_is_read_where_it_is(turned: slice) -> None:
    bars = plain()
    view = bars[turned]
    assert not view["close"].to_numpy().flags.c_contiguous
    moved = bars.take(range(180)[turned])
    Comparison().same(feature_frame(view, ALL).to_numpy(), feature_frame(moved, ALL).to_numpy(), ALL)
    pd.testing.assert_frame_equal(compute_features(view), compute_features(moved))
    assert len(compute_features(view)) > 0 or turned.step != -1


@pytest.mark.parametrize("dtype", [object, "category", "int64"])
def test_more_symbols_than_two_bytes_count_are_told_apart(dtype: Any) -> None:
    count = 70_000
    numbers = np.arange(count)
    symbols = pd.Series(np.tile(numbers, 2))
    symbols = symbols if dtype == "int64" else symbols.astype(str).astype(dtype)
    time = pd.to_datetime(np.repeat([0, 86_400], count), unit="s", utc=True)
    close = np.concatenate([numbers + 1.0, numbers * 3.0])
    bars = Frame({"symbol": symbols, "time": time, **dict.fromkeys(INPUTS, 1.0)}).assign(close=close)
    for moved in (bars, bars.sample(frac=1, random_state=1)):
        momentum = feature_frame(moved, FeatureConfig(("momentum_1",)))["momentum_1"].sort_index()
        assert momentum[:count].isna().all()
        assert (momentum[count:].to_numpy() == numbers * 3.0 - (numbers + 1.0)).all()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("symbols", ["object", "category", "string", "none"])
def test_no_bar_and_one_bar_have_features_of_the_same_columns(rows: int, symbols: str) -> None:
    bars = plain()
    few = bars.drop(columns="symbol")[:rows] if symbols == "none" else bars.astype({"symbol": symbols})[:rows]
    features = feature_frame(few, ALL)
    assert features.columns.tolist() == list(ALL.features) and set(features.dtypes) == {np.dtype(float)}
    assert features.index.equals(few.index)
    assert features.notna().sum(axis=1).tolist() == [sum(feature.lookback == 1 for feature in ALL.declared)] * rows
    result = compute_features(few, include_target=True)
    assert result.columns.tolist() == [*few.columns, *FeatureConfig().features, "target"] and len(result) == 0
    assert result.dtypes[few.columns].tolist() == few.dtypes.tolist()


def test_a_frame_without_symbols_is_one_symbol_in_any_order() -> None:
    bars = real_bars()
    one = bars[bars["symbol"] == "IBM"].drop(columns="symbol")
    expected = feature_frame(bars, ALL).loc[one.index]
    for moved in (one, one.sample(frac=1, random_state=2)):
        Comparison().same(feature_frame(moved, ALL).to_numpy(), expected.loc[moved.index].to_numpy(), ALL)


def test_the_same_time_of_another_symbol_is_no_repetition() -> None:
    bars = plain()
    bars = bars.assign(
        symbol=np.repeat(["A", "B", "A"], 60),
        time=bars["time"].where(bars.index < 1120, bars["time"] + pd.Timedelta(days=60)),
    )
    features = feature_frame(bars, ALL)
    rows = symbol_rows(bars)
    for symbol, own in rows.items():
        alone = feature_frame(bars.iloc[own].drop(columns="symbol"), ALL)
        assert len(own) == {"A": 120, "B": 60}[symbol]
        assert (bits(features.iloc[own]) == bits(alone)).all()
