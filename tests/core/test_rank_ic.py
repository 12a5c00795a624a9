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
        assert found.loc[group, "above_zero"] == pytest.approx(np.mean(np.array(wanted) > 0))
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
            assert 1.6 * half < found.loc[group, "upper"] - found.loc[group, "lower"] < 3 * half
            assert math.isnan(found.loc[group, "above_zero"])


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
    unknown = rank_ic_by_year(rows(2).assign(forward_return=np.nan))
    assert unknown.empty and unknown.columns.tolist() == list(RANK_IC_COLUMNS)
    bare = rank_ic_by_year(rows(2).drop(columns="forward_return"))
    assert bare.empty and bare.columns.tolist() == list(RANK_IC_COLUMNS)
    missing = rows(5)
    missing.loc[:9, "forward_return"] = np.nan
    assert rank_ic_by_year(missing).equals(rank_ic_by_year(missing.dropna()))


def test_a_year_with_two_symbols_is_told_over_time_beside_years_across_symbols() -> None:
    made = rows(3, times=900)
    third = made["symbol"] == "S2"
    late = rank_ic_by_year(made[~third | (made["event_timestamp"] >= "2022-12-01")]).set_index("group")
    assert late["kind"].to_dict() == {
        "2021": "over time",
        "2022": "over time",
        "2023": "across symbols",
        "all": "over time",
    }
    # A symbol that stops early leaves the years behind it to the other two.
    early = rank_ic_by_year(made[~third | (made["event_timestamp"] < "2023-02-01")]).set_index("group")
    assert early["kind"].tolist() == ["across symbols", "across symbols", "over time", "across symbols"]
    assert early.loc["all", "count"] < early.loc[["2021", "2022"], "count"].sum() + 40


def test_years_are_those_of_utc() -> None:
    made = rows(3)
    elsewhere = made.assign(event_timestamp=made["event_timestamp"].dt.tz_convert("America/New_York"))
    pd.testing.assert_frame_equal(rank_ic_by_year(elsewhere), rank_ic_by_year(made))


def lasting_noise(random: np.random.Generator, times: int, lasting: float) -> np.ndarray:
    made = random.normal(size=times)
    for time in range(1, times):
        made[time] += lasting * made[time - 1]
    return made


def overlapping(seed: int, symbols: int, horizon: int, times: int = 250) -> pd.DataFrame:
    """Probabilities that last and know nothing, and returns over `horizon` bars of symbols that move together."""
    random = np.random.default_rng(seed)
    steps = 0.9 * random.normal(size=(times + horizon, 1)) + 0.44 * random.normal(size=(times + horizon, symbols))
    moved = np.stack([steps[at : at + horizon].sum(axis=0) for at in range(times)])
    lasting = np.zeros((times, symbols))
    for time in range(1, times):
        lasting[time] = 0.9 * lasting[time - 1] + random.normal() + random.normal(size=symbols)
    return rows(symbols, times).assign(probability=lasting.ravel(), forward_return=moved.ravel())


@pytest.mark.parametrize(("symbols", "horizon"), [(2, 5), (6, 5)])
def test_labels_that_overlap_and_symbols_that_move_together_make_intervals_wider(symbols: int, horizon: int) -> None:
    last = [rank_ic_by_year(overlapping(seed, symbols, horizon)).iloc[-1] for seed in range(60)]
    held = np.mean([line["lower"] <= 0 <= line["upper"] for line in last])
    # The interval for independent rows holds zero in 60 % of such cases.
    assert held >= 0.9


def test_over_time_rows_count_as_independent_by_what_moving_one_side_in_time_leaves_to_chance() -> None:
    made = overlapping(1, 2, 5, times=60)
    # A symbol that starts late.
    made = made[(made["symbol"] != "S1") | (made["event_timestamp"] > "2021-06-15")].reset_index(drop=True)
    found = rank_ic_by_year(made).set_index("group").loc["all"]
    ranks = made[["probability", "forward_return"]].rank()
    standard = (ranks - ranks.mean()) / ranks.std(ddof=0)
    grids = {
        name: standard.assign(symbol=made["symbol"], time=made["event_timestamp"]).pivot(
            index="time", columns="symbol", values=name
        )
        for name in ranks
    }
    one, other = (grid.to_numpy() for grid in grids.values())
    products, pairs = 0.0, 0
    for shift in range(len(one)):
        both = one * np.roll(other, shift, axis=0)
        products += np.nansum(both) ** 2
        pairs += np.count_nonzero(~np.isnan(both))
    together = (standard["probability"] ** 2 * standard["forward_return"] ** 2).mean()
    independent = len(made) * pairs / products / together
    half = 1.959963984540054 * math.sqrt(1.06 / (independent - 3))
    assert independent < len(made) / 2
    assert found["lower"] == pytest.approx(math.tanh(math.atanh(found["rank_ic"]) - half), abs=1e-9)
    assert found["upper"] == pytest.approx(math.tanh(math.atanh(found["rank_ic"]) + half), abs=1e-9)


@pytest.mark.parametrize("times", [8, 20, 60])
@pytest.mark.parametrize("lasting", [0.0, 0.9])
def test_a_few_rows_do_not_look_surer_than_they_are(times: int, lasting: float) -> None:
    held = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        signal = lasting_noise(random, times, lasting)
        made = rows(1, times).assign(probability=signal, forward_return=random.normal(size=times))
        found = rank_ic_by_year(made).iloc[-1]
        held.append(found["lower"] <= 0 <= found["upper"])
    assert np.mean(held) >= 0.93


def test_rows_that_only_seem_to_say_more_count_at_most_twice() -> None:
    # A trend and its neighbour's alternation are uncorrelated however one is moved.
    made = rows(1, 40).assign(probability=np.arange(40.0), forward_return=np.tile([0.01, -0.01], 20))
    found = rank_ic_by_year(made).iloc[-1]
    half = 1.959963984540054 * math.sqrt(1.06 / (2 * 40 - 3))
    assert math.atanh(found["upper"]) - math.atanh(found["rank_ic"]) == pytest.approx(half)


def test_sides_that_are_large_at_the_same_times_make_the_interval_over_time_wider() -> None:
    made = rows(1, times=400)
    large = np.where(np.arange(400) // 50 % 2, 10.0, 0.1)
    calm = rank_ic_by_year(made).iloc[-1]
    wild = rank_ic_by_year(
        made.assign(
            probability=0.5 + (made["probability"] - 0.5) * large, forward_return=made["forward_return"] * large
        )
    ).iloc[-1]
    assert wild["upper"] - wild["lower"] > 1.2 * (calm["upper"] - calm["lower"])


def test_a_handful_of_instants_is_no_proof_however_well_they_agree() -> None:
    for times, lower in ((2, -1.0), (9, 1 - 1.959963984540054 * math.sqrt(0.5 / 9))):
        alike = {"probability": [0.1, 0.2, 0.3] * times, "forward_return": [0.01, 0.02, 0.03] * times}
        found = rank_ic_by_year(rows(3, times=times).assign(**alike)).set_index("group").loc["all"]
        assert (found["rank_ic"], found["above_zero"], found["upper"]) == (1.0, 1.0, 1.0)
        assert found["lower"] == pytest.approx(lower)
