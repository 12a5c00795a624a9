"""Permutation importance: what is planted is found, out of sample, and nothing else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xgboost

from mt5_crs_pipeline.core.importance import MeanImportance, permutation_importance
from mt5_crs_pipeline.core.model import Model, fit, importance, out_of_sample_predictions, predict
from tests.core.test_model import FEATURES, QUICK, training_rows

ROWS = 400


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return training_rows(signal=1.0)


@pytest.fixture(scope="module")
def model(rows: pd.DataFrame) -> Model:
    return fit(rows.head(-ROWS), FEATURES, QUICK)


def loss(model: Model, rows: pd.DataFrame) -> float:
    """The log-loss in nats per row, by its definition."""
    of_truth = np.where(rows["target"] == 1, predict(model, rows), 1 - predict(model, rows))
    return float(-np.log(of_truth).mean())


def test_the_planted_feature_is_worth_what_it_costs_to_lose_it(model: Model, rows: pd.DataFrame) -> None:
    unseen = rows.tail(ROWS)
    found = permutation_importance(model, unseen, seed=1)
    costs = [
        loss(model, unseen.assign(b=unseen["b"].sample(frac=1, random_state=number).to_numpy())) - loss(model, unseen)
        for number in range(100, 130)
    ]
    assert found["b"] == pytest.approx(np.mean(costs), abs=4 * np.std(costs))
    assert found["b"] > 0.1 > 10 * max(abs(found[name]) for name in "acde")
    assert list(found) == FEATURES


def test_the_mean_over_many_draws_is_the_loss_over_all_pairs_of_rows(model: Model, rows: pd.DataFrame) -> None:
    few = rows.tail(30)
    every_pair = few.loc[few.index.repeat(30)].assign(b=np.tile(few["b"], 30))
    expected = loss(model, every_pair) - loss(model, few)
    drawn = [permutation_importance(model, few, seed)["b"] for seed in range(60)]
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / np.sqrt(60))


def test_the_same_seed_draws_the_same_and_leaves_the_rows_as_they_were(model: Model, rows: pd.DataFrame) -> None:
    unseen = rows.tail(ROWS)
    before = unseen.copy(deep=True)
    found = permutation_importance(model, unseen, seed=1)
    with xgboost.config_context(nthread=1):
        assert permutation_importance(model, unseen, seed=1) == found
    assert permutation_importance(model, unseen, seed=2) != found
    pd.testing.assert_frame_equal(unseen, before)


def test_a_feature_no_tree_asks_for_is_worth_nothing(rows: pd.DataFrame) -> None:
    stumps = fit(rows.head(-ROWS), FEATURES, replace(QUICK, max_depth=1, max_rounds=3, colsample_bytree=1.0))
    found = permutation_importance(stumps, rows.tail(ROWS), seed=1)
    assert {name for name, rise in found.items() if rise} == {"b"} == {n for n, s in importance(stumps).items() if s}


def test_rows_without_a_target_are_left_out(model: Model, rows: pd.DataFrame) -> None:
    unseen = rows.tail(ROWS)
    silent = np.arange(ROWS) % 3 == 0
    with_gaps = unseen.assign(target=unseen["target"].mask(silent))
    assert permutation_importance(model, with_gaps, 1) == permutation_importance(model, unseen[~silent], 1)
    assert permutation_importance(model, unseen.assign(target=np.nan), 1) == dict.fromkeys(FEATURES, 0.0)


def test_where_each_symbol_has_its_own_model_each_is_asked_about_its_rows(rows: pd.DataFrame) -> None:
    # `a` is a number of the symbol's own: among its rows alone, changing places changes nothing.
    own = rows.assign(a=rows["symbol"].map({"A": 1.0, "B": 2.0, "C": 3.0, "D": 4.0}))
    own.loc[own["symbol"] == "B", "target"] = 1 - own["target"]
    alone = fit(own.head(-ROWS), FEATURES, replace(QUICK, pooled=False, min_child_weight=5.0))
    unseen = own.tail(ROWS).iloc[: -ROWS // 3]
    found = permutation_importance(alone, unseen, 1)
    parts = [(len(part), Model({None: alone.boosters[s]}), part) for s, part in unseen.groupby("symbol")]
    expected = sum(count * permutation_importance(one, part, 1)["b"] for count, one, part in parts) / len(unseen)
    assert found["b"] == pytest.approx(expected) and found["b"] > 0.1
    assert found["a"] == 0.0


def test_the_mean_over_the_windows_counts_every_labelled_row_alike(rows: pd.DataFrame) -> None:
    seen: list[tuple[Model, pd.DataFrame]] = []
    gaps = rows.assign(target=rows["target"].mask((rows.index % 5 == 0) & (rows.index > 1000)))
    mean = MeanImportance(seed=3)
    out_of_sample_predictions(gaps, FEATURES, QUICK, mean.add)
    out_of_sample_predictions(gaps, FEATURES, QUICK, lambda *window: seen.append(window))
    counts = [int(test["target"].notna().sum()) for _, test in seen]
    each = [permutation_importance(model, test, 3) for model, test in seen]
    assert len(counts) == 3 and len(set(counts)) == 3
    assert mean.mean() == pytest.approx(
        {name: np.average([one[name] for one in each], weights=counts) for name in FEATURES}
    )
    assert MeanImportance(seed=3).mean() == {}


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_feature_that_changes_places_costs_what_xgboost_itself_predicts(rows: pd.DataFrame, depth: int) -> None:
    config = replace(QUICK, max_depth=depth, min_child_weight=1.0)
    model = fit(rows.head(-ROWS), FEATURES, config)
    unseen = rows.tail(ROWS)
    # Values on the thresholds themselves, where the right branch is taken, must go the same way.
    learnt_from = rows.head(ROWS)[FEATURES].to_numpy()
    unseen = pd.concat([unseen, unseen.assign(**dict(zip(FEATURES, learnt_from.T, strict=True)))], ignore_index=True)
    order = pd.Series(range(len(unseen))).sample(frac=1, random_state=9).to_numpy()
    costs = {
        name: loss(model, unseen.assign(**{name: unseen[name].to_numpy()[order]})) - loss(model, unseen)
        for name in FEATURES
    }
    assert permutation_importance(model, unseen, seed=9) == pytest.approx(costs, abs=1e-6)
