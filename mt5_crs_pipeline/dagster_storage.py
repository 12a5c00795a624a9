"""Where Dagster keeps its runs, events and schedules: in the pipeline's own PostgreSQL server, schema `dagster`."""

import atexit
import contextlib
import functools
from typing import Any

from dagster_postgres import DagsterPostgresStorage

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.postgres import DAGSTER_SCHEMA, sqlalchemy_url
from mt5_crs_pipeline.settings import load_settings


class PipelineStorage(DagsterPostgresStorage):
    """dagster-postgres on the server that the settings name; the embedded one runs as long as a process uses this.

    dagster.yaml names this class, so every program of Dagster's finds the storage without being told an address.
    """

    def __init__(self, inst_data: Any = None) -> None:
        # Until the process ends: Dagster keeps the parts of a storage longer than the storage.
        server = contextlib.ExitStack()
        atexit.register(server.close)
        url = server.enter_context(Database(load_settings()).url())
        super().__init__(sqlalchemy_url(url, DAGSTER_SCHEMA), inst_data=inst_data)
        # Keeps connections open, as Dagster does in its webserver: a run over many months writes hundreds of events.
        for storage in (self.run_storage, self.event_log_storage, self.schedule_storage):
            storage.optimize_for_webserver(statement_timeout=600_000, pool_recycle=3600, max_overflow=20)
        # Dagster asks for the columns of its table of assets whenever it reads of one; they stay while a process runs.
        event_log: Any = self.event_log_storage
        event_log.has_asset_key_col = functools.cache(event_log.has_asset_key_col)

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return that dagster.yaml has nothing to say besides the class."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> "PipelineStorage":
        """Return the storage; called by Dagster."""
        return cls(inst_data)
