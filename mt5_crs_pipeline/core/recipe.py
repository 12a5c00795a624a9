"""A recipe: what is predicted and how it is learnt, beside the feature set; as JSON, a user's file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.model import TrainingConfig

T = TypeVar("T", LabelConfig, TrainingConfig)


@dataclass(frozen=True)
class Recipe:
    """The label and the training settings of a model."""

    label: LabelConfig = field(default_factory=LabelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Return the recipe of {"label": {...}, "training": {...}}; what is left out has its default.

        Raises ConfigurationError naming a key that is not known or a value that makes no sense.
        """
        _check_keys("recipe", values, ["label", "training"])
        return cls(_part("label", values, LabelConfig), _part("training", values, TrainingConfig))

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes, every setting written out."""
        return asdict(self)


def _part(name: str, values: Mapping[str, Any], kind: type[T]) -> T:
    settings = values.get(name, {})
    _check_keys(name, settings, [setting.name for setting in fields(kind)])
    return kind(**settings)


def _check_keys(what: str, values: object, known: list[str]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{what} is {values!r}: give an object with some of {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{what} has no setting {key!r}; it has {', '.join(known)}")
