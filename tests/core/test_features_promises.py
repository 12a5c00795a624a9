"""Finite memory, no look-ahead, symbols apart: compared by the bits of every double."""

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from tests.core.reference import DEFAULT_NAMES, expected_feature
from tests.core.samples import INPUTS, bits, random_bars, real_bars

SCALE_FREE = FeatureConfig.scale_free()
ALL = FeatureConfig(tuple(dict.fromkeys([*DEFAULT_NAMES, *SCALE_FREE.features])))


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return real_bars(600)


@pytest.fixture(scope="module")
def whole(bars: pd.DataFrame) -> pd.DataFrame:
    return feature_frame(bars, ALL)


def rows_of(bars: pd.DataFrame, symbol: str) -> pd.DataFrame:
    return bars[bars["symbol"] == symbol]


def assert_same_bits(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert actual.index.equals(expected.index)
    different = bits(actual) != bits(expected)
    assert not different.any(), f"other bits in {actual.columns[different.any(axis=0)].tolist()}"


@pytest.mark.parametrize("seed", range(12))
def test_where_history_starts_changes_no_bit(bars: pd.DataFrame, whole: pd.DataFrame, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces, judged = [], []
    for symbol in bars["symbol"].unique():
        rows = rows_of(bars, symbol)
        start, end = sorted(rng.choice(np.arange(len(rows) + 1), 2, replace=False))
        pieces.append(rows.iloc[start:end])
        judged.extend(rows.index[min(start + ALL.lookback - 1, end) : end])
    computed = feature_frame(pd.concat(pieces), ALL)
    assert judged
    assert_same_bits(computed.loc[judged], whole.loc[judged])


@pytest.mark.parametrize("name", ALL.features)
def test_a_feature_needs_exactly_the_bars_it_declares(bars: pd.DataFrame, whole: pd.DataFrame, name: str) -> None:
    config = FeatureConfig((name,))
    rng = np.random.default_rng(5)
    for symbol in bars["symbol"].unique():
        rows = rows_of(bars, symbol)
        for end in rng.integers(config.lookback, len(rows), 4):
            last = rows.iloc[end - config.lookback : end]
            enough = feature_frame(last, config).iloc[[-1]]
            assert enough[name].notna().all()
            assert_same_bits(enough, whole.loc[last.index[[-1]], [name]])
            assert feature_frame(last.iloc[1:], config)[name].isna().all()


@pytest.mark.parametrize("name", ALL.features)
def test_a_declared_lookback_is_no_longer_than_what_the_feature_reads(bars: pd.DataFrame, name: str) -> None:
    config = FeatureConfig((name,))
    window = rows_of(bars, "AAPL").iloc[100 : 100 + config.lookback].copy()
    window.loc[window.index[0], INPUTS] = np.nan
    assert feature_frame(window, config)[name].isna().all()


def test_a_symbol_alone_has_the_bits_it_has_among_others(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    for symbol in bars["symbol"].unique():
        rows = rows_of(bars, symbol)
        assert_same_bits(feature_frame(rows, ALL), whole.loc[rows.index])


@pytest.mark.parametrize("seed", [1, 2])
def test_rows_may_arrive_in_any_order(bars: pd.DataFrame, whole: pd.DataFrame, seed: int) -> None:
    shuffled = bars.sample(frac=1, random_state=seed)
    assert_same_bits(feature_frame(shuffled, ALL), whole.loc[shuffled.index])


def test_one_bar_at_a_time_gives_the_bits_of_the_whole_history(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    rows = rows_of(bars, "GOOG").iloc[:150]
    one_by_one = [
        feature_frame(rows.iloc[max(0, end - ALL.lookback) : end], ALL).iloc[[-1]] for end in range(1, len(rows) + 1)
    ]
    assert_same_bits(pd.concat(one_by_one), whole.loc[rows.index])


@pytest.mark.parametrize("replacement", [np.nan, 1e300, -1.0, 0.0, np.inf, "random"])
@pytest.mark.parametrize("length", [1, 300])
def test_no_later_bar_changes_an_earlier_feature(
    bars: pd.DataFrame, whole: pd.DataFrame, replacement: float | str, length: int
) -> None:
    rng = np.random.default_rng(length)
    instant = bars["time"].iloc[rows_of(bars, "AAPL").index[250]]
    later = bars.index[bars["time"] > instant]
    changed = bars.copy()
    touched = later if length > 1 else later[:1]
    new = rng.normal(100, 50, (len(touched), len(INPUTS))) if replacement == "random" else replacement
    changed.loc[touched, INPUTS] = new
    earlier = bars.index[bars["time"] <= instant]
    assert len(earlier) > 250
    assert_same_bits(feature_frame(changed, ALL).loc[earlier], whole.loc[earlier])


def test_leaving_out_the_future_changes_no_feature(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    past = bars[bars["time"] <= bars["time"].iloc[333]]
    assert 0 < len(past) < len(bars)
    assert_same_bits(feature_frame(past, ALL), whole.loc[past.index])


@pytest.mark.parametrize("column", INPUTS)
def test_a_missing_value_is_missing_in_exactly_the_windows_that_touch_it(column: str) -> None:
    bars = random_bars(("A", "B"), 160, seed=6)
    hole = bars[bars["symbol"] == "A"].index[100]
    holed = bars.copy()
    holed.loc[hole, column] = np.nan
    before, after = feature_frame(bars, ALL), feature_frame(holed, ALL)
    touched_any = False
    for name in ALL.features:
        expected = expected_feature(holed, name).isna()
        assert after[name].isna().tolist() == expected.tolist(), name
        elsewhere = ~after[name].isna()
        assert (bits(after.loc[elsewhere, name]) == bits(before.loc[elsewhere, name])).all(), name
        touched_any |= bool((after[name].isna() & before[name].notna()).any())
    assert touched_any


def test_scale_free_features_keep_their_bits_at_another_price_and_volume_level(bars: pd.DataFrame) -> None:
    prices = {name: bars[name] * 1024 for name in ("open", "high", "low", "close")}
    scaled = bars.assign(**prices, volume=bars["volume"] * 2)
    assert_same_bits(feature_frame(scaled, SCALE_FREE), feature_frame(bars, SCALE_FREE))


def test_the_default_features_do_follow_the_price_level(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    scaled = feature_frame(bars.assign(close=bars["close"] * 1024), FeatureConfig(("sma_5",)))["sma_5"]
    assert (bits(scaled) == bits(whole["sma_5"] * 1024)).all()


def test_integer_and_single_precision_inputs_are_computed_as_doubles(bars: pd.DataFrame) -> None:
    whole_numbers = bars.assign(**{name: bars[name].round() for name in INPUTS})
    as_integers = whole_numbers.assign(**{name: whole_numbers[name].astype("int64") for name in INPUTS})
    assert_same_bits(feature_frame(as_integers), feature_frame(whole_numbers))
    narrow = bars.assign(close=bars["close"].astype("float32"))
    assert_same_bits(feature_frame(narrow), feature_frame(narrow.assign(close=narrow["close"].astype("float64"))))


def test_another_time_zone_is_the_same_time(bars: pd.DataFrame, whole: pd.DataFrame) -> None:
    local = bars.assign(time=bars["time"].dt.tz_convert("America/New_York"))
    assert_same_bits(feature_frame(local, ALL), whole)
