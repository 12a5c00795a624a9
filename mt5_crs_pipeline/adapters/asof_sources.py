"""Feast data sources as Arrow tables: Parquet files and folders of them, PostgreSQL tables and queries."""

import contextlib
import glob
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.errors import (
    DataSourceNotFoundException,
    FeastOfflineStoreUnsupportedDataSource,
    SavedDatasetLocationAlreadyExists,
)
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.repo_config import RepoConfig

from mt5_crs_pipeline.adapters.files import commit_file
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.errors import DatabaseUnavailableError, InputError


def source_columns(config: RepoConfig, source: DataSource) -> list[str]:
    """Return the column names of `source`; raise DataSourceNotFoundException when there is no such file or table."""
    return list((_dataset(config, source).schema if _is_file(source) else _postgres_schema(config, source)).names)


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
        table = _read_files(_dataset(config, source), columns, time_column, start, end)
    else:
        table = _read_postgres(config, source, columns, time_column, start, end)
    return _inside(table, time_column, start, end)


def as_utc(times: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return `times` (timestamps, dates or text) in microseconds UTC; naive ones are UTC already."""
    if pa.types.is_timestamp(times.type) and times.type.tz:
        return times.cast(TIMESTAMP, safe=False)
    if pa.types.is_timestamp(times.type) or pa.types.is_date(times.type):
        # Through a naive timestamp: dates have no direct way to an aware one.
        return times.cast(pa.timestamp("us"), safe=False).cast(TIMESTAMP)
    if pa.types.is_string(times.type) or pa.types.is_large_string(times.type):
        import pandas as pd

        return pa.array(pd.to_datetime(times.to_pandas(), utc=True).dt.as_unit("us"), TIMESTAMP)
    raise InputError(f"times are of type {times.type}: timestamps are needed")


def append_rows(config: RepoConfig, source: DataSource, table: pa.Table) -> None:
    """Add `table`, which has the source's columns, to its rows; a file is replaced whole or not at all."""
    if not _is_file(source):
        with _postgres(config) as connection, connection.cursor() as cursor:
            schema, name = _schema_and_name(config, source)
            cursor.adbc_ingest(name, table, mode="append", db_schema_name=schema)
            connection.commit()
        return
    filesystem, path = _place(config, source)
    if filesystem is not None or Path(path).is_dir():
        pq.write_to_dataset(table, path, filesystem=filesystem, basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet")
        return
    stored = _dataset(config, source).to_table()
    together = pa.concat_tables([stored, table.select(stored.column_names).cast(stored.schema)])
    commit_file(Path(path), lambda file: pq.write_table(together, file, write_page_checksum=True))


def append_log(config: RepoConfig, destination: FileLoggingDestination, table: pa.Table) -> None:
    """Add `table` as new files below the destination, in folders by its `partition_by` columns."""
    filesystem, path = _place(config, destination.to_data_source())
    pq.write_to_dataset(
        table,
        path,
        partition_cols=destination.partition_by or None,
        filesystem=filesystem,
        basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
    )


def write_saved_dataset(config: RepoConfig, source: DataSource, table: pa.Table, *, allow_overwrite: bool) -> None:
    """Make `table` the whole content of `source`; raise SavedDatasetLocationAlreadyExists unless that is allowed."""
    if not _is_file(source):
        schema, name = _schema_and_name(config, source)
        with _postgres(config) as connection, connection.cursor() as cursor:
            cursor.execute("select to_regclass($1) is not null", (_table(source),))
            if cursor.fetchone()[0] and not allow_overwrite:
                raise SavedDatasetLocationAlreadyExists(location=_table(source))
            cursor.adbc_ingest(name, table, mode="replace", db_schema_name=schema)
            connection.commit()
        return
    filesystem, path = _place(config, source)
    if filesystem is None and Path(path).exists() and not allow_overwrite:
        raise SavedDatasetLocationAlreadyExists(location=path)
    if filesystem is None and path.endswith(".parquet"):
        commit_file(Path(path), lambda file: pq.write_table(table, file, write_page_checksum=True))
    elif path.endswith(".parquet"):
        pq.write_table(table, path, filesystem=filesystem)
    else:
        pq.write_to_dataset(table, path, filesystem=filesystem, existing_data_behavior="delete_matching")


def query_postgres(config: RepoConfig, query: str) -> pa.Table:
    """Return the rows of a query of the user's own."""
    with _postgres(config) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return _plain(cursor.fetch_arrow_table())


def _is_file(source: DataSource) -> bool:
    if isinstance(source, FileSource):
        if source.file_format is None or isinstance(source.file_format, ParquetFormat):
            return True
    elif type(source).__name__ == "PostgreSQLSource":
        return False
    raise FeastOfflineStoreUnsupportedDataSource("AsofOfflineStore", f"{type(source).__name__} {source.name}")


def _place(config: RepoConfig, source: FileSource) -> tuple[Any, str]:
    """Return pyarrow's file system (None: the local one) and the path in it."""
    uri = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    credentials = source.resolve_credentials() if uri.startswith("s3://") else None
    filesystem, path = FileSource.create_filesystem_and_path(uri, source.s3_endpoint_override, credentials)
    if filesystem is None and path.startswith("file://"):
        path = path.removeprefix("file://")
    return filesystem, path


def _dataset(config: RepoConfig, source: FileSource) -> ds.Dataset:
    filesystem, path = _place(config, source)
    paths: str | list[str] = path
    if filesystem is None and glob.has_magic(path):
        paths = sorted(glob.glob(path, recursive=True))  # noqa: PTH207, a pattern may hold folders
    if not paths or (isinstance(paths, str) and filesystem is None and not Path(path).exists()):
        raise DataSourceNotFoundException(path)
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    try:
        return ds.dataset(
            paths,
            filesystem=filesystem,
            format=ds.ParquetFileFormat(default_fragment_scan_options=options),
            partitioning="hive" if isinstance(paths, str) else None,
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} cannot be read as Parquet: {_one_line(error)}") from error


def _read_files(
    dataset: ds.Dataset, columns: Sequence[str], time_column: str, start: datetime | None, end: datetime | None
) -> pa.Table:
    time_type = dataset.schema.field(time_column).type
    window = None
    if pa.types.is_timestamp(time_type):
        bounds = [(pc.greater_equal, start)] if start else []
        bounds += [(pc.less_equal, end)] if end else []
        for compare, instant in bounds:
            # In the column's own unit, so that row groups can be skipped by their statistics.
            bound = as_utc(pa.array([instant], TIMESTAMP))
            bound = bound if time_type.tz else bound.cast(pa.timestamp("us"))
            side = compare(ds.field(time_column), bound.cast(time_type, safe=False)[0])
            window = side if window is None else window & side
    absent = set(columns) - set(dataset.schema.names)
    for fragment in dataset.get_fragments() if len(dataset.files) > 1 else ():
        given = {*fragment.physical_schema.names, *ds.get_partition_keys(fragment.partition_expression)}
        absent = set(columns) - given
        if absent:
            # Arrow would fill in nulls without a word.
            raise InputError(f"{fragment.path} has no column {', '.join(sorted(absent))}, other files of it have")
    try:
        return dataset.to_table(columns=list(columns), filter=window)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{dataset.files[0]} or a file beside it cannot be read: {_one_line(error)}") from error


def _inside(table: pa.Table, time_column: str, start: datetime | None, end: datetime | None) -> pa.Table:
    """Return the rows inside the window exactly: a reader may have compared in a coarser unit, or not at all."""
    if start is None and end is None:
        return table
    times = as_utc(table[time_column])
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


@contextlib.contextmanager
def _postgres(config: RepoConfig) -> Iterator[Any]:
    """Yield an ADBC connection in UTC; what the server says comes as one line without the password."""
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi
    from psycopg.conninfo import make_conninfo

    store = config.offline_store
    if not store.host:
        raise InputError("a PostgreSQL source needs host, database, user and password below offline_store")
    where = f"PostgreSQL at {store.user}@{store.host}:{store.port}/{store.database}"
    conninfo = make_conninfo(
        host=store.host,
        port=store.port,
        dbname=store.database,
        user=store.user,
        password=store.password or None,
        sslmode=store.sslmode,
        sslkey=store.sslkey_path,
        sslcert=store.sslcert_path,
        sslrootcert=store.sslrootcert_path,
        options=f"-c search_path={store.db_schema},public -c timezone=UTC",
        connect_timeout=10,
    )
    try:
        with adbc_driver_postgresql.dbapi.connect(conninfo) as connection:
            yield connection
    except adbc_driver_manager.OperationalError as error:
        raise DatabaseUnavailableError(f"{where} did not answer: {_one_line(error)}") from error
    except adbc_driver_manager.Error as error:
        raise InputError(f"{where} refused: {_one_line(error)}") from error


def _table(source: DataSource) -> str:
    name: str = source._postgres_options._table
    if not name:
        raise InputError(f"source {source.name!r} is a query: nothing can be written into it")
    return name


def _schema_and_name(config: RepoConfig, source: DataSource) -> tuple[str, str]:
    *schema, name = _table(source).replace('"', "").split(".")
    return schema[0] if schema else config.offline_store.db_schema, name


def _relation(cursor: Any, source: DataSource) -> str:
    """Return the source as it stands after FROM: the server quotes a table's name, a query is the user's own text."""
    query: str = source._postgres_options._query
    if query:
        return f"({query.strip().rstrip(';')}) as source"
    cursor.execute("select to_regclass($1)::text", (_table(source),))
    name = cursor.fetchone()[0]
    if name is None:
        raise DataSourceNotFoundException(_table(source))
    return str(name)


def _postgres_schema(config: RepoConfig, source: DataSource) -> pa.Schema:
    with _postgres(config) as connection, connection.cursor() as cursor:
        cursor.execute(f"select * from {_relation(cursor, source)} limit 0")  # noqa: S608, quoted by the server
        return cursor.fetch_arrow_table().schema


def _read_postgres(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    time_column: str,
    start: datetime | None,
    end: datetime | None,
) -> pa.Table:
    from psycopg.sql import SQL, Identifier

    bounds = [(operator, bound) for operator, bound in ((">=", start), ("<=", end)) if bound is not None]
    conditions = [
        SQL("{} {} ${}").format(Identifier(time_column), SQL(operator), SQL(str(number)))
        for number, (operator, _) in enumerate(bounds, start=1)
    ]
    with _postgres(config) as connection, connection.cursor() as cursor:
        query = SQL("select {columns} from {relation} where {conditions}").format(
            columns=SQL(", ").join(map(Identifier, columns)),
            relation=SQL(_relation(cursor, source)),
            conditions=SQL(" and ").join(conditions) if conditions else SQL("true"),
        )
        cursor.execute(query.as_string(None), tuple(bound.astimezone(UTC) for _, bound in bounds) or None)
        return _plain(cursor.fetch_arrow_table())


def _plain(table: pa.Table) -> pa.Table:
    """Return numerics as doubles and other types that only PostgreSQL knows as what they are sent as."""
    for at, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            stored = pa.chunked_array([chunk.storage for chunk in table[at].chunks], field.type.storage_type)
            is_numeric = (field.metadata or {}).get(b"POSTGRESQL:type") == b"numeric"
            table = table.set_column(at, field.name, stored.cast(pa.float64()) if is_numeric else stored)
    return table.replace_schema_metadata()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
