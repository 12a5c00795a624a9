"""Input that tempts an evaluation to make up a number: one class, too few rows, constants, symbols that come and go."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.evaluation import Evaluation, evaluate
from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.metrics import times_needed
from mt5_crs_pipeline.core.model import TrainingConfig, out_of_sample_predictions
from mt5_crs_pipeline.core.promotion import Comparison, Verdict, decide

QUICK = TrainingConfig(max_rounds=10, first_train_times=60, window_growth=0.5)
FEATURES = ["a", "realised_volatility_20"]


def training_rows(symbols: int = 3, days: int = 300, seed: int = 1) -> pd.DataFrame:
    """Rows of symbols about which nothing can be known."""
    random = np.random.default_rng(seed)
    times = pd.date_range("2020-06-01", periods=days, freq="D", tz="UTC").as_unit("us").repeat(symbols)
    moved = random.normal(0, 0.01, len(times))
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], days),
            "event_timestamp": times,
            "label_time": times + pd.Timedelta(days=1),
            "target": (moved > 0).astype(float),
            "forward_return": moved,
            "spread_share": 0.0001,
            "a": random.normal(size=len(times)),
            "realised_volatility_20": random.uniform(0.005, 0.02, len(times)),
        }
    )


def judged(predictions: pd.DataFrame) -> tuple[Evaluation, Verdict]:
    """The evaluation, which must be JSON without NaN, and the verdict."""
    labelled = predictions.dropna(subset=["target"])
    evaluation = evaluate(predictions, {"a": 1.0})
    json.dumps(evaluation.to_dict(), allow_nan=False)
    chance = Comparison(against_chance(labelled, 1), len(labelled), times_needed(labelled))
    verdict = decide(chance, None, 1, parity_holds=True)
    json.dumps(verdict.to_dict(), allow_nan=False)
    return evaluation, verdict


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_one_class_alone_is_no_edge_however_right_the_model_is(target: float) -> None:
    rows = training_rows().assign(target=target, probability=0.02 + 0.96 * target)
    found, verdict = judged(rows)
    assert (found.accuracy.estimate, found.base_rate) == (1.0, 1.0)
    assert math.isnan(found.auc)
    assert found.metrics.set_index("metric").loc[["balanced accuracy", "AUC"], "value"].isna().all()
    assert not verdict.promoted and verdict.evidence["against_chance"]["log_wealth"] <= 0
    with pytest.raises(InputError, match=r"rows have only \["):
        out_of_sample_predictions(rows, FEATURES, QUICK)


@pytest.mark.parametrize("days", [1, 59, 60])
def test_fewer_bar_times_than_the_first_window_needs_end_in_one_line_with_both_numbers(days: int) -> None:
    with pytest.raises(InputError, match="bar times are too few") as error:
        out_of_sample_predictions(training_rows(days=days), FEATURES, QUICK)
    assert f"{days} bar times" in str(error.value) and "60" in str(error.value) and "\n" not in str(error.value)


def test_one_bar_time_more_is_predicted_and_is_not_enough_data() -> None:
    made = out_of_sample_predictions(training_rows(days=61), FEATURES, QUICK)
    found, verdict = judged(made)
    assert (found.rows, found.times) == (3, 1)
    assert (found.accuracy.lower, found.accuracy.upper) == (0.0, 1.0)
    assert verdict.kind == "not enough data" and verdict.reason.startswith("Not enough data: 1 bar time was bet on")


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_constant_probabilities_have_no_rank_and_no_edge(probability: float) -> None:
    found, verdict = judged(training_rows(days=900).assign(probability=probability))
    metrics = found.metrics.set_index("metric")
    assert metrics.loc["AUC", ["value", "lower", "upper"]].tolist() == [0.5, 0.5, 0.5]
    assert math.isnan(metrics.loc["information coefficient", "value"])
    assert found.rank_ic[["rank_ic", "lower", "upper", "above_zero"]].isna().all(axis=None)
    assert len(found.reliability) == 1 and found.reliability["rows"].tolist() == [2700]
    assert not verdict.promoted and verdict.evidence["against_chance"]["log_wealth"] < 0


def test_a_symbol_that_starts_late_and_one_that_stops_early_are_judged_by_the_rows_they_have() -> None:
    rows = training_rows(days=400)
    times = rows["event_timestamp"]
    late, early = times >= "2021-01-01", times < "2021-02-01"
    kept = rows[((rows["symbol"] != "S1") | late) & ((rows["symbol"] != "S2") | early)].reset_index(drop=True)
    made = out_of_sample_predictions(kept, FEATURES, QUICK)
    key = ["symbol", "event_timestamp"]
    wanted = kept[kept["event_timestamp"] >= sorted(times.unique())[60]]
    assert made[key].sort_values(key).to_numpy().tolist() == wanted[key].sort_values(key).to_numpy().tolist()

    found, verdict = judged(made)
    assert found.by_symbol.set_index("group")["rows"].to_dict() == wanted["symbol"].value_counts().to_dict()
    assert found.times == wanted["event_timestamp"].nunique() == verdict.evidence["against_chance"]["instants"]
    assert found.by_regime["rows"].sum() == len(wanted)
    # Most bar times of 2020 and of 2021 have two symbols.
    assert set(found.rank_ic["kind"]) == {"over time"}
