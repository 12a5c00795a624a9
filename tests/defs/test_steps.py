"""Steps of several runs on one lake take turns; what may pass is tried again, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg
import psutil
import psycopg2
import pytest

from mt5_crs_pipeline.adapters.faults import transient_cause
from mt5_crs_pipeline.core.errors import (
    BundleRejectedError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InputError,
    TransientError,
)
from mt5_crs_pipeline.defs import steps
from mt5_crs_pipeline.defs.assets import bars
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.commands import hashes, short_folder
from tests.defs.small_lake import execute, materialize, metadata, store, year_of_bars


@pytest.fixture
def stores(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Stores:
    monkeypatch.setattr(steps, "_FIRST_PAUSE_S", 0.01)
    store(settings, year_of_bars())
    return Stores(settings)


def restarts(result: dg.ExecuteInProcessResult) -> int:
    return len(result.filter_events(lambda event: event.event_type_value == "STEP_RESTARTED"))


def failing(first: int, fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the first reads of bars meet a fault; returns the list to which every read is added."""
    reads: list[int] = []
    read = bars.read_revisions

    def read_revisions(*given: Any) -> Any:
        reads.append(len(reads))
        if len(reads) <= first:
            fault()
        return read(*given)

    monkeypatch.setattr(bars, "read_revisions", read_revisions)
    return reads


def test_a_server_that_drops_every_connection_in_the_middle_of_a_step_is_asked_again(
    stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(stores, [bars.market_data])
    undisturbed = hashes(stores.lake.folder)
    for path in stores.lake.stage_folder("extract").iterdir():
        path.unlink()

    def drop() -> None:
        sql = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        execute(settings, f"{sql} and application_name = 'mt5_crs'")

    reads = failing(2, drop, monkeypatch)
    result = materialize(stores, [bars.market_data])
    assert len(reads) == 3 and restarts(result) == 2
    assert hashes(stores.lake.folder) == undisturbed


def test_a_database_server_that_is_killed_in_the_middle_of_a_step_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steps, "_FIRST_PAUSE_S", 0.01)
    with short_folder() as folder:
        settings = Settings(home=folder / "home")
        store(settings, year_of_bars())
        postmaster = settings.home / "postgres" / "data" / "postmaster.pid"

        def kill() -> None:
            psutil.Process(int(postmaster.read_text().split()[0])).kill()

        reads = failing(1, kill, monkeypatch)
        stores = Stores(settings)
        with stores.database.url():  # as the storage of a run holds it
            result = materialize(stores, [bars.market_data])
        assert len(reads) == 2 and restarts(result) == 1
        assert metadata(result, "market_data")["dagster/row_count"] == len(year_of_bars())


def test_what_stays_away_is_given_up_with_its_own_reason(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise DatabaseUnavailableError("PostgreSQL did not answer")

    reads = failing(99, gone, monkeypatch)
    result = materialize(stores, [bars.market_data], succeeds=False)
    assert len(reads) == 1 + steps.RETRIES
    (failed,) = result.filter_events(lambda event: event.is_step_failure)
    assert "PostgreSQL did not answer" in failed.step_failure_data.error.to_string()


@pytest.mark.parametrize("error", [InputError("no such bars"), ZeroDivisionError("a bug")])
def test_what_does_not_pass_fails_at_once(stores: Stores, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    reads = failing(99, fail, monkeypatch)
    result = materialize(stores, [bars.market_data], succeeds=False)
    assert len(reads) == 1 and restarts(result) == 0


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of_server(sql: str, settings: Settings) -> psycopg2.Error:
    with pytest.raises(psycopg2.Error) as raised:
        execute(settings, sql)
    return raised.value


def test_the_map_of_what_may_pass(settings: Settings) -> None:
    with pytest.raises(psycopg2.OperationalError) as unreachable:
        psycopg2.connect("postgresql://nobody@127.0.0.1:1/bars", connect_timeout=2)
    deadlock = of_server("do $$ begin raise sqlstate '40P01'; end $$", settings)
    shutdown = of_server("do $$ begin raise sqlstate '57P01'; end $$", settings)
    for error in (unreachable.value, deadlock, shutdown):
        assert isinstance(transient_cause(caused(RuntimeError("wrapped"), error)), DatabaseUnavailableError)
    said = TransientError("later")
    assert transient_cause(said) is said is transient_cause(caused(RuntimeError(), said))
    for permanent in (
        of_server("do $$ begin raise sqlstate '53100'; end $$", settings),  # disk full
        of_server("select 1 / 0", settings),
        caused(DatabaseRefusedError("wrong password"), unreachable.value),
        BundleRejectedError("damaged"),
        KeyError("a bug"),
    ):
        assert transient_cause(permanent) is None


def test_two_runs_of_the_same_months_take_turns(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    write, guard = bars.write_months, threading.Lock()

    def write_months(*given: Any) -> int:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.2)
        changed = write(*given)
        with guard:
            inside[0] -= 1
        return changed

    monkeypatch.setattr(bars, "write_months", write_months)
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(materialize, stores, [bars.market_data, bars.market_data_parquet]) for _ in range(2)]
        for run in runs:
            assert run.result().success
    assert most == [1]


def test_a_killed_process_holds_nobody_up(stores: Stores, settings: Settings) -> None:
    hold = (
        "import time\n"
        "from mt5_crs_pipeline.defs.resources import Stores\n"
        "from mt5_crs_pipeline.settings import Settings\n"
        "with Stores(Settings()).alone(lambda: None):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {
        **os.environ,
        "MT5_CRS_HOME": str(settings.home),
        "MT5_CRS_DATABASE_URL": settings.database_url.get_secret_value(),
    }
    holder = subprocess.Popen([sys.executable, "-c", hold], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        waiting = threading.Event()

        def enter() -> None:
            with stores.alone(waiting.set):
                pass

        with ThreadPoolExecutor(1) as other:
            entered = other.submit(enter)
            assert waiting.wait(60) and not entered.done()
            holder.send_signal(signal.SIGKILL)
            entered.result(60)
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
