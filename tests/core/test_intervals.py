"""Intervals against their definitions, and against the truth where times depend on those before."""

import math

import numpy as np
import pytest
from scipy import stats

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.intervals import Interval, accuracy_interval, long_run_margin, wilson_interval


def interval_by_loops(correct: list[bool], times: list[int]) -> tuple[float, float]:
    """The same interval from its definitions: dictionaries and loops, quantiles and Wilson's ends as SciPy has them."""
    n = len(correct)
    mean = sum(correct) / n
    sums: dict[int, float] = {}
    for hit, time in zip(correct, times, strict=True):
        sums[time] = sums.get(time, 0.0) + (1.0 if hit else 0.0) - mean
    g = len(sums)
    if g < 4:
        return 0.0, 1.0
    waves = max(3, int(0.4 * g ** (2 / 3)))
    power = 0.0
    for wave in range(1, waves + 1):
        added = (math.cos(math.pi * wave * (at + 0.5) / g) * sums[time] for at, time in enumerate(sorted(sums)))
        power += math.fsum(added) ** 2 / waves
    half = stats.t.ppf(0.975, waves) * math.sqrt(2 * power) / n
    wilson = stats.binomtest(int(sum(correct)), n).proportion_ci(method="wilson")
    return max(0.0, min(mean - half, wilson.low)), min(1.0, max(mean + half, wilson.high))


@pytest.mark.parametrize("seed", range(20))
def test_accuracy_interval_equals_a_loop_over_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, groups = int(rng.integers(5, 200)), int(rng.integers(2, 40))
    times = rng.integers(0, groups, rows)
    correct = rng.random(rows) < rng.random(groups)[times]
    found = accuracy_interval(correct, times)
    assert found.estimate == pytest.approx(correct.mean(), abs=1e-12)
    lower, upper = interval_by_loops(correct.tolist(), times.tolist())
    # Student's quantile is known to 0.2 %.
    assert (found.lower, found.upper) == pytest.approx((lower, upper), abs=2e-3 * (upper - lower))
    assert 0 <= found.lower <= found.estimate <= found.upper <= 1


@pytest.mark.parametrize(("successes", "rows"), [(0, 1), (1, 1), (8, 13), (0, 50), (50, 50), (5_130, 10_000)])
def test_wilson_interval_equals_scipy(successes: int, rows: int) -> None:
    found, other = wilson_interval(successes, rows), stats.binomtest(successes, rows).proportion_ci(method="wilson")
    assert (found.lower, found.upper) == pytest.approx((other.low, other.high), abs=1e-12)
    assert 0 <= found.lower <= found.estimate <= found.upper <= 1


def test_ten_copies_of_each_row_do_not_narrow_the_interval() -> None:
    correct = np.random.default_rng(4).random(400) < 0.55
    once = accuracy_interval(correct, np.arange(400))
    tenfold = accuracy_interval(np.repeat(correct, 10), np.repeat(np.arange(400), 10))
    as_if_independent = wilson_interval(10 * float(correct.sum()), 4000)
    width = once.upper - once.lower
    assert tenfold.upper - tenfold.lower == pytest.approx(width, rel=0.02)
    assert as_if_independent.upper - as_if_independent.lower < 0.4 * width


@pytest.mark.parametrize("symbols", [1, 8])
@pytest.mark.parametrize("lasting", [0.0, 0.4])
@pytest.mark.parametrize("times", [60, 250])
def test_the_interval_holds_the_truth_about_95_times_in_100(times: int, lasting: float, symbols: int) -> None:
    """Symbols share a half of what makes them right, and of that each time has a part from the one before."""
    rng, truth, rounds = np.random.default_rng(20), 0.53, 1000
    limit, held, clusters = stats.norm.ppf(truth), 0, np.repeat(np.arange(times), symbols)
    for _ in range(rounds):
        shared, noise = np.empty(times), rng.normal(size=times)
        shared[0] = noise[0]
        for at in range(1, times):
            shared[at] = lasting * shared[at - 1] + math.sqrt(1 - lasting**2) * noise[at]
        latent = math.sqrt(0.5) * (shared[:, None] + rng.normal(size=(times, symbols)))
        found = accuracy_interval((latent < limit).ravel(), clusters)
        held += found.lower <= truth <= found.upper
    # Three standard errors of a share of 0.95 are 0.02; the wider of two intervals holds it more often, and one of 60
    # times that are alike less.
    assert 0.915 <= held / rounds <= 0.99


def test_few_times_say_nothing_of_how_much_they_vary() -> None:
    assert accuracy_interval(np.array([True, True, False]), np.array([7, 7, 7])) == Interval(pytest.approx(2 / 3), 0, 1)
    assert accuracy_interval(np.array([True]), np.array([7])) == Interval(1, 0, 1)
    three = accuracy_interval(np.tile([True, False], 300), np.repeat([1, 2, 3], 200))
    assert (three.lower, three.upper) == (0, 1)
    assert long_run_margin(np.array([1.0, -1.0, 0.0])) == math.inf


@pytest.mark.parametrize(("rows", "times"), [(0, 0), (3, 2)])
def test_an_interval_without_matching_rows_and_times_is_refused(rows: int, times: int) -> None:
    with pytest.raises(InputError, match=f"{rows} rows, {times} times"):
        accuracy_interval(np.ones(rows), np.arange(times))


def test_a_share_of_what_is_no_number_is_none() -> None:
    assert math.isnan(accuracy_interval(np.array([1.0, math.nan]), np.array([0, 1])).lower)
