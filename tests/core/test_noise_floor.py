"""The noise floor: data in which nothing is left to know, the shape that is left of it, and where a model lies."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.bars import PRICE_COLUMNS, adjusted, close_time, reject_reasons
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.evidence import threshold
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, get_feature_names
from mt5_crs_pipeline.core.labels import LabelConfig, labelled_bars
from mt5_crs_pipeline.core.model import out_of_sample_predictions
from mt5_crs_pipeline.core.noise_floor import (
    NoiseFloor,
    Place,
    Run,
    noise_floor,
    outcome,
    permuted,
    place,
    random_walk,
    shape,
    walk_rows,
)
from mt5_crs_pipeline.core.recipe import Recipe
from tests.core.samples import NOW, random_bars, real_bars
from tests.core.test_model import FEATURES, QUICK, training_rows

CONFIG = FeatureConfig(("return_1", "momentum_5", "volume_change"))
RECIPE = Recipe(training=QUICK)
PRICES = list(PRICE_COLUMNS)


def panel(days: int = 200, symbols: str = "ABC") -> pd.DataFrame:
    """Rows whose forward_return names the instant it belongs to, the same for all symbols."""
    rows = training_rows(0.0, days)
    rows["forward_return"] = np.repeat(np.arange(days, dtype=float), 4)
    rows["spread_share"] = np.arange(len(rows), dtype=float)
    return rows[rows["symbol"].isin(list(symbols))].reset_index(drop=True)


def trending_bars(persistence: float, days: int = 500) -> pd.DataFrame:
    """Bars of three symbols whose close goes the way it went with probability `persistence`."""
    bars = random_bars(length=days)
    rng = np.random.default_rng(4)
    for _, at in bars.groupby("symbol").groups.items():
        sign = np.where(np.cumsum(rng.random(days) >= persistence) % 2, -1.0, 1.0)
        close = 100 * np.exp(np.cumsum(sign * np.abs(rng.normal(0, 0.01, days))))
        bars.loc[at, "close"] = close
        bars.loc[at, "open"] = np.r_[100.0, close[:-1]]
    bars["high"], bars["low"] = bars[["open", "close"]].max(axis=1), bars[["open", "close"]].min(axis=1)
    return bars


def rows_of(bars: pd.DataFrame) -> pd.DataFrame:
    """The training rows of bars, through the same module as those of a walk."""
    features = feature_frame(bars, CONFIG).assign(symbol=bars["symbol"], event_timestamp=close_time(bars["time"], "D1"))
    return labelled_bars(bars, "D1").merge(features).dropna(subset=get_feature_names(CONFIG), ignore_index=True)


def log_wealth(rows: pd.DataFrame, features: list[str]) -> float:
    return outcome(out_of_sample_predictions(rows, features, QUICK), 1).log_wealth


def test_outcomes_change_places_by_instant_and_everything_else_stays() -> None:
    rows = panel()
    before = rows.copy(deep=True)
    found = permuted(rows, seed=1)
    pd.testing.assert_frame_equal(rows, before)
    outcomes = ["target", "forward_return"]
    pd.testing.assert_frame_equal(found.drop(columns=outcomes), rows.drop(columns=outcomes))
    assert (found.groupby("event_timestamp")["forward_return"].nunique() == 1).all()
    original = rows.set_index(["symbol", "forward_return"])["target"]
    assert (
        found["target"].tolist()
        == original.loc[list(zip(found["symbol"], found["forward_return"], strict=True))].tolist()
    )
    assert (found["forward_return"] != rows["forward_return"]).mean() > 0.9
    ups = rows.groupby("symbol")["target"].sum()
    assert found.groupby("symbol")["target"].sum().equals(ups)


def test_neighbours_stay_neighbours_in_blocks_as_long_as_the_horizon() -> None:
    for horizon in (1, 7):
        moved = permuted(panel(symbols="A"), 2, horizon)["forward_return"].to_numpy()
        breaks = int((np.diff(moved) != 1).sum())
        assert sorted(moved) == list(range(200))
        assert breaks > 100 if horizon == 1 else 200 / 7 - 4 < breaks < 200 / 7


def test_blocks_are_as_long_as_outcomes_depend_on_each_other() -> None:
    rows = panel(symbols="A")
    runs = rows.assign(target=(np.arange(len(rows)) // 12 % 2).astype(float))
    breaks = [int((np.diff(permuted(one, 2)["forward_return"]) != 1).sum()) for one in (rows, runs)]
    assert breaks[1] < 40 < 100 < breaks[0]


def test_symbols_that_start_late_stop_early_or_have_gaps_keep_their_outcomes_and_go_along_where_they_can() -> None:
    rows = panel(symbols="ABCD")
    number = rows["forward_return"]
    late, early, gaps = (rows["symbol"] == name for name in "BCD")
    there = ~(late & (number < 120)) & ~(early & (number > 80)) & ~(gaps & (number % 9 == 4))
    ragged = rows[there].reset_index(drop=True)
    found = permuted(ragged, 3)
    for symbol, own in found.groupby("symbol"):
        assert sorted(own["forward_return"]) == sorted(ragged.loc[ragged["symbol"] == symbol, "forward_return"])
    source = found[found["symbol"] == "A"].set_index("event_timestamp")["forward_return"]
    for symbol in "BCD":
        own = found[found["symbol"] == symbol]
        wanted = source.loc[own["event_timestamp"]].to_numpy()
        possible = np.isin(wanted, ragged.loc[ragged["symbol"] == symbol, "forward_return"])
        assert (own["forward_return"].to_numpy()[possible] == wanted[possible]).all()
        assert 0 < possible.sum() < len(own)
    shuffled = ragged.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(permuted(shuffled, 3).sort_index(), found)


def test_a_row_inside_the_cost_band_takes_its_missing_target_along() -> None:
    rows = panel(symbols="AB")
    dull = rows["forward_return"] % 5 == 0
    found = permuted(rows.assign(target=rows["target"].mask(dull)), 1)
    assert (found["target"].isna() == (found["forward_return"] % 5 == 0)).all()


def test_a_planted_edge_is_seen_and_gone_when_labels_are_permuted() -> None:
    rows = training_rows(signal=1.0).assign(forward_return=0.0)
    assert log_wealth(rows, FEATURES) > 10
    assert max(log_wealth(permuted(rows, seed), FEATURES) for seed in (1, 2, 3)) < threshold(1)


@pytest.mark.parametrize("bars", [random_bars(), adjusted(real_bars(400)), random_bars(("AAA",), 2)])
def test_a_walk_is_made_of_valid_bars_as_large_as_those_of_the_data(bars: pd.DataFrame) -> None:
    ordered = bars.sort_values(["symbol", "time"], ignore_index=True)
    walk = random_walk(bars.sample(frac=1, random_state=2), seed=1)
    kept = ["symbol", "time", "volume"]
    pd.testing.assert_frame_equal(walk[kept], ordered[kept])
    assert reject_reasons(walk, "D1", NOW).isna().all()

    def sizes(frame: pd.DataFrame) -> pd.DataFrame:
        before = frame.groupby("symbol")["close"].shift().fillna(frame["open"])
        change, gap = (np.log(frame[name] / before) for name in ("close", "open"))
        return pd.DataFrame({"change": change, "gap": gap, "range": np.log(frame["high"] / frame["low"])})

    real, made = sizes(ordered), sizes(walk)
    moved = real["change"].abs() > 1e-9
    for name in ("change", "gap"):
        np.testing.assert_allclose(made[name].abs()[moved], real[name].abs()[moved], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(made["range"][moved], real["range"][moved], rtol=1e-6, atol=1e-12)
    # One coin for all symbols of an instant, and for the open as for the close.
    flips = np.sign(made["change"] * real["change"])[moved]
    assert (flips.groupby(ordered["time"][moved]).nunique() == 1).all()
    assert (np.sign(made["gap"] * real["gap"])[moved] * flips >= 0).all()


def test_the_coin_of_a_walk_is_fair_and_nobody_knows_it_before() -> None:
    bars = trending_bars(1.0, 2000)
    assert labelled_bars(bars, "D1")["target"].mean() == 1.0
    ups = labelled_bars(random_walk(bars, 5), "D1").query("symbol == 'AAA'")["target"].to_numpy()
    assert abs(ups.mean() - 0.5) < 0.04
    assert abs((ups[1:] == ups[:-1]).mean() - 0.5) < 0.04


def test_a_close_that_did_not_change_is_decided_by_the_coin_too() -> None:
    bars = random_bars(("AAA",), 300)
    bars[PRICES] = bars[PRICES].round(0).clip(lower=1)
    still = bars["close"].diff() == 0
    assert still.sum() > 50
    walk = random_walk(bars, 1)
    change = np.log(walk["close"]).diff().abs()
    assert change[1:].min() == pytest.approx(np.log(bars["close"]).diff().abs().replace(0, np.nan).min())
    assert 0.3 < (walk["close"].diff()[still] > 0).mean() < 0.7
    assert reject_reasons(walk, "D1", NOW).isna().all()
    flat = bars.assign(**dict.fromkeys(PRICES, 5.0))
    assert (random_walk(flat, 1)[PRICES] - 5.0).abs().max().max() < 1e-12


def test_a_trend_is_seen_in_bars_and_not_in_their_walks() -> None:
    bars = trending_bars(0.8)
    rows = rows_of(bars)
    assert log_wealth(rows, get_feature_names(CONFIG)) > 10
    for seed in (1, 2, 3):
        walk = walk_rows(rows, bars, "D1", LabelConfig(), CONFIG, seed)
        key = ["symbol", "event_timestamp", "label_time"]
        pd.testing.assert_frame_equal(walk[key], rows[key])
        assert log_wealth(walk, get_feature_names(CONFIG)) < threshold(1)


def test_the_same_seed_gives_the_same_bytes_and_another_another() -> None:
    bars, rows = random_bars(), panel()
    for make in (lambda seed: random_walk(bars, seed), lambda seed: permuted(rows, seed)):
        pd.testing.assert_frame_equal(make(1), make(1), check_exact=True)
        assert not make(1).equals(make(2))


@pytest.fixture(scope="module")
def floor() -> NoiseFloor:
    bars = trending_bars(0.8, 300)
    return noise_floor(rows_of(bars), bars, "D1", RECIPE, CONFIG, 2, "2024-01-01T00:00:00+00:00")


def test_a_floor_has_as_many_runs_of_each_kind_and_survives_json(floor: NoiseFloor) -> None:
    assert (len(floor.permuted), len(floor.walks), floor.refused) == (2, 2, ())
    assert len(set(floor.runs)) == 4
    assert NoiseFloor.from_dict(json.loads(json.dumps(floor.to_dict(), allow_nan=False))) == floor
    for broken in ({}, {"permuted": [1], "walks": []}, {**floor.to_dict(), "more": 1}, []):
        with pytest.raises((KeyError, TypeError)):
            NoiseFloor.from_dict(broken)  # type: ignore[arg-type]


def test_runs_side_by_side_are_the_runs_of_one_after_the_other(floor: NoiseFloor) -> None:
    bars = trending_bars(0.8, 300)
    side_by_side = noise_floor(rows_of(bars), bars, "D1", RECIPE, CONFIG, 2, floor.renewed_at, processors=3)
    assert side_by_side == floor


def test_where_the_model_lies_is_told_by_the_rows_that_the_floor_had(floor: NoiseFloor) -> None:
    rows = rows_of(trending_bars(0.8, 400))
    predictions = out_of_sample_predictions(rows, get_feature_names(CONFIG), QUICK)
    found = place(floor, predictions, 1)
    assert found is not None
    known = predictions[predictions["event_timestamp"] <= pd.Timestamp(floor.last)]
    assert 0 < len(known) < len(predictions)
    assert found.model == outcome(known, 1)
    assert place(floor, predictions.assign(target=np.nan), 1) is None


def test_the_place_counts_the_runs_that_the_model_exceeds() -> None:
    runs = tuple(Run(float(number), number / 100) for number in range(10))
    floor = NoiseFloor("x", "2024", 5, "2020", "2024", runs, runs)
    best = Place(floor, Run(9.5, 0.045))
    assert (best.above, best.above_in_accuracy) == (20, 10)
    assert best.sentence == (
        "The model's log-wealth 9.50 lies above 20 of 20 runs on data where nothing can be known:"
        " p = 0.048, the smallest that 20 runs can give."
    )
    middle = Place(floor, Run(5.0, 0.0))  # what equals the model reaches it
    assert (middle.above, middle.p_value) == (10, 11 / 21)
    assert middle.sentence.endswith("lies above 10 of 20 runs on data where nothing can be known: p = 0.52.")
    assert Place(floor, Run(-1.0, 0.0)).p_value == 1.0


def test_runs_that_cannot_be_trained_are_said_and_do_not_stop_the_others() -> None:
    bars = random_bars(length=200)
    rows = rows_of(bars)
    ups = noise_floor(rows.assign(target=1.0), bars, "D1", RECIPE, CONFIG, 2, "2024-01-01T00:00:00+00:00")
    assert (len(ups.permuted), len(ups.walks), len(ups.refused)) == (0, 2, 2)
    assert "have only [1.0]" in ups.refused[0] and "\n" not in ups.refused[0]
    nothing = Place(replace(ups, walks=()), Run(1.0, 0.0))
    assert nothing.p_value == 1.0
    assert nothing.sentence.startswith("No run on data where nothing can be known was possible: training needs bars")


def test_rows_that_are_too_few_to_walk_forward_are_refused_in_one_line() -> None:
    bars = random_bars(length=60)
    with pytest.raises(InputError, match="bar times are too few"):
        noise_floor(rows_of(bars), bars, "D1", RECIPE, CONFIG, 1, "2024-01-01T00:00:00+00:00")


def test_a_symbol_that_starts_late_is_in_every_run() -> None:
    bars = random_bars(length=300)
    bars = bars[(bars["symbol"] != "CCC") | (bars["time"] >= "2023-07-01")].reset_index(drop=True)
    rows = rows_of(bars)
    for noise in (permuted(rows, 1), walk_rows(rows, bars, "D1", LabelConfig(), CONFIG, 1)):
        assert noise.groupby("symbol").size().equals(rows.groupby("symbol").size())
    assert len(noise_floor(rows, bars, "D1", RECIPE, CONFIG, 1, "2024-01-01T00:00:00+00:00").runs) == 2


def test_a_floor_is_made_anew_for_another_recipe_or_a_window_more_and_not_for_another_day() -> None:
    rows = panel(200)

    def of(rows: pd.DataFrame = rows, recipe: Recipe = RECIPE, config: FeatureConfig = CONFIG, runs: int = 3) -> str:
        return shape(rows, "D1", recipe, config, runs)

    # Windows begin after 120 and 180 instants; the third begins after 270.
    assert of(panel(190)) == of(panel(269)) == of()
    others = {
        of(panel(271)),
        of(panel(179)),
        of(panel(symbols="AB")),
        of(rows[rows["forward_return"] > 0]),
        of(recipe=replace(RECIPE, label=LabelConfig(2))),
        of(recipe=replace(RECIPE, training=replace(QUICK, max_depth=2))),
        of(config=FeatureConfig(("return_1",))),
        of(runs=4),
        shape(rows, "H1", RECIPE, CONFIG, 3),
    }
    assert len(others) == 9 and of() not in others
