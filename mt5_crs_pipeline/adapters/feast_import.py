"""Importing feast in half the time."""

from typing import Any


def import_feast() -> None:
    """Import feast without the run-time type checks of its own methods.

    typeguard parses the source of every method it checks: 4 of the 6 seconds that the import costs.
    """
    import typeguard

    checked = typeguard.typechecked
    typeguard.typechecked = _unchecked
    try:
        import feast  # noqa: F401
    finally:
        typeguard.typechecked = checked


def _unchecked(target: Any = None, **_options: Any) -> Any:
    return target if target is not None else _unchecked
