"""The building blocks of formulas: single operations at their edges, and which bars a formula reads."""

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from itertools import pairwise

import numpy as np
import pytest

from mt5_crs_pipeline.core.features import expressions as e
from mt5_crs_pipeline.core.features.expressions import Expression, bar_input, lag
from mt5_crs_pipeline.core.features.operations import INPUTS, Op
from mt5_crs_pipeline.core.features.program import assemble
from tests.core.features.evaluation import Array, evaluated
from tests.core.samples import bits

OPEN, HIGH, LOW, CLOSE, VOLUME = map(bar_input, INPUTS)
INF, NAN = math.inf, math.nan
ROLLING = (
    *(e.rolling_sum, e.rolling_mean, e.ema, e.rolling_std, e.rolling_mean_deviation, e.rolling_slope),
    *(e.rolling_slope_of_total, e.rolling_max, e.rolling_min, e.age_of_max, e.rolling_rank, e.rolling_skew),
    e.rolling_kurt,
)


def assert_bits(found: Array, expected: Sequence[float]) -> None:
    assert bits(np.where(np.isnan(found), NAN, found)).tolist() == bits(np.array(expected)).tolist(), found


@pytest.fixture(scope="module")
def walk() -> Array:
    """Around 100, up and down, every fifth value like the one before it."""
    rng = np.random.default_rng(3)
    steps = rng.normal(0, 1, 400)
    steps[::5] = 0.0
    return 100 + np.cumsum(steps)


@pytest.fixture(scope="module")
def noise() -> Array:
    return np.random.default_rng(4).integers(0, 12, 400).astype(float)


# Bar by bar.


def test_a_logarithm_is_within_one_unit_in_the_last_place_at_every_magnitude() -> None:
    rng = np.random.default_rng(1)
    wide = np.ldexp(rng.uniform(1, 2, 20_000), rng.integers(-1_022, 1_024, 20_000))
    # Exact neighbours of 1, of the ends of the reduced range, and of the powers of two.
    spots = np.concatenate([[1.0, 2.0, 0.5, math.sqrt(0.5), math.sqrt(2), math.e], np.ldexp(1.0, np.arange(-60, 60))])
    near = np.concatenate([spots * (1 + k * 2**-52) for k in range(-40, 41)])
    around_one = 1 + rng.normal(0, 1, 5_000) * 10.0 ** -rng.integers(1, 17, 5_000)
    subnormal = np.ldexp(rng.uniform(1, 2, 2_000), rng.integers(-1_074, -1_022, 2_000))
    extremes = [5e-324, 2.2250738585072014e-308, np.nextafter(2.2250738585072014e-308, 0), np.finfo(float).max]
    x = np.concatenate([wide, near, around_one, subnormal, extremes])
    x = x[x > 0]
    found = evaluated([e.log(CLOSE)], close=x)[0]
    expected = np.array([math.log(value) for value in x])
    assert (np.abs(found - expected) <= np.spacing(np.abs(expected))).all()
    assert found[x == 1.0].tolist() == [0.0] * (x == 1.0).sum()


def test_a_logarithm_is_within_one_unit_of_the_exact_one() -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([np.ldexp(rng.uniform(1, 2, 700), rng.integers(-1_074, 1_024, 700)), rng.normal(1, 0.02, 700)])
    found = evaluated([e.log(CLOSE)], close=x)[0]
    with localcontext() as context:
        context.prec = 50
        errors = [abs(Decimal(y) - Decimal(value).ln()) for y, value in zip(found.tolist(), x.tolist(), strict=True)]
    units = [float(error) / np.spacing(abs(y)) for error, y in zip(errors, found, strict=True)]
    assert 0.3 < max(units) < 1


def test_a_logarithm_of_what_has_none_is_minus_infinite_or_missing() -> None:
    x = [0.0, -0.0, -1.0, -5e-324, -INF, INF, NAN]
    assert_bits(evaluated([e.log(CLOSE)], close=x)[0], [-INF, -INF, NAN, NAN, NAN, INF, NAN])


def test_a_square_root_is_the_nearest_double_and_missing_below_zero() -> None:
    x = [0.0, -0.0, 2.0, 1e-320, 1e300, INF, -1.0, -5e-324, NAN]
    expected = [0.0, -0.0, math.sqrt(2), math.sqrt(1e-320), 1e150, INF, NAN, NAN, NAN]
    assert_bits(evaluated([e.sqrt(CLOSE)], close=x)[0], expected)


def test_a_sign_is_one_of_three_and_keeps_zero_and_missing_as_they_are() -> None:
    x = [3.0, 5e-324, INF, -2.0, -5e-324, -INF, 0.0, -0.0, NAN]
    assert_bits(evaluated([e.sign(CLOSE)], close=x)[0], [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0, -0.0, NAN])


def test_an_absolute_value_has_no_sign() -> None:
    assert_bits(evaluated([abs(CLOSE)], close=[-2.0, 2.0, -0.0, -INF, NAN])[0], [2.0, 2.0, 0.0, INF, NAN])


@pytest.mark.parametrize(("x", "y"), [(1.0, 2.0), (2.0, 1.0), (-INF, INF), (-1.0, -2.0), (0.0, 5e-324), (3.0, 3.0)])
def test_the_larger_and_the_smaller_of_two_are_each_one_of_them(x: float, y: float) -> None:
    larger, smaller = evaluated([e.larger(OPEN, CLOSE), e.smaller(OPEN, CLOSE)], open=[x], close=[y])
    assert_bits(larger, [max(x, y)])
    assert_bits(smaller, [min(x, y)])


@pytest.mark.parametrize(("x", "y"), [(NAN, 1.0), (1.0, NAN), (NAN, INF), (-INF, NAN), (NAN, NAN)])
def test_of_a_missing_value_and_another_neither_is_larger_or_smaller(x: float, y: float) -> None:
    for found in evaluated([e.larger(OPEN, CLOSE), e.smaller(OPEN, CLOSE)], open=[x], close=[y]):
        assert_bits(found, [NAN])


@pytest.mark.parametrize(("x", "y"), [(0.0, -0.0), (-0.0, 0.0)])
def test_of_two_zeros_the_first_is_taken(x: float, y: float) -> None:
    for found in evaluated([e.larger(OPEN, CLOSE), e.smaller(OPEN, CLOSE)], open=[x], close=[y]):
        assert_bits(found, [x])


@pytest.mark.parametrize(
    ("x", "y", "flat", "expected"),
    [
        (3.0, 2.0, 9.0, 1.5),
        (3.0, 0.0, 9.0, 9.0),
        (3.0, -0.0, 9.0, 9.0),
        (0.0, 0.0, 9.0, 9.0),
        (-0.0, 5.0, 9.0, -0.0),
        (0.0, 0.0, -0.0, 0.0),
        (1.0, 5e-324, 9.0, INF),
        (3.0, INF, 9.0, 0.0),
        (NAN, 2.0, 9.0, NAN),
        (NAN, 0.0, 9.0, NAN),
        (3.0, NAN, 9.0, NAN),
        (3.0, 0.0, NAN, NAN),
    ],
)
def test_a_ratio_is_flat_where_it_divides_by_zero_and_missing_where_a_part_is(
    x: float, y: float, flat: float, expected: float
) -> None:
    found = evaluated([e.ratio(OPEN, CLOSE, flat=HIGH)], open=[x], close=[y], high=[flat])[0]
    assert_bits(found, [expected])


def test_arithmetic_with_numbers_works_from_either_side() -> None:
    formulas = [CLOSE + 2, 2 + CLOSE, CLOSE - 2, 2 - CLOSE, CLOSE * 2, 2 * CLOSE, CLOSE / 2, 2 / CLOSE]
    expected = [6.0, 6.0, 2.0, -2.0, 8.0, 8.0, 2.0, 0.5]
    assert evaluated(formulas, close=[4.0])[:, 0].tolist() == expected


# Which bars are read.


def test_a_lag_is_the_value_of_an_earlier_bar_and_missing_before_the_first() -> None:
    found = evaluated([lag(CLOSE, 1), lag(lag(CLOSE, 2), 1), lag(CLOSE, 4)], close=[1.0, 2.0, 3.0, 4.0])
    assert_bits(found[0], [NAN, 1.0, 2.0, 3.0])
    assert_bits(found[1], [NAN, NAN, NAN, 1.0])
    assert_bits(found[2], [NAN] * 4)


def test_a_lag_of_a_formula_is_the_formula_as_it_was(walk: Array, noise: Array) -> None:
    plain = [CLOSE / lag(OPEN, 2) - 1, e.larger(CLOSE, lag(CLOSE, 3)), e.rolling_mean(CLOSE * OPEN, 7)]
    plain += [e.rolling_std(e.log(CLOSE), 9), e.rolling_rank(OPEN, 5), abs(lag(OPEN, 5) - CLOSE)]
    found = evaluated([*plain, *(lag(formula, 11) for formula in plain)], close=walk, open=noise + 1)
    for now, then in pairwise([found[: len(plain)], found[len(plain) :]]):
        assert (bits(then[:, 11:]) == bits(now[:, :-11])).all()
        assert np.isnan(then[:, :11]).all()
        assert np.isnan(now).sum(axis=1).tolist() == [2, 3, 6, 8, 4, 5]


@pytest.mark.parametrize(
    ("formula", "reach"),
    [
        (CLOSE, 0),
        (CLOSE + 1, 0),
        (lag(CLOSE, 3), 3),
        (lag(lag(CLOSE, 3), 4), 7),
        (CLOSE / lag(CLOSE, 5) - lag(OPEN, 2), 5),
        (lag(CLOSE / lag(CLOSE, 5), 2), 7),
        (e.rolling_mean(CLOSE, 1), 0),
        (e.rolling_mean(CLOSE, 20), 19),
        (e.rolling_sum(lag(CLOSE, 2), 13), 14),
        (e.rolling_max(e.rolling_min(CLOSE, 6), 5), 9),
        (e.rolling_std(CLOSE - lag(CLOSE, 1), 20), 20),
        (e.rolling_corr(CLOSE, lag(VOLUME, 4), 10), 13),
        (e.rolling_rank(CLOSE, 30), 29),
        (e.age_of_max(lag(HIGH, 1), 30), 30),
        (e.rolling_mean_deviation(CLOSE, 15), 14),
        (e.rolling_skew(CLOSE, 12), 11),
        (e.rolling_kurt(lag(CLOSE, 1), 12), 12),
        (e.rolling_slope(CLOSE, 8), 7),
        (e.rolling_slope_of_total(CLOSE, 8), 6),
        (e.ema(CLOSE, 10), 45),
        (e.ratio(CLOSE, lag(VOLUME, 6), flat=lag(OPEN, 5)), 6),
    ],
)
def test_a_formula_reaches_as_far_as_it_reads(formula: Expression, reach: int, walk: Array) -> None:
    assert formula.reach == reach
    columns = dict.fromkeys(INPUTS, walk[: reach + 1])
    found = evaluated([formula], **columns)[0]
    assert np.isnan(found).tolist() == [True] * reach + [False]
    holed = dict.fromkeys(INPUTS, np.concatenate([[NAN], walk[1 : reach + 1]]))
    assert np.isnan(evaluated([formula], **holed)).all()


def test_equal_formulas_have_equal_keys_and_are_equal() -> None:
    first, second = (e.rolling_std(bar_input("close") / lag(bar_input("close"), 1) - 1, 20) for _ in range(2))
    assert first == second and hash(first) == hash(second) and first.key == second.key
    assert CLOSE + 1 == CLOSE + 1.0
    assert CLOSE != "close" and CLOSE.key != CLOSE


def test_different_formulas_have_different_keys() -> None:
    formulas = [
        *(CLOSE, OPEN, HIGH, LOW, VOLUME, CLOSE - OPEN, OPEN - CLOSE, CLOSE + OPEN, CLOSE * OPEN, CLOSE / OPEN),
        *(CLOSE - 1, 1 - CLOSE, CLOSE - 2, CLOSE + 0.1, CLOSE + 0.10000000000000002, CLOSE + 0.0, CLOSE + -0.0),
        *(lag(CLOSE, 1), lag(CLOSE, 11), lag(lag(CLOSE, 1), 1), (CLOSE + OPEN) + HIGH, CLOSE + (OPEN + HIGH)),
        *(e.larger(CLOSE, OPEN), e.smaller(CLOSE, OPEN), e.larger(OPEN, CLOSE), e.sqrt(CLOSE), e.log(CLOSE)),
        *(e.sign(CLOSE), abs(CLOSE), e.ratio(CLOSE, OPEN, 0.0), e.ratio(CLOSE, OPEN, 1.0), e.ratio(OPEN, CLOSE, 0.0)),
        *(e.weighted_sum(CLOSE, (1.0, 2.0)), e.weighted_sum(CLOSE, (2.0, 1.0)), e.weighted_sum(CLOSE, (1.0, 2.0, 0.0))),
        *(function(CLOSE, n) for function in ROLLING for n in (5, 6)),
        *(e.rolling_std(CLOSE, 5, ddof=0), e.rolling_corr(CLOSE, OPEN, 5), e.rolling_corr(OPEN, CLOSE, 5)),
    ]
    assert len({formula.key for formula in formulas}) == len(formulas)
    assert all(x != y for x, y in pairwise(formulas))


def test_a_shared_part_is_computed_once() -> None:
    part = e.rolling_mean(e.log(CLOSE), 9)
    alone, shared = assemble([part]), assemble([part, part * 2, lag(part, 3), part - lag(part, 5)])
    logarithms = [int((program.table[:, 0] == Op.LOGARITHM).sum()) for program in (alone, shared)]
    assert logarithms == [1, 1]
    # Four results, a constant, a product and a difference.
    assert len(shared.table) == len(alone.table) - 1 + 4 + 3
