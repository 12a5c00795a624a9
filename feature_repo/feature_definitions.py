"""What Feast knows: one entity, two views, one service, all generated from the feature module."""

from dataclasses import dataclass
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

from mt5_crs_pipeline.core.bars import VALUE_COLUMNS
from mt5_crs_pipeline.core.feature_rows import KNOWN_AT, PIPELINE_FEATURES
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.core.online import TIME_TO_LIVE
from mt5_crs_pipeline.settings import load_settings


@dataclass(frozen=True)
class FeatureRepository:
    """Everything that is applied to the registry."""

    symbol: Entity
    market_data_features: FeatureView
    technical_features: FeatureView
    direction_model: FeatureService

    def objects(self) -> list[Entity | FeatureView | FeatureService]:
        """Return all of it for `FeatureStore.apply`."""
        return [self.symbol, self.market_data_features, self.technical_features, self.direction_model]


def build(lake: Path) -> FeatureRepository:
    """Return the definitions over the Parquet files below `lake`."""
    symbol = Entity(
        name="symbol",
        join_keys=["symbol"],
        value_type=ValueType.STRING,
        description="Traded instrument, as the broker names it",
    )
    market_data_features = FeatureView(
        name="market_data_features",
        entities=[symbol],
        ttl=TIME_TO_LIVE,
        schema=[Field(name=name, dtype=Float64) for name in VALUE_COLUMNS],
        online=False,
        source=_source("market_data", lake, "Validated bars, stamped by their close"),
        description="Open, high, low, close and volume of the newest closed bar",
    )
    technical_features = FeatureView(
        name="technical_features",
        entities=[symbol],
        ttl=TIME_TO_LIVE,
        schema=[
            Field(name=feature.name, dtype=Float64, description=f"{feature.description} Unit: {feature.unit}.")
            for feature in PIPELINE_FEATURES.declared
        ],
        online=True,
        source=_source("technical_features", lake, "Features of each bar, stamped by its close"),
        description="The features the direction model is trained on",
        tags={"feature_set_hash": PIPELINE_FEATURES.feature_set_hash},
    )
    direction_model = FeatureService(
        name="direction_model", features=[technical_features], description="Inputs of the next-bar direction model"
    )
    return FeatureRepository(symbol, market_data_features, technical_features, direction_model)


def _source(stage: str, lake: Path, description: str) -> FileSource:
    return FileSource(
        name=f"{stage}_source",
        path=str(lake / stage / "*.parquet"),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=KNOWN_AT,
        description=description,
    )


# The feast command line applies what it finds at the top of this module.
_repository = build(load_settings().lake)
symbol = _repository.symbol
market_data_features = _repository.market_data_features
technical_features = _repository.technical_features
direction_model = _repository.direction_model
