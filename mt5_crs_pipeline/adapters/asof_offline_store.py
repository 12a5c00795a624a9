"""A Feast offline store that joins as of a time, and as it was known.

One line of any project's feature_store.yaml chooses it:

    offline_store: {type: mt5_crs_pipeline.adapters.asof_offline_store.AsofOfflineStore}

It reads Parquet sources and, with the connection given beside `type`, PostgreSQL sources; docs/asof-offline-store.md
says what it guarantees.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast.data_source import DataSource
from feast.errors import (
    EntityDFNotDateTime,
    FeastEntityDFMissingColumnsError,
    FeastJoinKeysDuringMaterialization,
    SpecifiedFeaturesNotPresentError,
)
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.utils.postgres.postgres_config import PostgreSQLConfig
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.types import Float32, Float64, Int32, Int64
from feast.utils import compute_non_entity_date_range
from pydantic import StrictStr

from mt5_crs_pipeline.adapters.asof_join import EVENT, KNOWN, RECORDED, newest, newest_known
from mt5_crs_pipeline.adapters.asof_sources import (
    append_log,
    append_rows,
    as_utc,
    query_postgres,
    read_source,
    source_columns,
    write_saved_dataset,
)
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP

_NUMBERS = (Float32, Float64, Int32, Int64)
# Nanoseconds since 1970 begin in 1677.
_BEFORE_ALL_DATA = datetime(1700, 1, 1, tzinfo=UTC)
_as_of: ContextVar[datetime | None] = ContextVar("as_of", default=None)


@contextlib.contextmanager
def as_of(instant: datetime | None) -> Iterator[None]:
    """Let every request made inside the block see only what was there at `instant` (aware); None changes nothing.

    Where the configuration names a `recorded_timestamp_column`, rows recorded later do not exist, and the others count
    from their created timestamp on. Where it does not, created timestamps up to `instant` count, whatever the entity
    row's time: history with the corrections that had arrived by then.
    """
    if instant is not None and instant.tzinfo is None:
        raise InputError(f"as_of {instant.isoformat()} has no time zone: write it with +00:00 for UTC")
    token = _as_of.set(instant)
    try:
        yield
    finally:
        _as_of.reset(token)


class AsofOfflineStoreConfig(PostgreSQLConfig):
    """Settings below `offline_store`; the connection is needed for PostgreSQL sources only."""

    type: StrictStr = f"{__name__}.AsofOfflineStore"
    as_known: bool = True
    """A row counts from its created timestamp on. False: as stock stores, which do so on request only
    (`filter_by_created_timestamp`)."""
    recorded_timestamp_column: StrictStr | None = None
    """When a row was written, where that is not its created timestamp; `as_of` goes by it, and of versions with equal
    event and created timestamps the last recorded wins. Sources without the column are read as if it were not named."""
    host: StrictStr = ""
    database: StrictStr = ""
    user: StrictStr = ""
    password: StrictStr = ""
    sslmode: StrictStr | None = "prefer"


class AsofRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A request that is answered when a table or frame is asked of it."""

    def __init__(
        self,
        answer: Callable[[], pa.Table],
        config: RepoConfig,
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        super().__init__()
        self._answer = answer
        self._config = config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """True when features are named view__feature."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The transformations that Feast applies to the answer."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Features, keys and time range of the request."""
        return self._metadata

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """Return the answer as a frame; see `to_arrow`."""
        table = self.to_arrow(validation_reference=validation_reference, timeout=timeout)
        # Column for column, each released when it is copied: the table is nobody else's.
        return table.to_pandas(self_destruct=True)

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the answer to `storage`; raise SavedDatasetLocationAlreadyExists unless it may be overwritten."""
        table = self.to_arrow(timeout=timeout)
        write_saved_dataset(self._config, storage.to_data_source(), table, allow_overwrite=allow_overwrite)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas(self_destruct=True)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._answer()


class AsofOfflineStore(OfflineStore):  # type: ignore[misc]
    """See the module."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return the features of every entity row as known at its time; see Feast's contract and `as_of`.

        `entity_df` is a frame, a PostgreSQL query, or None for every event in [start_date, end_date].
        """
        requests = [_Request.of(view, feature_refs, full_feature_names) for view in feature_views]
        known_by = _as_of.get()
        live = config.offline_store.as_known or filter_by_created_timestamp
        window: tuple[datetime, datetime] | None = None
        if entity_df is None:
            window = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            time_column = EVENT_TIMESTAMP
            entities = _events(config, requests, window)
            # Asked from the window's end: what arrived late, but inside it, belongs to the answer.
            known_by, live = known_by or (window[1] if live else None), False
        else:
            entities, time_column = _entities(config, entity_df)
        _refuse_absent(entities, requests, time_column)
        times = as_utc(entities[time_column])
        span = pc.min_max(times)

        def answer() -> pa.Table:
            result = entities
            for request in requests:
                for name, column in _join(config, request, entities, times, window, known_by, live=live).items():
                    result = result.append_column(name, column)
            return result

        return AsofRetrievalJob(
            answer,
            config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.column_names if name != time_column],
                min_event_timestamp=span["min"].as_py(),
                max_event_timestamp=span["max"].as_py(),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the newest row of every key among those with an event in [start_date, end_date]."""
        columns = _Columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        known_by = _as_of.get()

        def answer() -> pa.Table:
            table, wanted = _pull(config, data_source, columns, (start_date, end_date), known_by)
            keys = {f"key{number}": _for_polars(table[name]) for number, name in enumerate(join_key_columns)}
            stamps = _stamps(table, timestamp_field, created_timestamp_column, _recorded(config, table.column_names))
            return table.select(wanted).take(pa.array(newest(pl.DataFrame({**keys, **stamps}), list(keys))))

        return AsofRetrievalJob(answer, config)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return every row with an event in [start_date, end_date]; None leaves a side open."""
        columns = _Columns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        known_by = _as_of.get()

        def answer() -> pa.Table:
            table, wanted = _pull(config, data_source, columns, (start_date, end_date), known_by)
            return table.select(wanted)

        return AsofRetrievalJob(answer, config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append `table`, which has exactly the columns of the view's source, to it; raise ValueError otherwise."""
        source = _source_of(feature_view)
        expected = source_columns(config, source)
        if expected != table.column_names:
            raise ValueError(
                f"feature view {feature_view.name!r} is written with columns {table.column_names},"
                f" its source has, in this order, {expected}"
            )
        append_rows(config, source, table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features as new files below the logging destination, which is a folder."""
        if not isinstance(logging_config.destination, FileLoggingDestination):
            raise InputError(
                f"logs go to a FileLoggingDestination, not to a {type(logging_config.destination).__name__}"
            )
        table = ds.dataset(data, format="parquet").to_table() if isinstance(data, Path) else data
        append_log(config, logging_config.destination, table)


@dataclass(frozen=True)
class _Columns:
    """The columns of a pull, by their names in the source; no features means all there is."""

    keys: list[str]
    features: list[str]
    time: str
    created: str | None

    @property
    def all(self) -> list[str]:
        created = [self.created] if self.created else []
        return list(dict.fromkeys([*self.keys, *self.features, self.time, *created]))


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: _Columns,
    window: tuple[datetime | None, datetime | None],
    known_by: datetime | None,
) -> tuple[pa.Table, list[str]]:
    """Return the rows in the window and known by then, and which of their columns are wanted."""
    there = source_columns(config, source)
    wanted = columns.all if columns.features else there
    absent = set(columns.all) - set(there)
    if absent:
        raise FeastJoinKeysDuringMaterialization(source.name, set(columns.all), set(there))
    recorded = _recorded(config, there)
    read = list(dict.fromkeys([*wanted, *([recorded] if recorded else [])]))
    start, end = (None if bound is None else _aware(bound) for bound in window)
    table = read_source(config, source, read, columns.time, start, end)
    return _known_by(table, recorded or columns.created, known_by), wanted


@dataclass(frozen=True)
class _Request:
    """What one feature view is asked for; columns by their names in its source."""

    view: FeatureView
    source: DataSource
    keys: dict[str, str]
    """Column of the source -> column of the entity rows."""
    features: dict[str, str]
    """Name in the answer -> column of the source."""

    @classmethod
    def of(cls, view: FeatureView, feature_refs: list[str], full_feature_names: bool) -> "_Request":
        source = _source_of(view)
        in_source = {new: old for old, new in source.field_mapping.items()}
        names = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
        join_keys = view.projection.join_key_map or {name: name for name in names}
        prefix = f"{view.projection.name_to_use()}:"
        asked = [ref.removeprefix(prefix) for ref in feature_refs if ref.startswith(prefix)]
        full = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
        return cls(
            view,
            source,
            {in_source.get(name, name): entity for name, entity in join_keys.items()},
            {f"{full}{name}": in_source.get(name, name) for name in asked},
        )

    @property
    def time(self) -> str:
        return str(self.source.timestamp_field)

    @property
    def created(self) -> str | None:
        return self.source.created_timestamp_column or None

    @property
    def ttl(self) -> timedelta | None:
        return self.view.ttl or None

    def read(self, config: RepoConfig, start: datetime | None, end: datetime | None) -> pa.Table:
        """Return the view's rows with an event in [start, end]."""
        there = source_columns(config, self.source)
        stamps = [self.time, *([self.created] if self.created else [])]
        if not {*self.keys, *stamps} <= set(there):
            raise FeastJoinKeysDuringMaterialization(self.source.name, {*self.keys, *stamps}, set(there))
        absent = [name for name in self.features.values() if name not in there]
        if absent:
            raise SpecifiedFeaturesNotPresentError(absent, there, self.view.name)
        recorded = _recorded(config, there)
        columns = [*self.keys, *self.features.values(), *stamps, *([recorded] if recorded else [])]
        table = read_source(config, self.source, list(dict.fromkeys(columns)), self.time, start, end)
        self._refuse_wrong_types(table)
        return table

    def _refuse_wrong_types(self, table: pa.Table) -> None:
        declared = {field.name: field.dtype for field in self.view.features}
        mapping = self.source.field_mapping
        for column in self.features.values():
            dtype, found = declared.get(mapping.get(column, column)), table[column].type
            if dtype in _NUMBERS and (pa.types.is_string(found) or pa.types.is_large_string(found)):
                raise InputError(
                    f"feature view {self.view.name!r} declares {column} as {dtype}, its source holds {found}:"
                    " correct the schema or the data"
                )


def _source_of(view: FeatureView) -> DataSource:
    if view.batch_source is None:
        raise ValueError(f"feature view {view.name!r} has no batch source")
    return view.batch_source


def _recorded(config: RepoConfig, columns: list[str]) -> str | None:
    name: str | None = config.offline_store.recorded_timestamp_column
    return name if name in columns else None


def _aware(instant: datetime) -> datetime:
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _entities(config: RepoConfig, entity_df: pd.DataFrame | str) -> tuple[pa.Table, str]:
    """Return the entity rows and the name of their time column."""
    if isinstance(entity_df, str):
        table = query_postgres(config, entity_df)
        dtypes = table.schema.empty_table().to_pandas().dtypes
    else:
        dtypes = entity_df.dtypes
        try:
            table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"the entity frame holds values of mixed types: {error.args[-1]}") from error
    time_column = infer_event_timestamp_from_entity_df(dict(dtypes.items()))
    try:
        as_utc(table[time_column])
    except (InputError, ValueError) as error:
        raise EntityDFNotDateTime from error
    return table, time_column


def _refuse_absent(entities: pa.Table, requests: list[_Request], time_column: str) -> None:
    expected = {time_column, *(entity for request in requests for entity in request.keys.values())}
    missing = expected - set(entities.column_names)
    if missing:
        raise FeastEntityDFMissingColumnsError(expected, missing)
    for request in requests:
        both = sorted(set(request.features) & set(entities.column_names))
        if both:
            raise InputError(
                f"column {both[0]!r} of the entity rows is also a feature that is asked for: rename the column, or ask"
                " with full_feature_names"
            )


def _events(config: RepoConfig, requests: list[_Request], window: tuple[datetime, datetime]) -> pa.Table:
    """Return every key and event time of the views in the window, once, by time: the entity rows of a date range."""
    names = list(requests[0].keys.values())
    if any(set(request.keys.values()) != set(names) for request in requests):
        raise InputError("a date range asks views of different entities at once: ask one after the other")
    frames = []
    for request in requests:
        table = request.read(config, *window)
        keys = {entity: _for_polars(table[column]) for column, entity in request.keys.items()}
        frames.append(pl.DataFrame({EVENT_TIMESTAMP: _for_polars(as_utc(table[request.time])), **keys}))
    spine = pl.concat([frame.select(EVENT_TIMESTAMP, *names) for frame in frames], how="vertical_relaxed")
    return spine.unique().sort(EVENT_TIMESTAMP, *names).to_arrow(compat_level=pl.CompatLevel.oldest())


def _join(
    config: RepoConfig,
    request: _Request,
    entities: pa.Table,
    times: pa.ChunkedArray,
    window: tuple[datetime, datetime] | None,
    known_by: datetime | None,
    *,
    live: bool,
) -> dict[str, pa.ChunkedArray]:
    """Return the features of one view for every entity row."""
    span = pc.min_max(times)
    first, last = span["min"].as_py(), span["max"].as_py()
    if last is None:
        first = last = _BEFORE_ALL_DATA
    start = window[0] if window else first - request.ttl if request.ttl else None
    table = request.read(config, start, last)
    recorded = _recorded(config, table.column_names)
    table = _known_by(table, recorded or request.created, known_by)
    # Without a time of recording `known_by` has taken the place of the entity row's time.
    live = live and (known_by is None or recorded is not None)
    keys = {f"key{number}": pair for number, pair in enumerate(request.keys.items())}
    pairs = {key: _alike(table[column], entities[entity], entity) for key, (column, entity) in keys.items()}
    stamps = _stamps(table, request.time, request.created, recorded)
    positions = newest_known(
        pl.DataFrame({**{key: pair[1] for key, pair in pairs.items()}, "time": _ticks(times)}),
        pl.DataFrame({**{key: pair[0] for key, pair in pairs.items()}, **stamps}),
        list(keys),
        request.ttl // timedelta(microseconds=1) if request.ttl else None,
        live=live,
    )
    return _gather(table, request.features, positions)


def _gather(table: pa.Table, features: dict[str, str], positions: pl.Series) -> dict[str, pa.ChunkedArray]:
    """Return the features' values at `positions`, null where there is none."""
    primitive = [c for c in dict.fromkeys(features.values()) if pa.types.is_primitive(table[c].type)]
    frame = pl.DataFrame({column: _for_polars(table[column]) for column in primitive})
    gathered = frame.select(pl.all().gather(positions)).to_arrow()
    rows = positions.to_arrow()
    return {
        name: gathered[column].cast(table[column].type)
        if column in primitive
        else table[column].combine_chunks().take(rows)
        for name, column in features.items()
    }


def _known_by(table: pa.Table, column: str | None, instant: datetime | None) -> pa.Table:
    if column is None or instant is None:
        return table
    return table.filter(pc.less_equal(as_utc(table[column]), pa.scalar(instant, TIMESTAMP)))


def _stamps(table: pa.Table, time: str, created: str | None, recorded: str | None) -> dict[str, pl.Series]:
    stamps = {EVENT: time, KNOWN: created, RECORDED: recorded}
    return {name: _ticks(as_utc(table[column])) for name, column in stamps.items() if column}


def _ticks(times: pa.ChunkedArray) -> pl.Series:
    return _for_polars(times.cast(pa.int64()))


def _alike(stored: pa.ChunkedArray, asked: pa.ChunkedArray, name: str) -> tuple[pl.Series, pl.Series]:
    """Return both sides of a key in one type."""
    left, right = _for_polars(stored), _for_polars(asked)
    if left.dtype == right.dtype:
        return left, right
    if right.dtype == pl.Null:
        return left, right.cast(left.dtype)
    if left.dtype.is_integer() and right.dtype.is_integer():
        return left.cast(pl.Int64), right.cast(pl.Int64)
    raise InputError(
        f"column {name!r} of the entity rows is {asked.type}, the key in the data is {stored.type}: convert one of them"
    )


def _for_polars(values: pa.ChunkedArray | pa.Array) -> pl.Series:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return pl.Series(pl.from_arrow(values))
