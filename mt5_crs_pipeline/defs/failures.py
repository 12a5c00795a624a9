"""Why a run failed, in words."""

from collections.abc import Iterable

import dagster as dg

from mt5_crs_pipeline.core.errors import PipelineError


class RunInterruptedError(Exception):
    """Somebody ended the run; nothing is wrong with it."""


def failed_check(events: Iterable[dg.DagsterEvent]) -> str | None:
    """Return which blocking check failed and its counts, in one line; None when none did."""
    for event in events:
        check = event.asset_check_evaluation_data if event.event_type_value == "ASSET_CHECK_EVALUATION" else None
        if check and check.blocking and not check.passed:
            counts = {name: value.value for name, value in check.metadata.items() if isinstance(value.value, int)}
            found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
            return f"check {check.check_name} of {check.asset_key.to_user_string()} failed: {found}"
    return None


def failed_step(events: Iterable[dg.DagsterEvent]) -> tuple[str, str, str] | None:
    """Return the first step that failed, why in one line, and the whole error where that is a bug, else "".

    Raises RunInterruptedError when that is what ended it.
    """
    for event in events:
        if event.is_step_failure and event.step_failure_data.error:
            error = event.step_failure_data.error
            if error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
                raise RunInterruptedError
            causes = [error]
            while causes[-1].cause:
                causes.append(causes[-1].cause)
            for cause in causes:
                if cause.cls_name in _own_errors():
                    return str(event.step_key), cause.message.split(": ", 1)[-1].strip(), ""
            return str(event.step_key), f"a bug: {causes[-1].cls_name}", error.to_string()
    return None


def _own_errors() -> set[str]:
    found, queue = set(), [PipelineError]
    while queue:
        kind = queue.pop()
        found.add(kind.__name__)
        queue += kind.__subclasses__()
    return found
