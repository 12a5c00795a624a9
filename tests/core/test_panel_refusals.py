"""Frames that are no bars: one line names the column, and the row or value that is wrong."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.features import FeatureConfig, compute_features, feature_frame
from mt5_crs_pipeline.core.panel import Panel
from tests.core.samples import INPUTS
from tests.core.test_panel import COLUMNS, Change, Frame, columns_as, plain

ARROW_TIME = pd.ArrowDtype(pa.timestamp("us", "UTC"))
LABEL = 1007


def with_column(name: str, make: Callable[[Frame], Any]) -> Change:
    return lambda bars: bars.assign(**{name: make(bars)})


def with_value(name: str, value: Any, dtype: Any = object) -> Change:
    """The column of another type, with one value in the row called LABEL and ones elsewhere."""
    return lambda bars: bars.assign(
        **{name: pd.Series([value if label == LABEL else 1 for label in bars.index], bars.index, dtype=dtype)}
    )


def refusal(bars: Frame) -> str:
    """The one line that says what is wrong with the bars, whichever way they are computed."""
    messages = []
    for compute in (feature_frame, compute_features, lambda frame: Panel(frame, INPUTS)):
        with pytest.raises(InputError) as caught:
            compute(bars)
        messages.append(str(caught.value))
    assert len(set(messages)) == 1 and "\n" not in messages[0]
    return messages[0]


def twice(name: str) -> Change:
    return lambda bars: pd.concat([bars, bars[[name]]], axis=1)


@pytest.mark.parametrize("name", ["time", *INPUTS])
def test_a_missing_column_is_refused_by_name_with_those_that_are_there(name: str) -> None:
    others = [column for column in COLUMNS if column != name]
    message = refusal(plain().drop(columns=name))
    assert message == f"column '{name}' is missing; the frame has {', '.join(others)}"


def test_a_frame_of_nothing_is_refused() -> None:
    assert refusal(Frame()) == "column 'time' is missing; the frame has no columns"


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_is_there_twice_is_refused_by_name(name: str) -> None:
    assert refusal(twice(name)(plain())) == f"column '{name}' is there 2 times: keep one"


def test_columns_of_two_levels_are_refused() -> None:
    levels = pd.MultiIndex.from_product([COLUMNS, ["bid"]])
    assert refusal(plain().set_axis(levels, axis=1)).startswith("column 'time'")


@pytest.mark.parametrize("name", ["open", "volume"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: columns_as(str, name), r" is object, not a number: row 1000 holds '[\d.]+'$"),
        (lambda name: columns_as("string", name), r" is string, not a number: row 1000 holds '[\d.]+'$"),
        (lambda name: columns_as("string[pyarrow]", name), r" is string, not a number: row 1000 holds '[\d.]+'$"),
        (lambda name: columns_as("bool", name), " is bool, not a number$"),
        (
            lambda name: with_column(name, lambda bars: pd.array([True] * 180, dtype="boolean")),
            " is boolean, not a number",
        ),
        (lambda name: columns_as("bool[pyarrow]", name), r" is bool\[pyarrow\], not a number"),
        (lambda name: columns_as(complex, name), " is complex128, not a number"),
        (lambda name: columns_as("category", name), " is category, not a number"),
        (lambda name: columns_as(object, name), " is object, not a number"),
        (
            lambda name: with_column(name, lambda bars: bars["open"].map(Decimal)),
            r"row 1000 holds Decimal\('[\d.]+'\)$",
        ),
        (lambda name: with_column(name, lambda bars: bars["time"]), r" is datetime64\[us, UTC\], not a number"),
        (lambda name: with_column(name, lambda bars: bars["time"].diff()), r" is timedelta64\[us\], not a number"),
        (lambda name: with_column(name, lambda bars: [[1.0]] * 180), r" is object, .* row 1000 holds \[1.0\]$"),
        (lambda name: with_column(name, lambda bars: None), " is object, not a number: row 1000 holds None$"),
        (lambda name: with_value(name, "1.5"), " is object, not a number: row 1007 holds '1.5'$"),
        (lambda name: with_value(name, "a\nb"), r" is object, not a number: row 1007 holds 'a\\nb'$"),
        (lambda name: with_value(name, pd.NA), " is object, not a number: row 1007 holds <NA>$"),
        (lambda name: with_value(name, Decimal(2)), r" is object, not a number: row 1007 holds Decimal\('2'\)$"),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused_by_row_and_value(
    name: str, change: Callable[[str], Change], message: str
) -> None:
    with pytest.raises(InputError, match=f"^column '{name}' ?.*{message}"):
        Panel(change(name)(plain()), INPUTS)
    assert refusal(change(name)(plain())).startswith(f"column '{name}' is ")


@pytest.mark.parametrize(
    "dtype",
    ["int64", "uint64", "Int64", "UInt64", "int64[pyarrow]", "uint64[pyarrow]"],
)
def test_an_integer_that_a_double_cannot_hold_is_refused_by_row_and_value(dtype: Any) -> None:
    largest = with_value("volume", 2**53 - 1, dtype)(plain())
    volumes = feature_frame(largest, FeatureConfig(("volume_sma_1",)))["volume_sma_1"]
    assert volumes[LABEL] == 2.0**53 - 1 and volumes.drop(LABEL).eq(1.0).all()
    values = [
        2**53,
        2**53 + 1,
        2**63 - 1,
        *([-(2**53), -(2**63)] if "u" not in str(dtype).lower()[:1] else [2**64 - 1]),
    ]
    for value in values:
        message = refusal(with_value("volume", value, dtype)(plain()))
        assert message.startswith(f"column 'volume' holds {value} in row {LABEL}: a double cannot hold")


def test_a_decimal_of_arrow_that_a_double_cannot_hold_is_refused() -> None:
    decimals = pd.ArrowDtype(pa.decimal128(20, 0))
    assert refusal(with_value("volume", Decimal(2**53 + 1), decimals)(plain())).startswith("column 'volume' ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda time: time.dt.tz_localize(None), r"is datetime64\[us\]: make it aware"),
        (lambda time: time.astype(str), "is object: make it aware"),
        (lambda time: time.astype(object), "is object: make it aware"),
        (lambda time: time.astype("int64"), "is int64: make it aware"),
        (lambda time: time.astype("category"), "is category: make it aware"),
        (lambda time: time.astype(ARROW_TIME).dt.tz_localize(None), r"is timestamp\[us\]\[pyarrow\]: make it aware"),
        (lambda time: time.dt.tz_localize(None).dt.to_period("D"), r"is period\[D\]: make it aware"),
        (lambda time: time.mask(time.index >= LABEL), "is missing in row 1007$"),
        (lambda time: time.mask(time.index == 1179), "is missing in row 1179$"),
        (lambda time: time.mask(time.index == LABEL).astype(ARROW_TIME), "is missing in row 1007$"),
    ],
)  # fmt: skip
def test_times_that_are_missing_or_not_aware_are_refused(make: Callable[[pd.Series], Any], message: str) -> None:
    bars = plain()
    broken = bars.assign(time=make(bars["time"]))
    with pytest.raises(InputError, match=f"^column 'time' {message}"):
        Panel(broken, INPUTS)
    assert refusal(broken).startswith("column 'time' is ")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT], ids=repr)
@pytest.mark.parametrize("labels", [[1000], [1007], [1070, 1090], [1179], range(1000, 1180)], ids=str)
def test_a_missing_symbol_is_refused_by_its_first_row(missing: Any, labels: Any) -> None:
    bars = plain()
    symbols = pd.Series(
        [missing if label in labels else symbol for label, symbol in bars["symbol"].items()], bars.index
    )
    message = f"column 'symbol' is missing in row {labels[0]}"
    assert refusal(bars.assign(symbol=symbols.astype(object))) == message


@pytest.mark.parametrize("dtype", ["category", "string", "string[pyarrow]", pd.ArrowDtype(pa.string()), float])
def test_a_missing_symbol_of_any_type_is_refused_by_its_first_row(dtype: Any) -> None:
    bars = plain()
    symbols = bars["symbol"].map({"AAA": 1.0, "BBB": 2.0, "CCC": 3.0}) if dtype is float else bars["symbol"]
    broken = bars.assign(symbol=symbols.mask(bars.index.isin([1070, 1090])).astype(dtype))
    assert refusal(broken) == "column 'symbol' is missing in row 1070"


@pytest.mark.parametrize("dtype", [object, "category", "string[pyarrow]"])
@pytest.mark.parametrize("place", ["next to it", "at the end", "among shuffled rows"])
def test_the_same_symbol_and_time_twice_are_refused_by_both(dtype: Any, place: str) -> None:
    bars = plain().astype({"symbol": dtype})
    again = pd.concat([bars, bars.loc[[1080]].assign(close=5.0)])
    if place == "next to it":
        again = again.sort_index(kind="stable")
    elif place == "among shuffled rows":
        again = again.sample(frac=1, random_state=3)
    symbol, time = bars.loc[1080, ["symbol", "time"]]
    assert refusal(again) == f"two rows for symbol {symbol!r} at time {time}: keep one"


def test_the_same_time_twice_is_refused_in_a_frame_without_symbols() -> None:
    bars = plain().drop(columns="symbol")
    assert "at time 2023-01-01 00:15:00+00:00: keep one" in refusal(bars)
