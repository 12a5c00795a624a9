"""The verdict on a model, case by case, and who answered before whom."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.evidence import Evidence, threshold
from mt5_crs_pipeline.core.promotion import (
    CURVE_POINTS,
    ChampionChange,
    Comparison,
    How,
    Verdict,
    champions_in_force,
    decide,
    recipe,
    recipe_hash,
)

CARD = {"feature_set_hash": "ab", "label": "up", "params": {"seed": 7, "depth": 3}, "train_date": "2024-01-01"}


def comparison(log_wealth: float, recipes: int = 1, instants: int = 3, rows: int = 1200) -> Comparison:
    times = pd.date_range("2024-01-01", periods=instants, tz="UTC", name="event_timestamp")
    curve = pd.Series(np.linspace(0, log_wealth, instants), index=times)
    return Comparison(Evidence(curve, threshold(recipes)), rows)


def verdict(chance: float, champion: float | None = None, recipes: int = 1, **options: bool) -> Verdict:
    rival = None if champion is None else comparison(champion, recipes, rows=800)
    return decide(comparison(chance, recipes), rival, recipes, **{"parity_holds": True, **options})


def test_evidence_above_the_threshold_promotes_and_the_sentence_has_the_numbers() -> None:
    found = verdict(3.1)
    assert found.promoted
    assert found.reason == (
        "An edge was shown: log-wealth 3.10 against the best constant rates, on 1,200 out-of-sample rows, is above the"
        " threshold 3.00 for 1 recipe tried at 5% error."
    )


@pytest.mark.parametrize("log_wealth", [-5.0, 0.0, 2.9, math.log(20)])
def test_evidence_at_or_below_the_threshold_promotes_nothing(log_wealth: float) -> None:
    found = verdict(log_wealth)
    assert not found.promoted and found.reason.startswith("No edge was shown: log-wealth")
    assert "is not above the threshold" in found.reason


def test_every_recipe_tried_raises_the_threshold_by_its_share() -> None:
    assert verdict(3.5, recipes=1).promoted
    refused = verdict(3.5, recipes=2)
    assert not refused.promoted and "3.69 for 2 recipes tried" in refused.reason
    assert refused.evidence["against_chance"]["threshold"] == pytest.approx(math.log(2 / 0.05))
    assert refused.evidence["against_chance"]["recipes"] == 2


def test_a_champion_of_another_recipe_must_be_beaten_too() -> None:
    assert verdict(30, champion=3.1).promoted
    assert "log-wealth 3.10 against the champion, on 800" in verdict(30, champion=3.1).reason
    refused = verdict(30, champion=2.9)
    assert not refused.promoted
    assert refused.reason.startswith("No edge was shown over the champion: log-wealth 2.90 against the champion")
    assert not verdict(2, champion=30).promoted


def test_without_the_certificate_nothing_is_promoted_whatever_the_evidence() -> None:
    found = verdict(1000, champion=1000, parity_holds=False)
    assert not found.promoted and "certificate of parity does not hold" in found.reason
    assert found.evidence["parity_holds"] is False


def test_a_model_of_older_data_never_replaces_the_champion() -> None:
    found = verdict(1000, older_than_champion=True)
    assert not found.promoted and "the champion stays" in found.reason


def test_the_evidence_is_json_with_a_thinned_curve_that_keeps_its_ends() -> None:
    told = decide(comparison(5, instants=5000), None, 1, parity_holds=True).evidence
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    curve = told["against_chance"]["curve"]
    assert len(curve) == CURVE_POINTS
    assert curve[0] == ["2024-01-01T00:00:00+00:00", 0.0]
    assert curve[-1] == [told["against_chance"]["last_event_timestamp"], 5.0]
    assert told["against_chance"]["instants"] == 5000 and told["against_champion"] is None
    reached = next(time for time, value in curve if value > math.log(20))
    assert told["against_chance"]["reached_at"] <= reached


def test_no_common_row_shows_nothing_over_the_champion() -> None:
    nothing = Comparison(Evidence(pd.Series([], index=pd.DatetimeIndex([], tz="UTC"), dtype=float), threshold(1)), 0)
    found = decide(comparison(30), nothing, 1, parity_holds=True)
    assert not found.promoted
    told = found.evidence["against_champion"]
    assert (told["log_wealth"], told["rows"], told["curve"], told["last_event_timestamp"]) == (0.0, 0, [], None)


def test_a_recipe_is_its_features_label_and_parameters_and_nothing_else() -> None:
    assert recipe({**CARD, "train_date": "2030-01-01", "library_versions": {"xgboost": "9"}}) == recipe(CARD)
    turned = {**CARD, "params": dict(reversed(CARD["params"].items()))}  # type: ignore[attr-defined]
    assert recipe_hash(recipe(turned)) == recipe_hash(recipe(CARD))
    for change in ({"feature_set_hash": "cd"}, {"label": "down"}, {"params": {"seed": 8, "depth": 3}}):
        assert recipe_hash(recipe({**CARD, **change})) != recipe_hash(recipe(CARD))


def test_a_rollback_undoes_one_promotion_each() -> None:
    def in_force(*changes: str) -> str:
        made: list[ChampionChange] = []
        for change in changes:
            how: How = "rolled back" if change == "back" else "promoted"
            made.append(ChampionChange(change, "hash", how, pd.Timestamp("2024-01-01", tz="UTC")))
        return "".join(change.model_version for change in champions_in_force(made))

    assert in_force() == in_force("back") == ""
    assert in_force("a", "b", "c") == "abc"
    assert in_force("a", "b", "c", "back") == "ab"
    assert in_force("a", "b", "c", "back", "back") == "a"
    assert in_force("a", "b", "back", "c", "back") == "a"


@pytest.mark.parametrize(
    ("times", "log_wealth", "kind"),
    [(1, 0.0, "not enough data"), (99, 2.0, "not enough data"), (100, 2.0, "no edge shown"), (99, 5.0, "promoted")],
)
def test_too_few_bar_times_are_a_verdict_of_their_own_that_says_how_many_are_needed(
    times: int, log_wealth: float, kind: str
) -> None:
    shown = comparison(log_wealth, instants=times)
    needed = {1.0: 20_000, 2.0: 5_000, 5.0: 100}
    found = decide(Comparison(shown.evidence, shown.rows, needed), None, 1, parity_holds=True)
    assert found.kind == kind and found.promoted == (kind == "promoted")
    assert found.to_dict()["promoted"] == found.promoted
    assert Verdict.from_dict(json.loads(json.dumps({"model_version": "a", **found.to_dict()}))) == found
    assert found.evidence["against_chance"]["times_needed"] == {"1": 20_000, "2": 5_000, "5": 100}
    if kind == "not enough data":
        count = "1 bar time was" if times == 1 else "99 bar times were"
        assert found.reason.startswith(
            f"Not enough data: {count} bet on, and an edge shows, four times in five, after 100 for one of 5, 5,000"
            " for one of 2, 20,000 for one of 1 points of accuracy; log-wealth "
        )


def test_a_champion_that_predicts_another_label_stays_and_the_remedy_is_named() -> None:
    told = decide(comparison(30), None, 1, parity_holds=True, other_label="1 when it rains")
    assert told.kind == "another label" and "(1 when it rains)" in told.reason and "MT5_CRS_HOME" in told.reason
    assert decide(comparison(0), None, 1, parity_holds=True, other_label="1 when it rains").kind == "no edge shown"


@pytest.mark.parametrize(("promoted", "kind"), [(True, "promoted"), (False, "no edge shown")])
def test_a_verdict_that_was_kept_before_there_were_kinds_can_be_read(promoted: bool, kind: str) -> None:
    found = Verdict.from_dict({"promoted": promoted, "reason": "as it was", "evidence": {}})
    assert (found.promoted, found.kind, found.reason) == (promoted, kind, "as it was")
