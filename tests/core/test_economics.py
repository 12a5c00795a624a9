"""What a simple rule earned: equal to a plain loop, never a number where none is defined."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mt5_crs_pipeline.core.economics import Economics, _best_without_skill, economics, to_numbers
from mt5_crs_pipeline.core.errors import InputError


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


def by_loop(rows: pd.DataFrame, horizon: int, cost: float | None) -> tuple[list[float], list[float]]:
    """Net return and turnover of every instant that trades."""
    held: dict[str, float] = {}
    net, turnover = [], []
    for number, (_, instant) in enumerate(rows.sort_values("event_timestamp").groupby("event_timestamp")):
        if number % horizon:
            continue
        earned, traded = [], []
        for row in instant.itertuples():
            paid = cost if cost is not None else (0.0 if math.isnan(row.spread_share) else row.spread_share)
            lean = 2 * row.probability - 1
            gain = abs(lean) * row.realised_volatility_20 * math.sqrt(2 / math.pi) * math.sqrt(horizon)
            position = 0.0 if gain <= paid else math.copysign(1.0, lean)
            change = abs(position - held.get(row.symbol, 0.0))
            held[row.symbol] = position
            earned.append(position * row.forward_return - change * paid / 2)
            traded.append(change)
        net.append(sum(earned) / len(earned))
        turnover.append(sum(traded) / len(traded))
    return net, turnover


@pytest.mark.parametrize(("horizon", "cost"), [(1, None), (1, 0.003), (5, None), (3, 0.0)])
def test_it_equals_a_plain_loop(horizon: int, cost: float | None) -> None:
    rows = predictions()
    rows.loc[::7, "spread_share"] = np.nan
    # A symbol that starts late and one that stops early.
    rows = rows[~((rows["symbol"] == "S1") & (rows["event_timestamp"] < "2020-03-01"))]
    rows = rows[~((rows["symbol"] == "S2") & (rows["event_timestamp"] > "2020-06-01"))]
    found = economics(rows.sample(frac=1, random_state=3), 1, horizon, cost)
    net, turnover = by_loop(rows, horizon, cost)
    np.testing.assert_allclose(found.curve["net"], np.cumprod(1 + np.array(net)), rtol=1e-12)
    years = (found.curve.index[-1] - rows["event_timestamp"].min()) / pd.Timedelta(days=365.25)
    assert found.turnover == pytest.approx(sum(turnover) / years)
    wealth = [1.0, *np.cumprod(1 + np.array(net))]
    assert found.max_drawdown == pytest.approx(
        max(1 - later / max(wealth[: at + 1]) for at, later in enumerate(wealth))
    )
    per_year = len(net) / years
    assert found.sharpe == pytest.approx(np.mean(net) / np.std(net, ddof=1) * math.sqrt(per_year))
    assert found.annual_return == pytest.approx(wealth[-1] ** (1 / years) - 1)
    assert found.sharpe_lower < found.sharpe < found.sharpe_upper
    if cost is None:
        traded = rows[rows["event_timestamp"].isin(sorted(rows["event_timestamp"].unique())[::horizon])]
        assert found.costs_known == pytest.approx(traded["spread_share"].notna().mean())


def test_a_position_that_stays_pays_once_and_one_that_turns_pays_a_round_trip() -> None:
    rows = predictions(20, 1, forward_return=0.0, spread_share=0.001, realised_volatility_20=0.05)
    stays = economics(rows.assign(probability=0.8), 1)
    turns = economics(rows.assign(probability=np.where(np.arange(20) % 2, 0.2, 0.8)), 1)
    assert stays.curve["net"].iloc[-1] == pytest.approx(1 - 0.0005)
    assert turns.curve["net"].iloc[-1] == pytest.approx((1 - 0.0005) * (1 - 0.001) ** 19)
    turning = predictions(20, 1, realised_volatility_20=9.0, probability=np.where(np.arange(20) % 2, 0.2, 0.8))
    paid = turning["forward_return"] * np.where(np.arange(20) % 2, -1, 1)
    assert economics(turning, 1, trading_cost=0.0).break_even == pytest.approx(2 * paid.sum() / 39)
    assert stays.curve["gross"].iloc[-1] == turns.curve["gross"].iloc[-1] == 1.0


def test_the_deflated_ratio_equals_the_published_formula() -> None:
    rows = predictions(400, 1, probability=0.9, spread_share=0.0)
    for recipes in (1, 2, 10, 500):
        found = economics(rows, recipes)
        earned = rows["forward_return"].to_numpy()
        ratio, count = earned.mean() / earned.std(ddof=1), len(earned)
        expected = 0.0
        if recipes > 1:
            first = stats.norm.ppf(1 - 1 / recipes)
            expected = (1 - np.euler_gamma) * first + np.euler_gamma * stats.norm.ppf(1 - 1 / (recipes * math.e))
        spread = math.sqrt(1 - stats.skew(earned) * ratio + (stats.kurtosis(earned, fisher=False) - 1) / 4 * ratio**2)
        wanted = stats.norm.cdf((ratio * math.sqrt(count - 1) - expected) / spread)
        assert found.deflated_sharpe == pytest.approx(wanted, rel=1e-9)


def test_the_probabilistic_ratio_of_the_paper_s_example() -> None:
    """Of 1,250 days, SR 2.5 a year, skew -3, kurtosis 10, the best of 100 with variance 1/2: 0.9004."""
    best = math.sqrt(0.5 / 250) * _best_without_skill(100)
    ratio = 2.5 / math.sqrt(250)
    z = (ratio - best) * math.sqrt(1249) / math.sqrt(1 + 3 * ratio + 9 / 4 * ratio**2)
    assert NormalDist().cdf(z) == pytest.approx(0.9004, abs=2e-4)


def undefined(found: Economics) -> set[str]:
    return {name for name, value in to_numbers(found).items() if value is None}


SHARPE = {"sharpe", "sharpe_lower", "sharpe_upper", "deflated_sharpe"}


def test_where_nothing_is_traded_or_nothing_moves_no_ratio_is_made_up() -> None:
    undecided = economics(predictions(probability=0.5), 1)
    assert undefined(undecided) == {*SHARPE, "break_even"}
    assert undecided.invested == undecided.turnover == undecided.annual_return == 0.0
    constant = economics(predictions(50, 1, probability=0.9, forward_return=0.01, spread_share=0.0), 1)
    assert undefined(constant) == SHARPE
    assert undefined(economics(predictions(9, 1), 1)) == SHARPE
    assert undefined(economics(predictions(1, 1), 1)) == {*SHARPE, "annual_volatility"}
    ruined = economics(predictions(50, 1, probability=0.9, forward_return=-1.5, realised_volatility_20=1.0), 1)
    assert "annual_return" in undefined(ruined)


def test_costs_that_are_not_recorded_are_said_to_be_unknown() -> None:
    rows = predictions(spread_share=np.nan)
    assert economics(rows, 1).costs_known == 0.0
    assert economics(rows, 1).curve["net"].equals(economics(rows, 1).curve["gross"])
    assert economics(rows, 1, trading_cost=0.001).costs_known == 1.0


@pytest.mark.parametrize("rows", [predictions().head(0), predictions(forward_return=np.nan)])
def test_no_rows_and_missing_returns_are_refused(rows: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="forward_return"):
        economics(rows, 1)
