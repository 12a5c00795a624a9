"""Live outcomes: what champions said before the outcome was known, and how the champion's evidence goes on with it."""

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.intervals import Interval, accuracy_interval
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, LABEL_TIME, TARGET
from mt5_crs_pipeline.core.metrics import base_rate
from mt5_crs_pipeline.core.promotion import Comparison

PREDICTED_AT: Final = "predicted_at"
NO_OUTCOME_YET: Final = "no live predictions have met their outcome yet"
_ROW: Final = ["symbol", EVENT_TIMESTAMP]
_COUNTED: Final = [*_ROW, TARGET, "probability"]


@dataclass(frozen=True)
class LiveRecord:
    """A champion's evidence, out of sample and live together, and what its live rows alone are worth."""

    champion: str
    comparison: Comparison
    recipes: int
    rows: int
    """Live ones, at `instants` bar times."""
    instants: int
    since: pd.Timestamp
    """The close (UTC) of the first bar that was predicted live."""
    gained: float
    """Log-wealth won or lost from there on."""
    accuracy: Interval
    base_rate: float

    @property
    def sentence(self) -> str:
        """The record in words."""
        evidence, accuracy = self.comparison.evidence, self.accuracy
        above = "above" if evidence.shown else "not above"
        rows = "1 live row" if self.rows == 1 else f"{self.rows:,} live rows"
        times = "1 bar time" if self.instants == 1 else f"{self.instants:,} bar times"
        said = (
            f"Champion {self.champion}: log-wealth {evidence.log_wealth:.2f} ({self.gained:+.2f} since it went live on"
            f" {self.since:%Y-%m-%d}) is {above} the threshold {evidence.threshold:.2f}; the direction was right in"
            f" {accuracy.estimate:.1%} of {rows} at {times} (95% interval {accuracy.lower:.1%} to {accuracy.upper:.1%},"
            f" always guessing the majority {self.base_rate:.1%})."
        )
        if evidence.shown:
            return said
        level = "0" if evidence.log_wealth < 0 else "the threshold"
        return (
            f"{said} It is below {level} now: this is shown and demotes no champion by itself; `mt5-crs rollback`"
            " returns to the one before."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values: those of the comparison, and the live ones beside them."""
        return {
            **self.comparison.to_dict(self.recipes),
            "champion": self.champion,
            "live_rows": self.rows,
            "live_instants": self.instants,
            "live_since": self.since.isoformat(),
            "live_gained": self.gained,
            "live_accuracy": vars(self.accuracy),
            "live_base_rate": self.base_rate,
        }


def rows_in_time(said: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions that were made before their outcome and met it, one per symbol and bar.

    `said` has symbol, event_timestamp, probability and predicted_at (aware), `outcomes` is as `labelled_bars` returns
    it. Of several about one bar the first counts. Columns: symbol, event_timestamp, target (NaN
    where the close stayed inside the cost band), probability.
    """
    met = said.merge(outcomes[[*_ROW, LABEL_TIME, TARGET]], on=_ROW)
    in_time = met[met[PREDICTED_AT] < met[LABEL_TIME]].sort_values([PREDICTED_AT, *_ROW], kind="stable")
    return in_time.drop_duplicates(_ROW)[_COUNTED].reset_index(drop=True)


def go_on(
    champion: str, out_of_sample: pd.DataFrame, live: pd.DataFrame, recipes: int, horizon_bars: int
) -> LiveRecord | None:
    """Return the evidence against chance on out-of-sample and live rows together; None unless a live one has a target.

    Both frames have symbol, event_timestamp, target (0/1, NaN inside the cost band) and probability, each row once. A
    bar in both counts once, as it was predicted live: every retraining predicts the past again, and what was said
    before the outcome must not be replaced by it. Which row counts never depends on its outcome, so the evidence stays
    valid.
    """
    scored = live.dropna(subset=[TARGET])
    if scored.empty:
        return None
    together = pd.concat([live[_COUNTED], out_of_sample[_COUNTED]]).drop_duplicates(_ROW, ignore_index=True)
    evidence = against_chance(together, recipes, horizon_bars)
    times = scored[EVENT_TIMESTAMP]
    before = evidence.curve[evidence.curve.index < times.min()]
    right = (scored["probability"] >= 0.5) == (scored[TARGET] == 1)
    return LiveRecord(
        champion=champion,
        comparison=Comparison(evidence, int(together[TARGET].count())),
        recipes=recipes,
        rows=len(scored),
        instants=times.nunique(),
        since=times.min(),
        gained=evidence.log_wealth - (float(before.iloc[-1]) if len(before) else 0.0),
        accuracy=accuracy_interval(right.to_numpy(), times.dt.tz_localize(None).to_numpy()),
        base_rate=base_rate(scored[TARGET].to_numpy()),
    )
