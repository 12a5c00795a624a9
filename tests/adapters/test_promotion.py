"""Trials, verdicts and champions with a real PostgreSQL: what is counted, kept, moved, and taken back."""

import json
import math
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2.errors
import pytest

from mt5_crs_pipeline.adapters.model_store import CHAMPION_FILE, METADATA_FILE, Bundle, ModelStore
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.adapters.promotion import judge, promote_on_evidence, roll_back
from mt5_crs_pipeline.adapters.trial_ledger import champion_changes, record_trial
from mt5_crs_pipeline.core.errors import BundleRejectedError, NoEarlierChampionError, NotEnoughBarsError
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.metrics import times_needed
from mt5_crs_pipeline.core.promotion import Verdict
from tests.adapters.made_up_bars import query
from tests.adapters.small_model import TRAINING, card, model, planted_predictions

NOW = datetime(2013, 3, 2, 12, tzinfo=UTC)
OTHER = {"params": {**TRAINING.to_dict(), "seed": 8}}
CHANGES = "select model_version, how from model_champion_change order by number"


@pytest.fixture
def url(database_url: str) -> str:
    prepare_database(database_url)
    return database_url


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def save(store: ModelStore, version: str, predictions: pd.DataFrame | None = None, **changes: Any) -> Bundle:
    frame = planted_predictions() if predictions is None else predictions
    return store.save(card(version, **changes), model(), frame)


def promote(url: str, store: ModelStore, bundle: Bundle, now: datetime = NOW) -> Verdict:
    with connected(url) as connection:
        return promote_on_evidence(connection, store, bundle, now)


def back(url: str, store: ModelStore, check: Callable[[Bundle], None] = lambda _: None) -> str:
    with connected(url) as connection:
        return roll_back(connection, store, "D1", NOW + timedelta(days=9), check).version


def champion(store: ModelStore) -> str | None:
    pointer = store.champion()
    return str(pointer["model_version"]) if pointer else None


def at_once(*works: Callable[[], object]) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(len(works))

    def start(work: Callable[[], object]) -> None:
        together.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# --- The ledger ------------------------------------------------------------------------------------------------------


def test_a_recipe_counts_once_and_on_its_own_timeframe(url: str) -> None:
    def tried(timeframe: str, seed: int) -> int:
        with connected(url) as connection:
            return record_trial(connection, timeframe, {"params": {"seed": seed}})

    assert [tried("D1", seed) for seed in (1, 1, 2, 1, 3)] == [1, 1, 2, 2, 3]
    assert tried("H1", 1) == 1
    rows = query(url, "select recipe, recipe_hash ~ '^[0-9a-f]{64}$', first_tried_at <= now() from model_trial")
    assert sorted((row[0]["params"]["seed"], *row[1:]) for row in rows) == [(seed, True, True) for seed in (1, 1, 2, 3)]


def test_recipes_tried_at_once_see_each_other(url: str) -> None:
    counts: list[int] = []

    def tries(seed: int) -> None:
        with connected(url) as connection:
            counts.append(record_trial(connection, "D1", {"params": {"seed": seed}}))

    at_once(*(lambda seed=seed: tries(seed) for seed in range(6)))  # type: ignore[misc]
    assert sorted(counts) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("table", ["model_trial", "model_verdict", "model_champion_change"])
@pytest.mark.parametrize("change", ["delete from {}", "update {} set timeframe = 'H1'", "truncate {}"])
def test_what_was_recorded_cannot_be_taken_back(url: str, store: ModelStore, table: str, change: str) -> None:
    promote(url, store, save(store, "20130301-a"))
    before = query(url, f"select * from {table}")
    assert len(before) == 1
    with pytest.raises(psycopg2.errors.RestrictViolation, match=f"{table} is append-only"):
        query(url, change.format(table))
    assert query(url, f"select * from {table}") == before


# --- Verdicts --------------------------------------------------------------------------------------------------------


def test_a_planted_edge_is_promoted_and_its_verdict_and_change_are_kept(url: str, store: ModelStore) -> None:
    bundle = save(store, "20130301-a")
    found = promote(url, store, bundle)
    assert found.promoted and champion(store) == bundle.version
    [(version, checksum, promoted, reason, evidence)] = query(
        url, "select model_version, bundle_hash, promoted, reason, evidence from model_verdict where timeframe = 'D1'"
    )
    assert (version, checksum, promoted, reason) == (bundle.version, bundle.checksum, True, found.reason)
    assert evidence == {"kind": "promoted", **found.evidence} and evidence["against_champion"] is None
    chance = evidence["against_chance"]
    frame = planted_predictions()
    assert (chance["rows"], chance["instants"]) == (len(frame), frame["event_timestamp"].nunique())
    assert chance["last_event_timestamp"] == frame["event_timestamp"].max().isoformat()
    assert chance["log_wealth"] > chance["threshold"] == pytest.approx(math.log(1 / 0.05))
    assert store.verdict(version) == {"model_version": version, **found.to_dict()}
    with connected(url) as connection:
        [change] = champion_changes(connection, "D1")
    assert (change.model_version, change.bundle_hash, change.how) == (version, bundle.checksum, "promoted")
    assert change.at == NOW and str(change.at.tz) == "UTC"


def test_without_an_edge_the_verdict_is_kept_and_nothing_moves(url: str, store: ModelStore) -> None:
    bundle = save(store, "20130301-a", planted_predictions().assign(probability=0.6))
    found = promote(url, store, bundle)
    assert not found.promoted and champion(store) is None
    assert query(url, "select promoted, reason from model_verdict") == [(False, found.reason)]
    assert query(url, CHANGES) == []


def test_judging_again_repeats_no_row_and_changes_no_file(url: str, store: ModelStore) -> None:
    for version, predictions in (
        ("20130301-no", planted_predictions().assign(probability=0.6)),
        ("20130301-yes", planted_predictions()),
    ):
        bundle = save(store, version, predictions)
        first = promote(url, store, bundle)
        files = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()}
        assert promote(url, store, bundle, NOW + timedelta(days=1)) == first
        assert {path: path.stat().st_mtime_ns for path in store.folder.rglob("*") if path.is_file()} == files
    counts = [
        query(url, f"select count(*) from model_{name}")[0][0] for name in ("trial", "verdict", "champion_change")
    ]
    assert counts == [1, 2, 1]


def test_another_recipe_raises_the_threshold_and_the_verdict_is_kept_anew(url: str, store: ModelStore) -> None:
    nothing = planted_predictions().assign(probability=0.6)
    first, other = save(store, "20130301-a", nothing), save(store, "20130301-b", nothing, **OTHER)
    for bundle in (first, first, other, first):
        promote(url, store, bundle)
    told = query(url, "select model_version, evidence from model_verdict order by number")
    assert [(version, evidence["against_chance"]["recipes"]) for version, evidence in told] == [
        ("20130301-a", 1),
        ("20130301-b", 2),
        ("20130301-a", 2),
    ]
    thresholds = [evidence["against_chance"]["threshold"] for _, evidence in told]
    assert thresholds == pytest.approx([math.log(20), math.log(40), math.log(40)])


@pytest.mark.parametrize(
    "parity", [{}, {"holds": False}, {"holds": 1}, {"holds": True}, {"holds": True, "feature_set_hash": "0"}]
)
def test_a_certificate_that_does_not_hold_for_these_features_promotes_nothing(
    url: str, store: ModelStore, parity: dict[str, Any]
) -> None:
    own = {"feature_set_hash": card()["feature_set_hash"]} if parity.get("holds") is not True else {}
    found = promote(url, store, save(store, "20130301-a", parity={**own, **parity}))
    assert not found.promoted and "certificate of parity does not hold" in found.reason
    assert champion(store) is None
    assert query(url, "select promoted, reason from model_verdict") == [(False, found.reason)]


def test_newer_data_of_the_same_recipe_replaces_and_older_does_not(url: str, store: ModelStore) -> None:
    window = card()["data_window"]
    older = {"data_window": {**window, "end": "2013-01-01T00:00:00+00:00"}}
    assert promote(url, store, save(store, "20130301-a")).promoted
    assert "the champion stays" in promote(url, store, save(store, "20130101-b", **older)).reason
    assert promote(url, store, save(store, "20130301-c")).promoted
    assert champion(store) == "20130301-c"
    assert query(url, CHANGES) == [("20130301-a", "promoted"), ("20130301-c", "promoted")]


def test_another_recipe_must_beat_the_champion_on_the_rows_of_both(url: str, store: ModelStore) -> None:
    assert promote(url, store, save(store, "20130301-a", planted_predictions(3).tail(500))).promoted
    equal = promote(url, store, save(store, "20130301-b", planted_predictions(3), **OTHER))
    assert not equal.promoted and "No edge was shown over the champion" in equal.reason
    assert equal.evidence["against_champion"]["rows"] == 500
    better = save(store, "20130301-c", planted_predictions(50), **OTHER)
    found = promote(url, store, better)
    assert found.promoted and champion(store) == better.version
    against = found.evidence["against_champion"]
    assert against["log_wealth"] > against["threshold"] == pytest.approx(math.log(2 / 0.05))


def test_judging_alone_counts_the_recipe_and_moves_nothing(url: str, store: ModelStore) -> None:
    with connected(url) as connection:
        assert judge(connection, store, save(store, "20130301-a")).promoted
    assert champion(store) is None and store.verdict("20130301-a") is None
    counts = [
        query(url, f"select count(*) from model_{name}")[0][0] for name in ("trial", "verdict", "champion_change")
    ]
    assert counts == [1, 0, 0]


def test_a_champion_that_was_deleted_is_replaced_without_being_beaten(url: str, store: ModelStore) -> None:
    gone = save(store, "20130301-a")
    promote(url, store, gone)
    shutil.rmtree(gone.folder)
    assert promote(url, store, save(store, "20130301-b", **OTHER)).promoted
    assert champion(store) == "20130301-b"


def test_two_promotions_at_once_move_the_pointer_once(url: str, store: ModelStore) -> None:
    bundle = save(store, "20130301-a")
    at_once(*[lambda: promote(url, ModelStore(store.folder), bundle)] * 4)
    assert query(url, CHANGES) == [("20130301-a", "promoted")]
    assert query(url, "select promoted from model_verdict") == [(True,)]


def test_a_change_whose_process_was_killed_before_it_was_recorded_is_recorded_next_time(
    url: str, store: ModelStore
) -> None:
    first, second = save(store, "20130301-a"), save(store, "20130301-b")
    store.promote(first, "2012-01-01T00:00:00+00:00")
    promote(url, store, second)
    assert query(url, CHANGES) == [("20130301-a", "promoted"), ("20130301-b", "promoted")]
    store.promote(first, "2013-04-01T00:00:00+00:00", "rolled back")
    promote(url, store, second)
    assert query(url, CHANGES)[2:] == [("20130301-a", "rolled back")]
    assert query(url, "select at from model_champion_change order by number limit 1") == [
        (datetime(2012, 1, 1, tzinfo=UTC),)
    ]


# --- Back ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(url: str, store: ModelStore) -> list[Bundle]:
    bundles = [save(store, f"20130301-{name}") for name in "abc"]
    for bundle in bundles:
        assert promote(url, store, bundle).promoted
    return bundles


def test_each_rollback_goes_one_further_back_until_the_first(url: str, store: ModelStore, three: list[Bundle]) -> None:
    tried: list[str] = []

    def check(bundle: Bundle) -> None:
        assert champion(store) != bundle.version, "moved before it was tried"
        tried.append(bundle.version)

    for expected in ("20130301-b", "20130301-a"):
        assert back(url, store, check) == champion(store) == store.load().version == expected
    assert tried == ["20130301-b", "20130301-a"]
    with pytest.raises(NoEarlierChampionError, match="no earlier D1 champion to return to: 20130301-a is the first"):
        back(url, store)
    assert champion(store) == "20130301-a"
    assert query(url, CHANGES)[3:] == [("20130301-b", "rolled back"), ("20130301-a", "rolled back")]
    assert json.loads((store.folder / CHAMPION_FILE).read_text())["how"] == "rolled back"


def test_after_a_rollback_a_promotion_counts_from_there(url: str, store: ModelStore, three: list[Bundle]) -> None:
    back(url, store)
    assert promote(url, store, three[2]).promoted, "the verdict is kept"
    assert champion(store) == "20130301-b", "the same bundle does not undo the rollback"
    promote(url, store, save(store, "20130301-d"))
    assert champion(store) == "20130301-d"
    assert back(url, store) == "20130301-b"


def test_without_any_champion_there_is_nothing_to_return_to(url: str, store: ModelStore) -> None:
    with pytest.raises(NoEarlierChampionError, match="no model was promoted yet"):
        back(url, store)


@pytest.mark.parametrize("damage", ["deleted", "flipped bit", "replaced"])
def test_a_bundle_that_is_not_as_it_was_promoted_moves_nothing(
    url: str, store: ModelStore, three: list[Bundle], damage: str
) -> None:
    folder = three[1].folder
    if damage == "flipped bit":
        content = bytearray((folder / METADATA_FILE).read_bytes())
        content[100] ^= 1
        (folder / METADATA_FILE).write_bytes(content)
    else:
        shutil.rmtree(folder)
    if damage == "replaced":
        save(store, "20130301-b", code_commit="another")
    with pytest.raises(BundleRejectedError, match="20130301-b") as error:
        back(url, store)
    assert "\n" not in str(error.value)
    assert champion(store) == "20130301-c" and len(query(url, CHANGES)) == 3


def test_a_bundle_that_cannot_predict_moves_nothing(url: str, store: ModelStore, three: list[Bundle]) -> None:
    def check(_: Bundle) -> None:
        raise NotEnoughBarsError("no bars")

    with pytest.raises(NotEnoughBarsError):
        back(url, store, check)
    assert champion(store) == "20130301-c" and len(query(url, CHANGES)) == 3


def test_a_rollback_is_the_way_out_when_the_champion_itself_is_gone(
    url: str, store: ModelStore, three: list[Bundle]
) -> None:
    shutil.rmtree(three[2].folder)
    with pytest.raises(BundleRejectedError, match="mt5-crs rollback"):
        store.champion()
    assert back(url, store) == champion(store) == "20130301-b"


def test_of_overlapping_labels_as_many_bets_are_needed_as_are_counted(url: str, store: ModelStore) -> None:
    label = {"label": LabelConfig(3).definition, "label_config": {"horizon_bars": 3, "cost_band": 0.0}}
    made = planted_predictions().assign(probability=0.6)
    every_third = made["event_timestamp"].drop_duplicates().sort_values().iloc[::3]
    told = promote(url, store, save(store, "20130301-long", made, **label)).evidence["against_chance"]
    assert told["instants"] == len(every_third)
    needed = times_needed(made[made["event_timestamp"].isin(every_third)])
    assert told["times_needed"] == {f"{points:g}": count for points, count in needed.items()}
