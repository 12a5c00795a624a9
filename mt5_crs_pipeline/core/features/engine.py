"""From bars in arrays to features in arrays, on all cores."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.features.program import Program
from mt5_crs_pipeline.core.panel import Array, Panel, Rows

# Smaller inputs are not worth a thread.
ROWS_PER_TASK = 32_768
NO_ROWS = np.zeros(0, dtype=np.int64)


def evaluate(
    program: Program,
    panel: Panel,
    out: Array,
    *,
    skip: int = 0,
    destination: Rows = NO_ROWS,
    threads: int | None = None,
    meanwhile: Sequence[Callable[[], object]] = (),
) -> npt.NDArray[np.bool_]:
    """Write the features into out[feature, output row]; return which output rows miss none of them.

    Without `destination`, which gives the output row of each panel row (negative for none), rows come out in panel
    order. The first `skip` bars of every symbol are left out. `threads` (default: all cores) changes the time, never a
    bit; this thread does the work of `meanwhile` beside them.
    """
    complete = np.empty(out.shape[1], dtype=np.bool_)
    lengths = np.diff(panel.starts)
    # A symbol's output starts earlier by the rows that were left out of it and of those before it.
    offsets = np.cumsum(np.minimum(lengths, skip))
    columns = tuple(panel.columns[name] for name in INPUTS)
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigurationError(f"threads is {threads!r}, not a count from 1")
    threads = threads or core_count()
    # Many parts per core, so that none waits long for the last.
    step = max(ROWS_PER_TASK, -(-len(panel) // (16 * threads)))
    compute = kernel()

    def part(first: int) -> None:
        last = min(first + step, len(panel))
        compute(
            *(program.table, program.numbers, program.registers, program.history),
            *(columns, panel.time, panel.ticks_per_hour, panel.starts, skip, first, last),
            *(panel.source, destination, offsets, out, complete),
        )

    firsts = range(0, len(panel), step)
    if threads == 1 or len(firsts) < 2:
        for first in firsts:
            part(first)
        for work in meanwhile:
            work()
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = [pool.submit(part, first) for first in firsts]
            for work in meanwhile:
                work()
            for done in parts:
                done.result()
    return complete


def core_count() -> int:
    """Return how many threads can run at once."""
    import numba

    return int(numba.config.NUMBA_NUM_THREADS)


@cache
def kernel() -> Callable[..., int]:
    """Return the compiled kernel; the first call after installation compiles it and says so, others load it."""
    from numba.core import event

    with event.install_listener("numba:compile", _teller()):
        from mt5_crs_pipeline.core.features.kernel import LAYOUT, compute_rows

        columns = (np.zeros(0),) * len(INPUTS)
        nothing = (NO_ROWS, 0, 0, 0, NO_ROWS, NO_ROWS, NO_ROWS, np.empty((0, 0)), np.empty(0, dtype=np.bool_))
        if compute_rows(np.zeros((0, 0), dtype=np.int64), np.zeros(0), 0, 0, columns, NO_ROWS, 1, *nothing) != LAYOUT:
            compute_rows.recompile()
    compute: Callable[..., int] = compute_rows
    return compute


def _teller() -> Any:
    from numba.core import event

    class Teller(event.Listener):  # type: ignore[misc]
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                self.told = True
                text = "compiling the feature kernel for this processor: under half a minute, once per installation"
                warnings.warn_explicit(text, UserWarning, __name__, 1)

        def on_end(self, event: Any) -> None:
            pass

    return Teller()
