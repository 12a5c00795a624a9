"""Programs: what is computed once, where it is kept and how long; and the threads that run them."""

import re
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, engine, feature_frame, find_feature
from mt5_crs_pipeline.core.features.engine import evaluate, kernel
from mt5_crs_pipeline.core.features.expressions import (
    Expression,
    bar_input,
    lag,
    rolling_max,
    rolling_mean,
    rolling_rank,
    rolling_std,
    sqrt,
)
from mt5_crs_pipeline.core.features.operations import Op
from mt5_crs_pipeline.core.features.program import Program, assemble
from mt5_crs_pipeline.core.panel import Panel
from tests.core.features.comparing import ALL, DEFAULT, SCALE_FREE, Comparison
from tests.core.samples import INPUTS, bits, random_bars

# The columns of a program's table, as its description has them.
OP, TARGET, HISTORY, WINDOW, NUMBERS, OPERANDS = range(6)
WITHOUT_OPERANDS = {Op.INPUT, Op.CALENDAR, Op.CONSTANT}
ONE_OPERAND = {Op.STORE, Op.ABSOLUTE, Op.ROOT, Op.LOGARITHM, Op.SIGN, Op.WEIGHTED_SUM, Op.RANK}
THREE_OPERANDS = {Op.RATIO}
FOUR_OPERANDS = {Op.ADD_PRODUCT}
ROLLING = {Op.WEIGHTED_SUM, Op.RANK, Op.LAG_OF, Op.ABSOLUTE_DEVIATION, Op.CUBED_DEVIATION, Op.FOURTH_DEVIATION}

close, high = bar_input("close"), bar_input("high")
EXPRESSIONS = {name: find_feature(name).expression for name in ALL.features}
LONG = FeatureConfig(
    ("sma_2000", "volatility_777", "drawdown_1999", "close_rank_333", "kurtosis_61", "lagged_return_1500")
)


def operands_of(step: np.ndarray) -> list[tuple[int, int]]:
    """The register of each operand, and how many bars earlier it is read."""
    op = Op(step[OP])
    count = 0 if op in WITHOUT_OPERANDS else 1 if op in ONE_OPERAND else 3 if op in THREE_OPERANDS else 2
    count = 4 if op in FOUR_OPERANDS else count
    pairs = step[OPERANDS : OPERANDS + 2 * count].reshape(count, 2)
    return [(int(register), int(earlier)) for register, earlier in pairs]


def distinct_parts(expressions: list[Expression]) -> list[Expression]:
    """All parts that are work, each once: a lag is not."""
    parts: dict[str, Expression] = {}
    queue = list(expressions)
    while queue:
        part = queue.pop()
        if part.key not in parts:
            parts[part.key] = part
            queue += part.operands
    return [part for part in parts.values() if part.op is not Op.LAG]


# Sharing.


def test_a_part_of_two_features_is_computed_once() -> None:
    mean = rolling_mean(close, 20)
    alone = len(assemble([mean]).table)
    # The division, and the row it goes to.
    assert len(assemble([mean, close / mean]).table) == alone + 2
    assert len(assemble([mean, mean]).table) == alone + 1
    # However it was written.
    again = rolling_mean(bar_input("close"), 20)
    assert len(assemble([mean, again / bar_input("close")]).table) == alone + 2


def test_a_part_that_is_read_earlier_is_no_second_part() -> None:
    assert len(assemble([close, lag(close, 3), lag(lag(close, 2), 1)]).table) == 1 + 3
    assert len(assemble([close - lag(close, 1), lag(close - lag(close, 1), 7)]).table) == 2 + 2


def test_windows_share_the_sums_of_their_parts() -> None:
    # 2, 4, 8 and 16 bars are on the way to 32.
    assert len(assemble([rolling_max(high, 32)]).table) == 1 + 5 + 1
    assert len(assemble([rolling_max(high, n) for n in (2, 4, 8, 16, 32)]).table) == 1 + 5 + 5


@pytest.mark.parametrize("config", [DEFAULT, SCALE_FREE, ALL])
def test_a_set_of_features_computes_every_distinct_part_once(config: FeatureConfig) -> None:
    expressions = [EXPRESSIONS[name] for name in config.features]
    table = config.program.table
    assert (table[:, OP] == Op.STORE).sum() == len(expressions)
    assert (table[:, OP] != Op.STORE).sum() == len(distinct_parts(expressions))
    apart = sum(len(assemble([expression]).table) for expression in expressions)
    assert len(table) < 0.8 * apart


# Registers.


@pytest.mark.parametrize("config", [DEFAULT, SCALE_FREE, ALL, LONG])
def test_every_operand_is_still_there_when_it_is_read(config: FeatureConfig) -> None:
    program = config.program
    kept: dict[int, tuple[Any, int]] = {}
    stored: dict[int, Any] = {}
    for step in program.table:
        op, window, history = Op(step[OP]), int(step[WINDOW]), int(step[HISTORY])
        read = []
        for number, (register, earlier) in enumerate(operands_of(step)):
            value, bars_kept = kept[register]
            reach = window - 1 if op in ROLLING and number == 0 else 0
            assert history + earlier + reach <= bars_kept <= program.history
            read.append((value, earlier))
        numbers = program.numbers[step[NUMBERS] :]
        if op is Op.STORE:
            stored[int(step[TARGET])] = read[0]
        else:
            assert step[TARGET] not in {register for register, _ in operands_of(step)}
            assert 0 <= step[TARGET] < program.registers
            kept[int(step[TARGET])] = ((op, window, numbers, tuple(read)), history)
    assert sorted(stored) == list(range(len(config.features)))
    for row, name in enumerate(config.features):
        assert_is(stored[row], find_feature(name).expression, 0)


def assert_is(value: Any, expression: Expression, earlier: int, seen: dict[int, str] | None = None) -> None:
    """The value that a program computes is the expression, read some bars earlier."""
    seen = {} if seen is None else seen
    while expression.op is Op.LAG:
        earlier += expression.window
        expression = expression.operands[0]
    (computed, read_earlier) = value
    assert read_earlier == earlier
    if seen.get(id(computed)) == expression.key:
        return
    op, window, numbers, operands = computed
    assert (op, window) == (expression.op, expression.window)
    assert tuple(numbers[: len(expression.numbers)]) == expression.numbers
    assert len(operands) == len(expression.operands)
    for operand, part in zip(operands, expression.operands, strict=True):
        assert_is(operand, part, 0, seen)
    seen[id(computed)] = expression.key


def test_a_register_is_used_again_when_nobody_reads_it_any_more() -> None:
    chain = close
    for _ in range(50):
        chain = sqrt(chain) + 1.0
    program = assemble([chain])
    assert len(program.table) == 1 + 1 + 2 * 50 + 1
    assert program.registers == 3


def test_a_set_of_features_needs_far_fewer_registers_than_steps() -> None:
    program = ALL.program
    assert program.registers < len(program.table) / 4
    assert set(program.table[program.table[:, OP] != Op.STORE, TARGET]) == set(range(program.registers))


# Histories.


@pytest.mark.parametrize("name", ALL.features)
def test_the_history_is_the_reach_of_the_feature_in_whole_vectors(name: str) -> None:
    reach = find_feature(name).expression.reach
    history = FeatureConfig((name,)).program.history
    # Every step on the way may round up to the next multiple of eight.
    assert history % 8 == 0
    assert reach <= history <= reach + 8 * len(FeatureConfig((name,)).program.table)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 64, 65, 1999, 2000])
def test_windows_longer_than_a_block_have_the_bits_of_the_last_bars_alone(n: int) -> None:
    lengths = [rolling_mean(close, n), rolling_max(high, n), rolling_rank(close, n), lag(close, n)]
    expressions = [*lengths, rolling_std(close, n) if n > 1 else close]
    bars = random_bars(("A",), 4_300, seed=n)
    whole = outputs(assemble(expressions), bars)
    program = assemble(expressions)
    assert program.history >= n
    for end in (n + 1, n + 2, 2_048, 2_049, 3_500, 4_300):
        last = bars.iloc[max(end - n - 1, 0) : end]
        if len(last) > n:
            assert (bits(outputs(program, last)[:, -1]) == bits(whole[:, end - 1])).all()
            assert np.isfinite(whole[:, end - 1]).all()


def outputs(program: Program, bars: pd.DataFrame, **options: Any) -> np.ndarray:
    out = np.full((int((program.table[:, OP] == Op.STORE).sum()), len(bars)), -777.0)
    evaluate(program, Panel(bars, INPUTS), out, **options)
    return out


# Threads.


class BrokenError(Exception):
    """Not raised by anything else."""


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("failing", [0, 30, 170])
def test_an_error_in_a_thread_is_raised_where_the_features_were_asked_for(
    threads: int, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars, compute = random_bars(length=60), kernel()

    def fails(*arguments: Any) -> int:
        first, last = arguments[9:11]
        if first <= failing < last:
            raise BrokenError(f"at row {failing}")
        return compute(*arguments)

    monkeypatch.setattr(engine, "kernel", lambda: fails)
    monkeypatch.setattr(engine, "ROWS_PER_TASK", 10)
    with pytest.raises(BrokenError, match=re.escape(f"at row {failing}")):
        feature_frame(bars, threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_the_work_of_this_thread_is_raised_and_no_thread_stays(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise BrokenError("meanwhile")

    monkeypatch.setattr(engine, "ROWS_PER_TASK", 10)
    before = threading.active_count()
    with pytest.raises(BrokenError, match="meanwhile"):
        outputs(DEFAULT.program, random_bars(), threads=threads, meanwhile=[broken])
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_the_work_of_this_thread_is_done_once_beside_the_features(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ROWS_PER_TASK", 10)
    done: list[tuple[int, threading.Thread]] = []
    works = [lambda number=number: done.append((number, threading.current_thread())) for number in range(3)]
    outputs(DEFAULT.program, random_bars(), threads=threads, meanwhile=works)
    assert done == [(number, threading.current_thread()) for number in range(3)]


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("threads", [2, 64])
def test_more_threads_than_rows_are_no_trouble(length: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = random_bars(("A", "B"), length)
    alone = feature_frame(bars, ALL, threads=1)
    monkeypatch.setattr(engine, "ROWS_PER_TASK", 1)
    Comparison().same(feature_frame(bars, ALL, threads=threads).to_numpy(), alone.to_numpy(), ALL)
    assert alone["price_range"].tolist() == (bars["high"] - bars["low"]).tolist()


# The kernel itself.


def run_kernel(bars: pd.DataFrame, first: int, last: int, skip: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The default features of panel rows [first, last), -777 and True where nothing is written."""
    program, panel = DEFAULT.program, Panel(bars, INPUTS)
    out, complete = np.full((len(DEFAULT.features), len(bars)), -777.0), np.ones(len(bars), dtype=bool)
    offsets = np.zeros(len(panel.starts) - 1, dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    kernel()(
        *(program.table, program.numbers, program.registers, program.history),
        *(tuple(panel.columns[name] for name in INPUTS), panel.time, panel.ticks_per_hour, panel.starts),
        *(skip, first, last, panel.source, nothing, offsets, out, complete),
    )
    return out, complete


def test_the_kernel_takes_a_panel_without_symbols() -> None:
    out, complete = run_kernel(random_bars().iloc[:0], 0, 0)
    assert out.shape == (len(DEFAULT.features), 0) and len(complete) == 0


@pytest.mark.parametrize(("first", "last"), [(0, 0), (50, 50), (0, 1), (55, 130), (59, 61), (179, 180), (0, 180)])
@pytest.mark.parametrize("skip", [0, 45, 60, 1000])
def test_the_kernel_writes_the_rows_it_was_given_and_no_others(first: int, last: int, skip: int) -> None:
    bars = random_bars(length=60)
    expected = feature_frame(bars).to_numpy().T
    out, complete = run_kernel(bars, first, last, skip)
    rows, age = np.arange(180), np.tile(np.arange(60), 3)
    written = (rows >= first) & (rows < last) & (age >= skip)
    assert (out[:, ~written] == -777.0).all() and complete[~written].all()
    Comparison().same(out[:, written].T, expected[:, written].T, DEFAULT)
    assert complete[written].tolist() == (age[written] >= DEFAULT.lookback - 1).tolist()
