"""Feature sets: which features, in which order."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from typing import Final, Self

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.declaration import Feature, find_feature
from mt5_crs_pipeline.core.features.operations import KERNEL_VERSION
from mt5_crs_pipeline.core.features.program import Program, assemble

DEFAULT_FEATURES: Final = (
    *("price_range", "price_change", "price_change_pct", "sma_5", "sma_10", "sma_20", "ema_5", "ema_10"),
    *("momentum_5", "momentum_10", "volatility_5", "volatility_10", "rsi_14", "volume_sma_5", "volume_change"),
)
SCALE_FREE_FEATURES: Final = (
    *("price_change_pct", "range_over_close", "close_location", "upper_shadow", "lower_shadow", "gap"),
    *("return_1", "return_2", "return_3", "return_5", "return_10", "return_20", "return_60"),
    *("log_return_1", "log_return_5", "log_return_20"),
    *("lagged_return_1", "lagged_return_2", "lagged_return_3", "lagged_return_5"),
    *("close_over_sma_5", "close_over_sma_10", "close_over_sma_20", "close_over_sma_50"),
    *("close_over_ema_5", "close_over_ema_10", "close_over_ema_20", "macd_over_close_12_26"),
    *("slope_over_close_10", "slope_over_close_20", "efficiency_ratio_10", "efficiency_ratio_20"),
    *("drawdown_20", "drawdown_60", "age_of_high_20", "close_rank_20", "close_rank_60", "autocorrelation_20"),
    *("volatility_5", "volatility_10", "volatility_20", "volatility_60", "volatility_ratio_5_20"),
    *("realised_volatility_10", "realised_volatility_20", "parkinson_volatility_10", "parkinson_volatility_20"),
    *("garman_klass_volatility_10", "garman_klass_volatility_20", "atr_over_close_14", "atr_over_close_50"),
    *("skew_20", "kurtosis_20"),
    *("rsi_7", "rsi_14", "rsi_28", "stochastic_14", "stochastic_mean_14_3", "williams_r_28", "cci_20"),
    *("bollinger_b_20", "bollinger_bandwidth_20"),
    *("volume_change", "volume_ratio_5", "volume_ratio_20", "volume_zscore_20", "obv_slope_10", "obv_slope_20"),
    *("signed_volume_share_10", "signed_volume_share_20", "return_volume_correlation_20"),
    *("hour_of_day", "day_of_week", "day_of_month", "month_of_year"),
)


@dataclass(frozen=True)
class FeatureConfig:
    """An ordered set of features by name; the windows are in the names.

    Raises ConfigurationError naming the value for an unknown or repeated name and a senseless window.
    """

    features: tuple[str, ...] = DEFAULT_FEATURES

    def __post_init__(self) -> None:
        if not isinstance(self.features, tuple):
            raise ConfigurationError(f"the features of a feature set are a tuple of names, not {self.features!r}")
        for name in self.features:
            find_feature(name)
        repeated = [name for name, times in Counter(self.features).items() if times > 1]
        if repeated:
            raise ConfigurationError(f"feature {repeated[0]!r} is listed twice")
        if not self.features:
            raise ConfigurationError("a feature set needs at least one feature")

    @classmethod
    def scale_free(cls) -> Self:
        """The set the pipeline trains on: no feature depends on the level of price or volume."""
        return cls(SCALE_FREE_FEATURES)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`; raise ConfigurationError for anything else."""
        try:
            names = json.loads(text)["features"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f'{text!r} is no feature set: {{"features": ["sma_5", ...]}} is one') from error
        if not isinstance(names, list):
            raise ConfigurationError(f"the features of a feature set are a list of names, not {names!r}")
        return cls(tuple(names))

    def to_json(self) -> str:
        """Serialise as one line of JSON."""
        return json.dumps(asdict(self))

    @property
    def declared(self) -> tuple[Feature, ...]:
        """The features in order."""
        return _declared(self)

    @property
    def lookback(self) -> int:
        """Bars that one complete row of features reads, its own included."""
        return max(feature.lookback for feature in self.declared)

    @property
    def feature_set_hash(self) -> str:
        """Hex SHA-256 of names, formulas and the kernel's version; equal hashes mean equal computation."""
        formulas = [f"{feature.name} = {feature.expression.key}" for feature in self.declared]
        return hashlib.sha256("\n".join([f"kernel {KERNEL_VERSION}", *formulas]).encode()).hexdigest()

    @property
    def program(self) -> Program:
        """What the kernel runs."""
        return _program(self)


def get_feature_names(config: FeatureConfig | None = None) -> list[str]:
    """Return the feature columns in the order they are computed, stored and trained on."""
    return list((config or FeatureConfig()).features)


@cache
def _declared(config: FeatureConfig) -> tuple[Feature, ...]:
    return tuple(find_feature(name) for name in config.features)


@cache
def _program(config: FeatureConfig) -> Program:
    return assemble([feature.expression for feature in config.declared])
