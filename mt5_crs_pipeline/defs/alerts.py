"""Who has to know what: runs that failed, markets whose bars do not come, and models that changed places."""

import hashlib
from collections.abc import Iterable, Mapping

import dagster as dg

from mt5_crs_pipeline.core.market_time import Attendance
from mt5_crs_pipeline.defs.failures import RunInterruptedError, failed_check, failed_step
from mt5_crs_pipeline.defs.resources import Stores


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.RUNNING)
def run_failure_alerts(context: dg.RunFailureSensorContext, stores: dg.ResourceParam[Stores]) -> None:
    """Tell which run failed and why, in one line; nothing where MT5_CRS_ALERT_URLS is empty."""
    records = context.instance.get_records_for_run(context.dagster_run.run_id).records
    entries = [record.event_log_entry.dagster_event for record in records]
    alert_failed_run(stores, context.dagster_run, [event for event in entries if event])


def alert_failed_run(stores: Stores, run: dg.DagsterRun, events: Iterable[dg.DagsterEvent]) -> None:
    """Tell why a run failed, if nobody ended it on purpose."""
    events = list(events)
    try:
        step = failed_step(events)
    except RunInterruptedError:
        return
    # Of a bug the kind only: its text may quote anything.
    reason = failed_check(events) or (f"{step[0]}: {step[1]}" if step else "it ended outside its steps")
    digest = hashlib.sha256(reason.encode()).hexdigest()[:16]
    stores.alert(
        f"run failure {run.job_name} {digest}",
        f"{run.job_name} failed",
        f"job {run.job_name}, run {run.run_id}\n{reason}",
    )


def alert_outages(stores: Stores, found: Iterable[Attendance], run_id: str) -> None:
    """Tell which symbols' newest bars have not come, all in one message."""
    lines = [f"{one.symbol} since {one.outage.first:%Y-%m-%d %H:%M} UTC" for one in found if one.outage]
    if lines:
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        stores.alert(
            f"outage {digest}",
            f"no new {stores.timeframe} bars of {len(lines)} symbols",
            f"run {run_id}\n" + "\n".join(lines[:50]),
        )


def alert_months_behind(stores: Stores, behind: Mapping[str, int]) -> None:
    """Tell which months lack how many revisions that the table has had for long, all in one message."""
    if behind:
        lines = [f"{month}: {missing} revisions are missing" for month, missing in behind.items()]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        title = f"{len(behind)} months of {stores.timeframe} bars stay behind the table"
        stores.alert(f"behind {digest}", title, "\n".join(lines[:50]))


def alert_promotion(stores: Stores, version: str, reason: str, run_id: str) -> None:
    """Tell that another model is the champion."""
    stores.alert(
        f"promotion {version}", f"{version} is the champion", f"run {run_id}\n{version} was promoted: {reason}"
    )
