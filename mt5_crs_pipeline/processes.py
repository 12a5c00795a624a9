"""Processes named so that a number that was given away again is not taken for them."""

from pathlib import Path

import psutil


def own_process() -> str:
    """Return the name of this process: its number and its start."""
    return process_name(psutil.Process())


def process_name(process: psutil.Process) -> str:
    """Return number and start of a process, such as 4711@1766502000."""
    return f"{process.pid}@{process.create_time():.0f}"


def is_alive(name: str) -> bool:
    """True while the process of that name runs."""
    number, _, started = name.partition("@")
    try:
        process = psutil.Process(int(number))
        return abs(process.create_time() - float(started)) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def recorded_processes(record: Path) -> list[str]:
    """Return the names in a record file, one a line; none when there is no file."""
    return record.read_text("utf-8").split() if record.exists() else []
