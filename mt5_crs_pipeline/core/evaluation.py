"""What out-of-sample predictions are worth, in numbers; whether they show an edge is for core.evidence to say."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.intervals import Interval, accuracy_interval, wilson_interval
from mt5_crs_pipeline.core.labels import FORWARD_RETURN
from mt5_crs_pipeline.core.metrics import auc, base_rate, log_loss, metrics_with_intervals, times_needed
from mt5_crs_pipeline.core.model import VOLATILITY
from mt5_crs_pipeline.core.rank_ic import rank_ic_by_year

RELIABILITY_BINS = 10
GROUP_COLUMNS = ("group", "rows", "accuracy", "lower", "upper", "base_rate", "log_loss")
PREDICTION_COLUMNS = ("symbol", "event_timestamp", "target", "probability")
DIRECTIONS = ("DOWN", "UP")
REGIMES = ("calm", "usual", "wild")
"""Thirds of a symbol's own rows by the volatility known when they were predicted; cut in hindsight, to describe."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What out-of-sample predictions are worth; compare two of them by `to_dict()`.

    `rows` counts those with a target, `rows_in_cost_band` those without. `metrics`: as `metrics_with_intervals` returns
    them; `times_needed`: bar times until an edge of that many points would show.
    `by_symbol`, `by_year` and `by_regime`: group (str), rows, accuracy, lower, upper, base_rate, log_loss; the year is
    that of the bar's close in UTC; the regime one of REGIMES. `rank_ic`: as `rank_ic_by_year` returns it.
    `reliability`: bin_lower, bin_upper, rows, mean_probability, share_up, lower, upper.
    `confusion`: counts, actual DOWN/UP down the index, predicted DOWN/UP along the columns.
    `base_log_loss` is that of always answering the share of ups; `auc` is NaN when only one class occurs.
    """

    rows: int
    rows_in_cost_band: int
    times: int
    symbols: int
    first_event_timestamp: pd.Timestamp
    last_event_timestamp: pd.Timestamp
    accuracy: Interval
    base_rate: float
    log_loss: float
    base_log_loss: float
    auc: float
    metrics: pd.DataFrame
    times_needed: dict[float, int]
    by_symbol: pd.DataFrame
    by_year: pd.DataFrame
    by_regime: pd.DataFrame
    rank_ic: pd.DataFrame
    reliability: pd.DataFrame
    confusion: pd.DataFrame
    importance: "pd.Series[float]"

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as JSON values: plain floats, ISO timestamps ending in Z, None for NaN."""
        return {
            "rows": self.rows,
            "rows_in_cost_band": self.rows_in_cost_band,
            "times": self.times,
            "symbols": self.symbols,
            "first_event_timestamp": _iso(self.first_event_timestamp),
            "last_event_timestamp": _iso(self.last_event_timestamp),
            "accuracy": {name: _json_number(value) for name, value in vars(self.accuracy).items()},
            "base_rate": _json_number(self.base_rate),
            "log_loss": _json_number(self.log_loss),
            "base_log_loss": _json_number(self.base_log_loss),
            "auc": _json_number(self.auc),
            "metrics": _records(self.metrics),
            "times_needed": {f"{points:g}": times for points, times in self.times_needed.items()},
            "by_symbol": _records(self.by_symbol),
            "by_year": _records(self.by_year),
            "by_regime": _records(self.by_regime),
            "rank_ic": _records(self.rank_ic),
            "reliability": _records(self.reliability),
            "confusion": {
                actual: {predicted: int(count) for predicted, count in zip(DIRECTIONS, counts, strict=True)}
                for actual, counts in zip(DIRECTIONS, self.confusion.to_numpy(), strict=True)
            },
            "importance": {str(name): _json_number(value) for name, value in self.importance.items()},
        }


def evaluate(predictions: pd.DataFrame, importance: Mapping[str, float], cost_band: float = 0.0) -> Evaluation:
    """Evaluate out-of-sample predictions; the order of the rows does not matter.

    `predictions`: symbol (str), event_timestamp (bar close, UTC), target (0 or 1), probability (of class 1, UP).
    A prediction is UP when probability >= 0.5. With realised_volatility_20 it is evaluated by regime too, with
    forward_return by rank correlation. The target may be NaN where forward_return is inside `cost_band`: such rows
    count for the rank correlation alone, which would flatter if it saw the large moves only. `importance`: one number
    per feature, kept sorted descending, NaN last.
    Raises InputError naming the column and the first offending row, counted from 0, or when no row has a target.
    """
    every = _validated(predictions, cost_band)
    rows = every.dropna(subset=["target"]).reset_index(drop=True)
    if rows.empty:
        raise InputError(f"none of {len(every):,} predictions has a target: every close stayed inside the cost band")
    target, probability = rows["target"].to_numpy(), rows["probability"].to_numpy()
    metrics = metrics_with_intervals(rows).set_index("metric")
    # A bootstrap knows little of few times, and of much that they share: the wider end is the honest one.
    alone = _accuracy(rows)
    lower, upper = metrics.loc[["accuracy"], ["lower", "upper"]].to_numpy()[0].tolist()
    accuracy = Interval(alone.estimate, min(alone.lower, lower), max(alone.upper, upper))
    metrics.loc["accuracy", ["lower", "upper"]] = accuracy.lower, accuracy.upper
    ranked = sorted(importance.items(), key=lambda item: (math.isnan(item[1]), -item[1], item[0]))
    return Evaluation(
        rows=len(rows),
        rows_in_cost_band=len(every) - len(rows),
        times=int(rows["event_timestamp"].nunique()),
        symbols=int(rows["symbol"].nunique()),
        first_event_timestamp=rows["event_timestamp"].iloc[0],
        last_event_timestamp=rows["event_timestamp"].iloc[-1],
        accuracy=accuracy,
        base_rate=base_rate(target),
        log_loss=log_loss(target, probability),
        base_log_loss=log_loss(target, np.full(len(target), target.mean())),
        auc=auc(target, probability),
        metrics=metrics.reset_index(),
        times_needed=times_needed(rows),
        by_symbol=_by_group(rows, rows["symbol"]),
        by_year=_by_group(rows, rows["event_timestamp"].dt.year.astype(str)),
        by_regime=_by_group(rows, rows["regime"]),
        rank_ic=rank_ic_by_year(every),
        reliability=_reliability(target, probability),
        confusion=_confusion(target, probability),
        importance=pd.Series(
            [value for _, value in ranked], index=[name for name, _ in ranked], name="importance", dtype="float64"
        ),
    )


def _accuracy(rows: pd.DataFrame) -> Interval:
    """Return the accuracy of validated rows."""
    correct = (rows["probability"].to_numpy() >= 0.5) == (rows["target"].to_numpy() == 1)
    return accuracy_interval(correct, rows["event_timestamp"].dt.tz_localize(None).to_numpy())


def _by_group(rows: pd.DataFrame, group: "pd.Series[str]") -> pd.DataFrame:
    """Return one line of metrics for each value of `group`, sorted by it."""
    lines = []
    for name, part in rows.groupby(group, sort=True):
        accuracy, target = _accuracy(part), part["target"].to_numpy()
        lines.append(
            {
                "group": str(name),
                "rows": len(part),
                "accuracy": accuracy.estimate,
                "lower": accuracy.lower,
                "upper": accuracy.upper,
                "base_rate": base_rate(target),
                "log_loss": log_loss(target, part["probability"].to_numpy()),
            }
        )
    return pd.DataFrame(lines, columns=list(GROUP_COLUMNS))


def _reliability(target: Array, probability: Array) -> pd.DataFrame:
    """Return the share of ups in each occupied probability bin [lower, upper); the last bin holds 1.0 too."""
    edges = np.arange(RELIABILITY_BINS + 1) / RELIABILITY_BINS
    bins = np.minimum(np.searchsorted(edges, probability, side="right") - 1, RELIABILITY_BINS - 1)
    lines = []
    for number in np.unique(bins):
        inside = bins == number
        share = wilson_interval(float(target[inside].sum()), int(inside.sum()))
        lines.append(
            {
                "bin_lower": float(edges[number]),
                "bin_upper": float(edges[number + 1]),
                "rows": int(inside.sum()),
                "mean_probability": float(probability[inside].mean()),
                "share_up": share.estimate,
                "lower": share.lower,
                "upper": share.upper,
            }
        )
    return pd.DataFrame(lines)


def _confusion(target: Array, probability: Array) -> pd.DataFrame:
    """Count actual against predicted directions."""
    cells = 2 * (target == 1).astype(np.int64) + (probability >= 0.5)
    return pd.DataFrame(
        np.bincount(cells, minlength=4).reshape(2, 2),
        index=pd.Index(DIRECTIONS, name="actual"),
        columns=pd.Index(DIRECTIONS, name="predicted"),
    )


def _validated(predictions: pd.DataFrame, cost_band: float) -> pd.DataFrame:
    """Return the columns that are evaluated as plain types in one fixed order of rows, or raise InputError."""
    missing = [name for name in PREDICTION_COLUMNS if name not in predictions.columns]
    if missing:
        raise InputError(f"predictions lack the column {', '.join(missing)}; needed: {', '.join(PREDICTION_COLUMNS)}")
    if predictions.empty:
        raise InputError("predictions hold no rows: there is nothing to evaluate")
    if not isinstance(predictions["event_timestamp"].dtype, pd.DatetimeTZDtype):
        found = predictions["event_timestamp"].dtype
        raise InputError(f"column event_timestamp must be a time with a zone, as datetime64[us, UTC]; it is {found}")
    known = [name for name in ("target", "probability", FORWARD_RETURN) if name in predictions]
    numbers = {name: pd.to_numeric(predictions[name], errors="coerce") for name in known}
    inside = pd.Series(data=False, index=predictions.index)
    wanted_target = "0 or 1"
    if cost_band and FORWARD_RETURN in numbers:
        inside = predictions["target"].isna() & (numbers[FORWARD_RETURN].abs() <= cost_band)
        wanted_target = f"0 or 1, and may be missing only where the return is inside the cost band of {cost_band:g}"
    requirements = {
        "symbol": (predictions["symbol"].notna(), "a symbol"),
        "event_timestamp": (predictions["event_timestamp"].notna(), "a time"),
        "target": (numbers["target"].isin([0.0, 1.0]) | inside, wanted_target),
        "probability": (numbers["probability"].between(0.0, 1.0), "a number from 0 to 1"),
    }
    if FORWARD_RETURN in numbers:
        finite = numbers[FORWARD_RETURN].abs() < math.inf
        requirements[FORWARD_RETURN] = (finite | predictions[FORWARD_RETURN].isna(), "a return or missing")
    for name, (holds, wanted) in requirements.items():
        offending = np.flatnonzero(~holds.to_numpy(dtype=bool, na_value=False))
        if len(offending):
            row = int(offending[0])
            value = predictions[name].iloc[row]
            raise InputError(f"column {name}, row {row} (counted from 0): {value!r} is not {wanted}")
    plain = pd.DataFrame(
        {
            "symbol": predictions["symbol"].astype(str).to_numpy(dtype=object),
            "event_timestamp": predictions["event_timestamp"].dt.tz_convert("UTC").array,
            "target": numbers["target"].to_numpy(dtype=np.float64),
            "probability": numbers["probability"].to_numpy(dtype=np.float64),
            "regime": _regimes(predictions),
        }
    )
    if FORWARD_RETURN in numbers:
        plain[FORWARD_RETURN] = numbers[FORWARD_RETURN].to_numpy(dtype=np.float64)
    return plain.sort_values(["event_timestamp", "symbol", "probability", "target"], ignore_index=True)


def _regimes(predictions: pd.DataFrame) -> Array:
    """Return each row's regime, or None where its volatility is not known."""
    if VOLATILITY not in predictions:
        return np.full(len(predictions), None)
    rank = predictions.groupby("symbol")[VOLATILITY].rank(pct=True).to_numpy()
    third = np.ceil(np.nan_to_num(rank) * len(REGIMES)).astype(int) - 1
    regime: Array = np.array(REGIMES, dtype=object)[third]
    regime[np.isnan(rank)] = None
    return regime


def _iso(moment: pd.Timestamp) -> str:
    """Return a UTC moment in ISO 8601 ending in Z."""
    return moment.tz_convert("UTC").isoformat().replace("+00:00", "Z")


def _json_number(value: float) -> float | None:
    """Return a plain float, or None for what JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries of JSON values."""
    return [
        {str(name): _json_number(value) if isinstance(value, float) else value for name, value in record.items()}
        for record in frame.to_dict(orient="records")
    ]
