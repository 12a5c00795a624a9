"""Promotions in a bad hour: a champion that cannot be read, a ledger of other features, several who promote at once."""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.model_store import CHECKSUMS_FILE, METADATA_FILE, Bundle, ModelStore
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.adapters.promotion import promote_on_evidence
from mt5_crs_pipeline.adapters.trial_ledger import record_trial
from mt5_crs_pipeline.core.errors import BundleRejectedError
from mt5_crs_pipeline.core.promotion import Verdict
from tests.adapters.made_up_bars import query
from tests.adapters.small_model import TRAINING, card, model, planted_predictions

NOW = datetime(2013, 3, 2, 12, tzinfo=UTC)
TOGETHER = 4


@pytest.fixture
def url(database_url: str) -> str:
    prepare_database(database_url)
    return database_url


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def save(store: ModelStore, version: str, predictions: pd.DataFrame | None = None, **changes: Any) -> Bundle:
    return store.save(card(version, **changes), model(), planted_predictions() if predictions is None else predictions)


def promote(url: str, store: ModelStore, bundle: Bundle) -> Verdict:
    with connected(url) as connection:
        return promote_on_evidence(connection, store, bundle, NOW)


def recipe_of(seed: int) -> dict[str, Any]:
    return {"params": {**TRAINING.to_dict(), "seed": seed}}


def promote_in_step(url: str, folder: Path, version: str, together: Any) -> None:
    """The work of one process: wait for the others, then promote."""
    store = ModelStore(folder)
    bundle = store.load(version)
    together.wait()
    promote(url, store, bundle)


def in_processes(url: str, store: ModelStore, versions: Sequence[str]) -> None:
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(len(versions))
    works = [context.Process(target=promote_in_step, args=(url, store.folder, one, together)) for one in versions]
    for work in works:
        work.start()
    for work in works:
        work.join()
    assert [work.exitcode for work in works] == [0] * len(versions)


def test_of_equal_models_of_other_recipes_that_processes_promote_at_once_exactly_one_wins(
    url: str, store: ModelStore
) -> None:
    versions = [save(store, f"20130301-{seed}", **recipe_of(seed)).version for seed in range(TOGETHER)]
    in_processes(url, store, versions)
    ((winner, how),) = query(url, "select model_version, how from model_champion_change")
    pointer = store.champion()
    assert pointer and (pointer["model_version"], how) == (winner, "promoted")
    told = query(url, "select model_version, promoted, evidence from model_verdict order by number")
    assert sorted(version for version, _, _ in told) == versions
    assert {version for version, promoted, _ in told if promoted} == {winner} == {told[0][0]}
    assert [evidence["kind"] for _, _, evidence in told] == ["promoted"] + ["no edge over the champion"] * 3
    # Each waited for the one before, and paid for its recipe.
    assert [evidence["against_chance"]["recipes"] for _, _, evidence in told] == [1, 2, 3, 4]
    assert query(url, "select count(*) from model_trial") == [(TOGETHER,)]
    for version, promoted, _ in told:
        kept = store.verdict(version)
        assert kept and kept["promoted"] == promoted


def test_of_newer_and_older_data_that_processes_promote_at_once_the_newer_answers(url: str, store: ModelStore) -> None:
    start = card()["data_window"]["start"]
    versions = [
        save(store, f"2013030{day}-a", data_window={"start": start, "end": f"2013-03-0{day}T00:00:00+00:00"}).version
        for day in range(1, TOGETHER + 1)
    ]
    in_processes(url, store, versions)
    changes = [version for (version,) in query(url, "select model_version from model_champion_change order by number")]
    pointer = store.champion()
    assert pointer and pointer["model_version"] == changes[-1] == versions[-1]
    assert changes == sorted(set(changes)), "the champion's data never got older, and nobody was promoted twice"
    promoted = query(url, "select model_version from model_verdict where promoted order by number")
    assert [version for (version,) in promoted] == changes
    kinds = query(url, "select distinct evidence ->> 'kind' from model_verdict where not promoted")
    assert kinds in ([], [("older data",)])


def of_unknown_features(store: ModelStore, version: str) -> Bundle:
    """A sound bundle of a feature set that this package does not know, as another version of it would write."""
    bundle = save(store, version)
    path = bundle.folder / METADATA_FILE
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    metadata = {**bundle.metadata, "feature_config": {"features": ["of_the_future"]}, "feature_set_hash": "f" * 64}
    path.write_text(json.dumps(metadata))
    sums = (bundle.folder / CHECKSUMS_FILE).read_text()
    (bundle.folder / CHECKSUMS_FILE).write_text(sums.replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
    store.promote(bundle, "2013-01-01T00:00:00+00:00")
    return bundle


def test_a_champion_of_features_this_package_does_not_know_is_one_clear_line_and_blocks_nobody(
    url: str, store: ModelStore
) -> None:
    foreign = of_unknown_features(store, "20130301-foreign")
    with pytest.raises(BundleRejectedError, match="feature set this package does not know") as error:
        store.load()
    assert "\n" not in str(error.value)

    unproven = promote(url, store, save(store, "20130301-no", planted_predictions().assign(probability=0.6)))
    assert unproven.kind == "not enough data"
    pointer = store.champion()
    assert pointer and pointer["model_version"] == foreign.version
    found = promote(url, store, save(store, "20130301-yes"))
    assert found.kind == "promoted" and found.evidence["against_champion"] is None
    changes = query(url, "select model_version from model_champion_change order by number")
    assert changes == [("20130301-foreign",), ("20130301-yes",)], "who answered before is known"


@pytest.mark.parametrize("damage", ["deleted", "its metadata deleted"])
def test_a_deleted_champion_and_a_model_without_an_edge_leave_the_remedy(
    url: str, store: ModelStore, damage: str
) -> None:
    gone = save(store, "20130301-a")
    assert promote(url, store, gone).promoted
    shutil.rmtree(gone.folder) if damage == "deleted" else (gone.folder / METADATA_FILE).unlink()
    found = promote(url, store, save(store, "20130301-b", planted_predictions().assign(probability=0.6)))
    assert found.kind == "not enough data"
    with pytest.raises(BundleRejectedError, match=r"20130301-a|run `mt5-crs retrain`"):
        store.load()
    assert query(url, "select model_version from model_champion_change") == [("20130301-a",)]


def test_recipes_of_another_feature_set_still_count(url: str, store: ModelStore) -> None:
    with connected(url) as connection:
        for feature_set in ("a" * 64, "b" * 64):
            record_trial(connection, "D1", {"feature_set_hash": feature_set, "label": "of then", "params": {}})
    found = promote(url, store, save(store, "20130301-a"))
    assert found.promoted and found.evidence["against_chance"]["recipes"] == 3
    assert "for 3 recipes tried" in found.reason
