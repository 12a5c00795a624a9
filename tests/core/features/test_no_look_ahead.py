"""No bar changes an earlier feature, and a missing value is missing in exactly the windows that touch it."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, find_feature
from tests.core.features.comparing import ALL, CALENDAR, Comparison, as_symbols, assert_same_bits, symbol_rows
from tests.core.reference import expected_feature
from tests.core.samples import INPUTS, bits, random_bars, real_bars

POISONS = [np.nan, np.inf, 1e300, -1e300, 0.0, "other bars"]
FROM_PRICES = tuple(name for name in ALL.features if name not in CALENDAR)


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return real_bars(1300)


@pytest.fixture(scope="module")
def whole(bars: pd.DataFrame) -> pd.DataFrame:
    return feature_frame(bars, ALL)


def last_seen(bars: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """True up to a random bar of each symbol, which is not its last."""
    seen = np.zeros(len(bars), dtype=bool)
    for rows in symbol_rows(bars).values():
        seen[rows[: rng.integers(1, len(rows) - 1)]] = True
    return seen


# Bars after a feature's own.


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("columns", [INPUTS, *([name] for name in INPUTS)], ids=lambda columns: columns[0])
def test_no_later_bar_changes_an_earlier_feature(
    bars: pd.DataFrame, whole: pd.DataFrame, poison: float | str, columns: list[str]
) -> None:
    reached = np.zeros(len(ALL.features), dtype=bool)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        seen = last_seen(bars, rng)
        changed = bars.copy()
        other = bars.loc[~seen, columns].sample(frac=1, random_state=seed).to_numpy()
        changed.loc[~seen, columns] = other if poison == "other bars" else poison
        features = feature_frame(changed, ALL)
        assert_same_bits(features[seen], whole[seen])
        reached |= (bits(features[~seen]) != bits(whole[~seen])).any(axis=0)
    if columns == INPUTS:
        # It is there to be seen: all features but those of the calendar notice it afterwards.
        assert [name for name, noticed in zip(ALL.features, reached, strict=True) if not noticed] == list(CALENDAR)


@pytest.mark.parametrize("seed", range(5))
def test_the_next_bar_alone_changes_nothing_before_it(bars: pd.DataFrame, whole: pd.DataFrame, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for poison in POISONS[:-1]:
        seen = last_seen(bars, rng)
        following = np.flatnonzero(~seen & np.roll(seen, 1))
        assert len(following) == bars["symbol"].nunique()
        changed = bars.copy()
        changed.loc[following, INPUTS] = poison
        assert_same_bits(feature_frame(changed, ALL)[seen], whole[seen])


@pytest.mark.parametrize("seed", range(5))
def test_leaving_out_later_bars_changes_no_earlier_feature(bars: pd.DataFrame, whole: pd.DataFrame, seed: int) -> None:
    seen = last_seen(bars, np.random.default_rng(seed))
    assert 0 < seen.sum() < len(bars)
    assert_same_bits(feature_frame(bars[seen], ALL), whole[seen])


def test_when_later_bars_open_changes_no_earlier_feature(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    seen = last_seen(bars, np.random.default_rng(1))
    moved = bars.assign(time=bars["time"].where(seen, bars["time"] + pd.Timedelta(days=40, hours=5, minutes=13)))
    features = feature_frame(moved, ALL)
    assert_same_bits(features[seen], whole[seen])
    assert_same_bits(features[list(FROM_PRICES)], whole[list(FROM_PRICES)])
    assert (features.loc[~seen, "hour_of_day"] != whole.loc[~seen, "hour_of_day"]).all()


def test_no_bar_of_another_symbol_changes_a_feature(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    for symbol in bars["symbol"].unique():
        own = bars["symbol"] == symbol
        changed = bars.copy()
        changed.loc[~own, INPUTS] = np.nan
        assert_same_bits(feature_frame(changed, ALL)[own], whole[own])


# What a feature reads: found by changing one number at a time.


def lively_bars(length: int, seed: int) -> pd.DataFrame:
    """Bars of one symbol in which no two numbers are equal, so that every one of them matters."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, length)))
    open_ = close * np.exp(rng.normal(0, 0.01, length))
    high = np.maximum(open_, close) * np.exp(rng.uniform(0.001, 0.01, length))
    low = np.minimum(open_, close) / np.exp(rng.uniform(0.001, 0.01, length))
    time = pd.date_range("2024-01-01", periods=length, freq="7h", tz="UTC")
    prices = {"open": open_, "high": high, "low": low, "close": close}
    return pd.DataFrame({"symbol": "A", "time": time, **prices, "volume": rng.uniform(1, 100, length)})


def last_values_with(name: str, bars: pd.DataFrame, factors: list[float]) -> np.ndarray:
    """The feature of the last bar with the number in one column, one bar multiplied: [factor, column, bars earlier]."""
    length = len(bars)
    copies = as_symbols(bars, np.tile(np.arange(length), (len(factors) * len(INPUTS) * length, 1)))
    copy = 0
    values = copies[INPUTS].to_numpy().reshape(-1, length, len(INPUTS))
    for factor in factors:
        for column in range(len(INPUTS)):
            for lag in range(length):
                values[copy, length - 1 - lag, column] *= factor
                copy += 1
    copies[INPUTS] = values.reshape(-1, len(INPUTS))
    last = feature_frame(copies, FeatureConfig((name,)))[name].to_numpy()[length - 1 :: length]
    return last.reshape(len(factors), len(INPUTS), length)


@cache
def reads(name: str) -> np.ndarray:
    """True where the feature of a bar reads [column, bars earlier]: some finite change of that number changes it."""
    bars = lively_bars(find_feature(name).lookback + 3, seed=7)
    value = feature_frame(bars, FeatureConfig((name,)))[name].to_numpy()[-1:]
    assert np.isfinite(value).all()
    return np.asarray((bits(last_values_with(name, bars, [0.5, 1.01, 2.0, 300.0])) != bits(value)).any(axis=0))


@pytest.mark.parametrize("name", FROM_PRICES)
def test_a_declared_lookback_is_as_long_as_what_the_feature_reads(name: str) -> None:
    lags = np.flatnonzero(reads(name).any(axis=0))
    assert lags.max() + 1 == find_feature(name).lookback


@pytest.mark.parametrize("name", ALL.features)
def test_no_bar_before_the_lookback_is_read(name: str) -> None:
    lookback = find_feature(name).lookback
    bars = lively_bars(lookback + 3, seed=8)
    value = feature_frame(bars, FeatureConfig((name,)))[name].to_numpy()[-1:]
    earlier = last_values_with(name, bars, [np.nan, np.inf, -1e300, 0.0])[:, :, lookback:]
    assert earlier.shape == (4, len(INPUTS), 3)
    assert (bits(earlier) == bits(value)).all()


@pytest.mark.parametrize("name", ALL.features)
def test_a_feature_needs_exactly_the_bars_it_declares(bars: pd.DataFrame, whole: pd.DataFrame, name: str) -> None:
    config = FeatureConfig((name,))
    rng = np.random.default_rng(5)
    for rows in symbol_rows(bars).values():
        ends = rng.integers(config.lookback, len(rows) + 1, 8)
        windows = rows[ends[:, None] - np.arange(config.lookback, 0, -1)]
        enough = feature_frame(as_symbols(bars, windows), config).to_numpy()
        last = enough[config.lookback - 1 :: config.lookback]
        assert np.isfinite(last).all()
        Comparison().same(last, whole[[name]].to_numpy()[windows[:, -1]], config)
        assert feature_frame(as_symbols(bars, windows[:, 1:]), config)[name].isna().all()


@pytest.mark.parametrize("name", CALENDAR)
def test_a_calendar_feature_reads_the_time_of_its_own_bar_alone(name: str) -> None:
    config = FeatureConfig((name,))
    bars = lively_bars(400, seed=9)
    expected = feature_frame(bars, config)
    assert expected[name].nunique() > 3
    empty = bars.assign(**dict.fromkeys(INPUTS, np.nan))
    assert_same_bits(feature_frame(empty, config), expected)
    moved = bars.assign(time=bars["time"].mask(bars.index >= 200, bars["time"] + pd.Timedelta(days=36, hours=5)))
    features = feature_frame(moved, config)
    assert_same_bits(features[:200], expected[:200])
    assert (features[200:] != expected[200:]).all(axis=None)
    assert not reads(name).any()


# Missing data.


@pytest.mark.parametrize("name", ALL.features)
def test_a_missing_value_is_missing_in_the_features_that_read_it_and_in_no_others(name: str) -> None:
    lookback, config = find_feature(name).lookback, FeatureConfig((name,))
    length = 4 * lookback + 10
    rng = np.random.default_rng(3)
    bars = pd.concat([lively_bars(length, seed).assign(symbol=f"S{seed}") for seed in range(7)], ignore_index=True)
    before = feature_frame(bars, config)
    holes = [(symbol, symbol, int(rng.integers(length))) for symbol in range(len(INPUTS))]
    holes += [(5, int(rng.integers(len(INPUTS))), int(rng.integers(length))) for _ in range(4)]
    expected = np.tile(np.arange(length) < lookback - 1, (7, 1))
    for symbol, column, at in holes:
        bars.loc[symbol * length + at, INPUTS[column]] = np.nan
        lags = np.flatnonzero(reads(name)[column])
        expected[symbol, at + lags[at + lags < length]] = True
    after = feature_frame(bars, config)
    assert after[name].isna().tolist() == expected.ravel().tolist()
    there = ~expected.ravel()
    assert_same_bits(after[there], before[there])


@pytest.mark.parametrize("column", INPUTS)
@pytest.mark.parametrize("name", ALL.features)
def test_a_missing_value_is_missing_where_the_definition_says_so(name: str, column: str) -> None:
    lookback, config = find_feature(name).lookback, FeatureConfig((name,))
    bars = random_bars(("A", "B"), 2 * lookback + 20, seed=6)
    holed = bars.copy()
    holed.loc[[lookback, lookback + 7], column] = np.nan
    before, after = feature_frame(bars, config), feature_frame(holed, config)
    assert after[name].isna().tolist() == expected_feature(holed, name).isna().tolist()
    there = after[name].notna()
    assert there.any()
    assert_same_bits(after[there], before[there])
