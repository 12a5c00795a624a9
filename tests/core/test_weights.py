"""What overlapping labels weigh, against a loop over every bar of every label."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.core.bars import close_time
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from mt5_crs_pipeline.core.labels import LabelConfig, labelled_bars
from mt5_crs_pipeline.core.model import TrainingConfig, fit, out_of_sample_predictions, predict
from mt5_crs_pipeline.core.splits import walk_forward
from mt5_crs_pipeline.core.weights import WEIGHT, average_uniqueness, weighed
from tests.core.samples import random_bars


def by_loop(rows: pd.DataFrame) -> list[float]:
    labels = list(zip(rows["symbol"], rows["event_timestamp"], rows["label_time"], strict=True))
    unique = []
    for symbol, begin, end in labels:
        own = [(b, e) for name, b, e in labels if name == symbol]
        bars = sorted({time for interval in own for time in interval if begin < time <= end})
        unique.append(sum(1 / sum(b < bar <= e for b, e in own) for bar in bars) / len(bars))
    return [value * len(unique) / sum(unique) for value in unique]


@st.composite
def label_rows(draw: st.DrawFn) -> pd.DataFrame:
    """Labels of some symbols in H1 and D1 together, over horizons of their own, some rows left out, shuffled."""
    frames = []
    for symbol in ("A", "B")[: draw(st.integers(1, 2))]:
        for hours in draw(st.sampled_from([(1,), (24,), (1, 24)])):
            times = pd.Series(pd.date_range("2024-01-01", periods=30, freq=f"{hours}h", tz="UTC"))
            frame = pd.DataFrame({"event_timestamp": times, "label_time": times.shift(-draw(st.integers(1, 10)))})
            kept = draw(st.lists(st.booleans(), min_size=30, max_size=30))
            frames.append(frame[kept].dropna().assign(symbol=symbol))
    return pd.concat(frames).sample(frac=1, random_state=2)


@settings(max_examples=100, deadline=None)
@given(rows=label_rows())
def test_the_weights_equal_a_loop_over_the_bars_of_every_label(rows: pd.DataFrame) -> None:
    assert average_uniqueness(rows).tolist() == pytest.approx(by_loop(rows), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(rows=label_rows().filter(len))
def test_the_mean_weight_is_one_and_every_weight_above_none(rows: pd.DataFrame) -> None:
    weight = average_uniqueness(rows)
    assert weight.mean() == pytest.approx(1) and weight.min() > 0


def test_labels_that_do_not_overlap_weigh_exactly_one() -> None:
    assert average_uniqueness(labelled_bars(random_bars(length=40), "D1")).tolist() == [1.0] * 3 * 39


def test_labels_over_five_bars_share_each_bar_with_up_to_four_others() -> None:
    weight = average_uniqueness(labelled_bars(random_bars(("A",), 25), "D1", LabelConfig(5)))
    # At its bars the first label is one of 1, 2, 3, 4, 5; those in the middle are one of 5 throughout.
    assert weight[0] / weight[10] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5 / (1 / 5))
    assert weight[4:16] == pytest.approx(weight[10])


def test_symbols_do_not_dilute_each_other() -> None:
    rows = labelled_bars(random_bars(("A", "B"), 25), "D1", LabelConfig(5))
    alone = rows[rows["symbol"] == "A"]
    assert average_uniqueness(rows)[rows["symbol"] == "A"] == pytest.approx(average_uniqueness(alone))


def test_rows_carry_their_weight_only_where_they_do_not_all_count_alike() -> None:
    alike = labelled_bars(random_bars(length=40), "D1")
    assert weighed(alike) is alike and weighed(alike.iloc[:0]).empty
    overlapping = labelled_bars(random_bars(length=60), "D1", LabelConfig(5, 0.01)).dropna(subset=["target"])
    before = overlapping.copy(deep=True)
    found = weighed(overlapping)
    assert found[WEIGHT].tolist() == pytest.approx(by_loop(overlapping))
    pd.testing.assert_frame_equal(found.drop(columns=WEIGHT), before)
    pd.testing.assert_frame_equal(overlapping, before)


def test_every_window_learns_with_the_weights_of_its_own_rows() -> None:
    bars = random_bars(("A", "B"), 260)
    rows = labelled_bars(bars, "D1", LabelConfig(5))
    names = ["efficiency_ratio_10", "rsi_14"]
    features = feature_frame(bars, FeatureConfig(tuple(names)))
    features = features.assign(symbol=bars["symbol"], event_timestamp=close_time(bars["time"], "D1"))
    rows = rows.merge(features, on=["symbol", "event_timestamp"]).dropna(subset=names)
    rows = rows.sort_values(["event_timestamp", "symbol"], ignore_index=True)
    config = TrainingConfig(max_rounds=5, min_child_weight=1.0)
    [first, *_] = walk_forward(rows, config.first_train_times, config.window_growth)
    train, test = rows.iloc[first.train], rows.iloc[first.test]
    found = out_of_sample_predictions(rows, names, config)["probability"].head(len(test)).tolist()
    weight = average_uniqueness(train)
    assert weight.std() > 0.01
    assert found == predict(fit(train.assign(weight=weight), names, config), test).tolist()
    assert found != predict(fit(train, names, config), test).tolist()
