"""The Dagster code location: everything there is, by name."""

import dagster as dg

from mt5_crs_pipeline.defs.alerts import run_failure_alerts
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.assets.live import live_predictions
from mt5_crs_pipeline.defs.assets.model import (
    champion_model,
    model_evaluation,
    noise_floor,
    training_set,
    xgboost_model,
)
from mt5_crs_pipeline.defs.automation import (
    daily_retrain,
    daily_retrain_schedule,
    market_data_backfill,
    market_data_revision_sensor,
)
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.standing import every_change_has_arrived, standing_checks, standing_checks_schedule
from mt5_crs_pipeline.settings import load_settings

EXECUTORS = {
    # One step after the other in one process: imports are paid once, and a small machine is enough.
    "in_process": dg.in_process_executor,
    # A process for every step: what one of them takes with it, memory or a crash, the others do not see.
    "multiprocess": dg.multiprocess_executor,
}

settings = load_settings()
defs = dg.Definitions(
    assets=[
        market_data,
        market_data_parquet,
        feast_registry,
        technical_features,
        feast_online_store,
        training_set,
        xgboost_model,
        noise_floor,
        model_evaluation,
        champion_model,
        live_predictions,
    ],
    asset_checks=[every_change_has_arrived],
    jobs=[daily_retrain, market_data_backfill, standing_checks],
    schedules=[daily_retrain_schedule, standing_checks_schedule],
    sensors=[market_data_revision_sensor, run_failure_alerts],
    resources={"stores": Stores(settings)},
    executor=EXECUTORS[settings.executor],
)
