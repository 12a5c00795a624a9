"""The asset `noise_floor`: made once, kept while it fits the recipe, and shown in the UI and the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from mt5_crs_pipeline.adapters.noise_floor_file import NOISE_FLOOR_FILE
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.model import (
    current_version,
    model_evaluation,
    noise_floor,
    training_set,
    xgboost_model,
)
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import SYMBOLS, materialize, metadata, store, year_of_bars

LOOKBACK = PIPELINE_FEATURES.lookback
BEFORE = [market_data, market_data_parquet, feast_registry, technical_features, feast_online_store, training_set]


@pytest.fixture
def stores(settings: Settings) -> Stores:
    store(settings, year_of_bars())
    ready = Stores(settings)
    materialize(ready, [*BEFORE, xgboost_model])
    return ready


def told(stores: Stores) -> dict[str, Any]:
    return metadata(materialize(stores, [noise_floor]), "noise_floor")


def report(stores: Stores) -> str:
    materialize(stores, [model_evaluation])
    return (stores.reports / f"{current_version(stores)}.html").read_text("utf-8")


def kept(stores: Stores) -> Path:
    return stores.reports / NOISE_FLOOR_FILE


def test_a_floor_is_kept_for_the_recipe_it_was_made_for(stores: Stores, settings: Settings) -> None:
    assert "No noise floor was made" in report(stores)
    first = told(stores)
    assert (first["renewed"], first["runs"], first["runs that could not be trained"]) == (True, 2, [])
    assert "data:image/png" in first["picture"]
    assert "of 2 runs on data where nothing can be known: p = " in first["noise floor"]
    page = report(stores)
    assert f"above {first['runs below in log-wealth']} of 2 runs" in page and "Noise floor: Log-wealth" in page
    made = json.loads(kept(stores).read_bytes())
    assert made["rows"] == first["shaped like rows"] == len(year_of_bars()) - LOOKBACK * len(SYMBOLS)

    before = kept(stores).stat().st_mtime_ns
    assert {**told(stores), "renewed": True} == first
    assert kept(stores).stat().st_mtime_ns == before

    # A damaged one is made anew, of the same runs.
    kept(stores).write_bytes(b"{")
    assert told(stores)["renewed"]
    again = json.loads(kept(stores).read_bytes())
    assert {**again, "renewed_at": made["renewed_at"]} == made

    settings.recipe.parent.mkdir(parents=True, exist_ok=True)
    settings.recipe.write_text('{"training": {"max_depth": 2}}')
    materialize(stores, [xgboost_model])
    # A floor of another recipe is not shown beside this one.
    assert "No noise floor was made" in report(stores)
    second = told(stores)
    assert second["renewed"] and json.loads(kept(stores).read_bytes())["shape"] != made["shape"]


def test_no_runs_make_no_floor(settings: Settings) -> None:
    off = Stores(settings.model_copy(update={"noise_runs": 0}))
    assert told(off) == {"noise floor": "none: MT5_CRS_NOISE_RUNS is 0"}
    assert not kept(off).exists()
