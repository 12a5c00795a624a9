"""The Dagster UI and daemon as child processes that end with us."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fasteners
import psutil

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.files import commit_bytes, make_folder, remove
from mt5_crs_pipeline.core.errors import ConfigurationError, TransientError
from mt5_crs_pipeline.processes import is_alive, process_name, recorded_processes
from mt5_crs_pipeline.runner import child_environment, dagster_instance, project_file, ui_record
from mt5_crs_pipeline.settings import Settings

HOST = "127.0.0.1"
READY_TIMEOUT_S = 120


def serve_ui(settings: Settings, port: int, say: Callable[[str], None]) -> None:
    """Run database, webserver and daemon until Ctrl-C or SIGTERM.

    Raises ConfigurationError when the port is taken, or another one runs on this state folder.
    """
    _refuse_taken_port(port)
    logs = make_folder(settings.home / "logs")
    with contextlib.ExitStack() as children:
        children.enter_context(_stopping_on_sigterm())
        children.enter_context(_only_one(settings))
        url = children.enter_context(Database(settings).url())
        with dagster_instance(settings, url):
            pass  # recovers what a killed process left, and creates Dagster's tables once, not in two racing children
        environment = child_environment(settings, url)
        workspace = ["-w", str(project_file("workspace.yaml"))]
        say("starting the Dagster UI and daemon ...")
        started = {
            "dagster-webserver": [*workspace, "-h", HOST, "-p", str(port)],
            "dagster-daemon": ["run", *workspace],
        }
        running = {
            name: children.enter_context(_child([_program(name), *arguments], environment, logs / f"{name}.log"))
            for name, arguments in started.items()
        }
        names = [process_name(psutil.Process(child.pid)) for child in running.values()]
        commit_bytes(ui_record(settings), "\n".join(names).encode())
        _wait_until_ready(running, port, logs)
        say(f"Dagster UI: http://{HOST}:{port}   logs: {logs}   Ctrl-C stops everything")
        with contextlib.suppress(KeyboardInterrupt):
            while all(child.poll() is None for child in running.values()):
                time.sleep(0.5)
        say("stopping ...")
        ended = [name for name, child in running.items() if child.poll() is not None]
    if ended:
        raise TransientError(f"{ended[0]} ended by itself: see {logs / ended[0]}.log")


@contextlib.contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the state folder's one place for a daemon: two would both run every schedule."""
    lock = fasteners.InterProcessLock(settings.home / "ui.lock")
    if not lock.acquire(blocking=False):
        raise ConfigurationError(f"another `mt5-crs ui` runs on {settings.home}: stop it, or set another MT5_CRS_HOME")
    try:
        for name in filter(is_alive, recorded_processes(ui_record(settings))):
            _kill_group(int(name.partition("@")[0]))  # of an `mt5-crs ui` that was killed
        yield
        remove(ui_record(settings))
    finally:
        lock.release()


@contextlib.contextmanager
def _child(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in a group of its own, and end it with everything it started."""
    # Ctrl-C in the terminal must reach us alone: we end the children in order.
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            creationflags=new_group,
            process_group=None if new_group else 0,
        )
        try:
            yield child
        finally:
            _stop(child)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Ask a child to end as Ctrl-C does, then insist."""
    if child.poll() is None:
        child.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
    _kill_group(child.pid)
    child.wait(timeout=20)


def _kill_group(leader: int) -> None:
    """Kill a child, and the code servers and runs that it left behind or still has."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(leader).children(recursive=True), psutil.Process(leader)]:
                process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


def _program(name: str) -> str:
    folder = Path(sys.executable).parent
    found = next((path for path in (folder / name, folder / f"{name}.exe") if path.exists()), None)
    if found is None:
        raise ConfigurationError(f"{name} is not installed beside {sys.executable}: install the package's dependencies")
    return str(found)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        # As servers do, so that a port whose last connections are closing counts as free.
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigurationError(f"port {port} is taken or not allowed: choose another with --port") from error


def _wait_until_ready(running: dict[str, "subprocess.Popen[bytes]"], port: int, logs: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        for name, child in running.items():
            if child.poll() is not None:
                raise TransientError(f"{name} ended while starting: see {logs / name}.log")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://{HOST}:{port}/server_info", timeout=5),
        ):
            return
        time.sleep(0.3)
    raise TransientError(f"the Dagster UI did not answer within {READY_TIMEOUT_S} s: see {logs}")


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that a service manager stops the children too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
