"""Expressions over the bars of one symbol: a formula as a value that is read, hashed, documented and compiled.

`close / lag(close, 5) - 1` is such a value. Equal formulas have equal keys and are computed once, and `reach` says how
many earlier bars a formula needs: nobody declares that by hand. Operators and functions work bar by bar; a function
named `rolling_*` looks at the last n values, the bar's own included. NaN in what it reads gives NaN.
"""

import hashlib
import math
import operator
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Final, Union

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.operations import INPUTS, Calendar, Op

EMA_TAIL: Final = 1e-4

Operand = Union["Expression", float]


@dataclass(frozen=True, eq=False)
class Expression:
    """An operation on operands, with a window (bars of a rolling operation or a lag) and numbers where it takes them.

    `key` is a hash of the formula: expressions of equal key are one computation. `reach` counts the bars before its
    own that the value reads.
    """

    op: Op
    operands: tuple["Expression", ...] = ()
    window: int = 1
    numbers: tuple[float, ...] = ()
    key: str = field(init=False)
    reach: int = field(init=False)

    def __post_init__(self) -> None:
        parts = [self.op.name, str(self.window), *map(repr, self.numbers), *(operand.key for operand in self.operands)]
        object.__setattr__(self, "key", hashlib.sha256(" ".join(parts).encode()).hexdigest())
        own = self.window if self.op is Op.LAG else 0
        reaches = [operand.reach + own for operand in self.operands]
        if self.op.is_rolling:
            reaches[0] += self.window - 1
        object.__setattr__(self, "reach", max(reaches, default=0))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.key == other.key

    def __add__(self, other: Operand) -> "Expression":
        return _of(Op.ADD, self, other)

    def __radd__(self, other: Operand) -> "Expression":
        return _of(Op.ADD, other, self)

    def __sub__(self, other: Operand) -> "Expression":
        return _of(Op.SUBTRACT, self, other)

    def __rsub__(self, other: Operand) -> "Expression":
        return _of(Op.SUBTRACT, other, self)

    def __mul__(self, other: Operand) -> "Expression":
        return _of(Op.MULTIPLY, self, other)

    def __rmul__(self, other: Operand) -> "Expression":
        return _of(Op.MULTIPLY, other, self)

    def __truediv__(self, other: Operand) -> "Expression":
        return _of(Op.DIVIDE, self, other)

    def __rtruediv__(self, other: Operand) -> "Expression":
        return _of(Op.DIVIDE, other, self)

    def __abs__(self) -> "Expression":
        return _of(Op.ABSOLUTE, self)


def _of(op: Op, *operands: Operand, window: int = 1, numbers: tuple[float, ...] = ()) -> Expression:
    return Expression(op, tuple(map(_expression, operands)), window, tuple(map(float, numbers)))


def _expression(operand: Operand) -> Expression:
    return operand if isinstance(operand, Expression) else Expression(Op.CONSTANT, numbers=(float(operand),))


def bar_input(name: str) -> Expression:
    """One of the columns of a bar: open, high, low, close, volume."""
    return Expression(Op.INPUT, numbers=(float(INPUTS.index(name)),))


def calendar(what: Calendar) -> Expression:
    """A number read from the bar's own time, its open in UTC."""
    return Expression(Op.CALENDAR, numbers=(float(what),))


def lag(x: Expression, bars: int) -> Expression:
    """The value `bars` bars earlier; a formula cannot look ahead."""
    if bars < 0:
        raise ConfigurationError(f"a lag of {bars} bars looks ahead")
    return _of(Op.LAG, x, window=bars) if bars else x


def larger(x: Operand, y: Operand) -> Expression:
    """The larger of two values."""
    return _of(Op.LARGER, x, y)


def smaller(x: Operand, y: Operand) -> Expression:
    """The smaller of two values."""
    return _of(Op.SMALLER, x, y)


def ratio(x: Operand, y: Operand, flat: Operand) -> Expression:
    """x / y, and `flat`, which counts there only, where y is 0."""
    return _of(Op.RATIO, x, y, flat)


def sqrt(x: Expression) -> Expression:
    """Square root; NaN below 0."""
    return _of(Op.ROOT, x)


def log(x: Expression) -> Expression:
    """Natural logarithm, within one unit in the last place; -inf at 0, NaN below."""
    return _of(Op.LOGARITHM, x)


def sign(x: Expression) -> Expression:
    """-1, 0 or 1."""
    return _of(Op.SIGN, x)


# Window statistics are put together from those of two parts, of which the newer is as long as the largest power of two
# below the window, and so on down: few additions, shared between windows, in an order that does not depend on where the
# history starts. Chan, Golub and LeVeque (1983) say why that is also the accurate way.


def _parts(n: int) -> tuple[int, int]:
    if n < 2:
        raise ConfigurationError(f"a window of {n} bars is none")
    newer = 1 << (n - 1).bit_length() - 1
    return newer, n - newer


@cache
def rolling_sum(x: Expression, n: int) -> Expression:
    """Sum of the last n values."""
    if n == 1:
        return x
    newer, older = _parts(n)
    return rolling_sum(x, newer) + lag(rolling_sum(x, older), newer)


@cache
def rolling_max(x: Expression, n: int) -> Expression:
    """Largest of the last n values."""
    if n == 1:
        return x
    newer, older = _parts(n)
    return larger(rolling_max(x, newer), lag(rolling_max(x, newer), older))


@cache
def rolling_min(x: Expression, n: int) -> Expression:
    """Smallest of the last n values."""
    if n == 1:
        return x
    newer, older = _parts(n)
    return smaller(rolling_min(x, newer), lag(rolling_min(x, newer), older))


@cache
def rolling_mean(x: Expression, n: int, keep: float = 1.0) -> Expression:
    """Mean of the last n values, each weighing `keep` times the next; of equal values it is that value, exactly."""
    if n == 1:
        return x
    newer, older = _parts(n)
    weights = _weights(keep, n)
    share = math.fsum(weights[newer:]) / math.fsum(weights)
    return _of(Op.BLEND, rolling_mean(x, newer, keep), lag(rolling_mean(x, older, keep), newer), numbers=(share,))


@cache
def _weights(keep: float, n: int) -> tuple[float, ...]:
    # By multiplication: a power may differ in its last bit between machines, and the formula's hash with it.
    return tuple(accumulate((keep for _ in range(n - 1)), operator.mul, initial=1.0))


@cache
def _co_moment(x: Expression, y: Expression, n: int) -> Expression:
    """Sum of the products of the last n deviations of x and y from their means."""
    if n == 1:
        return 0.0 * (x - x)
    newer, older = _parts(n)
    drifts = [lag(rolling_mean(z, older), newer) - rolling_mean(z, newer) for z in (x, y)]
    within = _co_moment(x, y, newer), lag(_co_moment(x, y, older), newer)
    return _of(Op.ADD_PRODUCT, *within, *drifts, numbers=(newer * older / n,))


def age_of_max(x: Expression, n: int) -> Expression:
    """Bars since the largest of the last n values; the newest of equals."""
    return _of(Op.LAG_OF, x, rolling_max(x, n), window=n)


def rolling_rank(x: Expression, n: int) -> Expression:
    """Share of the last n values that are not above the newest; equal ones count half, the newest itself whole."""
    return _of(Op.RANK, x, window=n)


def rolling_std(x: Expression, n: int, ddof: int = 1) -> Expression:
    """Standard deviation (divisor n - ddof) of the last n values; of equal values it is exactly 0."""
    return sqrt(_co_moment(x, x, n) / (n - ddof))


def rolling_mean_deviation(x: Expression, n: int) -> Expression:
    """Mean absolute deviation of the last n values from their mean."""
    return _of(Op.ABSOLUTE_DEVIATION, x, rolling_mean(x, n), window=n) / n


def rolling_skew(x: Expression, n: int) -> Expression:
    """Sample skewness of the last n values (Fisher-Pearson, adjusted, as pandas has it); 0 on a flat window."""
    cubes, squares = _of(Op.CUBED_DEVIATION, x, rolling_mean(x, n), window=n), _co_moment(x, x, n)
    return n * math.sqrt(n - 1) / (n - 2) * ratio(cubes, squares * sqrt(squares), flat=0.0)


def rolling_kurt(x: Expression, n: int) -> Expression:
    """Sample excess kurtosis of the last n values (adjusted, as pandas has it); 0 on a flat window."""
    fourths, squares = _of(Op.FOURTH_DEVIATION, x, rolling_mean(x, n), window=n), _co_moment(x, x, n)
    scale, shift = n * (n + 1) * (n - 1) / ((n - 2) * (n - 3)), 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return ratio(fourths * scale - squares * squares * shift, squares * squares, flat=0.0)


def rolling_corr(x: Expression, y: Expression, n: int) -> Expression:
    """Pearson correlation of the last n pairs of values; 0 where one of them is flat."""
    return ratio(_co_moment(x, y, n), sqrt(_co_moment(x, x, n)) * sqrt(_co_moment(y, y, n)), flat=0.0)


def weighted_sum(x: Expression, weights: tuple[float, ...]) -> Expression:
    """Sum of the last values, each times its weight, the newest with the first."""
    return _of(Op.WEIGHTED_SUM, x, window=len(weights), numbers=weights)


def ema_length(span: int) -> int:
    """Bars after which the weight left out of an exponential average of `span` is under EMA_TAIL."""
    return 1 if span == 1 else math.ceil(math.log(EMA_TAIL) / math.log1p(-2 / (span + 1)))


def ema(x: Expression, span: int) -> Expression:
    """Exponential moving average over a finite window: weights (1 - 2 / (span + 1))^lag, scaled to sum to 1."""
    return rolling_mean(x, ema_length(span), 1 - 2 / (span + 1))


def rolling_slope(x: Expression, n: int) -> Expression:
    """Change per bar of the least-squares line through the last n values; of equal values it is exactly 0."""
    return rolling_slope_of_total(x - lag(x, 1), n)


def rolling_slope_of_total(x: Expression, n: int) -> Expression:
    """Change per bar of the least-squares line through the last n running totals of x, whatever came before them."""
    # A value is part of the totals from its own bar on, and the weights of all totals sum to 0.
    return weighted_sum(x, tuple(accumulate(_slope_weights(n)))[:-1])


def _slope_weights(n: int) -> tuple[float, ...]:
    centre, spread = (n - 1) / 2, n * (n * n - 1) / 12
    return tuple((centre - age) / spread for age in range(n))
