"""How every asset runs: alone on its lake, and again when what stopped it may pass."""

import functools
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

import dagster as dg

from mt5_crs_pipeline.adapters.faults import transient_cause

P = ParamSpec("P")
T = TypeVar("T")

RETRIES: Final = 3
_FIRST_PAUSE_S: Final = 2.0


def step(compute: Callable[P, T]) -> Callable[P, T]:
    """Let `compute`, which has a parameter `stores`, run while no other step of any run is at work on the same lake.

    A transient fault, such as a server that restarts, is tried again after 2, 4 and 8 seconds; a permanent one fails
    at once with its reason.
    """

    @functools.wraps(compute)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        log, stores = dg.get_dagster_logger(), _stores(kwargs)
        try:
            with stores.alone(lambda: log.info("waiting for another run's step on the same lake to end")):
                return compute(*args, **kwargs)
        except Exception as error:
            if passing := transient_cause(error):
                pause = _FIRST_PAUSE_S * 2 ** dg.OpExecutionContext.get().retry_number
                log.warning(f"{passing}; trying again in {pause:.0f} s, at most {RETRIES} times")
                raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=pause) from passing
            raise

    return run


def _stores(arguments: dict[str, Any]) -> Any:
    return arguments["stores"]
