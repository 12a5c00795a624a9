"""Metrics of probabilities against outcomes, with intervals from a block bootstrap over time."""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

PROBABILITY_FLOOR: Final = 1e-15
"""Log-loss keeps probabilities this far from 0 and 1, so one sure and wrong row costs 34.5 and not infinity."""

REPLICATES: Final = 1_000
EDGES: Final = (1.0, 2.0, 5.0)
"""Points of accuracy for which is said how many bar times would show them."""

_SEED: Final = 7
_ROUNDING: Final = 1e-12
# Standard normal quantiles of 97.5 % and 80 %.
_Z_TEST, _Z_POWER = 1.959963984540054, 0.8416212335729143


def metrics_with_intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return metric, value, lower, upper, to_beat: what a constant guess reaches; NaN where a metric is not defined.

    `rows` has event_timestamp, target (0/1) and probability, sorted by time. A prediction is UP from 0.5 on. The 95 %
    intervals are percentiles of a circular block bootstrap of the times (Politis, Romano 1992): rows of one time stay
    together, and neighbouring times in blocks whose length the data choose.
    """
    target, probability = rows["target"].to_numpy(), rows["probability"].to_numpy()
    sums = _sums_by_time(rows)
    area = auc(target, probability)
    values = _from_sums(sums.sum(axis=0)[None, :], area)
    again = _from_sums(resampled(sums, block_length(_correct_by_time(sums))), area)
    share = float(np.mean(target))
    guess_up = float(share >= 0.5)
    to_beat = {
        "accuracy": base_rate(target),
        "balanced accuracy": 0.5,
        "precision of UP": share,
        "recall of UP": guess_up,
        "F1 of UP": 2 * share / (1 + share) * guess_up,
        "AUC": 0.5,
        "log-loss": log_loss(target, np.full(len(target), share)),
        "Brier score": share * (1 - share),
        "information coefficient": 0.0,
    }
    lines = []
    for name, rival in to_beat.items():
        finite = again[name][np.isfinite(again[name])]
        lower, upper = np.percentile(finite, [2.5, 97.5]) if len(finite) else (math.nan, math.nan)
        # A percentile interval need not hold an estimate that lies at the edge of what is possible.
        value = float(values[name][0])
        lines.append((name, value, float(min(lower, value)), float(max(upper, value)), rival))
    return pd.DataFrame(lines, columns=["metric", "value", "lower", "upper", "to_beat"])


def times_needed(rows: pd.DataFrame) -> dict[float, int]:
    """Return for each of EDGES how many bar times would show it at the 5 % level with 80 % power.

    From the variance of accuracy over blocks of time: (z_0.975 + z_0.8)^2 variance / edge^2.
    """
    correct = _correct_by_time(_sums_by_time(rows))
    length = block_length(correct)
    blocks = np.array([correct[start : start + length].mean() for start in range(0, len(correct), length)])
    variance = length * float(blocks.var(ddof=1)) if len(blocks) > 1 else 0.25
    # A quarter is what single coin tosses have; a handful of equal blocks proves nothing smaller.
    variance = variance or 0.25
    return {points: math.ceil((_Z_TEST + _Z_POWER) ** 2 * variance / (points / 100) ** 2) for points in EDGES}


def block_length(series: Array) -> int:
    """Return the length of circular blocks that suits the dependence of `series`.

    Politis, White 2004, Automatic block-length selection for the dependent bootstrap, with the correction of Patton,
    Politis, White 2009: autocovariances up to twice the lag after which all correlations are small.
    """
    count = len(series)
    if count < 10:
        return 1
    centred = np.asarray(series, dtype=float) - np.mean(series)
    spread = float(centred @ centred) / count
    if spread == 0.0:
        return 1
    most = min(math.ceil(math.sqrt(count)), count - 1)
    covariance = np.array([float(centred[lag:] @ centred[: count - lag]) / count for lag in range(most + 1)])
    run = max(5, int(math.sqrt(math.log10(count))))
    small = np.abs(covariance[1:] / spread) < 2 * math.sqrt(math.log10(count) / count)
    lag = next((start for start in range(len(small) - run + 1) if small[start : start + run].all()), most)
    window = min(2 * max(lag, 1), most)
    lags = np.arange(1, window + 1)
    weight = np.where(lags <= window / 2, 1.0, 2.0 * (1.0 - lags / window))
    slope = 2.0 * float((weight * lags * covariance[1 : window + 1]).sum())
    level = spread + 2.0 * float((weight * covariance[1 : window + 1]).sum())
    if level <= 0.0 or slope == 0.0:
        return 1
    length = (2.0 * slope**2 / (4.0 / 3.0 * level**2)) ** (1 / 3) * count ** (1 / 3)
    return int(min(max(1, round(length)), max(1, count // 3), math.ceil(3 * math.sqrt(count))))


def base_rate(target: Array) -> float:
    """Return the share of the more frequent class: what always guessing the majority reaches."""
    share_up = float(np.mean(target))
    return max(share_up, 1.0 - share_up)


def log_loss(target: Array, probability: Array) -> float:
    """Return the mean negative log-likelihood in nats; probabilities are kept PROBABILITY_FLOOR off 0 and 1."""
    kept = np.clip(np.asarray(probability, dtype=np.float64), PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return float(-np.mean(np.where(np.asarray(target) == 1, np.log(kept), np.log1p(-kept))))


def auc(target: Array, probability: Array) -> float:
    """Return the chance that a random UP row scores above a random DOWN row, a tie counting one half.

    The Mann-Whitney rank form with average ranks; NaN when only one class occurs.
    """
    up = np.asarray(target) == 1
    ups, downs = int(up.sum()), int((~up).sum())
    if ups == 0 or downs == 0:
        return math.nan
    _, membership, counts = np.unique(probability, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    average_rank = last_rank - (counts - 1) / 2
    return float((average_rank[membership][up].sum() - ups * (ups + 1) / 2) / (ups * downs))


# What is summed over the rows of a time; every metric is a function of such sums, so that resampling needs no rows.
_SUMS: Final = (
    *("hits_up", "false_up", "missed_up", "hits_down", "loss", "squared"),
    *("rank_up", "rank_down", "p", "pp", "py"),
)


def _sums_by_time(rows: pd.DataFrame) -> Array:
    target, probability = rows["target"].to_numpy() == 1, rows["probability"].to_numpy()
    said = probability >= 0.5
    kept = np.clip(probability, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    below_up, below_down = _placements(target, probability)
    # A correlation does not change, and of a constant nothing is left, which rounding would make a correlation of.
    moved = probability - probability[:1]
    columns = {
        "hits_up": said & target,
        "false_up": said & ~target,
        "missed_up": ~said & target,
        "hits_down": ~said & ~target,
        "loss": -np.where(target, np.log(kept), np.log1p(-kept)),
        "squared": (probability - target) ** 2,
        "rank_up": np.where(target, below_up, 0.0),
        "rank_down": np.where(target, 0.0, below_down),
        "p": moved,
        "pp": moved**2,
        "py": moved * target,
    }
    times = pd.factorize(rows["event_timestamp"])[0]
    return np.column_stack([np.bincount(times, weights=columns[name].astype(float)) for name in _SUMS])


def _placements(up: Array, probability: Array) -> tuple[Array, Array]:
    """Return each row's share of the other class on the right side of it, ties half (DeLong et al. 1988)."""
    ups, downs = np.sort(probability[up]), np.sort(probability[~up])
    with np.errstate(invalid="ignore"):
        return _share_below(downs, probability), 1 - _share_below(ups, probability)


def _share_below(others: Array, probability: Array) -> Array:
    ranks = np.searchsorted(others, probability, side="left") + np.searchsorted(others, probability, side="right")
    share: Array = ranks / (2 * len(others) or math.nan)
    return share


def resampled(sums: Array, length: int) -> Array:
    """Return the sums of REPLICATES resamples of as many times, in circular blocks of `length`."""
    count = len(sums)
    wrapped = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(np.concatenate([sums, sums[:length]]), axis=0)])
    blocks = -(-count // length)
    drawn = pd.Series(np.arange(count)).sample(REPLICATES * blocks, replace=True, random_state=_SEED)
    starts = drawn.to_numpy().reshape(REPLICATES, blocks)
    lengths = np.full(blocks, length)
    lengths[-1] = count - length * (blocks - 1)
    result: Array = np.stack([(wrapped[one + lengths] - wrapped[one]).sum(axis=0) for one in starts])
    return result


def _from_sums(sums: Array, area: float) -> dict[str, Array]:
    """Return every metric for every row of sums; `area` is the AUC of all rows."""
    of = dict(zip(_SUMS, sums.T, strict=True))
    up, down = of["hits_up"] + of["missed_up"], of["false_up"] + of["hits_down"]
    rows = up + down
    said_up = of["hits_up"] + of["false_up"]
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = of["hits_up"] / up
        covariance = of["py"] / rows - of["p"] / rows * up / rows
        spread = of["pp"] / rows - (of["p"] / rows) ** 2
        spread = np.where(spread > _ROUNDING * of["pp"] / rows, spread, 0.0)
        deviations = np.sqrt(spread * (up / rows) * (down / rows))
        return {
            "accuracy": (of["hits_up"] + of["hits_down"]) / rows,
            "balanced accuracy": (recall + of["hits_down"] / down) / 2,
            "precision of UP": of["hits_up"] / said_up,
            "recall of UP": recall,
            "F1 of UP": 2 * of["hits_up"] / (said_up + up),
            # Either class's placements average to the AUC; together they have its spread.
            "AUC": of["rank_up"] / up + of["rank_down"] / down - area,
            "log-loss": of["loss"] / rows,
            "Brier score": of["squared"] / rows,
            "information coefficient": np.where(deviations > 0, covariance / deviations, np.nan),
        }


def _correct_by_time(sums: Array) -> Array:
    of = dict(zip(_SUMS, sums.T, strict=True))
    rows = of["hits_up"] + of["missed_up"] + of["false_up"] + of["hits_down"]
    correct: Array = (of["hits_up"] + of["hits_down"]) / rows
    return correct
