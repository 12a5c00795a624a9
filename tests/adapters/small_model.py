"""A small real model, trained once on real bars, and the bundle it is stored as."""

import functools
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.adapters.model_store import Bundle, ModelStore
from mt5_crs_pipeline.core.bars import adjusted, close_time
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_rows
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, labelled_bars
from mt5_crs_pipeline.core.model import PREDICTION_COLUMNS, Model, TrainingConfig, fit, importance
from mt5_crs_pipeline.core.model_card import model_card
from mt5_crs_pipeline.core.recipe import Recipe

VERSION = "20130301-0123456789ab"
SYMBOLS = ("AAPL", "IBM")
TRAINING = TrainingConfig(max_rounds=8, min_child_weight=1.0)
ALONE = replace(TRAINING, pooled=False)


@functools.cache
def real_bars(rows: int = 500) -> pd.DataFrame:
    """Return the last `rows` daily bars of AAPL and IBM, known and recorded at their closes; do not change them."""
    bars = demo_bars()
    bars = bars[bars["symbol"].isin(SYMBOLS)].groupby("symbol").tail(rows).reset_index(drop=True)
    closes = close_time(bars["time"], "D1")
    return bars.assign(known_at=closes, recorded_at=closes)


@functools.cache
def training_rows() -> pd.DataFrame:
    bars = real_bars()
    features = feature_rows(bars, "D1").drop(columns=["time", "known_at", "recorded_at", "is_complete"])
    labels = labelled_bars(adjusted(bars), "D1")
    rows = labels.merge(features, on=["symbol", EVENT_TIMESTAMP], how="left")
    rows = rows.dropna(subset=get_feature_names(PIPELINE_FEATURES))
    return rows.sort_values([EVENT_TIMESTAMP, "symbol"], ignore_index=True)


@functools.cache
def model() -> Model:
    return fit(training_rows(), get_feature_names(PIPELINE_FEATURES), TRAINING)


@functools.cache
def model_of_each() -> Model:
    """A model of its own for each symbol."""
    return fit(training_rows(), get_feature_names(PIPELINE_FEATURES), ALONE)


def card(version: str = VERSION, training: TrainingConfig = TRAINING, **changes: Any) -> dict[str, Any]:
    made = model_card(
        rows=training_rows(),
        version=version,
        timeframe="D1",
        config=PIPELINE_FEATURES,
        recipe=Recipe(training=training),
        importance=importance(model()),
        permutation_importance={},
        metrics={"accuracy": 0.5},
        data_fingerprint="0" * 64,
        parity={"feature_set_hash": PIPELINE_FEATURES.feature_set_hash, "holds": True},
        train_date=datetime(2013, 3, 2, tzinfo=UTC),
        code_commit="test",
        library_versions={"python": "3"},
    )
    return {**made, **changes}


def card_of_each() -> dict[str, Any]:
    return card(training=ALONE)


def predictions() -> pd.DataFrame:
    rows = training_rows().tail(40).reset_index(drop=True)
    return rows.assign(probability=0.25)[list(PREDICTION_COLUMNS)]


def planted_predictions(wrong_in: int = 5) -> pd.DataFrame:
    """Predictions with a real edge: of `wrong_in` rows all but one lean to what happened."""
    rows = training_rows()
    wrong = pd.Series(range(len(rows)), index=rows.index) % wrong_in == 0
    probability = (rows["target"] - wrong).abs() * 0.2 + 0.4
    return rows.assign(probability=probability)[list(PREDICTION_COLUMNS)]


def save_model(store: ModelStore, version: str = VERSION, **changes: Any) -> Bundle:
    return store.save(card(version, **changes), model(), predictions())


def save_alone(store: ModelStore) -> Bundle:
    return store.save(card_of_each(), model_of_each(), predictions())
