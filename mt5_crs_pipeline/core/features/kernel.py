"""The compiled part: runs a program over the bars, block by block, on registers that stay in the cache.

Every operation is the same arithmetic for every bar, and looks back by lags alone: a value's bits depend neither on
where a block or the history starts nor on how many bars the processor's vectors take at once. Only +, -, *, / and
square roots are used, which IEEE 754 defines to the last bit, and the compiler neither fuses nor reorders them.
"""

import contextlib
import zlib

import numba
import numpy as np

from mt5_crs_pipeline.core.features.operations import INPUTS, Calendar, Op
from mt5_crs_pipeline.core.features.program import HISTORY, NUMBERS, OP, OPERANDS, TARGET, WINDOW

# The cache on disk notices changes of this file alone. The layout is compiled in and returned, so that a kernel made
# with other numbers of the imports is found out.
_IMPORTED = [*Op, *Calendar, INPUTS, OP, TARGET, HISTORY, WINDOW, NUMBERS, OPERANDS]
LAYOUT = zlib.crc32(repr(_IMPORTED).encode())

# Bars per block: a few registers of this many doubles fit into the fastest cache.
BLOCK = 1024

compiled = numba.njit(nogil=True, error_model="numpy")


@compiled
def _copy(d, x):
    for i in range(len(x)):
        d[i] = x[i]


@compiled
def _scatter(out, destination, values):
    for i in range(len(values)):
        if destination[i] >= 0:
            out[destination[i]] = values[i]


@compiled
def _load(d, column, start, row, source):
    """Fill d with the column from panel row `row` on; NaN before the symbol starts."""
    before = min(max(start - row, 0), len(d))
    d[:before] = np.nan
    if len(source) == 0:
        _copy(d[before:], column[row + before : row + len(d)])
    else:
        rows = source[row + before : row + len(d)]
        for i in range(len(rows)):
            d[before + i] = column[rows[i]]


@compiled
def _month_around(days):
    """Month (1 to 12), its first day and the next month's, of a count of days since 1970-01-01; Gregorian.

    Years are counted from March, so that the leap day comes last, within eras of 400 years (146,097 days).
    """
    era = (days + 719468) // 146097
    day = days + 719468 - era * 146097
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    year_start = 365 * year + year // 4 - year // 100
    month = (5 * (day - year_start) + 2) // 153
    first = year_start + (153 * month + 2) // 5
    leap = (year + 1) % 4 == 0 and ((year + 1) % 100 != 0 or year + 1 == 400)
    following = year_start + ((153 * month + 155) // 5 if month < 11 else 365 + leap)
    return (month + 2) % 12 + 1, era * 146097 + first - 719468, era * 146097 + following - 719468


@compiled
def _load_calendar(d, what, time, ticks_per_hour, start, row, source):
    before = min(max(start - row, 0), len(d))
    d[:before] = np.nan
    month, first_day, next_first_day = 0, 0, 0
    for i in range(before, len(d)):
        ticks = time[row + i if len(source) == 0 else source[row + i]]
        hours = ticks // ticks_per_hour
        days = hours // 24
        if what == Calendar.HOUR_OF_DAY:
            d[i] = hours - days * 24 + (ticks - hours * ticks_per_hour) / ticks_per_hour
        elif what == Calendar.DAY_OF_WEEK:
            # 1970-01-01 was a Thursday, Monday is 0.
            d[i] = (days + 3) % 7
        else:
            if not first_day <= days < next_first_day:
                month, first_day, next_first_day = _month_around(days)
            d[i] = days - first_day + 1 if what == Calendar.DAY_OF_MONTH else month


@compiled
def _logarithm(d, x):
    """Natural logarithm from the series of the inverse hyperbolic tangent, on a mantissa in [sqrt(1/2), sqrt(2)).

    The mathematics library's own may differ in the last bit between the vector and the scalar code of one loop.
    """
    one, bottom, mantissa = np.int64(0x3FF0000000000000), np.int64(0x3FE6A09E00000000), np.int64(0x000FFFFFFFFFFFFF)
    for i in range(len(x)):
        tiny = x[i] < 2.2250738585072014e-308
        value = x[i] * 18014398509481984.0 if tiny else x[i]
        bits = np.float64(value).view(np.int64) + (one - bottom)
        exponent = np.float64((bits >> 52) - 1023) - (54.0 if tiny else 0.0)
        f = np.int64((bits & mantissa) + bottom).view(np.float64) - 1.0
        s = f / (2.0 + f)
        z = s * s
        # 2/3 z + 2/5 z^2 + ... + 2/23 z^11: the next term is below the last bit.
        series = 0.0
        for k in range(11, 0, -1):
            series = (series + 2.0 / (2 * k + 1)) * z
        half = 0.5 * f * f
        # The logarithm of 2 in two parts, of which the first times any exponent is exact.
        low = s * (half + series) + exponent * 1.90821492927058770002e-10
        result = exponent * 6.93147180369123816490e-01 - ((half - low) - f)
        if x[i] == np.inf:
            result = np.inf
        if x[i] == 0.0:
            result = -np.inf
        d[i] = result if x[i] >= 0.0 else np.nan


@compiled
def _plus_absolute(total, value, m):
    return total + abs(value - m)


@compiled
def _plus_cube(total, value, m):
    return total + (value - m) * (value - m) * (value - m)


@compiled
def _plus_fourth(total, value, m):
    square = (value - m) * (value - m)
    return total + square * square


@compiled
def _plus_below(total, value, m):
    below = 1.0 if value < m else (0.0 if value > m else 0.5)
    # NaN is neither, and must not count as equal.
    return total + (below if value - m == value - m else np.nan)


def _rolling_fold(combine, begin):
    """Return the loop d = combine(... combine(combine(begin, newest, m), one bar earlier, m) ..., oldest, m).

    x[k : k + len(d)] is the operand window - 1 - k bars earlier; m is read at the bar alone. Four lags at a time.
    """

    @compiled
    def fold(d, x, m, window):
        count = len(d)
        d[:] = begin
        k = window - 1
        while k >= 3:
            x1, x2 = x[k : k + count], x[k - 1 : k - 1 + count]
            x3, x4 = x[k - 2 : k - 2 + count], x[k - 3 : k - 3 + count]
            for i in range(count):
                two = combine(combine(d[i], x1[i], m[i]), x2[i], m[i])
                d[i] = combine(combine(two, x3[i], m[i]), x4[i], m[i])
            k -= 4
        while k >= 0:
            x1 = x[k : k + count]
            for i in range(count):
                d[i] = combine(d[i], x1[i], m[i])
            k -= 1

    return fold


_sum_of_absolutes = _rolling_fold(_plus_absolute, 0.0)
_sum_of_cubes = _rolling_fold(_plus_cube, 0.0)
_sum_of_fourths = _rolling_fold(_plus_fourth, 0.0)
# The newest value equals itself: with half a row before the first it counts whole.
_rank = _rolling_fold(_plus_below, 0.5)


@compiled
def _weighted_sum(d, x, weights):
    count, window = len(d), len(weights)
    d[:] = 0.0
    k = window - 1
    while k >= 3:
        w = window - 1 - k
        w1, w2, w3, w4 = weights[w], weights[w + 1], weights[w + 2], weights[w + 3]
        x1, x2, x3, x4 = x[k : k + count], x[k - 1 : k - 1 + count], x[k - 2 : k - 2 + count], x[k - 3 : k - 3 + count]
        for i in range(count):
            d[i] = (((d[i] + x1[i] * w1) + x2[i] * w2) + x3[i] * w3) + x4[i] * w4
        k -= 4
    while k >= 0:
        x1, w1 = x[k : k + count], weights[window - 1 - k]
        for i in range(count):
            d[i] = d[i] + x1[i] * w1
        k -= 1


@compiled
def _lag_of(d, x, m, window):
    """The smallest lag at which x is m; NaN where none is."""
    count = len(d)
    d[:] = np.nan
    for k in range(window):
        x1, lag = x[k : k + count], np.float64(window - 1 - k)
        for i in range(count):
            d[i] = lag if x1[i] == m[i] else d[i]


@compiled
def _operand(step, number, memory, low, count, window):
    """The values of an operand for `count` bars, from window - 1 bars earlier on."""
    first = low - step[OPERANDS + 2 * number + 1] - (window - 1)
    return memory[step[OPERANDS + 2 * number], first : first + count + window - 1]


@compiled
def _rolling(op, d, step, numbers, memory, low, count, window):
    x = _operand(step, 0, memory, low, count, window)
    if op == Op.WEIGHTED_SUM:
        _weighted_sum(d, x, numbers[step[NUMBERS] : step[NUMBERS] + window])
    elif op == Op.RANK:
        _rank(d, x, _operand(step, 0, memory, low, count, 1), window)
        for i in range(count):
            d[i] = d[i] / window
    else:
        m = _operand(step, 1, memory, low, count, 1)
        if op == Op.LAG_OF:
            _lag_of(d, x, m, window)
        elif op == Op.ABSOLUTE_DEVIATION:
            _sum_of_absolutes(d, x, m, window)
        elif op == Op.CUBED_DEVIATION:
            _sum_of_cubes(d, x, m, window)
        elif op == Op.FOURTH_DEVIATION:
            _sum_of_fourths(d, x, m, window)


@compiled
def _step(step, numbers, memory, history, bars, columns, time, ticks_per_hour, start, row, source):
    op = step[OP]
    window = step[WINDOW]
    extra = step[HISTORY]
    count = extra + bars
    low = history - extra
    d = memory[step[TARGET], low : low + count]
    if op == Op.INPUT:
        _load(d, columns[np.int64(numbers[step[NUMBERS]])], start, row - extra, source)
        return
    if op == Op.CALENDAR:
        _load_calendar(d, np.int64(numbers[step[NUMBERS]]), time, ticks_per_hour, start, row - extra, source)
        return
    if op == Op.CONSTANT:
        d[:] = numbers[step[NUMBERS]]
        return
    x = _operand(step, 0, memory, low, count, 1)
    if op >= Op.WEIGHTED_SUM:
        _rolling(op, d, step, numbers, memory, low, count, window)
        return
    if op == Op.ABSOLUTE:
        for i in range(count):
            d[i] = abs(x[i])
        return
    if op == Op.ROOT:
        for i in range(count):
            d[i] = np.sqrt(x[i])
        return
    if op == Op.SIGN:
        for i in range(count):
            d[i] = 1.0 if x[i] > 0 else (-1.0 if x[i] < 0 else x[i])
        return
    if op == Op.LOGARITHM:
        _logarithm(d, x)
        return
    y = _operand(step, 1, memory, low, count, 1)
    if op == Op.ADD:
        for i in range(count):
            d[i] = x[i] + y[i]
    elif op == Op.SUBTRACT:
        for i in range(count):
            d[i] = x[i] - y[i]
    elif op == Op.MULTIPLY:
        for i in range(count):
            d[i] = x[i] * y[i]
    elif op == Op.DIVIDE:
        for i in range(count):
            d[i] = x[i] / y[i]
    elif op == Op.BLEND:
        share = numbers[step[NUMBERS]]
        for i in range(count):
            d[i] = x[i] + (y[i] - x[i]) * share
    elif op == Op.ADD_PRODUCT:
        u, v = _operand(step, 2, memory, low, count, 1), _operand(step, 3, memory, low, count, 1)
        factor = numbers[step[NUMBERS]]
        for i in range(count):
            d[i] = (x[i] + y[i]) + u[i] * v[i] * factor
    elif op == Op.LARGER:
        for i in range(count):
            d[i] = x[i] if (x[i] >= y[i] or x[i] != x[i]) else y[i]
    elif op == Op.SMALLER:
        for i in range(count):
            d[i] = x[i] if (x[i] <= y[i] or x[i] != x[i]) else y[i]
    elif op == Op.RATIO:
        flat = _operand(step, 2, memory, low, count, 1)
        for i in range(count):
            # x - x is 0, or NaN where x is.
            d[i] = flat[i] + (x[i] - x[i]) if y[i] == 0.0 else x[i] / y[i]


@compiled
def compute_rows(
    table, numbers, registers, history, columns, time, ticks_per_hour,
    starts, skip, first, last, source, destination, offsets, out, complete,
):  # fmt: skip
    """Compute the features of panel rows [first, last) into out[feature, row] and complete[row]; return LAYOUT.

    table, numbers, registers, history: the program. columns: five float64 arrays in frame order; time: int64 ticks.
    starts: panel row at which each symbol starts, and the row count. source: frame row of each panel row, empty where
    they are the same. The first `skip` bars of a symbol are not computed. destination: output row of each panel row,
    negative for none; empty where a symbol's output row is its panel row minus the symbol's offset.
    """
    memory = np.empty((registers, history + BLOCK))
    missing = np.empty(BLOCK, np.int64)
    symbol = np.searchsorted(starts, first, side="right") - 1
    while symbol < len(starts) - 1 and starts[symbol] < last:
        start = starts[symbol]
        end = min(starts[symbol + 1], last)
        row = max(start + skip, first)
        while row < end:
            bars = min(BLOCK, end - row)
            missing[:bars] = 0
            for step in range(len(table)):
                if table[step, OP] == Op.STORE:
                    at = history - table[step, OPERANDS + 1]
                    values = memory[table[step, OPERANDS], at : at + bars]
                    found = np.int64(0)
                    for i in range(bars):
                        found |= values[i] != values[i]
                        missing[i] |= values[i] != values[i]
                    if found:
                        # The hardware marks a NaN by where it came from; what is missing has one pattern of bits.
                        for i in range(bars):
                            values[i] = values[i] if values[i] == values[i] else np.nan
                    if len(destination) == 0:
                        _copy(out[table[step, TARGET], row - offsets[symbol] : row - offsets[symbol] + bars], values)
                    else:
                        _scatter(out[table[step, TARGET]], destination[row : row + bars], values)
                else:
                    _step(
                        table[step], numbers, memory, history, bars, columns, time, ticks_per_hour, start, row, source
                    )
            for i in range(bars):
                to = row + i - offsets[symbol] if len(destination) == 0 else destination[row + i]
                if to >= 0:
                    complete[to] = missing[i] == 0
            row += bars
        symbol += 1
    return LAYOUT


def _array(dtype, dimensions=1, mutable=False):
    return numba.types.Array(dtype, dimensions, "C", readonly=not mutable)


with contextlib.suppress(RuntimeError):
    # Where no folder can be written, every process compiles for itself.
    compute_rows.enable_caching()
compute_rows.compile(
    numba.int64(
        *(_array(numba.int64, 2), _array(numba.float64), numba.int64, numba.int64),
        *(numba.types.UniTuple(_array(numba.float64), len(INPUTS)), _array(numba.int64), numba.int64),
        *(_array(numba.int64), numba.int64, numba.int64, numba.int64),
        *(_array(numba.int64), _array(numba.int64), _array(numba.int64)),
        *(_array(numba.float64, 2, mutable=True), _array(numba.boolean, mutable=True)),
    )
)
# Any other array is handed over as one of these: one kernel, compiled once.
compute_rows.disable_compile()
