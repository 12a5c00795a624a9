"""The metadata of a model holds what DESIGN promises, counted from the rows by hand."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import TrainingConfig
from mt5_crs_pipeline.core.model_card import model_card
from mt5_crs_pipeline.core.recipe import Recipe

PROMISED = {
    *("model_type", "model_version", "symbols", "lookback", "features", "train_date", "params", "metrics"),
    *("model_file", "feature_config", "feature_set_hash", "data_window", "row_counts", "data_fingerprint"),
    *("code_commit", "library_versions", "label", "class_balance", "parity"),
}


@pytest.fixture
def card() -> dict[str, Any]:
    times = pd.to_datetime(["2024-01-03", "2024-01-02", "2024-01-05", "2024-01-04"], utc=True)
    rows = pd.DataFrame(
        {"symbol": ["MSFT", "AAPL", "MSFT", "MSFT"], "event_timestamp": times, "target": [1.0, 0.0, 1.0, 1.0]}
    )
    return made(rows, TrainingConfig(seed=99))


def made(rows: pd.DataFrame, training: TrainingConfig) -> dict[str, Any]:
    return model_card(
        rows=rows,
        version="20240105-abc",
        timeframe="D1",
        config=FeatureConfig(("sma_5", "gap")),
        recipe=Recipe(training=training),
        importance={"sma_5": 0.75, "gap": 0.25},
        permutation_importance={"sma_5": 0.01, "gap": -0.002},
        metrics={"accuracy": 0.5},
        data_fingerprint="f" * 64,
        parity={"holds": True, "certificate": "c" * 64},
        train_date=datetime(2024, 1, 6, tzinfo=UTC),
        code_commit="c0ffee",
        library_versions={"xgboost": "3.0"},
    )


def test_the_card_has_every_promised_key_and_survives_json(card: dict[str, Any]) -> None:
    assert set(card) >= PROMISED
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_the_card_counts_its_rows(card: dict[str, Any]) -> None:
    assert card["symbols"] == ["AAPL", "MSFT"]
    assert card["row_counts"] == {"total": 4, "AAPL": 1, "MSFT": 3}
    assert card["class_balance"] == {"UP": 3, "DOWN": 1}
    assert card["data_window"] == {"start": "2024-01-02T00:00:00+00:00", "end": "2024-01-05T00:00:00+00:00"}


def test_the_card_names_what_it_was_made_by(card: dict[str, Any]) -> None:
    assert card["features"] == ["sma_5", "gap"]
    assert card["feature_config"] == {"features": ["sma_5", "gap"]}
    assert card["feature_set_hash"] == FeatureConfig(("sma_5", "gap")).feature_set_hash
    assert card["lookback"] == 5
    assert card["parity"] == {"holds": True, "certificate": "c" * 64}
    assert card["label"] == LabelConfig().definition
    assert card["params"]["seed"] == 99
    assert card["importance"] == {"sma_5": 0.75, "gap": 0.25}
    assert card["permutation_importance"] == {"sma_5": 0.01, "gap": -0.002}
    assert (card["model_type"], card["model_file"]) == ("xgboost.Booster", "model.ubj")
    assert (card["timeframe"], card["model_version"]) == ("D1", "20240105-abc")
    assert (card["train_date"], card["code_commit"]) == ("2024-01-06T00:00:00+00:00", "c0ffee")
    assert (card["data_fingerprint"], card["metrics"]) == ("f" * 64, {"accuracy": 0.5})
    assert card["library_versions"] == {"xgboost": "3.0"}


def test_the_files_of_a_model_for_each_symbol_are_named_by_number_and_only_for_what_was_learnt() -> None:
    times = pd.to_datetime(["2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"], utc=True)
    rows = pd.DataFrame(
        {"symbol": ["eurusd", "EURUSD", "GOLD", "eurusd"], "event_timestamp": times, "target": [1.0, 0.0, np.nan, 1.0]}
    )
    card = made(rows, TrainingConfig(pooled=False))
    # Two symbols whose names one file system takes for the same.
    assert card["model_file"] == {"EURUSD": "model-0000.ubj", "eurusd": "model-0001.ubj"}
    assert card["symbols"] == ["EURUSD", "eurusd"]
    assert card["row_counts"] == {"total": 4, "EURUSD": 1, "GOLD": 1, "eurusd": 2}
    assert made(rows, TrainingConfig())["symbols"] == ["EURUSD", "eurusd"]
