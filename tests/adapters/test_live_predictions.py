"""Live predictions with a real PostgreSQL and a real lake: what is kept, when it counts, and whose record it is."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2.errors
import pytest

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake
from mt5_crs_pipeline.adapters.live_predictions import PredictedLive, live_record, predict_newest
from mt5_crs_pipeline.adapters.model_store import Bundle, ModelStore
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.adapters.promotion import promote_on_evidence, roll_back
from mt5_crs_pipeline.adapters.trial_ledger import lock_promotions
from mt5_crs_pipeline.core.errors import BundleRejectedError
from mt5_crs_pipeline.core.features import FeatureConfig
from mt5_crs_pipeline.core.labels import LabelConfig
from mt5_crs_pipeline.core.live import LiveRecord
from mt5_crs_pipeline.core.promotion import recipe, recipe_hash
from mt5_crs_pipeline.inference import PricePredictor
from tests.adapters.live_world import TODAY, bars_until, fill
from tests.adapters.made_up_bars import query
from tests.adapters.small_model import SYMBOLS, TRAINING, card, model, planted_predictions, real_bars
from tests.commands import comes_true
from tests.core.test_evidence import wealth_after

NOW = datetime(2013, 3, 2, 12, tzinfo=UTC)
OTHER = {"params": {**TRAINING.to_dict(), "seed": 8}}
KEPT = (
    "select symbol, event_timestamp, probability, model_version, bundle_hash, predicted_at from model_prediction"
    " order by event_timestamp, symbol, predicted_at"
)


class World:
    """One installation: the lake, the models and the database."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.models, self.home = url, ModelStore(home / "models"), home
        self.lake = Lake(home / "lake")

    def promote(self, version: str, wrong_in: int = 5, **changes: Any) -> Bundle:
        bundle = self.models.save(card(version, **changes), model(), planted_predictions(wrong_in))
        with connected(self.url) as connection:
            assert promote_on_evidence(connection, self.models, bundle, NOW).promoted
        return bundle

    def back(self) -> None:
        with connected(self.url) as connection:
            roll_back(connection, self.models, "D1", NOW, lambda _: None)

    def until(self, bars_missing: int, symbol_that_stopped: str = "") -> pd.DataFrame:
        """Go on to the day that the newest bars but so many close; return the bars of the lake."""
        shutil.rmtree(self.lake.folder, ignore_errors=True)
        bars = bars_until(bars_missing)
        stopped = (bars["symbol"] == symbol_that_stopped) & (bars["time"] >= bars_until(5)["time"].max())
        fill(self.lake, bars[~stopped].reset_index(drop=True))
        return bars

    def predict(self) -> PredictedLive | None:
        with connected(self.url) as connection:
            return predict_newest(connection, ModelStore(self.models.folder), self.lake)

    def stored(self) -> int:
        said = self.predict()
        assert said is not None
        return said.stored

    def record(self) -> LiveRecord | None:
        with connected(self.url) as connection:
            return live_record(connection, self.models, self.lake)

    def kept(self) -> pd.DataFrame:
        columns = ["symbol", "event_timestamp", "probability", "model_version", "bundle_hash", "predicted_at"]
        return pd.DataFrame(query(self.url, KEPT), columns=columns)


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> World:
    prepare_database(database_url)
    world = World(database_url, tmp_path)
    world.until(4)
    return world


def newest(bars: pd.DataFrame) -> pd.Timestamp:
    return bars["time"].max() + timedelta(days=1)


def met(world: World, bars: pd.DataFrame) -> pd.DataFrame:
    """The kept predictions with the direction of the next close, by a loop over the bars."""
    rows = []
    for said in world.kept().to_dict("records"):
        prices = bars[bars["symbol"] == said["symbol"]].sort_values("time")
        later = prices[prices["time"] >= said["event_timestamp"]]
        if len(later):
            now = prices[prices["time"] < said["event_timestamp"]].iloc[-1]
            rows.append({**said, "target": float(later.iloc[0]["adjusted_close"] > now["adjusted_close"])})
    return pd.DataFrame(rows)


def wealth(*parts: pd.DataFrame) -> float:
    columns = ["symbol", "event_timestamp", "target", "probability"]
    return wealth_after(pd.concat([part[columns] for part in parts], ignore_index=True))


# --- What is kept ----------------------------------------------------------------------------------------------------


def test_the_newest_bar_of_every_symbol_is_predicted_and_kept_with_who_said_it_and_when(world: World) -> None:
    bundle, bars = world.promote("20130301-a"), world.until(4)
    before = datetime.now(UTC)
    said = world.predict()
    assert said is not None and (said.champion, said.stored, said.left_out) == (bundle.version, 2, {})
    kept = world.kept()
    assert kept["symbol"].tolist() == list(SYMBOLS) and set(kept["event_timestamp"]) == {newest(bars)}
    predictor = PricePredictor(world.models.folder)
    for row in kept.to_dict("records"):
        own = bars[bars["symbol"] == row["symbol"]]
        answer = predictor.predict_from_ohlcv(own, newest(bars).to_pydatetime())
        assert row["probability"] == answer.probability and row["event_timestamp"] == answer.bar_close
        assert (row["model_version"], row["bundle_hash"]) == (bundle.version, bundle.checksum)
        assert abs(row["predicted_at"] - before) < timedelta(minutes=1)
    assert said.predictions["probability"].tolist() == kept["probability"].tolist()


def test_what_was_said_first_stays(world: World) -> None:
    world.promote("20130301-a")
    assert world.stored() == 2
    before = world.kept()
    assert world.stored() == 0
    corrected = bars_until(4)
    corrected.loc[corrected["time"] == corrected["time"].max(), ["high", "close", "adjusted_close"]] *= 1.2
    fill(world.lake, corrected)
    said = world.predict()
    assert said is not None and said.stored == 0
    assert said.predictions["probability"].tolist() != before["probability"].tolist()
    pd.testing.assert_frame_equal(world.kept(), before)


@pytest.mark.parametrize("change", ["delete from {}", "update {} set probability = 0.9", "truncate {}"])
def test_what_was_said_cannot_be_taken_back(world: World, change: str) -> None:
    world.promote("20130301-a")
    world.predict()
    before = world.kept()
    assert len(before) == 2
    with pytest.raises(psycopg2.errors.RestrictViolation, match="model_prediction is append-only"):
        query(world.url, change.format("model_prediction"))
    pd.testing.assert_frame_equal(world.kept(), before)


def test_two_runs_at_once_keep_each_prediction_once(world: World) -> None:
    world.promote("20130301-a")
    with ThreadPoolExecutor(4) as pool:
        stored = sorted(run.result() for run in [pool.submit(world.stored) for _ in range(4)])
    assert stored == [0, 0, 0, 2] and len(world.kept()) == 2


def test_without_a_champion_nothing_is_said(world: World) -> None:
    world.models.save(card("20130301-a"), model(), planted_predictions())
    assert world.predict() is None and world.record() is None
    assert world.kept().empty


def test_a_model_that_becomes_champion_meanwhile_is_the_one_that_is_asked(world: World) -> None:
    world.promote("20130301-a")
    bundle = world.models.save(card("20130301-b"), model(), planted_predictions())
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted and database ="
    waiting += " (select oid from pg_database where datname = current_database())"
    with ThreadPoolExecutor(1) as pool:
        with connected(world.url) as connection:
            lock_promotions(connection)
            run = pool.submit(world.predict)
            assert comes_true(lambda: query(world.url, waiting) == [(1,)], timeout_s=30)
            promote_on_evidence(connection, world.models, bundle, NOW)
        said = run.result()
    assert said is not None and said.champion == "20130301-b"
    assert set(world.kept()["model_version"]) == {"20130301-b"}


def test_symbols_that_the_champion_does_not_know_or_that_are_in_warm_up_are_left_out(world: World) -> None:
    world.promote("20130301-a", symbols=["IBM", "NEW"])
    bars = bars_until(4)
    new = bars[bars["symbol"] == "IBM"].tail(5).assign(symbol="NEW")
    fill(world.lake, pd.concat([bars, new], ignore_index=True))
    said = world.predict()
    assert said is not None and said.predictions["symbol"].tolist() == ["IBM"] and said.stored == 1
    assert said.left_out == {"AAPL": "the champion was not trained on it", "NEW": "too few bars"}


def test_a_champion_of_features_that_are_not_stored_is_refused_by_their_names(world: World) -> None:
    config = FeatureConfig(("sma_5", "rsi_14"))
    own = {"features": ["sma_5", "rsi_14"], "feature_config": {"features": ["sma_5", "rsi_14"]}}
    own |= {"feature_set_hash": config.feature_set_hash}
    world.promote("20130301-a", parity={"feature_set_hash": config.feature_set_hash, "holds": True}, **own)
    with pytest.raises(BundleRejectedError, match="champion 20130301-a needs sma_5, which this package does") as error:
        world.predict()
    assert "\n" not in str(error.value) and world.kept().empty


# --- What counts -----------------------------------------------------------------------------------------------------


def test_the_next_day_brings_the_outcome_and_the_evidence_goes_on(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    assert world.record() is None, "the outcome is not known"
    bars = world.until(3)
    world.predict()
    bars = world.until(2)
    found = world.record()
    expected = met(world, bars)
    assert found is not None and len(expected) == 4
    assert (found.champion, found.rows, found.instants) == ("20130301-a", 4, 2)
    assert found.since == expected["event_timestamp"].min()
    before = wealth(planted_predictions())
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), expected), abs=1e-9)
    assert found.gained == pytest.approx(found.comparison.evidence.log_wealth - before, abs=1e-9)
    right = (expected["probability"] >= 0.5) == (expected["target"] == 1)
    assert found.accuracy.estimate == right.mean()
    assert found.comparison.evidence.threshold == pytest.approx(math.log(1 / 0.05))


def test_a_prediction_made_after_the_outcome_never_counts(world: World) -> None:
    world.promote("20130301-a")
    late = timedelta(days=-10)
    for missing in (1, 0):
        shutil.rmtree(world.lake.folder)
        fill(world.lake, bars_until(missing, late))
        assert world.stored() == 2
    assert len(world.kept()) == 4
    assert world.record() is None


def test_the_threshold_is_that_of_the_promotion_whatever_is_tried_later(world: World) -> None:
    world.promote("20130301-a")
    world.promote("20130301-b", wrong_in=50, **OTHER)
    world.predict()
    for seed in (20, 21):
        params = {"params": {**TRAINING.to_dict(), "seed": seed}}
        with connected(world.url) as connection:
            third = world.models.save(card(f"20130301-c{seed}", **params), model(), planted_predictions())
            assert not promote_on_evidence(connection, world.models, third, NOW).promoted
    world.until(3)
    found = world.record()
    assert found is not None and found.comparison.evidence.threshold == pytest.approx(math.log(2 / 0.05))
    (world.models.folder / "verdicts" / "20130301-b.json").unlink()
    found = world.record()
    assert found is not None and found.comparison.evidence.threshold == pytest.approx(math.log(4 / 0.05))


def test_a_correction_of_the_outcome_bar_turns_the_outcome(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    bars = world.until(3)
    first = world.record()
    turned = bars[bars["time"] == bars["time"].max()].copy()
    was_up = met(world, bars)["target"].to_numpy() == 1
    factor = pd.Series([0.5 if up else 2.0 for up in was_up], index=turned.index)
    for name in ("open", "high", "low", "close", "adjusted_close"):
        turned[name] *= factor
    later = turned["recorded_at"] + timedelta(hours=5)
    fill(world.lake, pd.concat([bars, turned.assign(known_at=later, recorded_at=later)], ignore_index=True))
    second = world.record()
    assert first is not None and second is not None
    assert second.accuracy.estimate == pytest.approx(1 - first.accuracy.estimate)
    expected = met(world, bars).assign(target=(~was_up).astype(float))
    assert second.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), expected), abs=1e-9)


def test_a_bar_that_arrives_late_may_bring_the_outcome_before_the_prediction(world: World) -> None:
    world.promote("20130301-a")
    bars = bars_until(0)
    last = bars.groupby("symbol").tail(1)
    shutil.rmtree(world.lake.folder)
    known = bars[bars["time"] < TODAY - timedelta(days=9)].reset_index(drop=True)
    fill(world.lake, known)
    world.predict()
    fill(world.lake, pd.concat([known, last], ignore_index=True))
    found = world.record()
    assert found is not None and found.rows == 2
    fill(world.lake, bars)
    assert world.record() is None


def test_a_symbol_that_stopped_is_predicted_and_waits_while_the_others_count(world: World) -> None:
    world.promote("20130301-a")
    world.until(4, symbol_that_stopped="AAPL")
    assert world.stored() == 2
    bars = world.until(3, symbol_that_stopped="AAPL")
    assert world.stored() == 1
    found = world.record()
    assert found is not None and (found.rows, found.instants) == (1, 1)
    own = met(world, bars[bars["symbol"] == "IBM"])
    assert len(own) == 1
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), own), abs=1e-9)


def test_a_longer_horizon_is_waited_for_and_its_bets_do_not_overlap(world: World) -> None:
    label = LabelConfig(horizon_bars=2)
    world.promote("20130301-a", label=label.definition, label_config=asdict(label))
    world.predict()
    world.until(3)
    assert world.record() is None
    bars = world.until(2)
    found = world.record()
    assert found is not None and found.rows == 2
    last_three = bars.groupby("symbol").tail(3).groupby("symbol")["adjusted_close"]
    expected = world.kept().assign(target=(last_three.last() > last_three.first()).astype(float).to_list())
    together = pd.concat([planted_predictions(), expected], ignore_index=True)
    every_second = sorted(together["event_timestamp"].unique())[::2]
    bets = together[together["event_timestamp"].isin(every_second)]
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(bets), abs=1e-9)


def test_a_bar_that_closes_with_its_month_counts_and_a_split_is_no_fall(world: World) -> None:
    bundle = world.promote("20130301-a", **OTHER)
    bars = real_bars().copy()
    outcome = (bars["symbol"] == "AAPL") & (bars["time"] == pd.Timestamp("2013-02-01", tz="UTC"))
    before = (bars["symbol"] == "AAPL") & (bars["time"] == pd.Timestamp("2013-01-31", tz="UTC"))
    assert outcome.sum() == before.sum() == 1
    bars.loc[outcome, ["open", "high", "low", "close"]] *= 0.5
    bars.loc[outcome, "adjusted_close"] = bars.loc[before, "adjusted_close"].item() * 1.01
    shutil.rmtree(world.lake.folder)
    fill(world.lake, bars)
    query(
        world.url,
        "insert into model_prediction values ('D1', 'AAPL', '2013-02-01', %s, %s, %s, 0.75, '2013-02-01 00:30')",
        (bundle.version, bundle.checksum, recipe_hash(recipe(bundle.metadata))),
    )
    found = world.record()
    assert found is not None and (found.rows, found.accuracy.estimate) == (1, 1.0)
    assert found.since == pd.Timestamp("2013-02-01", tz="UTC")


# --- Whose record it is ----------------------------------------------------------------------------------------------


def test_a_champion_of_the_same_recipe_goes_on_where_the_one_before_was(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    world.until(3)
    world.promote("20130301-b")
    assert world.stored() == 2
    bars = world.until(2)
    found = world.record()
    assert found is not None and (found.champion, found.rows, found.instants) == ("20130301-b", 4, 2)
    expected = met(world, bars)
    assert expected["model_version"].tolist() == ["20130301-a"] * 2 + ["20130301-b"] * 2
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), expected), abs=1e-9)


def test_of_two_champions_of_one_recipe_that_predicted_one_bar_the_first_counts(world: World) -> None:
    first = world.promote("20130301-a")
    world.predict()
    second = world.promote("20130301-b")
    assert world.stored() == 2 and len(world.kept()) == 4
    query(
        world.url,
        "insert into model_prediction (timeframe, symbol, event_timestamp, model_version, bundle_hash, recipe_hash,"
        " probability, predicted_at) select timeframe, symbol, event_timestamp, 'later', 'later', recipe_hash,"
        " 1 - probability, predicted_at + interval '1 minute' from model_prediction where bundle_hash = %s",
        (second.checksum,),
    )
    bars = world.until(3)
    found = world.record()
    assert found is not None and found.rows == 2
    expected = met(world, bars)
    own = expected[expected["bundle_hash"] == first.checksum]
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), own), abs=1e-9)


def test_another_recipe_begins_a_record_of_its_own_and_a_rollback_returns_to_the_one_before(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    world.until(3)
    world.promote("20130301-b", wrong_in=50, **OTHER)
    assert world.record() is None, "what another recipe said is not its record"
    world.predict()
    bars = world.until(2)
    found = world.record()
    assert found is not None and (found.champion, found.rows) == ("20130301-b", 2)
    own = met(world, bars).query("model_version == '20130301-b'")
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(50), own), abs=1e-9)
    world.back()
    assert world.stored() == 2
    bars = world.until(1)
    found = world.record()
    assert found is not None and (found.champion, found.rows, found.instants) == ("20130301-a", 4, 2)
    own = met(world, bars).query("model_version == '20130301-a'")
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), own), abs=1e-9)


def test_a_deleted_bundle_is_one_clear_line_and_what_it_said_still_counts_for_its_recipe(world: World) -> None:
    first = world.promote("20130301-a")
    world.predict()
    world.until(3)
    shutil.rmtree(first.folder)
    with pytest.raises(BundleRejectedError, match="names a model that is not there as it was promoted") as error:
        world.predict()
    assert "\n" not in str(error.value) and len(world.kept()) == 2
    assert world.record() is None, "nobody answers whose record it would be"
    world.promote("20130301-b")
    found = world.record()
    assert found is not None and (found.champion, found.rows) == ("20130301-b", 2)


def test_timeframes_have_records_of_their_own(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    query(
        world.url,
        "insert into model_prediction (timeframe, symbol, event_timestamp, model_version, bundle_hash, recipe_hash,"
        " probability, predicted_at) select 'H1', symbol, event_timestamp, model_version, bundle_hash, recipe_hash,"
        " 0.99, predicted_at - interval '1 hour' from model_prediction",
    )
    bars = world.until(3)
    found = world.record()
    assert found is not None and found.rows == 2
    own = met(world, bars).query("probability != 0.99")
    assert found.comparison.evidence.log_wealth == pytest.approx(wealth(planted_predictions(), own), abs=1e-9)


def test_the_record_reads_no_month_long_before_the_first_prediction(world: World) -> None:
    world.promote("20130301-a")
    world.predict()
    world.until(3)
    earliest = world.lake.months(MARKET_DATA)[0]
    world.lake.file(MARKET_DATA, earliest).write_bytes(b"damaged")
    found = world.record()
    assert found is not None and found.rows == 2
