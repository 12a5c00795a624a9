"""A model of its own for each symbol: learnt from its rows alone, asked by symbol, refused where there is none."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import InputError, UnknownSymbolError
from mt5_crs_pipeline.core.model import Model, fit, importance, out_of_sample_predictions, predict
from mt5_crs_pipeline.core.splits import walk_forward
from tests.core.test_model import FEATURES, QUICK, accuracy, training_rows

ALONE = replace(QUICK, pooled=False, min_child_weight=5.0)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return training_rows(signal=1.0)


@pytest.fixture(scope="module")
def alone_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Symbol A follows `b`, symbol B its opposite; C starts late; in D only bars that went up come first."""
    changed = rows.copy()
    changed.loc[rows["symbol"] == "B", "target"] = 1 - rows["target"]
    day = rows.index // 4
    changed.loc[(rows["symbol"] == "D") & (day < 250), "target"] = 1.0
    return changed[(rows["symbol"] != "C") | (day >= 150)].reset_index(drop=True)


def test_each_symbol_is_learnt_from_its_own_rows_alone(alone_rows: pd.DataFrame) -> None:
    model = fit(alone_rows, FEATURES, ALONE)
    assert (list(model.boosters), model.pooled, model.feature_names) == (["A", "B", "C", "D"], False, FEATURES)
    shuffled = alone_rows.sample(frac=1, random_state=1)
    together = pd.Series(predict(model, shuffled), index=shuffled.index)
    for symbol, own in alone_rows.groupby("symbol"):
        one = fit(own, FEATURES, replace(ALONE, pooled=True))
        assert bytes(one.boosters[None].save_raw("ubj")) == bytes(model.boosters[symbol].save_raw("ubj"))
        assert together[own.index].tolist() == predict(one, own).tolist()
    assert model.trees == sum(booster.num_boosted_rounds() for booster in model.boosters.values())
    assert predict(model, alone_rows.head(0)).tolist() == []


def test_importance_is_the_mean_over_the_symbols(alone_rows: pd.DataFrame) -> None:
    model = fit(alone_rows, FEATURES, ALONE)
    each = [importance(Model({None: booster})) for booster in model.boosters.values()]
    assert importance(model) == pytest.approx({name: np.mean([shares[name] for shares in each]) for name in FEATURES})
    assert len({shares["b"] for shares in each}) == 4


def test_a_symbol_without_a_model_is_refused(alone_rows: pd.DataFrame, rows: pd.DataFrame) -> None:
    model = fit(alone_rows[alone_rows["symbol"] != "C"], FEATURES, ALONE)
    with pytest.raises(UnknownSymbolError, match=r"^there is no model of 'C', only of A, B, D$"):
        predict(model, alone_rows)
    assert len(predict(fit(rows, FEATURES, QUICK), rows.assign(symbol="Z"))) == len(rows)


def test_a_symbol_with_one_class_or_too_few_rows_is_named_with_the_remedy(alone_rows: pd.DataFrame) -> None:
    remedy = "; leave it out with MT5_CRS_SYMBOLS, or train one model of all symbols"
    early = alone_rows[alone_rows["event_timestamp"] < "2020-08-01"]
    with pytest.raises(InputError, match=r"^D cannot have a model of its own: its 213 rows have only \[1.0\]" + remedy):
        fit(early, FEATURES, ALONE)
    needs_many = replace(ALONE, min_child_weight=31.5)
    with pytest.raises(InputError, match="^C cannot .*: it has 250 rows, and a single split needs 252 .*" + remedy):
        fit(alone_rows, FEATURES, needs_many)
    assert fit(alone_rows, FEATURES, replace(ALONE, min_child_weight=31.25)).trees > 3


def test_a_symbol_is_predicted_from_the_window_on_before_which_it_can_be_learnt(alone_rows: pd.DataFrame) -> None:
    windows: list[tuple[Model, pd.DataFrame]] = []
    predictions = out_of_sample_predictions(alone_rows, FEATURES, ALONE, lambda *window: windows.append(window))
    splits = walk_forward(alone_rows, ALONE.first_train_times, ALONE.window_growth)
    # C's first row is of day 150, D's first bar that did not go up of day 250; the windows start on days 120, 180, 270.
    assert [list(model.boosters) for model, _ in windows] == [["A", "B"], ["A", "B"], ["A", "B", "C", "D"]]
    expected = [
        (row.symbol, row.event_timestamp)
        for split in splits
        for row in alone_rows.iloc[split.test].itertuples()
        if row.symbol in "AB" or split is splits[2]
    ]
    assert list(zip(predictions["symbol"], predictions["event_timestamp"], strict=True)) == expected
    of_ab = predictions[predictions["symbol"].isin(["A", "B"])]
    assert accuracy(of_ab) > 0.65
    pooled = out_of_sample_predictions(alone_rows, FEATURES, replace(ALONE, pooled=True))
    assert accuracy(of_ab) > accuracy(pooled[pooled["symbol"].isin(["A", "B"])]) + 0.1
    assert windows[0][1].index.tolist() == [i for i in splits[0].test if alone_rows["symbol"][i] in "AB"]


def test_a_window_that_no_symbol_can_be_learnt_before_is_left_out(alone_rows: pd.DataFrame) -> None:
    config = replace(ALONE, min_child_weight=32.0)
    predictions = out_of_sample_predictions(alone_rows, FEATURES, config)
    last = walk_forward(alone_rows, config.first_train_times, config.window_growth)[-1]
    assert predictions["event_timestamp"].min() == last.test_start
    with pytest.raises(InputError, match="no symbol has history enough"):
        out_of_sample_predictions(alone_rows, FEATURES, replace(ALONE, min_child_weight=100.0))
