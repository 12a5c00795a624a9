"""How a feature is declared, and found by its name."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.expressions import Expression

LONGEST_WINDOW: Final = 2_000

Formula = Callable[..., Expression]


@dataclass(frozen=True)
class Feature:
    """One declared feature: `lookback` counts the bars its value reads, its own included."""

    name: str
    group: str
    unit: str
    description: str
    expression: Expression

    @property
    def lookback(self) -> int:
        """Bars the value reads, its own included; follows from the formula."""
        return self.expression.reach + 1


@dataclass(frozen=True)
class Family:
    """Features of one formula that differ in their windows."""

    group: str
    unit: str
    shortest: int
    formula: Formula

    @property
    def windows(self) -> int:
        """How many windows a name has."""
        return self.formula.__code__.co_argcount


FAMILIES: dict[str, Family] = {}


def feature(group: str, unit: str, shortest: int = 1) -> Callable[[Formula], Formula]:
    """Declare a family of features whose windows are at least `shortest` bars."""

    def declare(formula: Formula) -> Formula:
        FAMILIES[formula.__name__.strip("_")] = Family(group, unit, shortest, formula)
        return formula

    return declare


def find_feature(name: str) -> Feature:
    """Return the declared feature called `name`; raise ConfigurationError for an unknown name or a senseless window."""
    match = re.fullmatch(r"(.*?)((?:_-?\d{1,9})*)", name) if isinstance(name, str) else None
    stem, numbers = (match[1], match[2]) if match else (str(name), "")
    family = FAMILIES.get(stem)
    windows = tuple(int(number) for number in numbers.split("_")[1:])
    # One feature has one name: sma_05 is no second sma_5.
    if family is None or family.windows != len(windows) or name != "_".join([stem, *map(str, windows)]):
        raise ConfigurationError(f"feature {name!r} is unknown: declared are {', '.join(sorted(FAMILIES))}")
    if any(window < family.shortest for window in windows):
        raise ConfigurationError(f"feature {name!r} has a window below {family.shortest}")
    if any(window > LONGEST_WINDOW for window in windows):
        raise ConfigurationError(f"feature {name!r} has a window above {LONGEST_WINDOW}")
    description = (family.formula.__doc__ or "").split("\n")[0]
    for letter, window in zip("nm", windows, strict=False):
        if window == 1:
            description = description.replace(f"{letter} bars'", "1 bar's").replace(f"{letter} bars", "1 bar")
        description = description.replace(f"{letter} bars", f"{window} bars")
    return Feature(name, family.group, family.unit, description, family.formula(*windows))
