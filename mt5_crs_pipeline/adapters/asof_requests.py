"""What Feast asks of the as-of store, in terms of Arrow tables: the rows of a source, and one view's features."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_source import DataSource
from feast.errors import (
    EntityDFNotDateTime,
    FeastEntityDFMissingColumnsError,
    FeastJoinKeysDuringMaterialization,
    InvalidEntityType,
    SpecifiedFeaturesNotPresentError,
)
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.repo_config import RepoConfig
from feast.types import Float32, Float64, Int32, Int64

from mt5_crs_pipeline.adapters.asof_join import EVENT, KNOWN, RECORDED, newest, newest_known
from mt5_crs_pipeline.adapters.asof_postgres import query_postgres
from mt5_crs_pipeline.adapters.asof_sources import as_utc, read_source, source_columns
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP

Window = tuple[datetime | None, datetime | None]

_NUMBERS = (Float32, Float64, Int32, Int64)
_EXACT_IN_DOUBLES = 2**53
# Nanoseconds since 1970 begin in 1677.
_BEFORE_ALL_DATA = datetime(1700, 1, 1, tzinfo=UTC)
_FIRST_YEAR = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class SourceColumns:
    """The columns to read from a source, by their names there; no values means all there is."""

    keys: list[str]
    values: list[str]
    time: str
    created: str | None

    def read(self, config: RepoConfig, source: DataSource, window: Window, as_of: datetime | None) -> "SourceRows":
        """Return the rows with an event in the window, both ends included, that were there at `as_of`.

        Raises FeastJoinKeysDuringMaterialization for a key or time column that the source lacks, and
        SpecifiedFeaturesNotPresentError for another.
        """
        there = source_columns(config, source)
        needed = [*self.keys, self.time, *([self.created] if self.created else [])]
        if not set(needed) <= set(there):
            raise FeastJoinKeysDuringMaterialization(source.name, set(needed), set(there))
        absent = [name for name in self.values if name not in there]
        if absent:
            raise SpecifiedFeaturesNotPresentError(absent, there, source.name)
        wanted = list(dict.fromkeys([*self.keys, *self.values, *needed])) if self.values else there
        configured = config.offline_store.recorded_timestamp_column
        recorded = configured if configured in there else None
        read = wanted if recorded is None or recorded in wanted else [*wanted, recorded]
        start, end = (bound if bound is None or bound.tzinfo else bound.replace(tzinfo=UTC) for bound in window)
        table = read_source(config, source, read, self.time, start, end)
        written = recorded or self.created
        if as_of is not None and written is not None:
            table = table.filter(pc.less_equal(as_utc(table, written), pa.scalar(as_of, TIMESTAMP)))
        return SourceRows(table, self, wanted, recorded)


@dataclass(frozen=True)
class SourceRows:
    """Rows of a source, of which several may tell of the same key and event."""

    _table: pa.Table
    _columns: SourceColumns
    _wanted: list[str]
    recorded: str | None
    """The column that says when a row was written, where the source has it."""

    @property
    def table(self) -> pa.Table:
        """All rows, with the columns that were asked for."""
        return self._table.select(self._wanted)

    def newest(self) -> pa.Table:
        """Return the newest row of every key, in the order of the source."""
        keys = {f"key{number}": _series(self._table[name]) for number, name in enumerate(self._columns.keys)}
        return self.table.take(pa.array(newest(pl.DataFrame({**keys, **self.times()}), list(keys))))

    def times(self) -> dict[str, pl.Series]:
        """Return event and, where there are such columns, known and recorded, in microseconds since 1970."""
        columns = {EVENT: self._columns.time, KNOWN: self._columns.created, RECORDED: self.recorded}
        return {name: _ticks(as_utc(self._table, column)) for name, column in columns.items() if column}


class ViewRequest:
    """What one feature view is asked for."""

    def __init__(self, view: FeatureView, feature_refs: list[str], full_feature_names: bool) -> None:
        self._view = view
        self._source = source_of(view)
        in_source = {new: old for old, new in self._source.field_mapping.items()}
        names = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
        renamed = view.projection.join_key_map
        join_keys = {name: renamed.get(name, name) for name in names}
        prefix = f"{view.projection.name_to_use()}:"
        asked = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
        full = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
        self.entity_columns = list(join_keys.values())
        created = self._source.created_timestamp_column
        self.features = {f"{full}{name}": in_source.get(name, name) for name in asked}
        """Name in the answer -> column of the source."""
        self._columns = SourceColumns(
            keys=[in_source.get(name, name) for name in join_keys],
            values=list(dict.fromkeys(self.features.values())),
            time=in_source.get(self._source.timestamp_field, self._source.timestamp_field),
            created=in_source.get(created, created) or None,
        )

    def events(self, config: RepoConfig, window: Window, as_of: datetime | None) -> pl.DataFrame:
        """Return event_timestamp and the keys of every row in the window, under the entity rows' names."""
        table = self._columns.read(config, self._source, window, as_of).table
        keys = zip(self.entity_columns, self._columns.keys, strict=True)
        return pl.DataFrame(
            {
                EVENT_TIMESTAMP: _series(as_utc(table, self._columns.time)),
                **{entity: _series(table[column]) for entity, column in sorted(keys)},
            }
        )

    def features_of(
        self,
        config: RepoConfig,
        entities: pa.Table,
        times: pa.ChunkedArray,
        start: datetime | None,
        as_of: datetime | None,
        *,
        live: bool,
    ) -> dict[str, pa.ChunkedArray]:
        """Return the features as they were at `times`, one per entity row, null where there were none.

        Rows with events before `start` do not count; `live` and `as_of` as the store's settings say.
        """
        ttl = self._view.ttl or None
        span = pc.min_max(times)
        first, last = (span[name].as_py() or _BEFORE_ALL_DATA for name in ("min", "max"))
        if start is None and ttl and ttl < first - _FIRST_YEAR:
            start = first - ttl
        rows = self._columns.read(config, self._source, (start, last), as_of)
        self._refuse_wrong_types(rows.table)
        pairs = {
            f"key{number}": _alike(rows.table[column], entities[entity], entity)
            for number, (column, entity) in enumerate(zip(self._columns.keys, self.entity_columns, strict=True))
        }
        positions = newest_known(
            pl.DataFrame({**{key: asked for key, (_, asked) in pairs.items()}, "time": _ticks(times)}),
            pl.DataFrame({**{key: stored for key, (stored, _) in pairs.items()}, **rows.times()}),
            list(pairs),
            ttl // timedelta(microseconds=1) if ttl else None,
            # Where nothing says when a row was recorded, `as_of` has taken the place of the entity row's time.
            live=live and (as_of is None or rows.recorded is not None),
        )
        return _values_at(rows.table, self.features, positions)

    def _refuse_wrong_types(self, table: pa.Table) -> None:
        declared = {field.name: field.dtype for field in self._view.features}
        for column in self.features.values():
            dtype, found = declared.get(self._source.field_mapping.get(column, column)), table[column].type
            found = found.value_type if pa.types.is_dictionary(found) else found
            if dtype in _NUMBERS and (pa.types.is_string(found) or pa.types.is_large_string(found)):
                raise InputError(
                    f"feature view {self._view.name!r} declares {column} as {dtype}, its source holds {found}:"
                    " correct the schema or the data"
                )


def source_of(view: FeatureView) -> DataSource:
    """Return the view's batch source; raise ValueError when it has none."""
    if view.batch_source is None:
        raise ValueError(f"feature view {view.name!r} has no batch source")
    return view.batch_source


def with_a_key(table: pa.Table, columns: SourceColumns) -> pa.Table:
    """Return `table`, with the constant that Feast materializes a view without entities under where it has no key."""
    if columns.keys:
        return table
    return table.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * len(table), pa.string()))


def entity_rows(config: RepoConfig, entity_df: pd.DataFrame | str) -> tuple[pa.Table, str]:
    """Return the rows of a frame or a PostgreSQL query, and the name of their time column.

    Raises EntityTimestampInferenceException without such a column, EntityDFNotDateTime when it holds no times.
    """
    if isinstance(entity_df, str):
        table = query_postgres(config, entity_df)
        dtypes = table.schema.empty_table().to_pandas().dtypes
    elif not isinstance(entity_df, pd.DataFrame):
        raise InvalidEntityType(type(entity_df))
    elif not entity_df.columns.is_unique:
        twice = entity_df.columns[entity_df.columns.duplicated()][0]
        raise InputError(f"the entity frame has two columns {twice!r}: rename or drop one")
    else:
        dtypes = entity_df.dtypes
        try:
            table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"the entity frame holds values of mixed types: {error.args[-1]}") from error
    time_column = infer_event_timestamp_from_entity_df(dict(dtypes.items()))
    try:
        times = as_utc(table, time_column)
    except InputError as error:
        raise EntityDFNotDateTime from error
    if not pa.types.is_temporal(table[time_column].type):
        table = table.set_column(table.column_names.index(time_column), time_column, times)
    return table, time_column


def events_between(
    config: RepoConfig, requests: list[ViewRequest], window: tuple[datetime, datetime], as_of: datetime | None
) -> pa.Table:
    """Return every key and event time of the views in the window once, by time: the entity rows of a date range."""
    if len({tuple(sorted(request.entity_columns)) for request in requests}) > 1:
        raise InputError("a date range asks views of different entities at once: ask one after the other")
    frames = [request.events(config, window, as_of) for request in requests]
    # A row without a key is nobody's.
    spine = pl.concat(frames, how="vertical_relaxed").drop_nulls().unique()
    return spine.sort(spine.columns).to_arrow(compat_level=pl.CompatLevel.oldest())


def refuse_entity_columns(entities: pa.Table, requests: list[ViewRequest], time_column: str) -> None:
    """Raise FeastEntityDFMissingColumnsError for a key that is not there, InputError for a name that is there twice."""
    expected = {time_column, *(entity for request in requests for entity in request.entity_columns)}
    missing = expected - set(entities.column_names)
    if missing:
        raise FeastEntityDFMissingColumnsError(expected, missing)
    both = {name for request in requests for name in request.features} & set(entities.column_names)
    if both:
        raise InputError(
            f"column {min(both)!r} of the entity rows is also a feature that is asked for: rename the column, or ask"
            " with full_feature_names"
        )


def _values_at(table: pa.Table, features: dict[str, str], positions: pl.Series) -> dict[str, pa.ChunkedArray]:
    # polars gathers numbers on all cores; other types come back from it as types of its own.
    numbers = [name for name in set(features.values()) if pa.types.is_primitive(table[name].type)]
    values: dict[str, pa.ChunkedArray] = {}
    # A few columns at a time: the next ones are put in one piece where the last ones were.
    for first in range(0, len(numbers), 4):
        columns = {name: _series(table[name]) for name in numbers[first : first + 4]}
        gathered = pl.DataFrame(columns).select(pl.all().gather(positions))
        values.update((name, gathered[name].to_arrow().cast(table[name].type)) for name in columns)
    rows = positions.to_arrow()
    for name in set(features.values()) - set(numbers):
        values[name] = table[name].take(rows)
    return {feature: values[name] for feature, name in features.items()}


def _alike(stored: pa.ChunkedArray, asked: pa.ChunkedArray, name: str) -> tuple[pl.Series, pl.Series]:
    """Return both sides of a key in one type."""
    left, right = _series(stored), _series(asked)
    if left.dtype == right.dtype:
        return left, right
    if right.dtype == pl.Null:
        return left, right.cast(left.dtype)
    numbers = _whole_numbers(left), _whole_numbers(right)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0], numbers[1]
    raise InputError(
        f"column {name!r} of the entity rows is {asked.type}, the key in the data is {stored.type}: convert one of them"
    )


def _whole_numbers(values: pl.Series) -> pl.Series | None:
    """Return the values as integers, None when they are not; doubles are what pandas makes of integers with gaps."""
    if values.dtype.is_float() and ((values == values.floor()) & (values.abs() <= _EXACT_IN_DOUBLES)).all():
        return values.cast(pl.Int64)
    return values.cast(pl.Int64, strict=False) if values.dtype.is_integer() else None


def _ticks(times: pa.ChunkedArray) -> pl.Series:
    return _series(times.cast(pa.int64()))


def _series(values: pa.ChunkedArray | pa.Array) -> pl.Series:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    # In one piece: looking up the piece of each value is most of gathering it. Arrow puts numbers together in memory
    # that it has used before.
    if isinstance(values, pa.ChunkedArray) and pa.types.is_primitive(values.type):
        values = values.combine_chunks()
    return pl.Series(pl.from_arrow(values)).rechunk()
