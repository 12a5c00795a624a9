"""The command line as a user runs it: in a process of its own, on a state folder of its own."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil

from mt5_crs_pipeline.adapters.demo_bars import demo_bars

COMMAND = [sys.executable, "-m", "mt5_crs_pipeline.cli"]
TIMEOUT_S = 300


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a user who set nothing but the state folder and `settings`, and who waits for no noise."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MT5_CRS_", "DAGSTER_"))}
    given = {"HOME": str(home), "NOISE_RUNS": "0"} | settings
    return kept | {f"MT5_CRS_{name}": value for name, value in given.items()}


def run(home: Path, *arguments: object, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=home.parent,
        env=environment(home, **settings),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def succeed(home: Path, *arguments: object, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that must succeed."""
    done = run(home, *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done


@contextlib.contextmanager
def started(home: Path, *arguments: object, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that runs while the block does, in a group of its own; what is left of the group is killed."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=home.parent,
        env=environment(home, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def read_until(stream: object, text: str) -> str:
    """Read from a pipe until `text` came; the process may pause in the middle of a line."""
    seen = b""
    descriptor = stream.fileno()  # type: ignore[attr-defined]
    while text.encode() not in seen:
        part = os.read(descriptor, 4096)
        assert part, f"{text!r} never came, this did: {seen.decode()}"
        seen += part
    return seen.decode()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path, as sockets need; database servers that a failed test left in it are ended."""
    folder = Path(tempfile.mkdtemp(prefix="mc", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        yield folder
    finally:
        for process in of_folder(folder):
            process.kill()
        shutil.rmtree(folder)


def of_folder(folder: Path) -> list[psutil.Process]:
    """Processes with `folder` in their command line or environment, and the servers of the databases below it."""
    found = []
    marks = [str(folder), *(f"mt5crs-{_digest(home)}" for home in folder.rglob("postgres"))]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = " ".join([*process.cmdline(), process.environ().get("MT5_CRS_HOME", "")])
            if process.pid != os.getpid() and any(mark in words for mark in marks):
                found.append(process)
    return found


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


def comes_true(what: Callable[[], bool], timeout_s: float) -> bool:
    """Look again and again until it is so, or time is up."""
    deadline = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_daily_bars(path: Path, first: str, last: str, symbol: str = "AAPL") -> pd.DataFrame:
    """Write real daily bars as a plain OHLCV file and return them."""
    bars = demo_bars()
    bars = bars[(bars["symbol"] == symbol) & (bars["time"] >= first) & (bars["time"] <= last)].reset_index(drop=True)
    columns = ["open", "high", "low", "close", "adjusted_close", "volume"]
    bars.assign(Date=bars["time"].dt.strftime("%Y-%m-%d"))[["Date", *columns]].to_csv(path, index=False)
    return bars
