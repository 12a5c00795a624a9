"""Runs of the code location started from the command line, recorded in the same Dagster instance as the UI's."""

import contextlib
import importlib.resources
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg

from mt5_crs_pipeline.adapters.bar_store import months_with_bars
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.feast_store import feast_environment
from mt5_crs_pipeline.adapters.files import commit_bytes, make_folder, remove_leftovers
from mt5_crs_pipeline.adapters.postgres import connected
from mt5_crs_pipeline.core.errors import InputError, PipelineError
from mt5_crs_pipeline.defs.alerts import alert_failed_run
from mt5_crs_pipeline.defs.assets.model import current_version
from mt5_crs_pipeline.defs.failures import RunInterruptedError, failed_check, failed_step
from mt5_crs_pipeline.defs.partitions import MONTHS, range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.processes import is_alive, own_process, recorded_processes
from mt5_crs_pipeline.progress import progress_logger
from mt5_crs_pipeline.settings import Settings

PROCESS_TAG = "mt5_crs/process"
AT_WORK = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING)


def child_environment(settings: Settings, url: str) -> dict[str, str]:
    """Return the environment that Dagster's and Feast's own programs need to work on these settings."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **environment,
        **feast_environment(url, settings.timeframe, settings.redis_url.get_secret_value()),
        "MT5_CRS_HOME": str(settings.home),
        "DAGSTER_HOME": str(settings.dagster_home),
        # The months that a run materializes are written at once per asset: a tenth of the time.
        "DAGSTER_EVENT_BATCH_SIZE": "1000",
    }


def prepare_dagster_home(settings: Settings) -> None:
    """Put the project's dagster.yaml where Dagster looks for it."""
    make_folder(settings.home)
    commit_bytes(make_folder(settings.dagster_home) / "dagster.yaml", project_file("dagster.yaml").read_bytes())


def project_file(name: str) -> Path:
    """Return a file of the project's top level: inside the package when installed, beside it in a checkout."""
    package = Path(str(importlib.resources.files("mt5_crs_pipeline")))
    return package / name if (package / name).exists() else package.parent / name


def ui_record(settings: Settings) -> Path:
    """Return the file in which `mt5-crs ui` keeps which processes it started."""
    return settings.home / "ui.processes"


@contextlib.contextmanager
def dagster_instance(settings: Settings, url: str) -> Iterator[dg.DagsterInstance]:
    """Yield the instance of the state folder, after ending runs and removing temp files whose process is gone."""
    prepare_dagster_home(settings)
    os.environ.update(child_environment(settings, url))
    for folder in (settings.home / "lake", settings.home / "models", settings.home / "reports", settings.dagster_home):
        remove_leftovers(folder)
    with dg.DagsterInstance.get() as instance:
        end_orphans(instance, daemon_lives=any(map(is_alive, recorded_processes(ui_record(settings)))))
        yield instance


def end_orphans(instance: dg.DagsterInstance, daemon_lives: bool) -> int:
    """Mark runs as failed that nobody works on any more; return how many.

    A run of the command line names its process; any other run is the daemon's, and ends with it.
    """
    unfinished = instance.get_runs(dg.RunsFilter(statuses=[*AT_WORK, dg.DagsterRunStatus.NOT_STARTED]))
    orphans = [
        run
        for run in unfinished
        if (PROCESS_TAG in run.tags and not is_alive(run.tags[PROCESS_TAG]))
        or (PROCESS_TAG not in run.tags and run.status in AT_WORK and not daemon_lives)
    ]
    for run in orphans:
        instance.report_run_failed(run, "its process is gone: it was killed, or the machine stopped")
    return len(orphans)


def retrain(settings: Settings, database: Database, say: Callable[[str], None], as_of: datetime | None = None) -> None:
    """Run `daily_retrain` over all months that have bars, in this process, after runs that are at work already.

    With `as_of` the model is trained on what was recorded by then.
    Raises InputError when there are none, and what the failed step raised, in one line.
    """
    from mt5_crs_pipeline.definitions import defs

    with database.url() as url:
        months = stored_months(settings, url)
        with dagster_instance(settings, url) as instance:
            _wait_for_other_runs(instance, say)
            job = dg.Definitions.merge(defs, dg.Definitions(loggers={"console": progress_logger})).resolve_job_def(
                "daily_retrain"
            )
            say(f"  planning {len(months)} months, {months[0]} to {months[-1]}")
            result = job.execute_in_process(
                instance=instance,
                run_config={"loggers": {"console": {}}, **_training_config(as_of)},
                # Who started it sees it fail; the daemon must not start it again.
                tags={**range_tags(months[0], months[-1]), PROCESS_TAG: own_process(), "dagster/max_retries": "0"},
                raise_on_error=False,
            )
            if not result.success:
                alert_failed_run(Stores(settings), result.dagster_run, result.all_events)
    if not result.success:
        raise PipelineError(failure(result))


def _training_config(as_of: datetime | None) -> dict[str, Any]:
    return {"ops": {"training_set": {"config": {"as_of": as_of.isoformat()}}}} if as_of else {}


def newest_result(settings: Settings) -> dict[str, Any]:
    """Return version, verdict and report of the model that the stored training set leads to, and the champion."""
    stores = Stores(settings)
    version = current_version(stores)
    verdict = stores.models.verdict(version) or {}
    champion = stores.models.champion()
    return {
        "model_version": version,
        "promoted": verdict.get("promoted", False),
        "kind": verdict.get("kind", ""),
        "verdict": verdict.get("reason", ""),
        "champion": champion["model_version"] if champion else None,
        "report": str(settings.reports / f"{version}.html"),
    }


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Say in one line why a run failed; the whole error of a bug. Raises KeyboardInterrupt when Ctrl-C ended it."""
    if said := failed_check(result.all_events):
        return said
    try:
        failed = failed_step(result.all_events)
    except RunInterruptedError:
        raise KeyboardInterrupt from None
    if failed:
        step, reason, bug = failed
        return f"{step} failed; this is a bug:\n{bug}" if bug else f"{step}: {reason}"
    outside = [event.job_failure_data.error for event in result.all_events if event.is_job_failure]
    said = outside[0].to_string() if outside and outside[0] else "no cause given"
    return f"run {result.run_id} failed outside its steps; this is a bug:\n{said}"


def _wait_for_other_runs(instance: dg.DagsterInstance, say: Callable[[str], None]) -> None:
    """Wait until no other process writes to the lake; the daemon in turn waits for us."""
    while others := instance.get_runs(dg.RunsFilter(statuses=AT_WORK), limit=1):
        say(f"  waiting for run {others[0].run_id} of {others[0].job_name} to end")
        while not getattr(instance.get_run_by_id(others[0].run_id), "is_finished", True):
            time.sleep(1)


def stored_months(settings: Settings, url: str) -> list[str]:
    """Return the months from the first one of the settings on that have bars, sorted; raise InputError without any."""
    with connected(url) as connection:
        stored = months_with_bars(connection, settings.timeframe, settings.symbols)
    if not stored:
        of = f" of {', '.join(settings.symbols)}" if settings.symbols else ""
        raise InputError(f"no {settings.timeframe} bars{of} are stored: run `mt5-crs ingest FILE` first")
    last = MONTHS.get_last_partition_key() or ""
    wanted = [month for month in stored if settings.start <= month <= last]
    if not wanted:
        raise InputError(
            f"no {settings.timeframe} bars from MT5_CRS_START={settings.start} on: those stored are of {stored[0]} to"
            f" {stored[-1]}; choose an earlier start"
        )
    return wanted
