"""Bars: from PostgreSQL, validated, into the lake."""

from datetime import UTC, datetime

import dagster as dg
import pyarrow as pa

from mt5_crs_pipeline.adapters.bar_store import quarantine, read_revisions
from mt5_crs_pipeline.adapters.calendars import lake_attendance, months_since_a_year_before
from mt5_crs_pipeline.adapters.lake import EXTRACT, MARKET_DATA
from mt5_crs_pipeline.core.backfill import contiguous_ranges
from mt5_crs_pipeline.core.bars import (
    BAR_SCHEMA,
    CLOSED_BAR_SCHEMA,
    REVISION_KEY,
    closed_revisions,
    latest_revisions,
    reject_reasons,
)
from mt5_crs_pipeline.defs.alerts import alert_outages
from mt5_crs_pipeline.defs.checks import BARS_CHECK, MARKET_CHECK, check_bars, check_market_time
from mt5_crs_pipeline.defs.metadata import column_schema, listed, row_metadata, write_months
from mt5_crs_pipeline.defs.partitions import changed_months, monthly_asset, months_to_read, window
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.steps import step
from mt5_crs_pipeline.defs.timing import FRESHNESS


@monthly_asset(
    group_name="bars",
    kinds={"postgres", "parquet"},
    owners=["team:market-data"],
    metadata=column_schema(BAR_SCHEMA),
)
@step
def market_data(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """All revisions of the bars of the months, read from the market_data table in one snapshot."""
    months = months_to_read(context, stores.lake.months(EXTRACT))
    read = [window(part) for part in contiguous_ranges(months)]
    with stores.database.connection() as connection:
        parts = [read_revisions(connection, stores.timeframe, *part, stores.symbols) for part in read]
    frame = pa.concat_tables([BAR_SCHEMA.empty_table(), *parts]).to_pandas()
    changed = write_months(context, stores.lake, EXTRACT, frame, BAR_SCHEMA, months)
    return dg.MaterializeResult(
        metadata=row_metadata(
            len(frame),
            frame["time"],
            **changed,
            bars=len(latest_revisions(frame)),
            symbols=listed(frame["symbol"].unique()),
        )
    )


@monthly_asset(
    group_name="bars",
    kinds={"parquet"},
    owners=["team:market-data"],
    deps=[market_data],
    check_specs=[BARS_CHECK, MARKET_CHECK],
    freshness_policy=FRESHNESS,
    metadata=column_schema(CLOSED_BAR_SCHEMA),
)
@step
def market_data_parquet(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """Valid revisions of closed bars as one sorted Parquet file per month; bad ones go to quarantine with a reason."""
    months = months_to_read(context, stores.lake.months(MARKET_DATA))
    extracted = stores.lake.read(EXTRACT, months, BAR_SCHEMA).to_pandas()
    reasons = reject_reasons(extracted, stores.timeframe, datetime.now(UTC), REVISION_KEY)
    # A bar that is still forming is not wrong; it comes with a later run.
    wrong = reasons[reasons.notna() & (reasons != "not_closed_yet")]
    rejected = extracted.loc[wrong.index].assign(reason=wrong)
    if len(rejected):
        with stores.database.connection() as connection:
            quarantine(connection, rejected, source="table market_data")
    revisions = closed_revisions(extracted[reasons.isna()], stores.timeframe)
    changed = write_months(context, stores.lake, MARKET_DATA, revisions, CLOSED_BAR_SCHEMA, months)
    seen = months_since_a_year_before(min(context.partition_keys), stores.lake)
    found = lake_attendance(stores.lake, seen, stores.timeframe, stores.calendars, datetime.now(UTC))
    alert_outages(stores, found, context.run.run_id)
    # Of the few months that a backfill reads they would show little, and take longer than the rest.
    pictured = changed_months(context) is None or {*months}.issuperset(stores.lake.months(MARKET_DATA))
    return dg.MaterializeResult(
        metadata=row_metadata(
            len(revisions),
            revisions["time"],
            **changed,
            bars=len(latest_revisions(revisions)),
            still_forming=int((reasons == "not_closed_yet").sum()),
            quarantined=len(rejected),
            reasons=rejected["reason"].value_counts().to_dict(),
        ),
        check_results=[
            check_bars(stores.lake, months, stores.timeframe, pictured=pictured),
            check_market_time(found, window(context.partition_keys)),
        ],
    )
