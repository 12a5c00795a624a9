"""The two dagster.yaml files make instances that are what they say."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster_postgres import PostgresRunStorage

from mt5_crs_pipeline.runner import project_file
from mt5_crs_pipeline.settings import Settings

REMOTE = Path(__file__).parents[1] / "docs" / "dagster.remote.yaml"


@pytest.mark.parametrize(
    ("file", "runs_at_once"), [(project_file("dagster.yaml"), 1), (REMOTE, 4)], ids=["one machine", "several"]
)
def test_runs_are_queued_in_postgresql_monitored_and_started_again_when_they_die(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path, runs_at_once: int
) -> None:
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", settings.database_url.get_secret_value())
    (tmp_path / "dagster.yaml").write_bytes(file.read_bytes())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == runs_at_once
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert instance.run_monitoring_enabled and not instance.telemetry_enabled
        assert instance.run_retries_enabled and instance.run_retries_max_retries == 3


def test_the_columns_of_the_table_of_assets_are_read_once(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", settings.database_url.get_secret_value())
    (tmp_path / "dagster.yaml").write_bytes(project_file("dagster.yaml").read_bytes())
    asked: list[str] = []
    inspect: Any = SqlEventLogStorage._has_asset_key_col_on_connection

    def counted(storage: SqlEventLogStorage, connection: object, name: str) -> Any:
        asked.append(name)
        return inspect(storage, connection, name)

    monkeypatch.setattr(SqlEventLogStorage, "_has_asset_key_col_on_connection", counted)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        assert storage.can_read_asset_status_cache() and storage.can_write_asset_status_cache()
    assert asked == ["cached_status_data"]
