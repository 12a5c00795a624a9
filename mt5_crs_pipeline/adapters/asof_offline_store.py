"""A Feast offline store that joins as of a time, and as it was known.

One line of any project's feature_store.yaml chooses it:

    offline_store: {type: mt5_crs_pipeline.adapters.asof_offline_store.AsofOfflineStore}

It reads Parquet sources and, with the connection given beside `type`, PostgreSQL sources; docs/asof-offline-store.md
says what it guarantees.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.utils.postgres.postgres_config import PostgreSQLConfig
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range
from pydantic import StrictStr

from mt5_crs_pipeline.adapters.asof_requests import (
    SourceColumns,
    ViewRequest,
    entity_rows,
    events_between,
    refuse_entity_columns,
    source_of,
    with_a_key,
)
from mt5_crs_pipeline.adapters.asof_sources import (
    append_log,
    append_rows,
    as_utc,
    source_columns,
    write_saved_dataset,
)
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP

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


class AsofOfflineStoreConfig(PostgreSQLConfig):  # type: ignore[misc]
    """Settings below `offline_store`; the connection is needed for PostgreSQL sources only."""

    type: StrictStr = f"{__name__}.AsofOfflineStore"
    as_known: bool = True
    """A row counts from its created timestamp on. False: as stock stores, which do so on request only
    (`filter_by_created_timestamp`)."""
    recorded_timestamp_column: StrictStr | None = None
    """When a row was written, where that is not its created timestamp: `as_of` goes by it, and of the versions of an
    event the last recorded wins. Sources without the column are read as if it were not named."""
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
        frame: pd.DataFrame = table.to_pandas(self_destruct=True)
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the answer to `storage`; raise SavedDatasetLocationAlreadyExists unless it may be overwritten."""
        table = self.to_arrow(timeout=timeout)
        write_saved_dataset(self._config, storage.to_data_source(), table, allow_overwrite=allow_overwrite)

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas(self_destruct=True)
        return frame

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
        requests = [ViewRequest(view, feature_refs, full_feature_names) for view in feature_views]
        instant = _as_of.get()
        live = config.offline_store.as_known or filter_by_created_timestamp
        start = None
        if entity_df is None:
            start, end = compute_non_entity_date_range(feature_views, start_date=start_date, end_date=end_date)
            if live and instant is None:
                # Asked from the window's end: what arrived late, but inside it, belongs to the answer.
                instant = end
            live = False
            entities, time_column = events_between(config, requests, (start, end), instant), EVENT_TIMESTAMP
        else:
            entities, time_column = entity_rows(config, entity_df)
        refuse_entity_columns(entities, requests, time_column)
        times = as_utc(entities, time_column)
        span = pc.min_max(times)

        def answer() -> pa.Table:
            result = entities
            for request in requests:
                for name, values in request.features_of(config, entities, times, start, instant, live=live).items():
                    result = result.append_column(name, values)
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
        columns = SourceColumns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        instant = _as_of.get()
        return AsofRetrievalJob(
            lambda: with_a_key(columns.read(config, data_source, (start_date, end_date), instant).newest(), columns),
            config,
        )

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
        columns = SourceColumns(join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)
        instant = _as_of.get()
        return AsofRetrievalJob(
            lambda: with_a_key(columns.read(config, data_source, (start_date, end_date), instant).table, columns),
            config,
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append `table`, which has exactly the columns of the view's source, to it; raise ValueError otherwise.

        A column that the source's field mapping renames may have either name: Feast has renamed it by now.
        """
        source = source_of(feature_view)
        expected = source_columns(config, source)
        in_source = {new: old for old, new in source.field_mapping.items()}
        table = table.rename_columns([in_source.get(name, name) for name in table.column_names])
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
