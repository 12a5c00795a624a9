"""Parquet sources: a file, a folder of files, a pattern; what is written is whole or not there at all."""

import contextlib
import glob
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast.errors import DataSourceNotFoundException, SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from mt5_crs_pipeline.adapters.files import commit_file
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.errors import InputError

# What a column of nanoseconds can say; seconds to microseconds reach beyond the years of Python.
_NANOSECONDS = (datetime(1677, 9, 22, tzinfo=UTC), datetime(2262, 4, 11, tzinfo=UTC))


def dataset_of(config: RepoConfig, source: FileSource) -> ds.Dataset:
    """Return the files of `source`; raise DataSourceNotFoundException when there are none."""
    filesystem, path = _place(config, source)
    paths: str | list[str] = path
    base = None
    if filesystem is None and not Path(path).exists():
        found = glob.glob(path, recursive=True)  # noqa: PTH207, a pattern may hold folders
        paths = sorted(name for name in found if Path(name).is_file())
        base = next(str(parent) for parent in Path(path).parents if not glob.has_magic(str(parent)))
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    try:
        dataset = ds.dataset(
            paths,
            filesystem=filesystem,
            format=ds.ParquetFileFormat(default_fragment_scan_options=options),
            partitioning="hive",
            partition_base_dir=base,
        )
    except FileNotFoundError as error:
        raise DataSourceNotFoundException(path) from error
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {_one_line(error)}") from error
    if not dataset.files:
        raise DataSourceNotFoundException(path)
    return dataset


def read_files(
    dataset: ds.Dataset,
    columns: Sequence[str],
    time_column: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> pa.Table:
    """Return `columns` of the rows in the window, which is compared in the unit of the time column."""
    try:
        if len(dataset.files) > 1:
            fragments = list(dataset.get_fragments())
            schema = _common_schema(dataset.schema, fragments, columns)
            dataset = ds.FileSystemDataset(fragments, schema, dataset.format, dataset.filesystem)
        window = None
        if time_column is not None:
            window = _window(time_column, dataset.schema.field(time_column).type, start, end)
        if window is not None:
            # A filter copies what it lets through: twice the time where statistics say that it is everything.
            outside = ~window | ds.field(time_column).is_null()
            if not any(part.split_by_row_group(outside) for part in dataset.get_fragments()):
                window = None
        return dataset.to_table(columns=list(columns), filter=window)
    except (OSError, pa.ArrowException) as error:
        beside = " or a file beside it" if len(dataset.files) > 1 else ""
        raise InputError(f"{dataset.files[0]}{beside} cannot be read: {_one_line(error)}") from error


def append_to_files(config: RepoConfig, source: FileSource, table: pa.Table) -> None:
    """Add `table` to a file, which is replaced, or as new files to a folder; raise InputError for a pattern."""
    filesystem, path = _place(config, source)
    dataset = dataset_of(config, source)
    table = in_types_of(dataset.schema, table)
    if filesystem is not None or Path(path).is_dir():
        folders = {key for part in dataset.get_fragments() for key in ds.get_partition_keys(part.partition_expression)}
        _add_files(table, path, filesystem, [name for name in dataset.schema.names if name in folders])
    elif Path(path).is_file():
        together = pa.concat_tables([read_files(dataset, table.column_names), table])
        commit_file(Path(path), lambda file: pq.write_table(together, file, write_page_checksum=True))
    else:
        raise InputError(f"source {path} is a pattern: nothing can be written into it")


def in_types_of(schema: pa.Schema, table: pa.Table) -> pa.Table:
    """Return the columns of `schema` in its types; raise InputError for a value that would change."""
    columns = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            said = _one_line(error)
            raise InputError(
                f"column {field.name} is stored as {field.type}, {table[field.name].type}: {said}"
            ) from error
    return pa.table(columns, schema=schema)


def add_files(config: RepoConfig, source: FileSource, table: pa.Table, partition_by: Sequence[str]) -> None:
    """Add `table` as new files below the source, in folders by its `partition_by` columns."""
    filesystem, path = _place(config, source)
    _add_files(table, path, filesystem, partition_by)


def save_to_files(config: RepoConfig, source: FileSource, table: pa.Table, *, allow_overwrite: bool) -> None:
    """Make `table` the whole content of the source; raise SavedDatasetLocationAlreadyExists unless that is allowed."""
    filesystem, path = _place(config, source)
    if filesystem is None and Path(path).exists() and not allow_overwrite:
        raise SavedDatasetLocationAlreadyExists(location=path)
    if filesystem is not None and path.endswith(".parquet"):
        pq.write_table(table, path, filesystem=filesystem)
    elif filesystem is not None:
        pq.write_to_dataset(table, path, filesystem=filesystem, existing_data_behavior="delete_matching")
    elif path.endswith(".parquet"):
        commit_file(Path(path), lambda file: pq.write_table(table, file, write_page_checksum=True))
    else:
        replaced = list(Path(path).rglob("*.parquet"))
        _add_files(table, path, None, [])
        for file in replaced:
            file.unlink()


def _place(config: RepoConfig, source: FileSource) -> tuple[Any, str]:
    """Return pyarrow's file system (None: the local one) and the path in it."""
    if source.path.startswith("file://"):
        return None, url2pathname(urlsplit(source.path).path)
    uri = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    credentials = source.resolve_credentials() if uri.startswith("s3://") else None
    filesystem, path = FileSource.create_filesystem_and_path(uri, source.s3_endpoint_override, credentials)
    return filesystem, path


def _window(
    time_column: str, time_type: pa.DataType, start: datetime | None, end: datetime | None
) -> pc.Expression | None:
    """Return the window in the column's own unit, so that row groups can be skipped by their statistics."""
    if not pa.types.is_timestamp(time_type):
        return None
    window = None
    for compare, instant in ((pc.greater_equal, start), (pc.less_equal, end)):
        if instant is None or (time_type.unit == "ns" and not _NANOSECONDS[0] < instant < _NANOSECONDS[1]):
            continue
        bound = pa.array([instant], TIMESTAMP)
        bound = bound if time_type.tz else bound.cast(pa.timestamp("us"))
        side = compare(ds.field(time_column), bound.cast(time_type, safe=False)[0])
        window = side if window is None else window & side
    return window


def _common_schema(schema: pa.Schema, fragments: list[ds.Fragment], columns: Sequence[str]) -> pa.Schema:
    """Return the schema in which `columns` hold what every file has: one may have whole numbers, or no value at all."""
    for fragment in fragments:
        given = {*fragment.physical_schema.names, *ds.get_partition_keys(fragment.partition_expression)}
        absent = set(columns) - given
        if absent:
            # Arrow would fill in nulls without a word.
            raise InputError(f"{fragment.path} has no column {', '.join(sorted(absent))}, other files of it have")
    for name in columns:
        at = schema.get_field_index(name)
        found = [fragment.physical_schema for fragment in fragments if name in fragment.physical_schema.names]
        if all(one.field(name).type == schema.field(at).type for one in found):
            continue
        schemas = [pa.schema([schema.field(at)]), *(pa.schema([one.field(name)]) for one in found)]
        # Without a common type the reader casts to the first file's, or says that it cannot.
        with contextlib.suppress(pa.ArrowTypeError):
            schema = schema.set(at, pa.unify_schemas(schemas, promote_options="permissive").field(0))
    return schema


def _add_files(table: pa.Table, folder: str, filesystem: Any, partition_by: Sequence[str]) -> None:
    """Add `table` as new files, in folders by its `partition_by` columns; a local one is seen when it is whole."""
    options = {"partition_cols": list(partition_by), "basename_template": f"{uuid.uuid4().hex}-{{i}}.parquet"}
    if filesystem is not None:
        pq.write_to_dataset(table, folder, filesystem=filesystem, **options)
        return
    with tempfile.TemporaryDirectory() as staging:
        pq.write_to_dataset(table, staging, write_page_checksum=True, **options)
        for file in Path(staging).rglob("*.parquet"):
            with file.open("rb") as whole:
                commit_file(Path(folder, file.relative_to(staging)), partial(shutil.copyfileobj, whole))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
