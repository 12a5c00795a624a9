"""Labels look ahead exactly as far as they say, within one symbol, and are missing until then."""

import math

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import LabelConfig, direction_target, labelled_bars
from tests.core.samples import random_bars, real_bars

COLUMNS = ["symbol", "event_timestamp", "label_time", "target", "forward_return", "spread_share"]


def target_by_loop(bars: pd.DataFrame, horizon: int) -> dict[int, float]:
    """The label by row: 1 for a higher later close, 0 for an equal or lower one, NaN while it is open."""
    result = {}
    for symbol in set(bars["symbol"]):
        rows = sorted((row.time, row.Index, row.close) for row in bars.itertuples() if row.symbol == symbol)
        for position, (_, index, close) in enumerate(rows):
            later = rows[position + horizon][2] if position + horizon < len(rows) else math.nan
            result[index] = math.nan if math.isnan(later) or math.isnan(close) else float(later > close)
    return result


@pytest.mark.parametrize("horizon", [1, 2, 5, 30])
def test_the_target_equals_a_loop_over_each_symbol(horizon: int) -> None:
    bars = pd.concat([random_bars(length=40), random_bars(("SHORT",), 7)], ignore_index=True)
    bars["close"] = bars["close"].round(1)
    bars = bars.sample(frac=1, random_state=horizon)
    target = direction_target(bars, LabelConfig(horizon))
    expected = target_by_loop(bars, horizon)
    np.testing.assert_array_equal(target.to_numpy(), [expected[index] for index in bars.index])
    assert target.name == "target"


def test_an_unchanged_close_is_no_rise() -> None:
    bars = random_bars(("A",), 3).assign(close=[5.0, 5.0, 4.0])
    np.testing.assert_array_equal(direction_target(bars), [0.0, 0.0, np.nan])


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_open_horizon_is_missing_never_zero(horizon: int) -> None:
    bars = real_bars(50)
    missing = direction_target(bars, LabelConfig(horizon)).isna()
    assert missing.groupby(bars["symbol"]).sum().eq(horizon).all()
    assert missing[bars.groupby("symbol").tail(horizon).index].all()


def test_a_missing_close_leaves_out_its_own_label_and_the_one_it_would_decide() -> None:
    bars = random_bars(("A",), 20)
    bars.loc[8, "close"] = np.nan
    assert np.flatnonzero(direction_target(bars, LabelConfig(3)).isna()).tolist() == [5, 8, 17, 18, 19]


def test_closed_labels_equal_a_loop_with_the_times_of_both_closes() -> None:
    bars = real_bars(60).sample(frac=1, random_state=2)
    expected, day = [], pd.Timedelta(days=1)
    for symbol, part in bars.groupby("symbol"):
        rows = part.sort_values("time").to_dict("records")
        for now, later in zip(rows, rows[2:], strict=False):
            rose = float(later["close"] > now["close"])
            expected.append((now["time"] + day, symbol, later["time"] + day, rose))
    result = labelled_bars(bars, "D1", LabelConfig(2))
    assert result.columns.tolist() == [
        "symbol",
        "event_timestamp",
        "label_time",
        "target",
        "forward_return",
        "spread_share",
    ]
    found = result[["event_timestamp", "symbol", "label_time", "target"]].itertuples(index=False, name=None)
    assert list(found) == sorted(expected)


def test_a_label_closes_with_the_next_bar_not_the_next_day() -> None:
    friday, monday = pd.Timestamp("2024-05-03", tz="UTC"), pd.Timestamp("2024-05-06", tz="UTC")
    bars = random_bars(("A",), 2).assign(time=[friday, monday])
    label = labelled_bars(bars, "D1").iloc[0]
    assert label["event_timestamp"] == pd.Timestamp("2024-05-04", tz="UTC")
    assert label["label_time"] == pd.Timestamp("2024-05-07", tz="UTC")


def test_new_bars_add_labels_and_change_none() -> None:
    bars = random_bars(length=50)
    known = bars[bars["time"] < bars["time"].iloc[40]]
    before, after = labelled_bars(known, "D1"), labelled_bars(bars, "D1")
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert len(before) == 3 * 39 and len(after) == 3 * 49


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_bars_have_no_labels(rows: int) -> None:
    result = labelled_bars(random_bars(("A", "B"), 3).groupby("symbol").head(rows), "D1")
    assert result.empty
    assert result.columns.tolist() == [
        "symbol",
        "event_timestamp",
        "label_time",
        "target",
        "forward_return",
        "spread_share",
    ]


def test_bars_are_left_as_they_were() -> None:
    bars = random_bars(length=10).sample(frac=1, random_state=1)
    before = bars.copy(deep=True)
    labelled_bars(bars, "D1")
    direction_target(bars)
    pd.testing.assert_frame_equal(bars, before)


def test_two_bars_of_one_time_have_no_label() -> None:
    bars = random_bars(("A",), 5)
    with pytest.raises(InputError, match="two rows for symbol 'A'"):
        labelled_bars(pd.concat([bars, bars.tail(1)], ignore_index=True), "D1")


def test_the_definition_in_words_is_that_of_the_default_horizon() -> None:
    assert LabelConfig().definition.startswith("1 when the close 1 bar later is higher")
