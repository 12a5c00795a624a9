"""Which model may become the champion: the recipe that is counted, the verdict, and who answered before whom."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.evidence import ALPHA, Evidence

How = Literal["promoted", "rolled back"]
Kind = Literal[
    "promoted",
    "not enough data",
    "no edge shown",
    "no edge over the champion",
    "parity does not hold",
    "another label",
    "older data",
]
CURVE_POINTS: Final = 200
"""How many points of a curve of log-wealth are kept with a verdict."""


@dataclass(frozen=True)
class Verdict:
    """Whether a model becomes the champion, why in one sentence, and the evidence as JSON values."""

    kind: Kind
    reason: str
    evidence: dict[str, Any]

    @property
    def promoted(self) -> bool:
        """True when the model becomes the champion."""
        return self.kind == "promoted"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, and whether the model was promoted."""
        return {"promoted": self.promoted, **asdict(self)}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that `to_dict` told; one of before kinds were told has the kind it must have had."""
        former: Kind = "promoted" if kept["promoted"] else "no edge shown"
        return cls(kept.get("kind", former), kept["reason"], kept["evidence"])


@dataclass(frozen=True)
class ChampionChange:
    """A model that became the champion."""

    model_version: str
    bundle_hash: str
    how: How
    at: pd.Timestamp


@dataclass(frozen=True)
class Comparison:
    """What speaks for a model, on how many rows, and after how many bets edges of that many points would show."""

    evidence: Evidence
    rows: int
    times_needed: Mapping[float, int] = field(default_factory=dict)

    def to_dict(self, recipes: int) -> dict[str, Any]:
        """Return it as JSON values, times in ISO 8601, the curve thinned to CURVE_POINTS."""
        curve, reached_at = self.evidence.curve, self.evidence.reached_at
        kept = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), CURVE_POINTS)).astype(int))
        return {
            "shown": self.evidence.shown,
            "log_wealth": self.evidence.log_wealth,
            "best": self.evidence.best,
            "threshold": self.evidence.threshold,
            "recipes": recipes,
            "rows": self.rows,
            "instants": len(curve),
            "times_needed": {f"{points:g}": times for points, times in self.times_needed.items()},
            "last_event_timestamp": curve.index[-1].isoformat() if len(curve) else None,
            "reached_at": None if reached_at is None else reached_at.isoformat(),
            "curve": [[curve.index[at].isoformat(), float(curve.iloc[at])] for at in kept],
        }


def recipe(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a model, of `model_metadata.json`, another idea than the one before.

    Not the data, which grows every day, and not XGBoost's version: an upgrade is nobody's attempt at a better model.
    """
    return {"feature_set_hash": card["feature_set_hash"], "label": card["label"], "params": card["params"]}


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a recipe, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def decide(
    chance: Comparison,
    champion: Comparison | None,
    recipes: int,
    *,
    parity_holds: bool,
    other_label: str | None = None,
    older_than_champion: bool = False,
) -> Verdict:
    """Return the verdict on a model whose evidence counts `recipes` tried ones.

    `champion` is the comparison with a champion of another recipe, on the rows that both predicted; None when there is
    no champion, or one of the same recipe: newer data of a recipe that has shown its edge may replace it. `other_label`
    is what a champion predicts that answers another question.
    """
    said = _said(chance, "the best constant rates", recipes)
    evidence = {
        "parity_holds": parity_holds,
        "against_chance": chance.to_dict(recipes),
        "against_champion": champion.to_dict(recipes) if champion else None,
    }
    if not parity_holds:
        text = (
            f"Not promoted, whether or not an edge was shown: the model's certificate of parity does not hold; {said}."
        )
        return Verdict("parity does not hold", text, evidence)
    if not chance.evidence.shown:
        if too_few := _too_few(chance):
            return Verdict("not enough data", f"Not enough data: {too_few}; {said}.", evidence)
        return Verdict("no edge shown", f"No edge was shown: {said}.", evidence)
    if other_label is not None:
        text = (
            f"Not promoted: the champion predicts another label ({other_label}), so that the two cannot be compared;"
            f" give this recipe a state folder (MT5_CRS_HOME) of its own: {said}."
        )
        return Verdict("another label", text, evidence)
    if champion and not champion.evidence.shown:
        rival = _said(champion, "the champion", recipes)
        text = f"No edge was shown over the champion: {rival}; {said}."
        return Verdict("no edge over the champion", text, evidence)
    if older_than_champion:
        text = f"An edge was shown, and the champion stays, which learned from newer data: {said}."
        return Verdict("older data", text, evidence)
    over = f"; {_said(champion, 'the champion', recipes)}" if champion else ""
    return Verdict("promoted", f"An edge was shown: {said}{over}.", evidence)


def champions_in_force(changes: Sequence[ChampionChange]) -> list[ChampionChange]:
    """Return the promotions that no rollback undid, oldest first: the last is the champion, then who would follow."""
    promoted: list[ChampionChange] = []
    for change in changes:
        if change.how == "promoted":
            promoted.append(change)
        elif promoted:
            promoted.pop()
    return promoted


def _too_few(comparison: Comparison) -> str:
    """Say how many bar times were bet on and how many are needed, or nothing where a large edge would have shown."""
    times, needed = len(comparison.evidence.curve), comparison.times_needed
    if not needed or times >= min(needed.values()):
        return ""
    edges = ", ".join(f"{count:,} for one of {points:g}" for points, count in sorted(needed.items(), reverse=True))
    there = "1 bar time was" if times == 1 else f"{times:,} bar times were"
    return f"{there} bet on, and an edge shows, four times in five, after {edges} points of accuracy"


def _said(comparison: Comparison, rival: str, recipes: int) -> str:
    evidence = comparison.evidence
    above = "above" if evidence.shown else "not above"
    tried = "1 recipe" if recipes == 1 else f"{recipes:,} recipes"
    rows = "1 out-of-sample row" if comparison.rows == 1 else f"{comparison.rows:,} out-of-sample rows"
    return (
        f"log-wealth {evidence.log_wealth:.2f} against {rival}, on {rows}, is {above} the threshold"
        f" {evidence.threshold:.2f} for {tried} tried at {ALPHA:.0%} error"
    )
