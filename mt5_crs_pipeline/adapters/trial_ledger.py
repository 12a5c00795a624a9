"""The recipes that were tried, the verdicts on models and the changes of champion, kept in PostgreSQL."""

import json
from datetime import datetime
from typing import Any

import pandas as pd

from mt5_crs_pipeline.adapters.postgres import Connection
from mt5_crs_pipeline.core.promotion import ChampionChange, How, Verdict, recipe_hash

# Any number does that is not the lock of the writers of bars.
_PROMOTION_LOCK = 0x6D743564


def lock_promotions(connection: Connection) -> None:
    """Wait until no other transaction counts recipes or changes the champion, and keep them out until this one ends."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_PROMOTION_LOCK,))


def record_trial(connection: Connection, timeframe: str, recipe: dict[str, Any]) -> int:
    """Note that a recipe was tried and return how many distinct ones were so far, this one included."""
    # Two that are tried at once would each count without the other.
    lock_promotions(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into model_trial (timeframe, recipe_hash, recipe) values (%s, %s, %s) on conflict do nothing",
            (timeframe, recipe_hash(recipe), json.dumps(recipe)),
        )
    return recipes_tried(connection, timeframe)


def recipes_tried(connection: Connection, timeframe: str) -> int:
    """Return how many distinct recipes were tried."""
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from model_trial where timeframe = %s", (timeframe,))
        ((recipes,),) = cursor.fetchall()
    return int(recipes)


def record_verdict(
    connection: Connection, timeframe: str, model_version: str, bundle_hash: str, verdict: Verdict
) -> bool:
    """Keep a verdict; False when it is the one that was reached on this bundle last, which is not repeated."""
    with connection.cursor() as cursor:
        cursor.execute(
            "with new (promoted, reason, evidence) as (values (%(promoted)s, %(reason)s, %(evidence)s::jsonb)),"
            " last as (select promoted, reason, evidence from model_verdict where timeframe = %(timeframe)s"
            " and model_version = %(version)s and bundle_hash = %(hash)s order by number desc limit 1)"
            " insert into model_verdict (timeframe, model_version, bundle_hash, promoted, reason, evidence)"
            " select %(timeframe)s, %(version)s, %(hash)s, new.* from new"
            " where not exists (select from last where last = new)",
            {
                "timeframe": timeframe,
                "version": model_version,
                "hash": bundle_hash,
                "promoted": verdict.promoted,
                "reason": verdict.reason,
                "evidence": json.dumps({"kind": verdict.kind, **verdict.evidence}, allow_nan=False),
            },
        )
        return cursor.rowcount == 1


def record_champion_change(
    connection: Connection, timeframe: str, model_version: str, bundle_hash: str, how: How, at: datetime
) -> None:
    """Keep who became the champion, how and when."""
    with connection.cursor() as cursor:
        cursor.execute(
            "insert into model_champion_change (timeframe, model_version, bundle_hash, how, at)"
            " values (%s, %s, %s, %s, %s)",
            (timeframe, model_version, bundle_hash, how, at),
        )


def champion_changes(connection: Connection, timeframe: str) -> list[ChampionChange]:
    """Return every change of champion, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select model_version, bundle_hash, how, at from model_champion_change where timeframe = %s"
            " order by number",
            (timeframe,),
        )
        return [
            ChampionChange(version, bundle_hash, how, pd.Timestamp(at).tz_convert("UTC"))
            for version, bundle_hash, how, at in cursor.fetchall()
        ]
