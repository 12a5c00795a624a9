"""`mt5-crs rollback` as a user runs it: what it says, what it moves, and what it refuses."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.adapters.promotion import promote_on_evidence
from mt5_crs_pipeline.settings import Settings
from tests.adapters.small_model import card, model, planted_predictions
from tests.commands import run, succeed, write_daily_bars
from tests.defs.small_lake import execute
from tests.receiver import CANARY, receiving

VERSIONS = ("20130301-a", "20130301-b", "20130301-c")


@pytest.fixture
def store(settings: Settings) -> ModelStore:
    """A model store in which three models were promoted, one after another, without any bars yet."""
    store = ModelStore(settings.models)
    for version in VERSIONS:
        bundle = store.save(card(version), model(), planted_predictions())
        with Database(settings).connection() as connection:
            assert promote_on_evidence(connection, store, bundle, datetime.now(UTC)).promoted
    return store


@pytest.fixture
def address(settings: Settings) -> dict[str, str]:
    return {"DATABASE_URL": settings.database_url.get_secret_value()}


def with_bars(settings: Settings, address: dict[str, str], tmp_path: Path, last: str = "2012-12-31") -> None:
    write_daily_bars(tmp_path / "AAPL_D1.csv", "2012-01-01", last)
    succeed(settings.home, "ingest", tmp_path / "AAPL_D1.csv", **address)


def refused(settings: Settings, address: dict[str, str], *words: str) -> None:
    done = run(settings.home, "rollback", **address)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mt5-crs: ") and all(word in line for word in words), line


def champion(store: ModelStore) -> str:
    pointer = store.champion()
    assert pointer
    return str(pointer["model_version"])


def test_rollback_twice_says_what_answers_now_and_then_that_there_is_no_more(
    settings: Settings, store: ModelStore, address: dict[str, str], tmp_path: Path
) -> None:
    with_bars(settings, address, tmp_path)
    with receiving() as receiver:
        done = succeed(settings.home, "rollback", "--json", **address, ALERT_URLS=receiver.url)
    told = json.loads(done.stdout)
    (message,) = receiver.messages
    assert message["title"] == f"{VERSIONS[1]} is the champion again"
    assert message["message"] == f"mt5-crs rollback returned from {VERSIONS[2]} to {VERSIONS[1]}"
    assert CANARY not in done.stdout + done.stderr + str(message)
    assert (told["model_version"], told["replaced"]) == (VERSIONS[1], VERSIONS[2]) and champion(store) == VERSIONS[1]
    assert told["prediction"]["model_version"] == VERSIONS[1]
    predicted = json.loads(succeed(settings.home, "predict", "--symbol", "AAPL", "--json", **address).stdout)
    assert predicted == told["prediction"]
    said = succeed(settings.home, "rollback", **address)
    first, prediction = said.stdout.splitlines()
    assert first == f"Champion is {VERSIONS[0]} again; it replaces {VERSIONS[1]}" and prediction.startswith("AAPL: ")
    assert champion(store) == VERSIONS[0]
    refused(settings, address, "no earlier D1 champion", VERSIONS[0])
    assert champion(store) == VERSIONS[0]
    kept = execute(settings, "select model_version, at from model_champion_change where how = 'rolled back' order by 2")
    assert [version for version, _ in kept] == [VERSIONS[1], VERSIONS[0]]
    assert kept[0][1] == datetime.fromisoformat(told["at"])


def test_a_deleted_bundle_and_missing_bars_are_refused_and_the_champion_stays(
    settings: Settings, store: ModelStore, address: dict[str, str], tmp_path: Path
) -> None:
    refused(settings, address, VERSIONS[1], "cannot be tried", "AAPL, IBM")
    with_bars(settings, address, tmp_path, last="2012-01-20")
    refused(settings, address, VERSIONS[1], "cannot be tried")
    shutil.rmtree(store.folder / VERSIONS[1])
    refused(settings, address, VERSIONS[1], "no model bundle")
    assert champion(store) == VERSIONS[2]
    assert len(execute(settings, "select * from model_champion_change")) == len(VERSIONS)


def test_without_any_champion_one_line_says_so(settings: Settings, address: dict[str, str]) -> None:
    settings.home.mkdir()
    refused(settings, address, "no model was promoted yet")
