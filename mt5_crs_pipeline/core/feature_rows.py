"""Feature rows as they are stored: one per bar, stamped by the bar's close and by when it was known."""

from typing import Final

import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.core.bars import TIMESTAMP, adjusted, close_time, known_after
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, LABEL_TIME, TARGET

# The one place that says which features the pipeline computes, stores, trains and predicts on.
PIPELINE_FEATURES: Final = FeatureConfig.scale_free()
KNOWN_AT: Final = "known_at"
IS_COMPLETE: Final = "is_complete"


def feature_schema(config: FeatureConfig = PIPELINE_FEATURES) -> pa.Schema:
    """Return the Arrow schema of `feature_rows`."""
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
            pa.field(KNOWN_AT, TIMESTAMP, nullable=False),
            pa.field(IS_COMPLETE, pa.bool_(), nullable=False),
            *(pa.field(name, pa.float64()) for name in get_feature_names(config)),
        ]
    )


def training_schema(config: FeatureConfig = PIPELINE_FEATURES) -> pa.Schema:
    """Return the Arrow schema of the training set: label columns, then the features, all present in every row."""
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
            pa.field(LABEL_TIME, TIMESTAMP, nullable=False),
            pa.field(TARGET, pa.float64(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in get_feature_names(config)),
        ]
    )


def feature_rows(bars: pd.DataFrame, timeframe: str, config: FeatureConfig = PIPELINE_FEATURES) -> pd.DataFrame:
    """Return one row per bar: symbol, time (its open), event_timestamp (its close), known_at, is_complete, features.

    Prices are scaled by the adjusted close where there is one. Warm-up rows have NaN features and is_complete False.
    Sorted by symbol and time. `bars` has BAR_COLUMNS and known_at.
    """
    ordered = bars.sort_values(["symbol", "time"], kind="stable", ignore_index=True)
    features = feature_frame(adjusted(ordered), config)
    stamps = pd.DataFrame(
        {
            "symbol": ordered["symbol"],
            "time": ordered["time"],
            EVENT_TIMESTAMP: close_time(ordered["time"], timeframe),
            KNOWN_AT: known_after(ordered, config.lookback),
            IS_COMPLETE: features.notna().all(axis=1),
        }
    )
    return stamps.join(features)
