"""Jobs, the daily schedule, and the sensor that notices late and corrected bars."""

import hashlib
import json
from datetime import timedelta

import dagster as dg

from mt5_crs_pipeline.adapters.bar_store import ChangedBars, changes_since
from mt5_crs_pipeline.core.backfill import contiguous_ranges, months_between
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, feast_registry, technical_features
from mt5_crs_pipeline.defs.partitions import MONTH_FORMAT, MONTHS, range_tags
from mt5_crs_pipeline.defs.resources import Stores

daily_retrain = dg.define_asset_job(
    "daily_retrain",
    selection=dg.AssetSelection.all(),
    description="Everything, from the bars of the newest months to a judged model.",
)

market_data_backfill = dg.define_asset_job(
    "market_data_backfill",
    selection=dg.AssetSelection.assets(
        market_data, market_data_parquet, feast_registry, technical_features, feast_online_store
    ),
    description="Bars and features of the months that late or corrected bars reach.",
)


# Every day of the week: a bar of Friday closes on Saturday at midnight, and some markets never close.
@dg.schedule(job=daily_retrain, cron_schedule="30 0 * * *", execution_timezone="UTC")
def daily_retrain_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Retrain half an hour after midnight UTC, on the month of yesterday and of today."""
    today = context.scheduled_execution_time
    yesterday = (today - timedelta(days=1)).strftime(MONTH_FORMAT)
    first = max(yesterday, MONTHS.get_first_partition_key() or yesterday)
    return dg.RunRequest(run_key=today.strftime("%Y-%m-%d"), tags=range_tags(first, today.strftime(MONTH_FORMAT)))


@dg.sensor(job=market_data_backfill, minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def market_data_revision_sensor(
    context: dg.SensorEvaluationContext, stores: dg.ResourceParam[Stores]
) -> dg.SensorResult | dg.SkipReason:
    """Request the months that new or revised bars lie in, and those that their features reach into."""
    position = json.loads(context.cursor)["position"] if context.cursor else None
    with stores.database.connection() as connection:
        changes, new_position = changes_since(
            connection, stores.timeframe, position, PIPELINE_FEATURES.lookback - 1, stores.symbols
        )
    cursor = json.dumps({"position": new_position})
    requests = [
        dg.RunRequest(run_key=key, tags=range_tags(first, last))
        for first, last, key in backfill_requests(
            changes, MONTHS.get_first_partition_key(), MONTHS.get_last_partition_key()
        )
    ]
    if not requests:
        context.update_cursor(cursor)
        return dg.SkipReason("no bars arrived since the last look")
    return dg.SensorResult(run_requests=requests, cursor=cursor)


def backfill_requests(
    changes: list[ChangedBars], first_month: str | None, last_month: str | None
) -> list[tuple[str, str, str]]:
    """Return (first month, last month, run key) per contiguous range that the changes reach.

    Months outside [first_month, last_month] are no partitions and left out. The key holds a digest of the changes:
    a second correction of the same months is another request, a repeated look at the same changes is not.
    """
    months = {month for change in changes for month in months_between(change.month, change.reach_month)}
    known = [month for month in months if (first_month or "") <= month <= (last_month or "9999")]
    requests = []
    for first, last in contiguous_ranges(known):
        inside = sorted(repr(change) for change in changes if change.month <= last and change.reach_month >= first)
        digest = hashlib.sha256("\n".join(inside).encode()).hexdigest()[:16]
        requests.append((first, last, f"{first}:{last}:{digest}"))
    return requests
