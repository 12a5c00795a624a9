"""Runs of the code location started from the command line, recorded in the same Dagster instance as the UI's."""

import contextlib
import importlib.resources
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from mt5_crs_pipeline.adapters.bar_store import months_with_bars
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.feast_store import feast_environment
from mt5_crs_pipeline.adapters.files import commit_bytes, make_folder, remove_leftovers
from mt5_crs_pipeline.adapters.postgres import DAGSTER_SCHEMA, connected, sqlalchemy_url
from mt5_crs_pipeline.core.errors import InputError, PipelineError
from mt5_crs_pipeline.defs.assets.model import current_version
from mt5_crs_pipeline.defs.partitions import MONTHS, range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.progress import progress_logger
from mt5_crs_pipeline.settings import Settings

PROCESS_TAG = "mt5_crs/process"


def child_environment(settings: Settings, url: str) -> dict[str, str]:
    """Return the environment that Dagster's and Feast's own programs need to work on these settings."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **environment,
        **feast_environment(url, settings.timeframe),
        "MT5_CRS_HOME": str(settings.home),
        "MT5_CRS_DAGSTER_URL": sqlalchemy_url(url, DAGSTER_SCHEMA),
        "DAGSTER_HOME": str(settings.dagster_home),
    }


def prepare_dagster_home(settings: Settings) -> None:
    """Put the project's dagster.yaml where Dagster looks for it."""
    commit_bytes(make_folder(settings.dagster_home) / "dagster.yaml", project_file("dagster.yaml").read_bytes())


def project_file(name: str) -> Path:
    """Return a file of the project's top level: inside the package when installed, beside it in a checkout."""
    package = Path(str(importlib.resources.files("mt5_crs_pipeline")))
    return package / name if (package / name).exists() else package.parent / name


@contextlib.contextmanager
def dagster_instance(settings: Settings, url: str) -> Iterator[dg.DagsterInstance]:
    """Yield the instance of the state folder, after ending runs whose process is gone."""
    prepare_dagster_home(settings)
    os.environ.update(child_environment(settings, url))
    with dg.DagsterInstance.get() as instance:
        end_orphans(instance)
        yield instance


def end_orphans(instance: dg.DagsterInstance) -> int:
    """Mark command-line runs as failed whose process no longer exists; return how many."""
    running = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]))
    orphans = [run for run in running if PROCESS_TAG in run.tags and not _is_alive(run.tags[PROCESS_TAG])]
    for run in orphans:
        instance.report_run_failed(run, "its process is gone: it was killed, or the machine stopped")
    return len(orphans)


def retrain(settings: Settings, database: Database) -> None:
    """Run `daily_retrain` over all months that have bars, in this process.

    Raises InputError when there are none, and what the failed step raised, in one line.
    """
    from mt5_crs_pipeline.definitions import defs

    with database.url() as url:
        months = _months(settings, url)
        with dagster_instance(settings, url) as instance:
            remove_leftovers(settings.home / "lake")
            job = dg.Definitions.merge(defs, dg.Definitions(loggers={"console": progress_logger})).resolve_job_def(
                "daily_retrain"
            )
            result = job.execute_in_process(
                instance=instance,
                run_config={"loggers": {"console": {}}},
                tags={**range_tags(months[0], months[-1]), PROCESS_TAG: _own_process()},
                raise_on_error=False,
            )
    if not result.success:
        raise PipelineError(failure(result))


def newest_result(settings: Settings) -> dict[str, Any]:
    """Return version, verdict and report of the model that the stored training set leads to."""
    stores = Stores(settings)
    version = current_version(stores)
    verdict = stores.models.verdict(version) or {}
    return {
        "model_version": version,
        "promoted": verdict.get("promoted", False),
        "verdict": verdict.get("reason", ""),
        "report": str(settings.reports / f"{version}.html"),
    }


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Say in one line why a run failed; the whole error of a bug."""
    for event in result.all_events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and not event.asset_check_evaluation_data.passed:
            check = event.asset_check_evaluation_data
            found = ", ".join(f"{name} {value.value}" for name, value in check.metadata.items())
            return f"check {check.check_name} of {check.asset_key.to_user_string()} failed: {found}"
    for event in result.all_events:
        if event.is_step_failure and event.step_failure_data.error:
            error = event.step_failure_data.error
            while error.cause:
                error = error.cause
            if error.cls_name in _own_errors():
                return f"{event.step_key}: {error.message.split(': ', 1)[-1].strip()}"
            return f"{event.step_key} failed; this is a bug:\n{error.to_string()}"
    return f"run {result.run_id} failed before its first step"


def _months(settings: Settings, url: str) -> list[str]:
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


def _own_errors() -> set[str]:
    found, queue = set(), [PipelineError]
    while queue:
        kind = queue.pop()
        found.add(kind.__name__)
        queue += kind.__subclasses__()
    return found


def _own_process() -> str:
    return f"{os.getpid()}@{psutil.Process().create_time():.0f}"


def _is_alive(process: str) -> bool:
    pid, _, started = process.partition("@")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) < 2
    except psutil.Error:
        return False
