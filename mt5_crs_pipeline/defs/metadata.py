"""What every asset tells the Dagster UI: rows, window, columns, pictures."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.lake import Lake
from mt5_crs_pipeline.adapters.pictures import as_markdown
from mt5_crs_pipeline.core.bars import month_of
from mt5_crs_pipeline.core.features.engine import NO_ROWS, core_count

# Of a thousand symbols every month's event would say a thousand names.
MOST_LISTED: Final = 50


def column_schema(schema: pa.Schema) -> dict[str, dg.TableSchema]:
    """Return the columns of an asset as definition metadata."""
    columns = [
        dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
        for field in schema
    ]
    return {"dagster/column_schema": dg.TableSchema(columns)}


def row_metadata(rows: int, times: pd.Series, **more: Any) -> dict[str, Any]:
    """Return row count and the first and last of `times` (event or bar times, UTC)."""
    return {
        "dagster/row_count": rows,
        "first": times.min().isoformat() if rows else "none",
        "last": times.max().isoformat() if rows else "none",
        **more,
    }


def write_months(
    context: dg.AssetExecutionContext,
    lake: Lake,
    stage: str,
    rows: pd.DataFrame,
    schema: pa.Schema,
    months: Sequence[str],
) -> dict[str, int]:
    """Make `rows` the content of `months` by the month of their `time`; return what that changed, as metadata.

    Each month's partition is told its own row count.
    """
    places = rows.groupby(month_of(rows["time"]), sort=False).indices

    def write(month: str) -> tuple[int, int, bool]:
        part = rows.take(np.asarray(places.get(month, NO_ROWS)))
        table = pa.Table.from_pandas(part, schema=schema, preserve_index=False, nthreads=1).replace_schema_metadata()
        before = lake.row_count(stage, month)
        return len(part), before, lake.write(stage, month, table)

    changed = added = 0
    # Parquet is made outside Python's lock, and as often as it is made it waits for the disk.
    with ThreadPoolExecutor(2 * core_count()) as pool:
        for month, (count, before, is_other) in zip(months, pool.map(write, months), strict=True):
            changed += is_other
            added += count - before if is_other else 0
            context.add_asset_metadata({"dagster/partition_row_count": count}, partition_key=month)
    return {"files_changed": changed, "rows_added": added}


def listed(names: Iterable[str]) -> list[str]:
    """Return the first of `names`, sorted, and how many more there are."""
    every = sorted(names)
    more = len(every) - MOST_LISTED
    return [*every[:MOST_LISTED], f"and {more:,} more"] if more > 0 else every


def picture(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Return a PNG as metadata that the UI shows in place."""
    return dg.MetadataValue.md(as_markdown(png, title))
