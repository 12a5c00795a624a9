"""Feast data sources as Arrow tables: Parquet files and folders of them, PostgreSQL tables and queries."""

from collections.abc import Sequence
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import FeastOfflineStoreUnsupportedDataSource
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.repo_config import RepoConfig

from mt5_crs_pipeline.adapters.asof_files import (
    add_files,
    append_to_files,
    dataset_of,
    read_files,
    save_to_files,
)
from mt5_crs_pipeline.adapters.asof_postgres import (
    append_to_postgres,
    postgres_columns,
    read_postgres,
    save_to_postgres,
)
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.errors import InputError


def source_columns(config: RepoConfig, source: DataSource) -> list[str]:
    """Return the column names of `source`; raise DataSourceNotFoundException when there is no such file or table."""
    if _is_file(source):
        return list(dataset_of(config, source).schema.names)
    return postgres_columns(config, source)


def read_source(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    time_column: str,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pa.Table:
    """Return `columns` of the rows whose `time_column` lies in [start, end], both included; None leaves a side open.

    Window and columns are handed to the file reader or the server. A naive time counts as UTC, and a row without a
    time is in no window.
    """
    if _is_file(source):
        table = read_files(dataset_of(config, source), columns, time_column, start, end)
    else:
        table = read_postgres(config, source, columns, time_column, start, end)
    return _inside(table, time_column, start, end)


def as_utc(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return column `name` (timestamps, dates or text as in ISO 8601) in microseconds UTC; naive ones are UTC already.

    Raises InputError for what is no time.
    """
    times = table[name]
    if pa.types.is_timestamp(times.type) and times.type.tz:
        return times.cast(TIMESTAMP, safe=False)
    if pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
        # Through a naive timestamp: dates have no direct way to an aware one.
        return times.cast(pa.timestamp("us"), safe=False).cast(TIMESTAMP)
    if not (pa.types.is_string(times.type) or pa.types.is_large_string(times.type)):
        raise InputError(f"column {name!r} is of type {times.type}: timestamps are needed")
    text = times.to_pandas()
    parsed = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
    wrong = text[parsed.isna() & text.notna()]
    if len(wrong):
        raise InputError(f"column {name!r} holds {wrong.iloc[0]!r}, which is no time: write 2024-03-01T10:00:00+00:00")
    return pa.chunked_array([pa.array(parsed.dt.as_unit("us"), TIMESTAMP)])


def append_rows(config: RepoConfig, source: DataSource, table: pa.Table) -> None:
    """Add `table`, which has the source's columns, to its rows in their types: whole or not at all.

    Raises InputError for values that do not fit, and where nothing can be added: to a query, to a pattern of files.
    """
    append = append_to_files if _is_file(source) else append_to_postgres
    append(config, source, table)


def append_log(config: RepoConfig, destination: FileLoggingDestination, table: pa.Table) -> None:
    """Add `table` as new files below the destination, in folders by its `partition_by` columns."""
    add_files(config, destination.to_data_source(), table, destination.partition_by or [])


def write_saved_dataset(config: RepoConfig, source: DataSource, table: pa.Table, *, allow_overwrite: bool) -> None:
    """Make `table` the whole content of `source`; raise SavedDatasetLocationAlreadyExists unless that is allowed."""
    save = save_to_files if _is_file(source) else save_to_postgres
    save(config, source, table, allow_overwrite=allow_overwrite)


def _is_file(source: DataSource) -> bool:
    if isinstance(source, FileSource):
        if source.file_format is None or isinstance(source.file_format, ParquetFormat):
            return True
    elif type(source).__name__ == "PostgreSQLSource":
        return False
    raise FeastOfflineStoreUnsupportedDataSource("AsofOfflineStore", f"{type(source).__name__} {source.name}")


def _inside(table: pa.Table, time_column: str, start: datetime | None, end: datetime | None) -> pa.Table:
    """Return the rows inside the window exactly: a reader may have compared in a coarser unit, or not at all."""
    if start is None and end is None:
        return table
    times = as_utc(table, time_column)
    least, most = (pc.min_max(times)[name].value for name in ("min", "max"))
    low, high = (None if bound is None else pa.scalar(bound, TIMESTAMP) for bound in (start, end))
    within = times.null_count == 0 and least is not None
    if within and (low is None or least >= low.value) and (high is None or most <= high.value):
        return table
    inside = pc.is_valid(times)
    if low is not None:
        inside = pc.and_(inside, pc.greater_equal(times, low))
    if high is not None:
        inside = pc.and_(inside, pc.less_equal(times, high))
    return table.filter(inside)
