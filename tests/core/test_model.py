"""Training is reproducible, finds what is there and nothing else, and never learns from the future."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from mt5_crs_pipeline.core.errors import ConfigurationError, InputError
from mt5_crs_pipeline.core.model import (
    Model,
    TrainingConfig,
    check_trainable,
    fit,
    importance,
    model_version,
    out_of_sample_predictions,
    predict,
)
from mt5_crs_pipeline.core.recipe import Recipe
from mt5_crs_pipeline.core.splits import hold_out_latest, walk_forward

QUICK = TrainingConfig(max_rounds=60, first_train_times=120, window_growth=0.5)
FEATURES = ["a", "b", "c", "d", "e"]


def training_rows(signal: float, days: int = 400, seed: int = 3) -> pd.DataFrame:
    """Rows of four symbols; feature `b` tells the next move apart to the degree of `signal`."""
    rng = np.random.default_rng(seed)
    times = pd.date_range("2020-01-01", periods=days, freq="D", tz="UTC").repeat(4)
    rows = pd.DataFrame(rng.normal(size=(4 * days, len(FEATURES))), columns=FEATURES)
    rows["symbol"] = np.tile(["A", "B", "C", "D"], days)
    rows["event_timestamp"] = times
    rows["label_time"] = times + pd.Timedelta(days=1)
    rows["target"] = (signal * rows["b"] + rng.normal(size=len(rows)) > 0).astype(float)
    return rows


def model_bytes(rows: pd.DataFrame, config: TrainingConfig = QUICK) -> bytes:
    return bytes(fit(rows, FEATURES, config).boosters[None].save_raw("ubj"))


def accuracy(predictions: pd.DataFrame) -> float:
    return float(((predictions["probability"] >= 0.5) == (predictions["target"] == 1)).mean())


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return training_rows(signal=1.0)


def test_the_same_rows_make_the_same_bytes_on_one_thread_and_on_two(rows: pd.DataFrame) -> None:
    made = []
    for threads in (1, 2, 1):
        with xgboost.config_context(nthread=threads):
            made.append(model_bytes(rows.copy()))
    assert made[0] == made[1] == made[2]


def test_the_model_is_what_plain_xgboost_makes_of_all_rows_in_as_many_rounds(rows: pd.DataFrame) -> None:
    model = fit(rows, FEATURES, QUICK)
    matrix = xgboost.DMatrix(rows[FEATURES], label=rows["target"])
    plain = xgboost.train(QUICK.booster_parameters(), matrix, num_boost_round=model.trees)
    assert bytes(model.boosters[None].save_raw("ubj")) == bytes(plain.save_raw("ubj"))


def test_rows_in_any_memory_layout_make_the_same_bytes(rows: pd.DataFrame) -> None:
    made = model_bytes(rows)
    assert model_bytes(rows[rows.columns[::-1]]) == made
    assert model_bytes(pd.concat([rows[[name]] for name in rows], axis=1)) == made
    assert model_bytes(rows.loc[rows.index.repeat(2)].iloc[::2]) == made
    assert model_bytes(rows.set_index(pd.Index(["again"] * len(rows)))) == made


def test_rows_that_the_purge_takes_from_the_middle_are_not_learnt_from_when_stopping_early(rows: pd.DataFrame) -> None:
    # Symbol D closes its labels late: the rows before the slice are no longer one stretch.
    late = rows.assign(**rows[FEATURES].clip(-2, 2).round())  # so few values that all bins are the same
    late.loc[late["symbol"] == "D", "label_time"] += pd.Timedelta(days=200)
    purged = (late["symbol"] == "D") & (late["event_timestamp"] > late["event_timestamp"].iloc[480])
    late.loc[purged, "target"] = 1 - late["target"]
    split = hold_out_latest(late, QUICK.early_stopping_share)
    assert np.diff(split.train).max() > 1
    head, tail = (
        xgboost.DMatrix(late.iloc[at][FEATURES], label=late.iloc[at]["target"]) for at in (split.train, split.test)
    )
    probe = xgboost.train(
        QUICK.booster_parameters(), head, 60, evals=[(tail, "tail")], early_stopping_rounds=20, verbose_eval=False
    )
    assert fit(late, FEATURES, QUICK).trees == probe.best_iteration + 1


def test_another_seed_or_another_row_makes_another_model(rows: pd.DataFrame) -> None:
    made = model_bytes(rows)
    assert model_bytes(rows, replace(QUICK, seed=8)) != made
    assert model_bytes(rows.iloc[:-400]) != made


def test_training_leaves_its_rows_as_they_were(rows: pd.DataFrame) -> None:
    before = rows.copy(deep=True)
    fit(rows, FEATURES, QUICK)
    out_of_sample_predictions(rows, FEATURES, QUICK)
    pd.testing.assert_frame_equal(rows, before)


def test_a_planted_signal_is_found_out_of_sample(rows: pd.DataFrame) -> None:
    predictions = out_of_sample_predictions(rows, FEATURES, QUICK)
    # Knowing the signal exactly gives 1/2 + arctan(1)/pi = 75 %.
    assert 0.68 < accuracy(predictions) < 0.80
    shares = importance(fit(rows, FEATURES, QUICK))
    assert shares["b"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == FEATURES


@pytest.mark.parametrize("seed", [1, 2])
def test_pure_noise_predicts_nothing(seed: int) -> None:
    predictions = out_of_sample_predictions(training_rows(0.0, seed=seed), FEATURES, QUICK)
    # Four standard errors of a fair coin.
    assert abs(accuracy(predictions) - 0.5) < 4 * 0.5 / np.sqrt(len(predictions))
    assert np.abs(predictions["probability"] - 0.5).mean() < 0.05


def test_every_row_of_every_window_is_predicted_once_in_order(rows: pd.DataFrame) -> None:
    predictions = out_of_sample_predictions(rows, FEATURES, QUICK)
    after = rows[rows["event_timestamp"] >= rows["event_timestamp"].iloc[4 * 120]]
    # These rows have no returns, spread or volatility to keep.
    kept = ["symbol", "event_timestamp", "label_time", "target"]
    assert predictions.columns.tolist() == [*kept, "probability"]
    pd.testing.assert_frame_equal(predictions[kept], after[kept].reset_index(drop=True))


def test_rows_without_a_target_are_predicted_and_not_learnt_from(rows: pd.DataFrame) -> None:
    silent = np.arange(len(rows)) % 7 == 0
    predictions = out_of_sample_predictions(rows.assign(target=rows["target"].mask(silent)), FEATURES, QUICK)
    [first, *_] = walk_forward(rows, QUICK.first_train_times, QUICK.window_growth)
    learnt = rows.iloc[first.train][~silent[first.train]]
    expected = predict(fit(learnt, FEATURES, QUICK), rows.iloc[first.test])
    assert predictions["probability"].head(len(first.test)).tolist() == expected.tolist()
    assert predictions["target"].isna().sum() == silent[first.test[0] :].sum()


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_what_happens_from_a_window_on_changes_no_prediction_up_to_it(rows: pd.DataFrame, fold: int) -> None:
    start = walk_forward(rows, QUICK.first_train_times, QUICK.window_growth)[fold].test_start
    changed = rows.copy()
    changed.loc[rows["label_time"] >= start, "target"] = 1 - rows["target"]
    later = rows["event_timestamp"] >= start + pd.Timedelta(days=60)
    changed.loc[later, FEATURES] = np.random.default_rng(0).normal(size=(later.sum(), len(FEATURES)))
    kept = out_of_sample_predictions(rows, FEATURES, QUICK)
    moved = out_of_sample_predictions(changed, FEATURES, QUICK)
    up_to = kept["event_timestamp"] < start + pd.Timedelta(days=60)
    assert (kept.loc[up_to, "probability"].to_numpy() == moved.loc[up_to, "probability"].to_numpy()).all()
    assert (kept["target"] != moved["target"]).any()
    if fold < 2:
        assert (kept.loc[~up_to, "probability"].to_numpy() != moved.loc[~up_to, "probability"].to_numpy()).any()


def test_a_window_is_predicted_by_a_model_of_its_own_past(rows: pd.DataFrame) -> None:
    predictions = out_of_sample_predictions(rows, FEATURES, QUICK)
    splits = walk_forward(rows, QUICK.first_train_times, QUICK.window_growth)
    expected = [predict(fit(rows.iloc[s.train], FEATURES, QUICK), rows.iloc[s.test]) for s in splits]
    assert predictions["probability"].tolist() == np.concatenate(expected).tolist()


def test_every_window_is_handed_on_with_its_model_and_its_rows(rows: pd.DataFrame) -> None:
    windows: list[tuple[Model, pd.DataFrame]] = []
    predictions = out_of_sample_predictions(rows, FEATURES, QUICK, lambda *window: windows.append(window))
    assert len(windows) == len(walk_forward(rows, QUICK.first_train_times, QUICK.window_growth))
    again = np.concatenate([predict(model, test) for model, test in windows])
    assert again.tolist() == predictions["probability"].tolist()


def test_early_stopping_ends_before_the_last_round_on_noise_only(rows: pd.DataFrame) -> None:
    assert fit(training_rows(0.0), FEATURES, QUICK).trees < 30
    assert fit(rows, FEATURES, QUICK).trees > 30


def test_probabilities_are_doubles_of_the_sum_of_the_trees(rows: pd.DataFrame) -> None:
    model = fit(rows, FEATURES, QUICK)
    probability = predict(model, rows.head(50))
    margin = model.boosters[None].predict(xgboost.DMatrix(rows.head(50)[FEATURES]), output_margin=True)
    assert probability.dtype == np.float64
    assert probability == pytest.approx(1 / (1 + np.exp(-margin.astype(float))), abs=1e-6)


def test_predict_takes_columns_by_name_in_any_order_and_row_by_row(rows: pd.DataFrame) -> None:
    model = fit(rows, FEATURES, QUICK)
    together = predict(model, rows.head(40))
    assert predict(model, rows.head(40)[FEATURES[::-1]]).tolist() == together.tolist()
    assert [predict(model, rows.iloc[[i]]).item() for i in range(40)] == together.tolist()
    assert predict(model, rows.head(0)).tolist() == []


# XGBoost computes in 32 bits, where 1e39 is infinite.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_a_feature_that_is_not_finite_is_refused_by_name_and_row(rows: pd.DataFrame, value: float) -> None:
    model = fit(rows, FEATURES, QUICK)
    broken = rows.head(50).copy()
    broken.loc[33, ["d", "e"]] = value
    broken.loc[40, "a"] = np.nan
    with pytest.raises(InputError, match=f"^feature 'd' is {re.escape(str(value))} in row 33$"):
        predict(model, broken)
    with pytest.raises(InputError, match=f"^training row 33 has d = {re.escape(str(value))}$"):
        fit(broken, FEATURES, QUICK)


@pytest.mark.parametrize("target", [0.0, 1.0, np.nan, 2.0])
def test_training_needs_both_classes_and_no_other(rows: pd.DataFrame, target: float) -> None:
    with pytest.raises(InputError, match=rf"100 rows have only \[{target}\]"):
        fit(rows.head(100).assign(target=target), FEATURES, QUICK)
    mixed = rows.head(100).copy()
    mixed.loc[5, "target"] = np.nan
    with pytest.raises(InputError, match="went up and bars that did not"):
        check_trainable(mixed, FEATURES)
    with pytest.raises(InputError, match=r"0 rows have only \[\]"):
        fit(rows.head(0), FEATURES, QUICK)


def test_a_few_rows_make_a_model_without_a_slice_to_stop_on(rows: pd.DataFrame) -> None:
    few = rows.head(4).assign(target=[0.0, 1.0, 0.0, 1.0])
    model = fit(few, FEATURES, QUICK)
    assert model.trees == 1
    assert predict(model, few) == pytest.approx(0.5)
    assert importance(model) == dict.fromkeys(FEATURES, 0.0)


def test_a_training_slice_of_one_class_still_trains(rows: pd.DataFrame) -> None:
    one_sided = rows.head(400).copy()
    one_sided["target"] = (one_sided["event_timestamp"] > one_sided["event_timestamp"].iloc[360]).astype(float)
    assert np.isfinite(predict(fit(one_sided, FEATURES, QUICK), one_sided)).all()


def test_a_model_is_named_by_its_newest_row_and_its_recipe(rows: pd.DataFrame) -> None:
    assert model_version(rows, "0123456789abcdef") == "20210203-0123456789ab"


def test_the_settings_are_all_in_the_dictionary_and_reach_the_learner() -> None:
    config = TrainingConfig(max_depth=2, learning_rate=0.5, seed=1)
    assert {"max_depth": 2, "learning_rate": 0.5, "seed": 1, "window_growth": 0.25}.items() <= config.to_dict().items()
    parameters = config.booster_parameters()
    assert all(parameters[name] == value for name, value in config.to_dict().items() if name in parameters)
    assert len(set(parameters) & set(config.to_dict())) == 6


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("max_depth", [0, -1, 17, 2.0, "3", None, True]),
        ("learning_rate", [0.0, -0.1, 1.01, math.nan, math.inf, "0.1", None, False]),
        ("min_child_weight", [-1.0, math.nan, math.inf, "20"]),
        ("subsample", [0.0, 1.1, -0.5, math.nan]),
        ("colsample_bytree", [0.0, 1.1, -0.5, math.nan]),
        ("max_rounds", [0, -3, 1.5]),
        ("early_stopping_rounds", [0, 20.0]),
        ("early_stopping_share", [0.0, 1.0, math.nan]),
        ("first_train_times", [0, 99.5]),
        ("window_growth", [0.0, -0.25, math.nan, math.inf]),
        ("seed", [-1, 2**31, 7.0]),
        ("pooled", [0, 1, None, "false"]),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name_and_value(setting: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ConfigurationError, match=f"^{setting} is {re.escape(repr(value))}: it must be "):
            TrainingConfig(**{setting: value})


def test_settings_at_their_limits_are_taken() -> None:
    TrainingConfig(max_depth=1, learning_rate=1.0, min_child_weight=0.0, subsample=1.0, colsample_bytree=1.0, seed=0)
    TrainingConfig(max_depth=16, max_rounds=1, early_stopping_rounds=1, first_train_times=1, seed=2**31 - 1)


def test_settings_come_back_from_their_json_and_are_one_however_a_number_is_written() -> None:
    config = TrainingConfig(max_depth=5, min_child_weight=3.5, pooled=False)
    assert TrainingConfig(**json.loads(json.dumps(config.to_dict()))) == config != TrainingConfig()
    assert repr(TrainingConfig(min_child_weight=20, learning_rate=1)) == repr(TrainingConfig(learning_rate=1.0))
    recipe = Recipe.from_dict({"training": config.to_dict()})
    assert recipe.training == config
    with pytest.raises(ConfigurationError, match="training has no setting 'max_dept'"):
        Recipe.from_dict({"training": {"max_dept": 3}})
    with pytest.raises(ConfigurationError, match="max_depth is 0"):
        Recipe.from_dict({"training": {"max_depth": 0}})


# --- Weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.1, 1 / 3, 1e-6, 700.0])
def test_a_constant_weight_makes_the_model_of_no_weight(rows: pd.DataFrame, weight: float) -> None:
    assert model_bytes(rows.assign(weight=weight)) == model_bytes(rows)


def test_a_row_that_weighs_twice_counts_like_two(rows: pd.DataFrame) -> None:
    # Without drawing rows or columns, and with so few values that the bins are the same, nothing else differs.
    config = replace(QUICK, subsample=1.0, colsample_bytree=1.0, min_child_weight=0.0, max_rounds=5)
    few = rows.assign(**rows[FEATURES].clip(-2, 2).round())
    twice = few.index % 3 == 0
    once_each = pd.concat([few, few[twice]]).sort_values("event_timestamp", kind="stable", ignore_index=True)
    weighed = predict(fit(few.assign(weight=np.where(twice, 2.0, 1.0)), FEATURES, config), few)
    # The mean weight is 1, not 4/3, so regularisation (lambda = 1) weighs a little more.
    assert weighed == pytest.approx(predict(fit(once_each, FEATURES, config), few), abs=2e-3)
    assert np.abs(weighed - predict(fit(few, FEATURES, config), few)).max() > 1e-2


def test_the_weight_of_the_latest_rows_decides_when_to_stop(rows: pd.DataFrame) -> None:
    # In the slice one half of the rows, taken at random, follows the signal and one half its opposite.
    [first_of_slice] = hold_out_latest(rows, QUICK.early_stopping_share).test[:1]
    opposed = (rows.index >= first_of_slice) & (np.random.default_rng(5).random(len(rows)) < 0.5)
    mixed = rows.assign(target=np.where(opposed, 1 - rows["target"], rows["target"]))
    trust, mistrust = (mixed.assign(weight=np.where(opposed, weight, 1.0)) for weight in (1e-3, 1e3))
    assert fit(trust, FEATURES, QUICK).trees > 30
    assert fit(mistrust, FEATURES, QUICK).trees < 5


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_not_positive_is_refused_by_row(rows: pd.DataFrame, weight: float) -> None:
    weights = np.ones(len(rows))
    weights[17] = weight
    with pytest.raises(InputError, match=f"^training row 17 has weight {weight}: give a positive one"):
        fit(rows.assign(weight=weights), FEATURES, QUICK)
