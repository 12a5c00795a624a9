"""95 % intervals of shares and means, where times may depend on those before and rows of one time on each other."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mt5_crs_pipeline.core.errors import InputError

Z_95: Final = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

LEAST_TIMES: Final = 4
"""Fewer times say nothing of how much they vary."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """An estimated share with the lower and upper end of its 95 % interval."""

    estimate: float
    lower: float
    upper: float


def accuracy_interval(correct: Array, times: Array) -> Interval:
    """Return the share of `correct` with a 95 % interval that lets rows of one of `times`, and times, depend.

    On each side the wider of that of `long_run_margin` and Wilson's score interval on rows (Wilson 1927); within
    [0, 1], which it is whole with fewer than LEAST_TIMES. NaN in `correct` gives NaN. Raises InputError without rows or
    on unequal lengths.
    """
    if len(correct) == 0 or len(correct) != len(times):
        raise InputError(f"an interval needs rows and their times: got {len(correct)} rows, {len(times)} times")
    values = np.asarray(correct, dtype=np.float64)
    estimate = float(values.mean())
    if not math.isfinite(estimate):
        return Interval(math.nan, math.nan, math.nan)
    _, membership = np.unique(times, return_inverse=True)
    margin = long_run_margin(np.bincount(membership, weights=values - estimate)) / len(values)
    by_rows = wilson_interval(float(values.sum()), len(values))
    lower, upper = min(estimate - margin, by_rows.lower), max(estimate + margin, by_rows.upper)
    return Interval(estimate, max(lower, 0.0), min(upper, 1.0))


def wilson_interval(successes: float, rows: int) -> Interval:
    """Return the share of successes among independent rows with Wilson's 95 % score interval (Wilson 1927)."""
    share = successes / rows
    weight = 1 + Z_95**2 / rows
    centre = (share + Z_95**2 / (2 * rows)) / weight
    half_width = Z_95 / weight * math.sqrt(share * (1 - share) / rows + (Z_95 / (2 * rows)) ** 2)
    # Rounding may put an end a last bit beyond the share it must contain.
    return Interval(share, max(0.0, min(centre - half_width, share)), min(1.0, max(centre + half_width, share)))


def long_run_margin(deviations: Array) -> float:
    """Return half the width of the 95 % interval of a sum over time, of which each time adds one of `deviations`.

    They are in the order of time, and each may depend on those before. The long-run variance is that of their slowest
    cosines, and Student's t has as many degrees of freedom: Lazarus, Lewis, Stock, Watson 2018, HAR inference:
    recommendations for practice. A block bootstrap holds the truth too rarely where the series is short or its times
    are much alike. Infinite with fewer than LEAST_TIMES.
    """
    count = len(deviations)
    if count < LEAST_TIMES:
        return math.inf
    slowest = np.arange(1, max(3, int(0.4 * count ** (2 / 3))) + 1)
    phases = np.pi * (np.arange(count) + 0.5) / count
    waves = np.array([np.cos(times * phases) @ deviations for times in slowest])
    return _student_97_5(len(slowest)) * math.sqrt(2 * (waves**2).mean())


def _student_97_5(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t within 0.2 %, from three degrees of freedom on.

    Abramowitz, Stegun 1964, Handbook of mathematical functions, 26.7.5.
    """
    z = Z_95
    terms = [
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    ]
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
