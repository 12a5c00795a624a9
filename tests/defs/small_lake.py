"""One year of real daily bars of two symbols in a database, and runs of single assets on an ephemeral instance."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd
import psycopg2

from mt5_crs_pipeline.adapters.bar_store import ingest
from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.core.bars import BAR_COLUMNS
from mt5_crs_pipeline.defs.partitions import changed_tag, range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings

SYMBOLS = ("AAPL", "IBM")
FIRST, LAST = "2012-01", "2012-12"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def year_of_bars() -> pd.DataFrame:
    bars = demo_bars()
    inside = bars["time"].dt.year == 2012
    return bars[bars["symbol"].isin(SYMBOLS) & inside].reset_index(drop=True)[list(BAR_COLUMNS)]


def store(settings: Settings, bars: pd.DataFrame) -> dict[str, int]:
    with Stores(settings).database.url() as url:
        return ingest(url, bars, "D1", "test", NOW).to_dict()


def execute(settings: Settings, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Run SQL as any program of a user's own would."""
    connection = psycopg2.connect(settings.database_url.get_secret_value())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def materialize(
    stores: Stores,
    assets: Sequence[dg.AssetsDefinition],
    first: str = FIRST,
    last: str = LAST,
    *,
    succeeds: bool = True,
    as_of: str | None = None,
    changed: Sequence[str] | None = None,
) -> dg.ExecuteInProcessResult:
    """Run `assets` over the months as one run, on an instance that is forgotten afterwards.

    `changed` are those in which bars did, where that is known.
    """
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            assets,
            instance=instance,
            resources={"stores": stores},
            tags=range_tags(first, last) | ({} if changed is None else changed_tag(changed)),
            run_config={"ops": {"training_set": {"config": {"as_of": as_of}}}} if as_of is not None else None,
            raise_on_error=succeeds,
        )
    assert result.success == succeeds
    return result


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """What an asset told the UI in that run: the values by name."""
    events = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in events[-1].metadata.items()}
