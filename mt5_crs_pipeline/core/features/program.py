"""Expressions put in order for the kernel: every shared part once, every value in as few registers as possible."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from mt5_crs_pipeline.core.features.expressions import Expression
from mt5_crs_pipeline.core.features.operations import Op

# Columns of a program's table; per operand a register and how many bars earlier it is read.
OP, TARGET, HISTORY, WINDOW, NUMBERS, OPERANDS = range(6)
MOST_OPERANDS: Final = 4
# Histories are whole vectors of doubles, so that the kernel reads and writes aligned memory where no lag forbids it.
_VECTOR: Final = 8
_WIDTH: Final = OPERANDS + 2 * MOST_OPERANDS


@dataclass(frozen=True)
class Program:
    """What the kernel runs on a block of bars, for features in order.

    `table` has a row per operation (int64, columns as above: HISTORY counts the bars before the block that later
    operations read of the result), `numbers` the constants and weights. `history` is the largest HISTORY.
    """

    table: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    registers: int
    history: int


@dataclass
class _Step:
    op: Op
    operands: list[tuple[str, int]]
    window: int
    numbers: tuple[float, ...]
    target: int = 0
    history: int = 0


@dataclass
class _Steps:
    by_key: dict[str, _Step] = field(default_factory=dict)

    def add(self, expression: Expression) -> tuple[str, int]:
        """Return where the value is found: the step by its key, and how many bars earlier."""
        earlier = 0
        while expression.op is Op.LAG:
            earlier += expression.window
            expression = expression.operands[0]
        if expression.key not in self.by_key:
            operands = [self.add(operand) for operand in expression.operands]
            self.by_key[expression.key] = _Step(expression.op, operands, expression.window, expression.numbers)
        return expression.key, earlier

    def store(self, expression: Expression, row: int) -> None:
        self.by_key[f"row {row}"] = _Step(Op.STORE, [self.add(expression)], 1, (), target=row)


def assemble(features: Sequence[Expression]) -> Program:
    """Return the program that computes `features`, one row of the output each."""
    steps = _Steps()
    for row, expression in enumerate(features):
        steps.store(expression, row)
    _set_histories(steps.by_key)
    registers = _set_targets(steps.by_key)
    table = np.zeros((len(steps.by_key), _WIDTH), dtype=np.int64)
    numbers: list[float] = []
    for line, step in zip(table, steps.by_key.values(), strict=True):
        places = [number for key, earlier in step.operands for number in (steps.by_key[key].target, earlier)]
        line[: OPERANDS + len(places)] = [step.op, step.target, step.history, step.window, len(numbers), *places]
        numbers += step.numbers
    return Program(table, np.array(numbers, dtype=float), registers, int(table[:, HISTORY].max()))


def _set_histories(steps: dict[str, _Step]) -> None:
    """Tell every step how many bars before the block its readers, which all come after it, look back."""
    for step in reversed(list(steps.values())):
        for number, (key, earlier) in enumerate(step.operands):
            reach = step.history + earlier + (step.window - 1 if step.op.is_rolling and number == 0 else 0)
            steps[key].history = max(steps[key].history, -(-reach // _VECTOR) * _VECTOR)


def _set_targets(steps: dict[str, _Step]) -> int:
    """Give every step's result a register that nobody needs any more; return how many there are."""
    last_reader = {key: number for number, step in enumerate(steps.values()) for key, _ in step.operands}
    free: list[int] = []
    count = 0
    for number, step in enumerate(steps.values()):
        if step.op is not Op.STORE:
            if not free:
                free.append(count)
                count += 1
            # Never one of its own operands' registers: the kernel's loops must not overlap.
            step.target = free.pop()
        free += {steps[key].target for key, _ in step.operands if last_reader[key] == number}
    return count
