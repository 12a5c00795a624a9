"""A real PostgreSQL server for the whole session, and an empty database of its own for each test that asks."""

import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.settings import ENVIRONMENT_PREFIX, Settings
from tests.commands import comes_true, short_folder, succeed

# As the command line does: on a busy machine XGBoost's threads would spin while they wait for each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SAMPLES = Path(__file__).parents[1].parent / "shared" / "data"
# Of characters that mean something in URLs, YAML, JSON and Feast's connection strings.
REDIS_PASSWORD = 't0p-s3cret,"={#@/:'
_numbers = itertools.count(1)
# They share a demo, and with it a process; the second one kills it.
_ON_THE_DEMO = ["tests/test_ui_in_browser.py", "tests/test_demo.py", "tests/test_doctor.py"]
# Begun first when several processes share the tests, so that none is left alone with one of them at the end.
_SLOWEST = [
    *(*_ON_THE_DEMO, "tests/test_ui.py", "tests/test_readme.py"),
    *("tests/defs/test_assets.py", "tests/test_runner.py", "tests/defs/test_history.py"),
    *("tests/test_rebuild.py", "tests/test_search.py", "tests/test_feast_command.py", "tests/core/test_revisions.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {file: place for place, file in enumerate(_SLOWEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay in one process, and with them what they set up."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return _ON_THE_DEMO[0] if file in _ON_THE_DEMO else file

    return Scheduler(config, log)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test depends on, or writes to, what the developer has set or stored."""
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running server, owned by the pipeline's role."""
    with running_server(tmp_path_factory.mktemp("postgres") / "postgres") as url:
        yield url


@pytest.fixture
def database_url(server: str) -> Iterator[str]:
    """URL of a new, empty database."""
    name = f"test_{next(_numbers)}"
    admin = psycopg2.connect(re.sub(r"//[^@]*@/[^?]*", "//postgres@/postgres", server))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"create database {name} owner mt5_crs")
        yield re.sub(r"@/[^?]*", f"@/{name}", server)
        cursor.execute(f"drop database {name} with (force)")
    admin.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a state folder and database of the test's own, for daily bars and the shortest of noise floors."""
    return Settings(home=tmp_path / "home", database_url=database_url, noise_runs=1)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running Redis server that asks for a password; skips loudly where none is installed."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("SKIPPED LOUDLY: no redis-server is installed")
    import redis

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = {"bind": "127.0.0.1", "port": port, "requirepass": REDIS_PASSWORD, "dir": folder, "save": ""}
    command = [program, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        try:
            with redis.Redis(port=port, password=REDIS_PASSWORD) as client:
                assert comes_true(answers, timeout_s=20)
            yield f"redis://:{quote(REDIS_PASSWORD, safe='')}@127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real MetaTrader 5 exports; skips loudly where it is absent."""
    if not SAMPLES.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no sample exports at {SAMPLES}")
    return SAMPLES


@pytest.fixture(scope="session")
def demo_folder() -> Iterator[Path]:
    """A short folder for state folders with embedded databases; what still runs in it at the end is killed."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def first_demo(demo_folder: Path) -> "subprocess.CompletedProcess[str]":
    """What `mt5-crs demo` said on a machine that never saw it."""
    return succeed(demo_folder / "home", "demo")


@pytest.fixture(scope="session")
def demo_home(demo_folder: Path, first_demo: "subprocess.CompletedProcess[str]") -> Path:
    """State folder in which the demo ran undisturbed; a test that changes it works on a copy."""
    assert first_demo.returncode == 0
    return demo_folder / "home"
