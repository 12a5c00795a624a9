"""Feature sets: which features, in which order."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from typing import Self

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.formulas import DEFAULT_FEATURES, SCALE_FREE_FEATURES, Feature, find_feature
from mt5_crs_pipeline.core.features.operations import KERNEL_VERSION
from mt5_crs_pipeline.core.features.program import Program, assemble


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
