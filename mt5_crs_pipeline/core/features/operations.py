"""What the kernel can do, by number: the vocabulary that expressions are written in and programs are made of."""

from enum import IntEnum
from typing import Final


class Op(IntEnum):
    """One operation. Those from WEIGHTED_SUM on read the last `window` values of their first operand."""

    INPUT = 0
    CALENDAR = 1
    CONSTANT = 2
    STORE = 3
    ADD = 10
    SUBTRACT = 11
    MULTIPLY = 12
    DIVIDE = 13
    # x + (y - x) times a number.
    BLEND = 14
    # (x + y) + u times v times a number.
    ADD_PRODUCT = 24
    LARGER = 15
    SMALLER = 16
    RATIO = 17
    ABSOLUTE = 20
    ROOT = 21
    LOGARITHM = 22
    SIGN = 23
    WEIGHTED_SUM = 30
    RANK = 31
    LAG_OF = 32
    ABSOLUTE_DEVIATION = 33
    CUBED_DEVIATION = 34
    FOURTH_DEVIATION = 35
    # Never reaches the kernel: a lag is where an operation reads, not work of its own.
    LAG = 90

    @property
    def is_rolling(self) -> bool:
        """True when the first operand is read over the window; all others are read at the bar alone."""
        return Op.WEIGHTED_SUM <= self < Op.LAG


INPUTS: Final = ("open", "high", "low", "close", "volume")


class Calendar(IntEnum):
    """What the kernel can read from a bar's own time, its open in UTC."""

    HOUR_OF_DAY = 0
    DAY_OF_WEEK = 1
    DAY_OF_MONTH = 2
    MONTH_OF_YEAR = 3


# Part of every feature-set hash: raise it whenever an operation of the kernel changes its values.
KERNEL_VERSION: Final = 1
