"""The champion of a timeframe: judged and moved under one lock; its pointer is a file, its past is in PostgreSQL."""

from collections.abc import Callable
from datetime import datetime

import pandas as pd

from mt5_crs_pipeline.adapters.model_store import Bundle, ModelStore
from mt5_crs_pipeline.adapters.postgres import Connection
from mt5_crs_pipeline.adapters.trial_ledger import (
    champion_changes,
    lock_promotions,
    record_champion_change,
    record_trial,
    record_verdict,
)
from mt5_crs_pipeline.core.errors import BundleRejectedError, NoEarlierChampionError
from mt5_crs_pipeline.core.evidence import against_champion, against_chance, bets
from mt5_crs_pipeline.core.labels import TARGET
from mt5_crs_pipeline.core.metrics import times_needed
from mt5_crs_pipeline.core.promotion import ChampionChange, Comparison, Verdict, champions_in_force, decide, recipe


def judge(connection: Connection, store: ModelStore, bundle: Bundle) -> Verdict:
    """Return the verdict on a bundle as things stand, after counting its recipe; nothing is promoted.

    A bundle that is or was the champion is not judged again: its verdict is the one that it was promoted with.
    """
    recipes = record_trial(connection, bundle.timeframe, recipe(bundle.metadata))
    if _was_champion(connection, bundle) and (kept := store.verdict(bundle.version)):
        return Verdict.from_dict(kept)
    champion = answering(store)
    predictions, horizon = bundle.predictions(), bundle.label.horizon_bars
    labelled = predictions.dropna(subset=[TARGET])
    rival = None
    same_label = champion is None or champion.label == bundle.label
    if champion and same_label and recipe(champion.metadata) != recipe(bundle.metadata):
        theirs = champion.predictions()
        key = ["symbol", "event_timestamp"]
        rival = Comparison(
            against_champion(predictions, theirs, recipes, horizon), len(labelled[key].merge(theirs[key]))
        )
    parity = bundle.metadata["parity"]
    return decide(
        Comparison(
            against_chance(predictions, recipes, horizon), len(labelled), times_needed(bets(predictions, horizon))
        ),
        rival,
        recipes,
        parity_holds=parity.get("holds") is True
        and parity.get("feature_set_hash") == bundle.metadata["feature_set_hash"],
        other_label=None if same_label or champion is None else champion.label.definition,
        older_than_champion=champion is not None and _data_until(bundle) < _data_until(champion),
    )


def promote_on_evidence(connection: Connection, store: ModelStore, bundle: Bundle, now: datetime) -> Verdict:
    """Judge a bundle, keep the verdict, and make the bundle the champion when the verdict says so.

    One that was the champion does not become it by itself again: what was rolled back stays so until other data come.
    """
    lock_promotions(connection)
    _changes_up_to_the_pointer(connection, store, bundle.timeframe)
    verdict = judge(connection, store, bundle)
    store.record_verdict(bundle.version, {"model_version": bundle.version, **verdict.to_dict()})
    record_verdict(connection, bundle.timeframe, bundle.version, bundle.checksum, verdict)
    if verdict.promoted and not _was_champion(connection, bundle):
        store.promote(bundle, now.isoformat())
        record_champion_change(connection, bundle.timeframe, bundle.version, bundle.checksum, "promoted", now)
    return verdict


def roll_back(
    connection: Connection, store: ModelStore, timeframe: str, now: datetime, check: Callable[[Bundle], None]
) -> Bundle:
    """Make the champion before this one the champion again and return it.

    `check` raises when the verified bundle does not work. Raises NoEarlierChampionError, or BundleRejectedError when
    the bundle is not there as it was promoted; then nothing moved.
    """
    lock_promotions(connection)
    in_force = champions_in_force(_changes_up_to_the_pointer(connection, store, timeframe))
    if len(in_force) < 2:
        now_answers = f"{in_force[0].model_version} is the first" if in_force else "no model was promoted yet"
        raise NoEarlierChampionError(f"there is no earlier {timeframe} champion to return to: {now_answers}")
    earlier = in_force[-2]
    bundle = store.load(earlier.model_version)
    if bundle.checksum != earlier.bundle_hash:
        raise BundleRejectedError(f"{bundle.folder} is not the bundle that was promoted: it was replaced")
    check(bundle)
    store.promote(bundle, now.isoformat(), "rolled back")
    record_champion_change(connection, timeframe, bundle.version, bundle.checksum, "rolled back", now)
    return bundle


def _was_champion(connection: Connection, bundle: Bundle) -> bool:
    return any(change.bundle_hash == bundle.checksum for change in champion_changes(connection, bundle.timeframe))


def answering(store: ModelStore) -> Bundle | None:
    """Return the champion, or None where none can answer: without one, and where it was deleted or damaged."""
    pointer = store.sound_champion()
    try:
        return store.load(pointer["model_version"]) if pointer else None
    except BundleRejectedError:
        return None


def _data_until(bundle: Bundle) -> pd.Timestamp:
    return pd.Timestamp(bundle.metadata["data_window"]["end"])


def _changes_up_to_the_pointer(connection: Connection, store: ModelStore, timeframe: str) -> list[ChampionChange]:
    """Return all changes, after adding the one whose pointer moved before its row could be committed.

    That happens when a process is killed between the two; champions of before the ledger are added too.
    """
    changes = champion_changes(connection, timeframe)
    pointer = store.sound_champion()
    in_force = champions_in_force(changes)
    if pointer is None or (in_force and in_force[-1].bundle_hash == pointer["checksums_sha256"]):
        return changes
    record_champion_change(
        connection,
        timeframe,
        pointer["model_version"],
        pointer["checksums_sha256"],
        pointer.get("how", "promoted"),
        datetime.fromisoformat(pointer["promoted_at"]),
    )
    return champion_changes(connection, timeframe)
