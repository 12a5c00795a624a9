"""Window statistics of every length against the same statistic of whole windows in NumPy, and in exact fractions."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from mt5_crs_pipeline.core.features import expressions as e
from mt5_crs_pipeline.core.features.expressions import Expression, bar_input
from mt5_crs_pipeline.core.features.operations import INPUTS
from tests.core.features.evaluation import Array, evaluated
from tests.core.reference import age_of_highest, deviations, ema_weights, rank, slope
from tests.core.samples import bits

OPEN, HIGH, LOW, CLOSE, VOLUME = map(bar_input, INPUTS)
NAN = math.nan


def shape(w: Array, power: int) -> Array:
    """G1 and G2 of Joanes and Gill (1998), from the central moments; 0 where all values are equal."""
    n, d = w.shape[1], deviations(w)
    second, higher = (d**2).mean(axis=1), (d**power).mean(axis=1)
    g = higher / np.where(second == 0, NAN, second) ** (power / 2)
    sample = math.sqrt(n * (n - 1)) / (n - 2) * g if power == 3 else (n - 1) * ((n + 1) * (g - 3) + 6)
    if power == 4:
        sample = sample / ((n - 2) * (n - 3))
    return np.where(second == 0, 0.0, sample)


def slope_of_totals(w: Array) -> Array:
    """The oldest value is part of every total and does not tilt the line, so that it may be missing."""
    return slope(np.concatenate([np.zeros((len(w), 1)), np.cumsum(w[:, 1:], axis=1)], axis=1))


Statistic = Callable[[Array], Array]
# By name: the expression, the statistic of whole windows, the shortest window, the relative and the absolute error.
STATISTICS: dict[str, tuple[Callable[[Expression, int], Expression], Statistic, int, float, float]] = {
    "sum": (e.rolling_sum, lambda w: w.sum(axis=1), 1, 1e-14, 0),
    "mean": (e.rolling_mean, lambda w: w.mean(axis=1), 1, 1e-14, 0),
    "deviation": (e.rolling_std, lambda w: np.sqrt((deviations(w) ** 2).sum(axis=1) / (w.shape[1] - 1)), 2, 1e-11, 0),
    "mean deviation": (e.rolling_mean_deviation, lambda w: np.abs(deviations(w)).mean(axis=1), 1, 1e-11, 1e-14),
    "slope": (e.rolling_slope, slope, 2, 1e-9, 1e-13),
    "slope of totals": (e.rolling_slope_of_total, slope_of_totals, 2, 1e-11, 1e-13),
    "largest": (e.rolling_max, lambda w: w.max(axis=1), 1, 0, 0),
    "smallest": (e.rolling_min, lambda w: w.min(axis=1), 1, 0, 0),
    "age of the largest": (e.age_of_max, age_of_highest, 1, 0, 0),
    "rank": (e.rolling_rank, rank, 1, 0, 0),
    "skewness": (e.rolling_skew, lambda w: shape(w, 3), 3, 1e-9, 1e-11),
    "kurtosis": (e.rolling_kurt, lambda w: shape(w, 4), 4, 1e-9, 1e-11),
}


def whole_windows(x: Array, n: int) -> Array:
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(n - 1, NAN), x]), n)


@pytest.fixture(scope="module")
def walk() -> Array:
    """Around 100, up and down, every fifth value like the one before it, so that there are equals and flat windows."""
    rng = np.random.default_rng(3)
    steps = rng.normal(0, 1, 400)
    steps[::5] = 0.0
    steps[200:280] = 0.0
    return 100 + np.cumsum(steps)


@pytest.fixture(scope="module")
def noise() -> Array:
    """Few different whole numbers, many of them equal."""
    return np.random.default_rng(4).integers(0, 12, 400).astype(float)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("input_name", ["walk", "noise"])
def test_a_statistic_is_that_of_the_whole_window_at_every_length(
    name: str, input_name: str, request: pytest.FixtureRequest
) -> None:
    x: Array = request.getfixturevalue(input_name)
    function, statistic, shortest, relative, absolute = STATISTICS[name]
    lengths = range(shortest, 71)
    found = evaluated([function(CLOSE, n) for n in lengths], close=x)
    for n, values in zip(lengths, found, strict=True):
        expected = statistic(whole_windows(x, n))
        np.testing.assert_allclose(values, expected, rtol=relative, atol=absolute, err_msg=f"{n} bars")


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_that_of_the_whole_window_around_the_kernels_block_and_at_the_longest(name: str) -> None:
    rng = np.random.default_rng(9)
    x = 50 + rng.normal(0, 1, 3_100).round(1)
    x[0] = 99.0
    function, statistic, _, relative, absolute = STATISTICS[name]
    for n in (127, 128, 129, 1_023, 1_024, 1_025, 2_000):
        expected = statistic(whole_windows(x, n)[-1_200:])
        found = evaluated([function(CLOSE, n)], close=x)[0]
        np.testing.assert_allclose(found[-1_200:], expected, rtol=max(relative, 1e-9) if relative else 0, atol=absolute)
        assert np.isnan(found).sum() == function(CLOSE, n).reach


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 20, 31, 32, 33, 64, 65, 70])
def test_a_deviation_with_another_divisor_is_that_of_the_whole_window(n: int, walk: Array) -> None:
    found = evaluated([e.rolling_std(CLOSE, n, ddof=0), e.rolling_std(CLOSE, n)], close=walk)
    expected = np.sqrt((deviations(whole_windows(walk, n)) ** 2).mean(axis=1))
    np.testing.assert_allclose(found[0], expected, rtol=1e-11)
    np.testing.assert_allclose(found[1], expected * math.sqrt(n / (n - 1)), rtol=1e-11)


def test_a_correlation_is_that_of_the_whole_windows_at_every_length(walk: Array, noise: Array) -> None:
    found = evaluated([e.rolling_corr(CLOSE, OPEN, n) for n in range(2, 71)], close=walk, open=noise)
    for n, values in zip(range(2, 71), found, strict=True):
        dx, dy = (deviations(whole_windows(x, n)) for x in (walk, noise))
        size = np.sqrt((dx**2).sum(axis=1) * (dy**2).sum(axis=1))
        expected = np.where(size == 0, 0.0, (dx * dy).sum(axis=1) / np.where(size == 0, NAN, size))
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-13, err_msg=f"{n} bars")


@pytest.mark.parametrize("n", [2, 3, 5, 20, 33, 64])
def test_what_moves_together_has_a_correlation_of_one_and_against_each_other_minus_one(n: int, walk: Array) -> None:
    formulas = [e.rolling_corr(CLOSE, y, n) for y in (CLOSE, 3 * CLOSE + 7, 5 - CLOSE)]
    found = evaluated(formulas, close=walk)[:, n - 1 : 200]
    for values, expected in zip(found, (1.0, 1.0, -1.0), strict=True):
        moving = values[values != 0.0]
        assert len(moving) > 0.75 * len(values)
        assert moving == pytest.approx(expected, abs=1e-12)
    assert np.abs(found).max() <= 1 + 4e-16


@pytest.mark.parametrize("span", [1, 2, 3, 4, 7, 10, 12, 26, 50, 200])
def test_an_exponential_average_is_the_weighted_mean_of_its_window(span: int) -> None:
    weights = ema_weights(span)
    x = 100 + np.cumsum(np.random.default_rng(5).normal(0, 1, len(weights) + 50))
    found = evaluated([e.ema(CLOSE, span)], close=x)[0]
    expected = whole_windows(x, len(weights)) @ weights[::-1]
    np.testing.assert_allclose(found[len(weights) - 1 :], expected[len(weights) - 1 :], rtol=1e-14)
    assert np.isnan(found).sum() == len(weights) - 1


def test_a_weighted_sum_takes_the_newest_value_with_the_first_weight() -> None:
    formula = e.weighted_sum(CLOSE, (1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0))
    found = evaluated([formula], close=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])[0]
    assert found[5:].tolist() == [123456.0, 234567.0]
    assert np.isnan(found[:5]).all()


@pytest.mark.parametrize("value", [0.1, 1.3, 7.7, -0.3, 1e-300, 1e300 / 3, 123456789.123])
def test_equal_values_have_exactly_their_mean_and_no_deviation_at_every_length(value: float) -> None:
    lengths = range(1, 71)
    means = [e.rolling_mean(CLOSE, n) for n in lengths] + [e.ema(CLOSE, n) for n in range(1, 9)]
    zeros = [e.rolling_mean_deviation(CLOSE, n) for n in lengths]
    zeros += [e.rolling_std(CLOSE, n, ddof) for n in lengths[1:] for ddof in (0, 1)]
    zeros += [e.rolling_skew(CLOSE, n) for n in lengths[2:]] + [e.rolling_kurt(CLOSE, n) for n in lengths[3:]]
    zeros += [e.rolling_corr(CLOSE, OPEN, n) for n in lengths[1:]] + [e.age_of_max(CLOSE, n) for n in lengths]
    x = np.full(80, value)
    found = evaluated(means + zeros, close=x, open=np.arange(80.0))[:, 70:]
    assert (bits(found[: len(means)]) == bits(np.array(value))).all()
    assert (bits(found[len(means) :]) == 0).all()


@pytest.mark.parametrize("value", [0.1, 1.3, 7.7, 100.1])
def test_equal_values_have_exactly_no_slope_at_every_length(value: float) -> None:
    found = evaluated([e.rolling_slope(CLOSE, n) for n in range(2, 71)], close=np.full(80, value))[:, 70:]
    assert (bits(found) == 0).all()


@pytest.mark.parametrize("level", [0.0, 1.0, 1e4, 1e7])
def test_a_deviation_far_from_zero_loses_only_what_the_means_round_away(level: float) -> None:
    """Against exact fractions; squares minus the square of the mean would have no digit left at 1e7."""
    n = 21
    x = level + np.random.default_rng(6).normal(0, 1, 60)
    found = evaluated([e.rolling_std(CLOSE, n), e.rolling_mean(CLOSE, n)], close=x)[:, n - 1 :]
    for end, (deviation, mean) in enumerate(found.T, start=n):
        window = [Fraction(value) for value in x[end - n : end]]
        exact = sum(window) / n
        variance = sum((value - exact) ** 2 for value in window) / (n - 1)
        assert mean == pytest.approx(float(exact), rel=4e-16, abs=1e-15)
        assert deviation == pytest.approx(math.sqrt(variance), rel=1e-14 + 1e-15 * level)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("n", [4, 7, 16, 33])
def test_a_missing_value_is_missing_in_the_windows_it_is_in_and_in_no_other(name: str, n: int, noise: Array) -> None:
    function = STATISTICS[name][0]
    holed = noise.copy()
    holed[[100, 103, 300]] = NAN
    before, after = (evaluated([function(CLOSE, n)], close=x)[0] for x in (noise, holed))
    reads = function(CLOSE, n).reach + 1
    expected = np.isnan(whole_windows(holed, reads)).any(axis=1)
    assert np.isnan(after).tolist() == expected.tolist()
    assert (bits(after[~expected]) == bits(before[~expected])).all()


def test_the_newest_of_equal_highs_counts_and_the_rank_counts_equals_half() -> None:
    x = [5.0, 3.0, 5.0, 4.0, 5.0, 5.0, 1.0]
    age, ranked = evaluated([e.age_of_max(CLOSE, 4), e.rolling_rank(CLOSE, 4)], close=x)[:, 3:]
    assert age.tolist() == [1.0, 0.0, 0.0, 1.0]
    # Of 3 5 4 5 the last: above two, level with one, itself. Of 5 4 5 5: above one, level with two, itself.
    assert ranked.tolist() == [0.5, (2 + 0.5 + 1) / 4, (1 + 1 + 1) / 4, 0.25]
