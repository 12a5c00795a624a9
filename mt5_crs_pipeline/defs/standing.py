"""What must hold between runs, looked at every hour."""

from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg

from mt5_crs_pipeline.adapters.bar_store import revisions_by_month
from mt5_crs_pipeline.adapters.lake import EXTRACT
from mt5_crs_pipeline.defs.alerts import alert_months_behind
from mt5_crs_pipeline.defs.assets.bars import market_data
from mt5_crs_pipeline.defs.partitions import MONTHS
from mt5_crs_pipeline.defs.resources import Stores

PATIENCE: Final = timedelta(hours=1)


@dg.asset_check(
    asset=market_data,
    description="Every revision that was recorded more than an hour ago is in the lake: no month stays behind the"
    " table, be it that its run fails again and again, or that nobody asks for one.",
)
def every_change_has_arrived(stores: dg.ResourceParam[Stores]) -> dg.AssetCheckResult:
    """Compare the number of revisions of every month in the table with the rows of its extract."""
    with stores.database.connection() as connection:
        recorded = revisions_by_month(connection, stores.timeframe, datetime.now(UTC) - PATIENCE, stores.symbols)
    behind = {
        month: missing
        for month, revisions in recorded.items()
        if MONTHS.has_partition_key(month) and (missing := revisions - stores.lake.row_count(EXTRACT, month)) > 0
    }
    alert_months_behind(stores, behind)
    return dg.AssetCheckResult(
        passed=not behind,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "months in the table": len(recorded),
            "months behind": len(behind),
            "revisions missing": sum(behind.values()),
            "first months behind": ", ".join(list(behind)[:12]) or "none",
        },
    )


standing_checks = dg.define_asset_job(
    "standing_checks",
    selection=dg.AssetSelection.checks(every_change_has_arrived),
    description="What must hold between runs.",
)


@dg.schedule(
    job=standing_checks,
    cron_schedule="10 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def standing_checks_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Look every hour."""
    return dg.RunRequest(run_key=context.scheduled_execution_time.isoformat(timespec="minutes"))
