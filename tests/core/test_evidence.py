"""Evidence: what a bettor wins who believes the model, and that chance alone rarely wins, however often one looks."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt5_crs_pipeline.core.evidence import ALPHA, SHRINKAGES, against_champion, against_chance, threshold
from mt5_crs_pipeline.core.labels import LabelConfig, labelled_bars


def predictions(times: int, symbols: int, edge: float, seed: int, rate: float = 0.5) -> pd.DataFrame:
    """Rows whose probability points the right way in a share 0.5 + edge of them, apart from the rate of ups."""
    random = np.random.default_rng(seed)
    instants = pd.date_range("2010-01-01", periods=times, freq="D", tz="UTC").repeat(symbols)
    up = random.random(times * symbols) < rate
    right = random.random(len(up)) < 0.5 + edge
    probability = 0.5 + np.where(up == right, 1, -1) * random.uniform(0.01, 0.1, len(up))
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], times),
            "event_timestamp": instants,
            "target": up.astype(float),
            "probability": probability,
        }
    )


def wealth_after(rows: pd.DataFrame) -> float:
    """The definition of the log-wealth after all rows, with every symbol's best rate found anew."""
    weight = 1 / rows.groupby("event_timestamp")["symbol"].transform("count")
    up = rows["target"] == 1
    wealth = []
    for shrinkage in SHRINKAGES:
        belief = (0.5 + shrinkage * (rows["probability"] - 0.5)).clip(0.01, 0.99)
        wealth.append(float((weight * np.log(belief.where(up, 1 - belief))).sum()))
    rival = 0.0
    for _, own in rows.assign(weight=weight).groupby("symbol"):
        rate = float((own["weight"] * own["target"]).sum() / own["weight"].sum())
        likelihood = [math.log(rate) if target else math.log(1 - rate) for target in own["target"]]
        rival += float((own["weight"] * likelihood).sum())
    return float(np.log(np.mean(np.exp(wealth)))) - rival


def brute_force(rows: pd.DataFrame) -> list[float]:
    """The log-wealth after every instant."""
    times = rows["event_timestamp"]
    return [wealth_after(rows[times <= last]) for last in sorted(times.unique())]


@pytest.mark.parametrize("symbols", [1, 3])
def test_the_curve_is_its_definition(symbols: int) -> None:
    rows = predictions(25, symbols, 0.1, seed=symbols).drop(index=[4, 7]).sample(frac=1, random_state=1)
    evidence = against_chance(rows, 1)
    assert evidence.curve.tolist() == pytest.approx(brute_force(rows), abs=1e-9)
    assert evidence.curve.index.tolist() == sorted(rows["event_timestamp"].unique())
    assert evidence.log_wealth == evidence.curve.iloc[-1]
    assert evidence.best == evidence.curve.max()


@given(recipes=st.integers(1, 1000))
def test_every_recipe_tried_raises_the_threshold(recipes: int) -> None:
    assert threshold(recipes) == pytest.approx(math.log(recipes / ALPHA))


def test_later_rows_change_nothing_that_was_seen_before() -> None:
    rows = predictions(300, 2, 0.05, seed=1)
    early = rows[rows["event_timestamp"] < rows["event_timestamp"].iloc[400]]
    whole = against_chance(rows, 1).curve
    assert against_chance(early, 1).curve.to_numpy() == pytest.approx(whole.to_numpy()[:200], abs=1e-9)


@pytest.mark.parametrize("rate", [0.5, 0.55, 0.7])
def test_a_constant_rate_is_no_edge_however_well_it_is_known(rate: float) -> None:
    rows = predictions(3000, 1, 0.0, seed=2, rate=rate).assign(probability=rate)
    evidence = against_chance(rows, 1)
    assert evidence.best < evidence.threshold
    assert evidence.reached_at is None


def test_each_symbol_has_a_rate_of_its_own() -> None:
    rows = predictions(3000, 2, 0.0, seed=3)
    is_first = rows["symbol"] == "S0"
    random = np.random.default_rng(4)
    rows["target"] = (random.random(len(rows)) < np.where(is_first, 0.4, 0.6)).astype(float)
    evidence = against_chance(rows.assign(probability=np.where(is_first, 0.4, 0.6)), 1)
    assert evidence.best < evidence.threshold


def test_an_edge_is_found_and_more_surely_with_more_rows() -> None:
    evidence = against_chance(predictions(2500, 1, 0.05, seed=5), 1)
    assert evidence.shown
    assert evidence.reached_at is not None
    assert not against_chance(predictions(60, 1, 0.05, seed=5), 1).shown


def test_chance_rarely_wins_however_often_one_looks() -> None:
    best = [against_chance(predictions(800, 1, 0.0, seed=seed), 1).best for seed in range(300)]
    # Five percent of 300, and three standard deviations of luck.
    assert sum(wealth > threshold(1) for wealth in best) <= 15 + 12


def test_copies_of_one_symbol_are_no_more_evidence_than_the_symbol() -> None:
    rows = predictions(400, 1, 0.1, seed=6)
    copies = pd.concat([rows.assign(symbol=f"COPY{number}") for number in range(10)])
    assert against_chance(copies, 1).curve.to_numpy() == pytest.approx(
        against_chance(rows, 1).curve.to_numpy(), abs=1e-9
    )


def test_the_champion_is_beaten_by_what_is_nearer_and_never_by_itself() -> None:
    rows = predictions(2500, 2, 0.08, seed=7)
    coin = rows.assign(probability=0.5)
    assert against_champion(rows, coin, 1).shown
    assert against_champion(rows, rows, 1).curve.abs().max() < 1e-9
    assert not against_champion(coin, rows, 1).shown


def test_only_rows_that_both_predicted_count_against_the_champion() -> None:
    rows = predictions(100, 1, 0.08, seed=8)
    assert len(against_champion(rows, rows.iloc[40:], 1).curve) == 60
    nothing = against_champion(rows.iloc[:50], rows.iloc[50:], 1)
    assert (nothing.log_wealth, nothing.shown) == (0.0, False)


def test_without_rows_there_is_no_evidence() -> None:
    evidence = against_chance(predictions(3, 1, 0.0, seed=9).iloc[:0], 1)
    assert (evidence.log_wealth, evidence.best, evidence.shown, evidence.reached_at) == (0.0, 0.0, False, None)


def test_certainty_that_is_wrong_once_does_not_ruin_the_bettor() -> None:
    rows = predictions(1500, 1, 0.08, seed=10)
    rows.loc[700, "probability"] = 1.0 - rows.loc[700, "target"]
    assert math.isfinite(against_chance(rows, 1).log_wealth)
    assert against_chance(rows, 1).shown


# --- Labels that overlap, and bars inside the cost band --------------------------------------------------------------


def on_a_random_walk(seed: int, memory: int, label: LabelConfig) -> pd.DataFrame:
    """Predictions that the close goes on as in the last `memory` days, or, below 0, takes it back: worth nothing."""
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.01, 1200)))
    times = pd.date_range("2010-01-01", periods=1200, freq="D", tz="UTC").as_unit("us")
    rows = labelled_bars(pd.DataFrame({"symbol": "A", "time": times, "close": close}), "D1", label)
    moved = np.sign(memory) * np.log(close[abs(memory) :] / close[: -abs(memory)])[: len(rows) - abs(memory)]
    return rows.iloc[abs(memory) :].assign(probability=0.5 + np.clip(5 * moved, -0.2, 0.2)).reset_index(drop=True)


def ever_shown(walks: list[pd.DataFrame], horizon: int) -> int:
    return sum(against_chance(rows, 1, horizon).best > threshold(1) for rows in walks)


@pytest.mark.parametrize("symbols", [1, 3])
def test_of_labels_that_overlap_every_horizon_th_instant_is_a_bet(symbols: int) -> None:
    rows = predictions(40, symbols, 0.1, seed=symbols)
    instant = pd.factorize(rows["event_timestamp"])[0]
    rows.loc[(instant % 7 == 0) & (rows["symbol"] == "S0"), "target"] = np.nan
    bets = rows[instant % 4 == 0].dropna(subset=["target"])
    assert len(bets) < (instant % 4 == 0).sum()
    evidence = against_chance(rows.sample(frac=1, random_state=1), 1, 4)
    assert evidence.curve.tolist() == pytest.approx(brute_force(bets), abs=1e-9)
    same = against_champion(rows, rows, 1, 4)
    assert same.curve.index.equals(evidence.curve.index) and same.log_wealth == pytest.approx(0.0, abs=1e-12)


def test_overlapping_labels_would_be_taken_for_an_edge_where_there_is_none() -> None:
    walks = [on_a_random_walk(seed, 5, LabelConfig(5)) for seed in range(60)]
    # Twice the error that is allowed, and more.
    assert ever_shown(walks, 1) > 2 * ALPHA * 60
    assert ever_shown(walks, 5) <= ALPHA * 60


@pytest.mark.parametrize("memory", [-1, 1, -5, 5])
def test_bars_inside_the_cost_band_make_no_edge_of_none(memory: int) -> None:
    walks = [on_a_random_walk(seed, memory, LabelConfig(5, 0.01)) for seed in range(60)]
    assert all(rows["target"].isna().mean() > 0.2 for rows in walks)
    assert ever_shown(walks, 5) <= ALPHA * 60
