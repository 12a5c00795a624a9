"""THE feature module: every feature is declared once, in `formulas`, and everything else derives from the declaration.

A feature has finite memory: it reads the bar it belongs to and at most `lookback - 1` earlier ones, adding them up in
an order that does not depend on where the history starts. So a whole history, a slice of it and the last `lookback`
bars alone give equal bits. NaN in a window gives NaN; a flat or empty-volume window has a defined value.
"""

# Imported for its declarations.
from mt5_crs_pipeline.core.features import formulas as formulas
from mt5_crs_pipeline.core.features.config import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.features.declaration import Feature, find_feature
from mt5_crs_pipeline.core.features.frames import (
    compute_calendar_features,
    compute_features,
    compute_momentum_features,
    compute_moving_averages,
    compute_price_features,
    compute_rsi,
    compute_technical_indicators,
    compute_volatility_features,
    compute_volume_features,
    feature_frame,
)
from mt5_crs_pipeline.core.features.stream import FeatureRow, FeatureStream

__all__ = [
    "Feature",
    "FeatureConfig",
    "FeatureRow",
    "FeatureStream",
    "compute_calendar_features",
    "compute_features",
    "compute_momentum_features",
    "compute_moving_averages",
    "compute_price_features",
    "compute_rsi",
    "compute_technical_indicators",
    "compute_volatility_features",
    "compute_volume_features",
    "feature_frame",
    "find_feature",
    "get_feature_names",
]
