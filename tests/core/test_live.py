"""Live rows: which predictions count, and how the champion's evidence goes on with them."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.live import LiveRecord, go_on, rows_in_time
from tests.core.test_evidence import brute_force, predictions

DAY = pd.Timedelta(days=1)


def said(*rows: tuple[str, str, float, str]) -> pd.DataFrame:
    """Predictions as (symbol, bar's close, probability, made at)."""
    frame = pd.DataFrame(rows, columns=["symbol", "event_timestamp", "probability", "predicted_at"])
    times = dict.fromkeys(("event_timestamp", "predicted_at"), "datetime64[us, UTC]")
    return frame.astype({"symbol": object, "probability": float, **times})


def outcomes(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    """Labels as (symbol, bar's close, label time, target)."""
    frame = pd.DataFrame(rows, columns=["symbol", "event_timestamp", "label_time", "target"])
    times = dict.fromkeys(("event_timestamp", "label_time"), "datetime64[us, UTC]")
    return frame.astype({"symbol": object, "target": float, **times})


def record(out_of_sample: pd.DataFrame, live: pd.DataFrame, recipes: int = 1, horizon: int = 1) -> LiveRecord:
    found = go_on("20240101-ab", out_of_sample, live, recipes, horizon)
    assert found is not None
    return found


def split(rows: pd.DataFrame, at: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows before the `at`-th instant, and from it on."""
    since = sorted(rows["event_timestamp"].unique())[at]
    return rows[rows["event_timestamp"] < since], rows[rows["event_timestamp"] >= since]


# --- Which predictions count -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made_at", "counts"),
    [("2024-01-03", True), ("2024-01-03T23:59:59.999999", True), ("2024-01-04", False), ("2024-02-01", False)],
)
def test_a_prediction_counts_only_when_it_was_made_before_the_outcome(made_at: str, counts: bool) -> None:
    found = rows_in_time(said(("A", "2024-01-03", 0.7, made_at)), outcomes(("A", "2024-01-03", "2024-01-04", 1.0)))
    assert len(found) == counts
    assert found.columns.tolist() == ["symbol", "event_timestamp", "target", "probability"]


def test_what_has_no_outcome_yet_is_left_out_and_what_ends_inside_the_cost_band_has_no_target() -> None:
    predicted = said(*(("A", f"2024-01-0{day}", 0.7, f"2024-01-0{day}") for day in (1, 2, 3)))
    known = outcomes(("A", "2024-01-01", "2024-01-02", np.nan), ("A", "2024-01-02", "2024-01-03", 0.0))
    found = rows_in_time(predicted, known)
    assert found["event_timestamp"].dt.day.tolist() == [1, 2]
    np.testing.assert_array_equal(found["target"], [np.nan, 0.0])


def test_a_live_row_inside_the_cost_band_takes_its_turn_and_is_not_counted() -> None:
    rows = predictions(30, 1, 0.1, seed=3)
    rows.loc[[2, 20, 25], "target"] = np.nan
    before, live = split(rows, 18)
    found = record(before, live, horizon=5)
    bets = rows.iloc[::5].dropna(subset=["target"])
    assert found.comparison.evidence.curve.tolist() == pytest.approx(brute_force(bets), abs=1e-9)
    assert (found.rows, found.instants, found.comparison.rows) == (10, 10, 27)
    assert go_on("20240101-ab", before, live.assign(target=np.nan), 1, 1) is None


def test_of_several_predictions_of_one_bar_the_first_counts() -> None:
    predicted = said(
        ("A", "2024-01-01", 0.9, "2024-01-01T09:00"),
        ("A", "2024-01-01", 0.2, "2024-01-01T03:00"),
        ("B", "2024-01-01", 0.4, "2024-01-01T08:00"),
        ("A", "2024-01-01", 0.8, "2024-01-05T00:00"),
    )
    known = outcomes(("A", "2024-01-01", "2024-01-02", 1.0), ("B", "2024-01-01", "2024-01-02", 0.0))
    for order in (predicted, predicted[::-1]):
        found = rows_in_time(order, known).set_index("symbol")["probability"].to_dict()
        assert found == {"A": 0.2, "B": 0.4}


def test_symbols_are_not_mixed_up() -> None:
    predicted = said(("A", "2024-01-01", 0.9, "2024-01-01"))
    assert rows_in_time(predicted, outcomes(("B", "2024-01-01", "2024-01-02", 1.0))).empty


# --- The evidence goes on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbols", [1, 3])
def test_live_rows_of_later_bars_carry_the_curve_on(symbols: int) -> None:
    rows = predictions(40, symbols, 0.1, seed=symbols)
    before, live = split(rows, 25)
    found = record(before, live.sample(frac=1, random_state=1), recipes=7)
    curve = found.comparison.evidence.curve
    assert curve.tolist() == pytest.approx(brute_force(rows), abs=1e-9)
    assert found.comparison.evidence.threshold == pytest.approx(math.log(7 / 0.05))
    assert (found.rows, found.instants, found.comparison.rows) == (15 * symbols, 15, 40 * symbols)
    assert found.since == live["event_timestamp"].min()
    assert found.gained == pytest.approx(curve.iloc[-1] - curve.iloc[24])


def test_a_bar_in_both_counts_once_as_it_was_predicted_live() -> None:
    rows = predictions(60, 2, 0.1, seed=5)
    live = split(rows, 30)[1].drop(index=rows.index[75])
    again = rows.assign(probability=1 - rows["probability"])
    found = record(again, live)
    expected = pd.concat([live, again[~again.index.isin(live.index)]])
    assert found.comparison.rows == len(rows) == len(expected)
    assert found.comparison.evidence.curve.tolist() == pytest.approx(brute_force(expected), abs=1e-9)
    assert found.rows == len(live)


@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_no_row_is_ever_used_twice(share: float, seed: int) -> None:
    rows = predictions(20, 2, 0.1, seed=1)
    live = rows.sample(frac=share, random_state=seed)
    found = record(rows, live)
    assert found.comparison.rows == len(rows) and found.rows == len(live)
    assert found.comparison.evidence.curve.tolist() == pytest.approx(against_chance(rows, 1).curve.tolist(), abs=1e-9)


def test_overlapping_labels_are_bet_on_one_after_another() -> None:
    rows = predictions(40, 1, 0.1, seed=4)
    found = record(*split(rows, 25), horizon=5)
    assert found.comparison.evidence.curve.tolist() == pytest.approx(brute_force(rows.iloc[::5]), abs=1e-9)
    assert found.rows == 15


def test_accuracy_and_base_rate_are_those_of_the_live_rows_alone() -> None:
    rows = predictions(30, 2, 0.1, seed=2)
    before, live = split(rows, 25)
    right = sum((p >= 0.5) == (t == 1) for p, t in zip(live["probability"], live["target"], strict=True))
    ups = live["target"].mean()
    found = record(before, live)
    assert found.accuracy.estimate == pytest.approx(right / 10)
    assert found.accuracy.lower < right / 10 < found.accuracy.upper
    assert found.base_rate == pytest.approx(max(ups, 1 - ups))
    assert record(before, live.iloc[:2]).accuracy.upper == 1.0, "one bar time says nothing about the spread"


def test_without_live_rows_there_is_no_record_and_without_others_it_begins_at_zero() -> None:
    rows = predictions(30, 1, 0.1, seed=3)
    assert go_on("20240101-ab", rows, rows.iloc[:0], 1, 1) is None
    alone = record(rows.iloc[:0], rows)
    assert alone.gained == alone.comparison.evidence.log_wealth == pytest.approx(brute_force(rows)[-1])


# --- In words and numbers --------------------------------------------------------------------------------------------


def with_wealth(edge: float) -> LiveRecord:
    return record(*split(predictions(600, 1, edge, seed=6), 500))


def test_the_sentence_has_the_numbers_and_says_that_nobody_is_demoted() -> None:
    above, below = with_wealth(0.2), with_wealth(-0.2)
    assert above.comparison.evidence.shown and below.comparison.evidence.log_wealth < 0
    for found in (above, below):
        evidence = found.comparison.evidence
        assert f"log-wealth {evidence.log_wealth:.2f} ({found.gained:+.2f} since" in found.sentence
        assert "20240101-ab" in found.sentence and "of 100 live rows at 100 bar times" in found.sentence
        assert f"right in {found.accuracy.estimate:.1%}" in found.sentence
        assert f"{found.since:%Y-%m-%d}" in found.sentence and "\n" not in found.sentence
    assert "is above the threshold 3.00" in above.sentence and "demotes" not in above.sentence
    assert "is not above the threshold" in below.sentence and "below 0 now" in below.sentence
    assert "demotes no champion by itself" in below.sentence
    undecided = record(*split(predictions(12, 1, 0.5, seed=6), 11))
    assert 0 < undecided.comparison.evidence.log_wealth < 3
    assert "below the threshold now" in undecided.sentence and "1 live row at 1 bar time (" in undecided.sentence


def test_the_record_is_json_with_the_curve_and_where_live_begins() -> None:
    found = with_wealth(0.2)
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["live_since"] == found.since.isoformat() and told["curve"][-1][1] == told["log_wealth"]
    assert (told["champion"], told["live_rows"], told["live_instants"], told["recipes"]) == ("20240101-ab", 100, 100, 1)
    assert told["live_accuracy"]["estimate"] == found.accuracy.estimate
    assert (told["live_gained"], told["live_base_rate"]) == (found.gained, found.base_rate)
