"""Features: registered, computed, served."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pandas as pd

from mt5_crs_pipeline.adapters.bar_store import months_with_bars
from mt5_crs_pipeline.adapters.feature_parity import StoredMonths, certify, parity_of_lake, parity_of_online_store
from mt5_crs_pipeline.adapters.lake import EXTRACT, TECHNICAL_FEATURES
from mt5_crs_pipeline.adapters.online_store import newest_in_lake
from mt5_crs_pipeline.core.backfill import months_between
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.feature_rows import (
    IS_COMPLETE,
    PIPELINE_FEATURES,
    feature_rows,
    feature_schema,
)
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.defs.assets.bars import market_data_parquet
from mt5_crs_pipeline.defs.checks import FEATURES_CHECK, ONLINE_CHECK, PARITY_CHECK, check_features, check_parity
from mt5_crs_pipeline.defs.metadata import column_schema, listed, row_metadata, write_months
from mt5_crs_pipeline.defs.partitions import MONTHS, monthly_asset, window
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.steps import step


@dg.asset(group_name="features", kinds={"feast", "postgres"}, owners=["team:ml-platform"], deps=[market_data_parquet])
@step
def feast_registry(stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """Feast's registry, made equal to the definitions that the feature module generates."""
    with stores.feast() as feast:
        counts = feast.apply()
    return dg.MaterializeResult(metadata={**counts, "feature set": PIPELINE_FEATURES.feature_set_hash})


@monthly_asset(
    group_name="features",
    kinds={"numba", "parquet"},
    owners=["team:ml-platform"],
    deps=[market_data_parquet, feast_registry],
    check_specs=[FEATURES_CHECK, PARITY_CHECK],
    metadata=column_schema(feature_schema()),
)
@step
def technical_features(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """Features of every bar of the months, one version for every state of the bars they were computed from."""
    months = context.partition_keys
    stored = StoredMonths(stores.lake, months)
    _refuse_a_hole(stores, stored.bars, months)
    rows = feature_rows(stored.bars, stores.timeframe, since=window(months)[0])
    changed = write_months(context, stores.lake, TECHNICAL_FEATURES, rows, feature_schema(), months)
    # From here on the features are read, as they lie on the disk now; once, before two threads ask for them.
    _ = stored.features
    with ThreadPoolExecutor(2) as pool:
        proof, complete = pool.submit(parity_of_lake, stored), pool.submit(check_features, stored)
    parity = proof.result()
    return dg.MaterializeResult(
        metadata=row_metadata(
            len(rows),
            rows[EVENT_TIMESTAMP],
            **changed,
            features=len(PIPELINE_FEATURES.features),
            lookback_bars=PIPELINE_FEATURES.lookback,
            bars=len(rows[["symbol", "time"]].drop_duplicates()),
            warm_up_rows=int((~rows[IS_COMPLETE]).sum()),
        ),
        check_results=[
            complete.result(),
            check_parity(PARITY_CHECK, parity, certify(parity)),
        ],
    )


def _refuse_a_hole(stores: Stores, revisions: pd.DataFrame, months: Sequence[str]) -> None:
    """Raise InputError when features of `months` need the bars of a month that are in the table only.

    `revisions` were read for them. They pass over such a month between their first one and the last of `months`; and
    where a symbol has too few bars before `months`, over any earlier one.
    """
    there = {*months, *stores.lake.months(EXTRACT)}
    earlier = months_between(str(MONTHS.get_first_partition_key()), max(months))
    absent = [month for month in earlier if month not in there]
    if not absent or revisions.empty:
        return
    begins, _ = window(months)
    bars = revisions[["symbol", "time"]].drop_duplicates()
    before = (bars["time"] < begins).groupby(bars["symbol"]).sum()
    short = before.index[before < PIPELINE_FEATURES.lookback - 1].tolist()
    first = f"{bars['time'].min():%Y-%m}"
    holes = []
    with stores.database.connection() as connection:
        for symbols, needed in (
            (before.index.tolist(), [month for month in absent if month > first]),
            (short, [month for month in absent if month < first]),
        ):
            if symbols and needed:
                within = months_with_bars(connection, stores.timeframe, symbols, *window(needed))
                holes += [month for month in within if month in needed]
    if holes:
        named = " to ".join(sorted({min(holes), max(holes)}))
        raise InputError(
            f"features of {max(months)} need the bars of {named}, which are in market_data and not in the lake:"
            f" materialize {min(holes)} to {max(months)} in one run, or let all begin later with MT5_CRS_START"
        )


@monthly_asset(
    group_name="features",
    kinds={"feast", "postgres"},
    owners=["team:ml-platform"],
    deps=[technical_features],
    check_specs=[ONLINE_CHECK],
)
@step
def feast_online_store(context: dg.AssetExecutionContext, stores: dg.ResourceParam[Stores]) -> dg.MaterializeResult:
    """Newest feature row of every symbol that has bars in these months, online unless it or a newer one is there."""
    months = context.partition_keys
    with stores.feast() as feast:
        # Read inside the writer's lock, so that no row read before a correction replaces it.
        online = feast.write_online(lambda: newest_in_lake(stores.lake, months))
        parity = parity_of_online_store(feast, stores.lake, months, online.left_alone)
    return dg.MaterializeResult(
        metadata=row_metadata(
            len(online.written),
            pd.Series(online.written),
            left_alone=len(online.left_alone),
            newest=listed(f"{symbol} {time.isoformat()}" for symbol, time in online.written.items()),
        ),
        check_results=[check_parity(ONLINE_CHECK, parity, certify(parity))],
    )
