"""Which errors are worth trying again: the one place that decides it."""

from collections.abc import Iterator
from typing import Final

import psycopg2
import psycopg2.errors

from mt5_crs_pipeline.core.errors import DatabaseUnavailableError, PermanentError, TransientError

# A server that is starting, stopping or gone says so with these SQLSTATEs, or with none; so do two transactions that
# stood in each other's way.
_TRANSIENT_CLASSES: Final = ("08", "40", "57P")


def transient_cause(error: BaseException) -> TransientError | None:
    """Return the error that the same call may not meet later, in one line; None where trying again changes nothing.

    Looked at are the error, what caused it, and what SQLAlchemy wraps.
    """
    for cause in _causes(error):
        if isinstance(cause, PermanentError):
            return None
        if isinstance(cause, TransientError):
            return cause
        if isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError) and _may_pass(cause):
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            return DatabaseUnavailableError(f"PostgreSQL ended the connection or did not answer: {said}")
    return None


def _may_pass(error: psycopg2.Error) -> bool:
    return not error.pgcode or error.pgcode.startswith(_TRANSIENT_CLASSES)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__
