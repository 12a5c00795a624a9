"""What a simple rule earned: equal to a plain loop, never a number where none is defined."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, signal, stats

from mt5_crs_pipeline.core.economics import Economics, Performance, deflated_sharpe, economics
from mt5_crs_pipeline.core.errors import InputError

YEAR = pd.Timedelta(days=365.25)


def predictions(times: int = 300, symbols: int = 3, seed: int = 1, **columns: object) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    closes = pd.date_range("2020-01-01", periods=times, freq="D", tz="UTC").repeat(symbols)
    rows = len(closes)
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], times),
            "event_timestamp": closes,
            "label_time": closes + pd.Timedelta(days=1),
            "target": random.integers(0, 2, rows).astype(float),
            "forward_return": random.normal(0, 0.01, rows),
            "spread_share": random.uniform(0, 0.002, rows),
            "realised_volatility_20": random.uniform(0.005, 0.02, rows),
            "probability": random.uniform(0.2, 0.8, rows),
        }
    ).assign(**columns)


def reaching(rows: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """The same rows with labels that end at the symbol's `horizon`-th next row; rows without one are left out."""
    ends = rows.sort_values("event_timestamp").groupby("symbol")["event_timestamp"].shift(-horizon)
    return rows.assign(label_time=ends).dropna(subset=["label_time"]).reset_index(drop=True)


def by_loop(rows: pd.DataFrame, horizon: int, cost: float | None) -> tuple[dict[str, list[float]], float]:
    """Wealth after every instant at which something ended, and all that was bought and sold: one instant at a time."""
    begins = {(row.symbol, row.event_timestamp): row for row in rows.itertuples()}
    names = sorted(set(rows["symbol"]))
    held: dict[str, Any] = {}
    wealth: dict[str, list[float]] = {"net": [1.0], "gross": [1.0], "held": [1.0]}
    bought = 0.0
    for now in sorted({*rows["event_timestamp"], *rows["label_time"]}):
        ended = {name: held.pop(name) for name in names if name in held and held[name]["row"].label_time == now}
        opened = [name for name in names if name not in held and (name, now) in begins]
        for name in opened:
            row = begins[name, now]
            paid = cost if cost is not None else (0.0 if math.isnan(row.spread_share) else row.spread_share)
            lean = 2 * row.probability - 1
            gain = abs(lean) * row.realised_volatility_20 * math.sqrt(2 / math.pi) * math.sqrt(horizon)
            side = 0.0 if gain <= paid else float(np.sign(lean))
            held[name] = {"row": row, "side": side, "paid": paid, "bought": 0.0}
        for name in opened:
            held[name]["weight"] = 1 / len(held)
            exposure = held[name]["side"] / len(held)
            before = ended[name]["side"] * ended[name]["weight"] if name in ended else 0.0
            held[name]["bought"] = abs(exposure - before)
        for name, one in ended.items():
            if name not in opened:
                one["bought"] += abs(one["side"] * one["weight"])
            bought += one["bought"]
        if ended:
            gross = sum(one["weight"] * one["side"] * one["row"].forward_return for one in ended.values())
            costs = sum(one["bought"] * one["paid"] / 2 for one in ended.values())
            simply = sum(one["weight"] * one["row"].forward_return for one in ended.values())
            for name, earned in (("gross", gross), ("net", gross - costs), ("held", simply)):
                wealth[name].append(wealth[name][-1] * max(1 + earned, 0.0))
    return wealth, bought


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    times=st.integers(2, 40),
    symbols=st.integers(1, 4),
    horizon=st.integers(1, 6),
    present=st.floats(0.3, 1.0),
    cost=st.sampled_from([None, 0.0, 0.003]),
)
def test_it_equals_a_plain_loop_whatever_the_calendars(
    seed: int, times: int, symbols: int, horizon: int, present: float, cost: float | None
) -> None:
    random = np.random.default_rng(seed)
    rows = predictions(times, symbols, seed)
    rows["spread_share"] = rows["spread_share"].where(random.random(len(rows)) < 0.8)
    # Symbols start late, stop early and miss bars; labels end where their own bars are.
    rows = reaching(rows[random.random(len(rows)) < present], horizon)
    # What was never predicted leaves gaps that labels do not bridge.
    rows = rows[random.random(len(rows)) < 0.9]
    if rows.empty:
        return
    found = economics(rows.sample(frac=1, random_state=seed), 1, horizon, cost)
    wealth, bought = by_loop(rows, horizon, cost)
    for name, expected in wealth.items():
        np.testing.assert_allclose(found.curve[name], expected, rtol=1e-9)
    assert found.curve.index.is_monotonic_increasing and found.curve.index.is_unique
    assert found.curve.index[0] == rows["event_timestamp"].min()
    if len(found.curve) > 10:
        years = (found.curve.index[-1] - found.curve.index[0]) / YEAR
        assert found.turnover == pytest.approx(bought / years)
    assert found.net.total_return <= found.gross.total_return + 1e-12
    json.dumps(found.to_dict(), allow_nan=False)


def test_on_one_calendar_every_horizon_th_instant_is_the_mean_of_its_symbols() -> None:
    rows = reaching(predictions(200, 3, spread_share=0.0), 5)
    found = economics(rows, 1, 5)
    traded = rows[rows["event_timestamp"].isin(rows["event_timestamp"].unique()[::5])]
    earned = traded.assign(earned=np.sign(traded["probability"] - 0.5) * traded["forward_return"])
    means = earned.groupby("event_timestamp")["earned"].mean()
    np.testing.assert_allclose(found.curve["net"].iloc[1:], np.cumprod(1 + means), rtol=1e-12)
    assert found.invested == 1.0 and found.mean_cost == 0.0


def test_no_more_than_the_wealth_is_ever_at_work_when_some_markets_close_at_the_weekend() -> None:
    """One symbol trades daily, the other holds from Friday to Monday: each earns with half of the wealth."""
    daily = predictions(28, 1, forward_return=0.01, probability=0.9, spread_share=0.0)
    weekdays = daily[daily["event_timestamp"].dt.dayofweek < 5].assign(symbol="W")
    found = economics(pd.concat([daily.iloc[:-1], reaching(weekdays, 1)]), 1)
    sums = (np.diff(found.curve["net"]) / found.curve["net"].iloc[:-1]).to_numpy()
    assert sums.max() == pytest.approx(0.01)
    saturdays = found.curve.index[1:].dayofweek == 5
    assert sums[saturdays] == pytest.approx(0.005)


def check(made: Performance, curve: "pd.Series[float]") -> None:
    """The numbers of one curve, from their definitions."""
    wealth, times = curve.to_list(), curve.index
    returns = [later / now - 1 for now, later in itertools.pairwise(wealth)]
    years = (times[-1] - times[0]) / YEAR
    per_year = len(returns) / years
    assert made.total_return == pytest.approx(wealth[-1] - 1)
    assert made.annual_return == pytest.approx(wealth[-1] ** (1 / years) - 1)
    assert made.annual_volatility == pytest.approx(np.std(returns, ddof=1) * math.sqrt(per_year))
    assert made.sharpe == pytest.approx(np.mean(returns) / np.std(returns, ddof=1) * math.sqrt(per_year))
    falls = {(start, end): 1 - wealth[end] / wealth[start] for end in range(len(wealth)) for start in range(end + 1)}
    start, end = max(falls, key=lambda pair: falls[pair])
    assert made.max_drawdown == pytest.approx(falls[start, end])
    assert (made.peak, made.trough) == (times[start], times[end])


def test_every_number_of_a_curve_is_its_definition() -> None:
    found = economics(predictions(500), 1)
    for made, name in ((found.net, "net"), (found.gross, "gross"), (found.held, "held")):
        check(made, found.curve[name])
    assert found.sharpe_lower < found.net.sharpe < found.sharpe_upper
    only_up = economics(predictions(500, forward_return=0.001, probability=0.9, spread_share=0.0), 1).net
    assert (only_up.max_drawdown, only_up.peak, only_up.trough) == (0.0, None, None)


def test_a_position_that_stays_pays_one_round_trip_and_one_that_turns_pays_one_each_time() -> None:
    rows = predictions(20, 1, forward_return=0.0, spread_share=0.001, realised_volatility_20=0.05)
    stays = economics(rows.assign(probability=0.8), 1)
    turning = rows.assign(probability=np.where(np.arange(20) % 2, 0.2, 0.8))
    turns = economics(turning, 1)
    assert stays.curve["net"].iloc[-1] == pytest.approx((1 - 0.0005) ** 2)
    assert turns.curve["net"].iloc[-1] == pytest.approx((1 - 0.0005) * (1 - 0.001) ** 18 * (1 - 0.0015))
    assert stays.curve["gross"].iloc[-1] == turns.curve["gross"].iloc[-1] == 1.0
    # What is configured counts instead of what is recorded.
    assert economics(turning, 1, trading_cost=0.002).curve["net"].iloc[1] == pytest.approx(1 - 0.001)


def test_the_cost_that_would_have_eaten_it_leaves_nothing() -> None:
    rows = predictions(60, 2, probability=np.tile([0.9, 0.1, 0.1, 0.9], 30), realised_volatility_20=9.0)
    rows["forward_return"] = rows["probability"] / 100
    cost = economics(rows, 1, trading_cost=0.001).break_even
    left = economics(rows, 1, trading_cost=cost).curve["net"]
    assert cost > 0
    assert np.sum(np.diff(left) / left.iloc[:-1]) == pytest.approx(0.0, abs=1e-12)


def test_nothing_is_traded_where_the_cost_eats_the_expected_gain() -> None:
    move = 0.01 * math.sqrt(2 / math.pi) * math.sqrt(4) * (2 * 0.6 - 1)
    rows = predictions(50, 2, probability=0.6, realised_volatility_20=0.01)
    assert economics(rows, 1, 4, trading_cost=move * 0.999).invested == 1.0
    assert economics(rows, 1, 4, trading_cost=move * 1.001).invested == 0.0
    # Of what is not known nothing is expected to be small.
    assert economics(rows.drop(columns="realised_volatility_20"), 1, 4, trading_cost=move * 1.001).invested == 1.0


@pytest.mark.parametrize(
    ("recipes", "skew", "kurtosis", "published"),
    [(100, -3.0, 10.0, 0.9004), (46, -3.0, 10.0, 0.9505), (88, 0.0, 3.0, 0.9505)],
)
def test_the_deflated_ratio_is_that_of_the_paper_s_example(
    recipes: int, skew: float, kurtosis: float, published: float
) -> None:
    """1,250 days with a ratio of 2.5 a year; the tried ones differ with a variance of 1/2 a year."""
    found = deflated_sharpe(2.5 / math.sqrt(250), 1250, skew, kurtosis, recipes, 0.5 / 250)
    assert found == pytest.approx(published, abs=5e-5)


def test_the_deflated_ratio_of_returns_is_the_formula_with_scipy_s_moments() -> None:
    rows = predictions(400, 1, probability=0.9, spread_share=0.0)
    earned, count = rows["forward_return"].to_numpy(), len(rows)
    ratio = earned.mean() / earned.std(ddof=1)
    spread = math.sqrt(1 - stats.skew(earned) * ratio + (stats.kurtosis(earned, fisher=False) - 1) / 4 * ratio**2)
    for recipes in (1, 2, 10, 500):
        best = 0.0
        if recipes > 1:
            quantiles = stats.norm.ppf([1 - 1 / recipes, 1 - 1 / (recipes * math.e)])
            best = float(quantiles @ [1 - np.euler_gamma, np.euler_gamma])
        wanted = stats.norm.cdf((ratio * math.sqrt(count - 1) - best) / spread)
        assert economics(rows, recipes).deflated_sharpe == pytest.approx(wanted, rel=1e-9)


def test_the_best_of_many_without_skill_is_as_good_as_expected() -> None:
    """The ratio that has probability one half is the mean of the best of 50, drawn 4,000 times."""
    best = np.random.default_rng(5).normal(size=(4000, 50)).max(axis=1).mean() / math.sqrt(999)
    assert deflated_sharpe(best, 1000, 0.0, 3.0, 50, 1 / 999) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("periods", "lasting"), [(400, 0.0), (400, 0.5), (60, 0.6), (30, 0.3)])
def test_the_interval_holds_the_truth_as_often_as_it_says(periods: int, lasting: float) -> None:
    held = 0
    for seed in range(1000, 1240):
        noise = signal.lfilter([1.0], [1.0, -lasting], np.random.default_rng(seed).normal(size=50 + periods))
        moved = 0.003 + 0.01 * noise[50:] * math.sqrt(1 - lasting**2)
        rows = predictions(periods, 1, probability=0.9, spread_share=0.0, forward_return=moved)
        found = economics(rows, 1)
        held += found.sharpe_lower <= 0.3 * math.sqrt(365.25) <= found.sharpe_upper
    # 95 % of 240, and two standard deviations of luck.
    assert abs(held / 240 - 0.95) <= 2 * math.sqrt(0.95 * 0.05 / 240)


@pytest.mark.parametrize(("periods", "waves"), [(10, 3), (60, 6), (400, 21)])
def test_the_interval_is_student_s_with_as_many_degrees_as_waves(periods: int, waves: int) -> None:
    moved = np.random.default_rng(periods).normal(0.003, 0.01, periods)
    found = economics(predictions(periods, 1, probability=0.9, spread_share=0.0, forward_return=moved), 1)
    standard = (moved - moved.mean()) / moved.std(ddof=1)
    added = standard - moved.mean() / moved.std(ddof=1) * (standard**2 - 1) / 2
    # SciPy's cosines, the constant one left out.
    variance = (fft.dct(added, norm="ortho")[1 : waves + 1] ** 2).mean() / periods
    wanted = stats.t.ppf(0.975, waves) * math.sqrt(variance * 365.25)
    assert (found.sharpe_upper - found.sharpe_lower) / 2 == pytest.approx(wanted, rel=2e-3)


def undefined(found: Economics) -> set[str]:
    numbers = found.to_dict()
    own = {name for name, value in numbers.items() if value is None} - {"trading_cost"}
    return own | {f"net.{name}" for name, value in numbers["net"].items() if value is None}


RATIOS = {"net.sharpe", "sharpe_lower", "sharpe_upper", "deflated_sharpe"}
NO_FALL = {"net.peak", "net.trough"}


def test_where_nothing_is_traded_or_nothing_moves_no_ratio_is_made_up() -> None:
    undecided = economics(predictions(400, probability=0.5), 1)
    assert undefined(undecided) == {*RATIOS, *NO_FALL, "break_even"}
    assert undecided.invested == undecided.turnover == undecided.net.annual_return == 0.0
    constant = predictions(400, 1, probability=0.9, forward_return=0.01, spread_share=0.0)
    assert undefined(economics(constant, 1)) == {*RATIOS, *NO_FALL}
    # Nine periods are too few however many others earned nothing.
    seldom = constant.assign(probability=np.where(np.arange(400) % 45 == 0, 0.9, 0.5))
    assert undefined(economics(seldom, 1)) > RATIOS
    assert not RATIOS & undefined(economics(seldom.assign(probability=np.where(np.arange(400) % 40, 0.5, 0.9)), 1))


def test_too_short_a_time_is_not_scaled_up_to_a_year() -> None:
    short = {"net.annual_volatility", "net.annual_return", "turnover", *RATIOS}
    assert undefined(economics(predictions(1, 1, forward_return=0.01, probability=0.9), 1)) == short | NO_FALL
    assert undefined(economics(predictions(9, 1), 1)) - NO_FALL == short
    assert undefined(economics(predictions(364), 1)) == {"net.annual_return"}
    assert undefined(economics(predictions(366), 1)) == set()


def test_who_is_ruined_stays_so() -> None:
    moved = np.where(np.arange(400) == 200, 2.5, 0.001)
    ruined = economics(predictions(400, 1, probability=0.1, forward_return=moved, realised_volatility_20=1.0), 1)
    assert ruined.net.total_return == ruined.net.annual_return == -1.0
    assert (ruined.curve["net"].iloc[201:] == 0).all() and (ruined.curve["net"].iloc[:201] > 0).all()
    assert undefined(ruined) == {*RATIOS, "net.annual_volatility"}
    assert (ruined.net.max_drawdown, ruined.net.trough) == (1.0, ruined.curve.index[201])
    assert ruined.held.sharpe > 0


def test_nearly_equal_returns_have_an_interval_of_what_is_told_apart() -> None:
    rows = predictions(400, 1, probability=0.9, forward_return=0.001, spread_share=0.0002)
    found = economics(rows, 1)
    assert found.sharpe_lower <= found.net.sharpe <= found.sharpe_upper < 1e5


def test_costs_that_are_not_recorded_are_said_to_be_unknown() -> None:
    rows = predictions(spread_share=np.nan)
    unknown = economics(rows, 1)
    assert unknown.costs_known == 0.0 and math.isnan(unknown.mean_cost) and unknown.trading_cost is None
    pd.testing.assert_series_equal(unknown.curve["net"], unknown.curve["gross"], check_names=False)
    pd.testing.assert_frame_equal(economics(rows.drop(columns="spread_share"), 1).curve, unknown.curve)
    given_ = economics(rows, 1, trading_cost=0.001)
    assert (given_.costs_known, given_.mean_cost, given_.trading_cost) == (1.0, pytest.approx(0.001), 0.001)
    half = economics(rows.assign(spread_share=np.where(np.arange(len(rows)) % 2, 0.001, np.nan)), 1)
    assert (half.costs_known, half.mean_cost) == (0.5, pytest.approx(0.001))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("probability", np.nan),
        ("probability", 1.1),
        ("forward_return", np.nan),
        ("forward_return", np.inf),
        ("forward_return", -1.0),
        ("label_time", pd.NaT),
        ("label_time", pd.Timestamp("2020-01-01", tz="UTC")),
        ("spread_share", -0.001),
        ("spread_share", np.inf),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_row(column: str, value: object) -> None:
    rows = predictions()
    rows.loc[7, column] = value
    with pytest.raises(InputError, match=rf"{column}, row 7 .*"):
        economics(rows, 1)


def test_no_rows_and_repeated_rows_are_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        economics(predictions().head(0), 1)
    with pytest.raises(InputError, match="row 900 "):
        economics(pd.concat([predictions(), predictions().tail(1)]), 1)
