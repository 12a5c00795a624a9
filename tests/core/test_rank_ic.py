"""The rank information coefficient equals SciPy's, and is missing where it is not defined."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mt5_crs_pipeline.core.rank_ic import RANK_IC_COLUMNS, rank_ic_by_year


def rows(symbols: int, times: int = 700, seed: int = 1, skill: float = 0.0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    closes = pd.date_range("2021-06-01", periods=times, freq="D", tz="UTC").repeat(symbols)
    probability = random.uniform(0.3, 0.7, len(closes)).round(2)
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], times),
            "event_timestamp": closes,
            "probability": probability,
            "forward_return": random.normal(0, 0.01, len(closes)).round(3) + skill * (probability - 0.5),
        }
    )


def test_across_symbols_it_is_the_mean_of_scipy_s_correlation_of_every_instant() -> None:
    made = rows(6)
    made = made[(made["symbol"] != "S5") | (made["event_timestamp"] > "2022-03-01")]
    found = rank_ic_by_year(made.sample(frac=1, random_state=2)).set_index("group")
    each = {
        time: stats.spearmanr(part["probability"], part["forward_return"]).statistic
        for time, part in made.groupby("event_timestamp")
    }
    for group in ("2021", "2022", "2023", "all"):
        wanted = [value for time, value in each.items() if group in ("all", str(time.year)) and not math.isnan(value)]
        assert found.loc[group, "rank_ic"] == pytest.approx(np.mean(wanted), abs=1e-12)
        assert found.loc[group, "count"] == len(wanted) and found.loc[group, "kind"] == "across symbols"
        assert found.loc[group, "lower"] < found.loc[group, "rank_ic"] < found.loc[group, "upper"]
    assert found.loc["all", "lower"] < 0 < found.loc["all", "upper"]


def test_with_one_or_two_symbols_it_is_scipy_s_correlation_over_time() -> None:
    for symbols in (1, 2):
        made = rows(symbols)
        found = rank_ic_by_year(made).set_index("group")
        for group in ("2021", "2022", "2023", "all"):
            part = made if group == "all" else made[made["event_timestamp"].dt.year == int(group)]
            wanted = stats.spearmanr(part["probability"], part["forward_return"]).statistic
            assert found.loc[group, "rank_ic"] == pytest.approx(wanted, abs=1e-12)
            assert found.loc[group, ["kind", "count"]].tolist() == ["over time", len(part)]
            half = 1.959963984540054 * math.sqrt(1.06 / (len(part) - 3))
            assert found.loc[group, "lower"] == pytest.approx(math.tanh(math.atanh(wanted) - half))
            assert found.loc[group, "upper"] == pytest.approx(math.tanh(math.atanh(wanted) + half))


def test_skill_is_seen_and_its_interval_leaves_zero() -> None:
    for symbols in (1, 8):
        found = rank_ic_by_year(rows(symbols, skill=0.1)).set_index("group")
        assert found.loc["all", "lower"] > 0.2


def test_where_nothing_can_be_correlated_nothing_is_made_up() -> None:
    constant = rank_ic_by_year(rows(1).assign(probability=0.5))
    assert constant["rank_ic"].isna().all() and constant["lower"].isna().all()
    assert rank_ic_by_year(rows(5).assign(probability=0.5))["rank_ic"].isna().all()
    few = rank_ic_by_year(rows(1, times=3)).set_index("group").loc["all"]
    assert (few["lower"], few["upper"]) == (-1.0, 1.0)
    one = rank_ic_by_year(rows(4, times=1)).set_index("group").loc["all"]
    assert one["count"] == 1 and (one["lower"], one["upper"]) == (-1.0, 1.0)
    bare = rank_ic_by_year(rows(2).drop(columns="forward_return"))
    assert bare.empty and bare.columns.tolist() == list(RANK_IC_COLUMNS)
    missing = rows(5)
    missing.loc[:9, "forward_return"] = np.nan
    assert rank_ic_by_year(missing).equals(rank_ic_by_year(missing.dropna()))
