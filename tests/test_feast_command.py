"""Feast's own command line on our state folder: it sees what was applied, finds nothing to change, and knows Redis."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.postgres import prepare_database
from mt5_crs_pipeline.settings import Settings
from tests.adapters.made_up_bars import query
from tests.commands import run
from tests.conftest import REDIS_PASSWORD

REPOSITORY = Path(__file__).parents[1] / "feature_repo"
Feast = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=["postgres", "redis"])
def feast(request: pytest.FixtureRequest, settings: Settings) -> Feast:
    """Runs `feast` by `mt5-crs exec` where everything is applied, with the online rows in either store."""
    url = settings.database_url.get_secret_value()
    redis_url = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    prepare_database(url)
    store = FeastStore(url, "D1", settings.lake, redis_url)
    store.apply()
    store.close()

    def feast_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
        told = {"DATABASE_URL": url, "REDIS_URL": redis_url}
        done = run(settings.home, "exec", "feast", "-c", str(REPOSITORY), *arguments, **told)
        assert done.returncode == 0, done.stderr
        assert REDIS_PASSWORD not in done.stdout + done.stderr
        return done

    return feast_command


def registered(settings: Settings) -> list[tuple[object, ...]]:
    """What the registry holds of entities, views and services, to the byte."""
    kinds = ["entity", "feature_view", "feature_service"]
    tables = {"entity": "entities", "feature_view": "feature_views", "feature_service": "feature_services"}
    parts = [f"select {kind}_name, md5({kind}_proto) from feast.{tables[kind]}" for kind in kinds]
    return query(settings.database_url.get_secret_value(), " union all ".join(parts) + " order by 1")


def test_the_feast_command_finds_nothing_to_change_in_what_was_applied(feast: Feast, settings: Settings) -> None:
    planned = feast("plan").stdout
    assert "No changes to registry" in planned and "No changes to infrastructure" in planned, planned
    applied = registered(settings)
    assert {name for name, _ in applied} >= {"symbol", "market_data_features", "technical_features", "direction_model"}
    feast("apply")
    assert registered(settings) == applied
