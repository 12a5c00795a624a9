"""Metrics against their definitions, intervals against what they promise."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mt5_crs_pipeline.core.metrics import auc, block_length, log_loss, metrics_with_intervals, times_needed


def rows(
    times: int, symbols: int = 1, seed: int = 0, accuracy: float = 0.55, together: float = 0.0, lasting: float = 0.0
) -> pd.DataFrame:
    """Predictions that are right in a share `accuracy`; symbols of one time, and times that follow, may agree."""
    random = np.random.default_rng(seed)
    shared = np.empty(times)
    noise = random.normal(size=times)
    shared[0] = noise[0]
    for time in range(1, times):
        shared[time] = lasting * shared[time - 1] + math.sqrt(1 - lasting**2) * noise[time]
    latent = math.sqrt(together) * shared[:, None] + math.sqrt(1 - together) * random.normal(size=(times, symbols))
    right = latent < stats.norm.ppf(accuracy)
    up = random.random((times, symbols)) < 0.5
    probability = 0.5 + np.where(up == right, 1, -1) * random.uniform(0.01, 0.2, (times, symbols))
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], times),
            "event_timestamp": pd.date_range("2010-01-01", periods=times, freq="D", tz="UTC").repeat(symbols),
            "target": up.ravel().astype(float),
            "probability": probability.ravel(),
        }
    )


def by_name(frame: pd.DataFrame) -> pd.DataFrame:
    return metrics_with_intervals(frame).set_index("metric")


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_its_definition(seed: int) -> None:
    frame = rows(150, symbols=3, seed=seed)
    up, probability = frame["target"].to_numpy() == 1, frame["probability"].to_numpy()
    said = probability >= 0.5
    precision, recall = (up & said).sum() / said.sum(), (up & said).sum() / up.sum()
    expected = {
        "accuracy": (up == said).mean(),
        "balanced accuracy": (recall + (~up & ~said).sum() / (~up).sum()) / 2,
        "precision of UP": precision,
        "recall of UP": recall,
        "F1 of UP": 2 * precision * recall / (precision + recall),
        "AUC": stats.mannwhitneyu(probability[up], probability[~up]).statistic / (up.sum() * (~up).sum()),
        "log-loss": -np.log(np.where(up, probability, 1 - probability)).mean(),
        "Brier score": ((probability - up) ** 2).mean(),
        "information coefficient": stats.pearsonr(probability, up.astype(float)).statistic,
    }
    found = by_name(frame)
    assert found["value"].to_dict() == pytest.approx(expected, abs=1e-12)
    assert (found["lower"] <= found["value"]).all()
    assert (found["value"] <= found["upper"]).all()
    assert found.loc["AUC", "value"] == pytest.approx(auc(frame["target"].to_numpy(), probability))
    assert found.loc["log-loss", "value"] == pytest.approx(log_loss(frame["target"].to_numpy(), probability))


def test_the_same_rows_give_the_same_intervals() -> None:
    pd.testing.assert_frame_equal(metrics_with_intervals(rows(80)), metrics_with_intervals(rows(80)))


@pytest.mark.parametrize(("together", "lasting"), [(0.0, 0.0), (0.6, 0.0), (0.6, 0.4)])
def test_intervals_hold_the_truth_as_often_as_they_say(together: float, lasting: float) -> None:
    cases = [by_name(rows(600, 4, seed, 0.55, together, lasting)).loc["accuracy"] for seed in range(150)]
    held = np.mean([case["lower"] <= 0.55 <= case["upper"] for case in cases])
    # 95 % of 150, and three standard deviations of luck.
    assert held >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)


def test_symbols_that_move_together_widen_the_interval() -> None:
    width = {
        together: np.diff(by_name(rows(600, 8, 1, 0.55, together)).loc["accuracy", ["lower", "upper"]])[0]
        for together in (0.0, 0.9)
    }
    assert width[0.9] > 1.5 * width[0.0]


def test_blocks_are_longer_where_times_that_follow_agree() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(size=2000)
    lasting = np.empty(2000)
    lasting[0] = noise[0]
    for time in range(1, 2000):
        lasting[time] = 0.7 * lasting[time - 1] + noise[time]
    assert block_length(noise) <= 3
    assert 8 <= block_length(lasting) <= 60


@pytest.mark.parametrize("series", [[], [1.0], [0.0, 1.0, 0.0], [1.0] * 50])
def test_what_shows_no_dependence_has_blocks_of_one(series: list[float]) -> None:
    assert block_length(np.array(series)) == 1


def test_times_needed_are_those_of_a_test_of_coin_tosses() -> None:
    needed = times_needed(rows(4000, accuracy=0.5))
    for points, times in needed.items():
        exact = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * 0.25 / (points / 100) ** 2
        assert times == pytest.approx(exact, rel=0.15)
    assert list(needed) == [1.0, 2.0, 5.0]


def test_one_class_and_one_row_have_no_numbers_that_look_fine() -> None:
    one_class = rows(50).assign(target=1.0)
    found = by_name(one_class)
    assert math.isnan(found.loc["AUC", "value"])
    assert math.isnan(found.loc["balanced accuracy", "value"])
    assert math.isnan(found.loc["information coefficient", "value"])
    assert found.loc["accuracy", "to_beat"] == 1.0
    assert times_needed(rows(1)) == times_needed(rows(1, seed=1))
    constant = by_name(rows(50).assign(probability=0.5))
    assert constant.loc["AUC", "value"] == 0.5
    assert math.isnan(constant.loc["information coefficient", "value"])


@pytest.mark.parametrize("probability", [0.1, 0.3, 1 / 3, 0.7])
def test_rounding_makes_no_correlation_of_a_constant(probability: float) -> None:
    found = by_name(rows(333, 3).assign(probability=probability)).loc["information coefficient"]
    assert found[["value", "lower", "upper"]].isna().all()
    # Two values a billionth apart are no constant.
    frame = rows(400)
    frame["probability"] = probability + 1e-9 * frame["target"]
    assert by_name(frame).loc["information coefficient", "value"] == pytest.approx(1.0, abs=1e-6)


def test_a_first_row_far_from_the_others_neither_hides_nor_makes_a_correlation() -> None:
    frame = rows(3000)
    frame["probability"] = 0.7 + 0.001 * np.sin(np.arange(3000.0))
    frame.loc[0, "probability"] = 0.1
    found = by_name(frame).loc["information coefficient"]
    assert found["value"] == pytest.approx(stats.pearsonr(frame["probability"], frame["target"]).statistic, abs=1e-9)
    # Resamples without the one row that differs have no correlation, and the others one of its own sign.
    one = rows(12, seed=2).assign(probability=0.3)
    one.loc[0, ["probability", "target"]] = 0.6, 1.0
    found = by_name(one).loc["information coefficient"]
    assert 0 < found["lower"] <= found["value"] <= found["upper"]
