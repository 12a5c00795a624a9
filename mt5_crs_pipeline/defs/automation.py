"""Jobs, the daily schedule, and the sensor that notices late and corrected bars."""

import hashlib
from datetime import UTC, datetime, timedelta

import dagster as dg

from mt5_crs_pipeline.adapters.bar_store import ChangedBars, changes_since
from mt5_crs_pipeline.adapters.calendars import has_news
from mt5_crs_pipeline.core.backfill import Memory, Outcome, Request, ask, contiguous_ranges, months_between, settle
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, technical_features
from mt5_crs_pipeline.defs.partitions import MONTH_FORMAT, MONTHS, changed_tag, range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.standing import every_change_has_arrived
from mt5_crs_pipeline.defs.timing import RETRAIN_CRON, RETRAIN_ZONE

# Dagster's own, by which it makes one run of any number of equal requests.
RUN_KEY_TAG = "dagster/run_key"

daily_retrain = dg.define_asset_job(
    "daily_retrain",
    # What holds between runs is no business of a run's.
    selection=dg.AssetSelection.all() - dg.AssetSelection.checks(every_change_has_arrived),
    description="Everything, from the bars of the newest months to a judged model.",
)

market_data_backfill = dg.define_asset_job(
    "market_data_backfill",
    # Without feast_registry, which changes with the code alone: online rows are written where it is, or it is made.
    selection=dg.AssetSelection.assets(market_data, market_data_parquet, technical_features, feast_online_store)
    - dg.AssetSelection.checks(every_change_has_arrived),
    description="Bars and features of the months that late or corrected bars reach.",
)


@dg.schedule(job=daily_retrain, cron_schedule=RETRAIN_CRON, execution_timezone=RETRAIN_ZONE)
def daily_retrain_schedule(
    context: dg.ScheduleEvaluationContext, stores: dg.ResourceParam[Stores]
) -> dg.RunRequest | dg.SkipReason:
    """Retrain half an hour after midnight UTC, on the month of yesterday and of today, if a market was open since."""
    today = context.scheduled_execution_time
    since = _last_retrain(context.instance)
    if since and not has_news(stores.lake, stores.timeframe, stores.calendars, since, today):
        return dg.SkipReason(
            f"no market has closed a {stores.timeframe} bar of any symbol since the last daily_retrain began"
            f" ({since:%Y-%m-%d %H:%M} UTC), and none was corrected: a weekend or a holiday"
        )
    yesterday = (today - timedelta(days=1)).strftime(MONTH_FORMAT)
    first = max(yesterday, MONTHS.get_first_partition_key() or yesterday)
    return dg.RunRequest(run_key=today.strftime("%Y-%m-%d"), tags=range_tags(first, today.strftime(MONTH_FORMAT)))


def _last_retrain(instance: dg.DagsterInstance) -> datetime | None:
    """Return when the newest run of `daily_retrain` that succeeded was asked for, the schedule's or another."""
    succeeded = dg.RunsFilter(job_name=daily_retrain.name, statuses=[dg.DagsterRunStatus.SUCCESS])
    records = instance.get_run_records(succeeded, limit=1)
    return records[0].create_timestamp if records else None


@dg.sensor(job=market_data_backfill, minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def market_data_revision_sensor(
    context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]
) -> dg.SensorResult:
    """Request the months that new or revised bars lie in, and those that their features reach into.

    The cursor moves past a change when the run that was requested for it has succeeded. One batch of runs is at work at
    a time, and what arrives meanwhile is the next: however many bars change, runs are at most half as many as months.
    """
    memory = Memory.from_json(context.cursor)
    outcomes = {key: _outcome(context.instance, run_key) for key, run_key in memory.run_keys().items()}
    memory, reason = settle(memory, outcomes, datetime.now(UTC))
    if reason:
        return dg.SensorResult(skip_reason=reason, cursor=memory.to_json())
    with stores.database.connection() as connection:
        changes, position = changes_since(
            connection, stores.timeframe, memory.done, PIPELINE_FEATURES.lookback - 1, stores.symbols
        )
    requests = backfill_requests(changes, MONTHS.get_first_partition_key(), MONTHS.get_last_partition_key())
    memory, wanted = ask(memory, requests, position, outcomes)
    if not wanted:
        return dg.SensorResult(skip_reason="no bars arrived since the last look", cursor=memory.to_json())
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(run_key=one.key, tags=range_tags(one.first, one.last) | changed_tag(one.changed))
            for one in wanted
        ],
        cursor=memory.to_json(),
    )


def _outcome(instance: dg.DagsterInstance, run_key: str) -> Outcome:
    """Return what became of the runs that were requested under a key; a repeated one counts once it succeeded."""
    runs = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key}))
    if not runs:
        return "unknown"
    if any(run.is_success for run in runs):
        return "succeeded"
    return "failed" if all(run.is_finished for run in runs) else "at work"


def backfill_requests(changes: list[ChangedBars], first_month: str | None, last_month: str | None) -> list[Request]:
    """Return a request per contiguous range of months that the changes reach.

    Months outside [first_month, last_month] are no partitions and left out. The key holds a digest of the changes:
    a second correction of the same months is another request, a repeated look at the same changes is not.
    """
    months = {month for change in changes for month in months_between(change.month, change.reach_month)}
    known = [month for month in months if (first_month or "") <= month <= (last_month or "9999")]
    requests = []
    for first, last in contiguous_ranges(known):
        inside = sorted(repr(change) for change in changes if change.month <= last and change.reach_month >= first)
        digest = hashlib.sha256("\n".join(inside).encode()).hexdigest()[:16]
        changed = sorted({change.month for change in changes if first <= change.month <= last})
        requests.append(Request(first, last, f"{first}:{last}:{digest}", tuple(changed)))
    return requests
