"""Runs from the command line: on real hourly bars, beside the daemon's, and after a crash."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.core.errors import PipelineError
from mt5_crs_pipeline.processes import is_alive, own_process, process_name
from mt5_crs_pipeline.runner import PROCESS_TAG, dagster_instance, end_orphans, failure, project_file, ui_record
from mt5_crs_pipeline.runner import _wait_for_other_runs as wait_for_other_runs
from mt5_crs_pipeline.settings import Settings
from tests.commands import short_folder, succeed

H1 = {"TIMEFRAME": "H1", "START": "2025-06"}
DEAD = f"{2**22 + 1}@1"


@dg.op
def nothing() -> None: ...


@dg.job
def idle() -> None:
    nothing()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def a_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, process: str | None) -> str:
    tags = {PROCESS_TAG: process} if process else {}
    return instance.create_run_for_job(idle, status=status, tags=tags).run_id


def test_three_real_hourly_exports_lead_to_a_report_and_predictions(samples: Path) -> None:
    with short_folder() as folder:
        home = folder / "home"
        files = [samples / f"{symbol}_H1.csv" for symbol in ("EURUSD", "GBPUSD", "SILVER")]
        reports = json.loads(succeed(home, "ingest", *files, "--json", **H1).stdout)
        assert [report["counts"]["inserted"] for report in reports] == [3608, 3608, 3444]
        assert reports[0]["first"] == "2025-06-22T21:00:00Z"
        result = json.loads(succeed(home, "retrain", "--json", **H1).stdout)
        report = Path(result["report"])
        assert report.parent == home / "reports" / "H1"
        assert result["verdict"] in report.read_text("utf-8")
        assert (result["promoted"], result["kind"]) == (False, "no edge shown")
        stored = json.loads(succeed(home, "predict", "--symbol", "EURUSD", "--json", **H1).stdout)
        assert stored == json.loads(succeed(home, "predict", "--bars", files[0], "--json", **H1).stdout)
        assert stored["bar_close"] == "2026-01-21T09:00:00+00:00"
        assert stored["model_version"] == result["model_version"]


def test_runs_nobody_works_on_are_ended_and_others_are_left(instance: dg.DagsterInstance) -> None:
    started = dg.DagsterRunStatus.STARTED
    dead = {a_run(instance, status, DEAD) for status in (started, dg.DagsterRunStatus.NOT_STARTED)}
    alive = a_run(instance, started, own_process())
    of_daemon = a_run(instance, started, None)
    planned = a_run(instance, dg.DagsterRunStatus.NOT_STARTED, None)

    assert end_orphans(instance, daemon_lives=True) == 2
    assert failed(instance) == dead
    assert end_orphans(instance, daemon_lives=False) == 1
    assert failed(instance) == dead | {of_daemon}
    assert not {alive, planned} & failed(instance)
    assert end_orphans(instance, daemon_lives=False) == 0


def test_a_run_waits_for_the_one_at_work_and_says_so(instance: dg.DagsterInstance) -> None:
    at_work = a_run(instance, dg.DagsterRunStatus.STARTED, own_process())
    said: list[str] = []
    waiting = threading.Thread(target=wait_for_other_runs, args=(instance, said.append))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    run = instance.get_run_by_id(at_work)
    assert run is not None
    instance.report_run_failed(run)
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert said == [f"  waiting for run {at_work} of idle to end"]


def test_opening_the_instance_recovers_what_killed_processes_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", settings.database_url.get_secret_value())
    leftovers = [
        settings.home / name / "D1" / f".partial-{DEAD.split('@')[0]}-x" for name in ("lake", "models", "reports")
    ]
    busy = settings.home / "lake" / f".partial-{os.getpid()}-x"
    for path in (*leftovers, busy):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    ui_record(settings).write_text(DEAD)
    before = dict(os.environ)
    try:
        with Database(settings).url() as url:
            with dagster_instance(settings, url) as instance:
                orphan = a_run(instance, dg.DagsterRunStatus.STARTED, None)
            ui_record(settings).write_text(own_process())
            with dagster_instance(settings, url) as instance:
                assert failed(instance) == set()
            ui_record(settings).write_text(DEAD)
            with dagster_instance(settings, url) as instance:
                assert failed(instance) == {orphan}
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
    assert not [path for path in leftovers if path.exists()]
    assert busy.exists()


def test_a_process_number_given_to_another_process_is_not_taken_for_the_old_one() -> None:
    mine = psutil.Process()
    assert is_alive(own_process()) and is_alive(process_name(mine))
    assert not is_alive(f"{mine.pid}@{mine.create_time() - 60:.0f}")
    assert not any(map(is_alive, (DEAD, "", "x", "12", "1@x")))


def test_a_failed_run_is_explained_by_its_own_error_or_shown_whole(instance: dg.DagsterInstance) -> None:
    class OddBarsError(PipelineError):
        pass

    def reason(error: Exception) -> str:
        @dg.op
        def fails() -> None:
            try:
                raise OSError("disk")
            except OSError as cause:
                raise error from cause

        @dg.job
        def failing() -> None:
            fails()

        return failure(failing.execute_in_process(instance=instance, raise_on_error=False))

    assert reason(OddBarsError("bar 7: high below low")) == "fails: bar 7: high below low"
    shown = reason(ZeroDivisionError("by zero"))
    assert shown.startswith("fails failed; this is a bug:\n") and "by zero" in shown and "OSError: disk" in shown


def test_a_failed_check_is_explained_by_its_counts_and_not_by_its_pictures(instance: dg.DagsterInstance) -> None:
    specs = [
        dg.AssetCheckSpec(name, asset="rows", blocking=name == "rows_are_valid") for name in ("odd", "rows_are_valid")
    ]

    @dg.asset(check_specs=specs)
    def rows() -> dg.MaterializeResult:
        found = {"rows": 12154, "invalid": 3, "repeated": 0, "closes": dg.MetadataValue.md("![](data:image/png;...)")}
        failed = [dg.AssetCheckResult(check_name=spec.name, passed=False, metadata=found) for spec in specs]
        return dg.MaterializeResult(check_results=failed)

    result = dg.materialize([rows], instance=instance, raise_on_error=False)
    assert failure(result) == "check rows_are_valid of rows failed: 12,154 rows, 3 invalid"


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_the_files_at_the_top_are_found(name: str) -> None:
    assert project_file(name).is_file()


def failed(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))}
