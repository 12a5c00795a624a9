"""A Dagster logger that tells a person at a terminal what is going on, one line per asset."""

import logging
import os
import sys
from typing import Any

import dagster as dg


class _Lines(logging.Handler):
    """Prints the start of each step, and its time and row count when it ends."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._rows = ""
        # During a run Dagster turns stderr into a file that another process shows a second late, less its last lines.
        # Open to the end of the process: Dagster closes all handlers, and then goes on using this one.
        self._terminal = os.dup(sys.stderr.fileno())

    def emit(self, record: logging.LogRecord) -> None:
        event: Any = getattr(record, "dagster_meta", {}).get("dagster_event")
        kind = event.event_type_value if event else ""
        if kind == "STEP_START":
            self._write(f"  {event.step_key} ...")
        elif kind == "ASSET_MATERIALIZATION":
            rows = event.materialization.metadata.get("dagster/row_count")
            self._rows = f", {rows.value:,} rows" if rows is not None else ""
        elif kind == "STEP_SUCCESS":
            seconds = event.event_specific_data.duration_ms / 1000
            self._write(f" {seconds:.1f} s{self._rows}\n")
            self._rows = ""
        elif kind == "STEP_FAILURE":
            self._write(" failed\n")

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())


def _logger(_context: dg.InitLoggerContext) -> logging.Logger:
    """Return a logger of its own, so that nothing else of Dagster's chatter reaches the terminal."""
    logger = logging.Logger("mt5_crs_progress", level=logging.DEBUG)
    logger.addHandler(_Lines())
    return logger


progress_logger = dg.LoggerDefinition(_logger, description="One line per step, for a person at a terminal")
