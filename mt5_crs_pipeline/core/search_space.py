"""Which training settings a search may change, and how far: the one declaration of its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.model import TrainingConfig


@dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, both included; `log` draws their logarithm evenly."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


SEARCHED: Final[Mapping[str, Range]] = MappingProxyType(
    {
        "max_depth": Range(1, 6, whole=True),
        "learning_rate": Range(0.01, 0.3, log=True),
        "min_child_weight": Range(1.0, 100.0, log=True),
        "subsample": Range(0.5, 1.0),
        "colsample_bytree": Range(0.2, 1.0),
    }
)
"""What is drawn, in this order. All else stays as in the user's recipe: what decides which rows are predicted (first
window, growth, pooled), because evidence on other rows is another bet, and the number of trees, which early stopping
finds. The bounds do not depend on the data, so that tomorrow's search draws the recipes that are counted already."""


def settings_at(base: TrainingConfig, point: Mapping[str, float]) -> TrainingConfig:
    """Return `base` with the settings of `point`, fractions rounded to two significant digits so that they can be read.

    Raises ConfigurationError unless `point` names every searched setting and no other, each inside its range.
    """
    if point.keys() != SEARCHED.keys():
        raise ConfigurationError(f"a point has {', '.join(SEARCHED)}; this one has {', '.join(point) or 'nothing'}")
    for name, value in point.items():
        if not SEARCHED[name].low <= value <= SEARCHED[name].high:
            raise ConfigurationError(f"{name} {value} is outside {SEARCHED[name].low} to {SEARCHED[name].high}")
    return replace(
        base,
        **{name: int(value) if SEARCHED[name].whole else float(f"{value:.2g}") for name, value in point.items()},  # type: ignore[arg-type]
    )
