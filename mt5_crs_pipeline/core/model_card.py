"""The metadata that travels with a model."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import pandas as pd

from mt5_crs_pipeline.core.features import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, TARGET
from mt5_crs_pipeline.core.model import MODEL_TYPE
from mt5_crs_pipeline.core.recipe import Recipe

MODEL_FILE: Final = "model.ubj"


def model_files(symbols: list[str]) -> dict[str, str]:
    """Return the file of each symbol's own model; not by its name, which a file system may not tell from another's."""
    return {symbol: f"model-{number:04d}.ubj" for number, symbol in enumerate(symbols)}


def model_card(
    *,
    rows: pd.DataFrame,
    version: str,
    timeframe: str,
    config: FeatureConfig,
    recipe: Recipe,
    importance: dict[str, float],
    permutation_importance: dict[str, float],
    metrics: dict[str, Any],
    data_fingerprint: str,
    parity: dict[str, Any],
    train_date: datetime,
    code_commit: str,
    library_versions: dict[str, str],
) -> dict[str, Any]:
    """Return the JSON-serialisable metadata of a model trained on the labelled of `rows` (a training set).

    `model_file` is one name, or an object of symbol to name where each symbol has a model of its own.
    """
    symbols = sorted(str(symbol) for symbol in rows.loc[rows[TARGET].notna(), "symbol"].unique())
    ups, labelled = int(rows[TARGET].sum()), int(rows[TARGET].count())
    per_symbol = rows["symbol"].value_counts().sort_index()
    return {
        "model_type": MODEL_TYPE,
        "model_version": version,
        "symbols": symbols,
        "timeframe": timeframe,
        "lookback": config.lookback,
        "features": get_feature_names(config),
        "train_date": train_date.isoformat(),
        "params": recipe.training.to_dict(),
        "metrics": metrics,
        "model_file": MODEL_FILE if recipe.training.pooled else model_files(symbols),
        "feature_config": {"features": get_feature_names(config)},
        "feature_set_hash": config.feature_set_hash,
        "data_window": {
            "start": rows[EVENT_TIMESTAMP].min().isoformat(),
            "end": rows[EVENT_TIMESTAMP].max().isoformat(),
        },
        "row_counts": {"total": len(rows), **{str(symbol): int(n) for symbol, n in per_symbol.items()}},
        "data_fingerprint": data_fingerprint,
        "parity": parity,
        "code_commit": code_commit,
        "library_versions": library_versions,
        "label": recipe.label.definition,
        "label_config": asdict(recipe.label),
        "class_balance": {"UP": ups, "DOWN": labelled - ups},
        "importance": importance,
        "permutation_importance": permutation_importance,
    }
