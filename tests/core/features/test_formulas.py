"""Feature values against textbook definitions computed another way, on real bars of several symbols at once."""

import math

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, compute_rsi, feature_frame, get_feature_names
from mt5_crs_pipeline.core.features.expressions import ema_length as ema_lookback
from tests.core.reference import DEFAULT_NAMES, ema_weights, expected_feature, rsi
from tests.core.samples import random_bars, real_bars

SCALE_FREE_NAMES = get_feature_names(FeatureConfig.scale_free())
ALL_NAMES = tuple(dict.fromkeys([*DEFAULT_NAMES, *SCALE_FREE_NAMES]))

FLAT_BAR = {"open": 7.0, "high": 7.0, "low": 7.0, "close": 7.0, "volume": 0.0}
# On a flat window without volume every other feature is 0.
FLAT_VALUES = {"sma": 7.0, "ema": 7.0, "rsi": 50.0, "close_location": 0.5, "stochastic": 0.5, "volume_ratio": 1.0}


def flat_value(name: str) -> float:
    return FLAT_VALUES.get(name.rstrip("0123456789").rstrip("_"), 0.0)


def flat_bars(length: int) -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=length, freq="h", tz="UTC")
    return pd.DataFrame(FLAT_BAR, index=range(length)).assign(time=times, symbol="FLAT")


@pytest.fixture(scope="module")
def shuffled() -> pd.DataFrame:
    return real_bars(700).sample(frac=1, random_state=4)


def test_the_default_features_are_those_of_the_contract_in_that_order() -> None:
    assert get_feature_names() == DEFAULT_NAMES
    assert list(feature_frame(real_bars(30)).columns) == DEFAULT_NAMES


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_feature_equals_its_definition_on_real_bars_of_all_symbols(name: str, shuffled: pd.DataFrame) -> None:
    computed = feature_frame(shuffled, FeatureConfig((name,)))[name]
    expected = expected_feature(shuffled, name)
    assert shuffled["symbol"].nunique() == 5
    assert expected.notna().mean() > 0.9
    pd.testing.assert_series_equal(computed, expected, check_names=False, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_feature_equals_its_definition_on_dull_days_without_volume(name: str) -> None:
    bars = random_bars(length=200, seed=8)
    assert (bars["volume"] == 0).any() and (bars["high"] == bars["low"]).any()
    computed = feature_frame(bars, FeatureConfig((name,)))[name]
    expected = expected_feature(bars, name)
    pd.testing.assert_series_equal(computed, expected, check_names=False, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("span", [1, 2, 3, 5, 10, 26, 200])
def test_an_exponential_average_leaves_out_under_a_ten_thousandth_of_the_weight(span: int) -> None:
    weights = ema_weights(span)
    assert ema_lookback(span) == len(weights)
    alpha = 2 / (span + 1)
    left_out = sum(alpha * (1 - alpha) ** lag for lag in range(len(weights), len(weights) + 100 * span))
    assert left_out < 1e-4
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("span", [5, 10])
def test_an_exponential_average_is_close_to_the_recursion_over_all_history(span: int) -> None:
    bars = real_bars(400)
    computed = feature_frame(bars, FeatureConfig((f"ema_{span}",)))[f"ema_{span}"]
    for _, part in bars.groupby("symbol"):
        recursion = part["close"].ewm(span=span, adjust=False).mean()
        error = (computed[part.index] - recursion).dropna().abs()
        assert 0 < error.max() < 1e-4 * (part["high"].max() - part["low"].min())


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_flat_window_without_volume_has_a_defined_value(name: str) -> None:
    config = FeatureConfig((name,))
    values = feature_frame(flat_bars(70), config)[name]
    assert values.isna().tolist() == [age < config.lookback - 1 for age in range(70)]
    assert values.dropna().to_numpy() == pytest.approx(flat_value(name), abs=1e-15, rel=1e-15)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_one_bar_has_the_features_that_need_no_history(name: str) -> None:
    config = FeatureConfig((name,))
    value = feature_frame(flat_bars(1), config)[name].tolist()
    assert value == ([flat_value(name)] if config.lookback == 1 else [pytest.approx(np.nan, nan_ok=True)])


def test_no_bars_have_no_features_and_the_same_columns() -> None:
    for config in (FeatureConfig(), FeatureConfig.scale_free()):
        empty = feature_frame(real_bars(5).iloc[:0], config)
        assert list(empty.columns) == list(config.features)
        assert empty.shape[0] == 0
        assert set(empty.dtypes) == {np.dtype("float64")}


def test_a_frame_without_symbols_is_one_symbol() -> None:
    bars = real_bars()
    one = bars[bars["symbol"] == "IBM"].head(80)
    pd.testing.assert_frame_equal(feature_frame(one.drop(columns="symbol")), feature_frame(one))


@pytest.mark.parametrize(
    ("volumes", "changes"),
    [([4.0, 6.0], 0.5), ([4.0, 0.0], -1.0), ([0.0, 6.0], 1.0), ([0.0, 0.0], 0.0), ([5.0, 5.0], 0.0)],
)
def test_a_change_from_no_volume_is_one_to_some_and_none_to_none(volumes: list[float], changes: float) -> None:
    bars = flat_bars(2).assign(volume=volumes)
    values = feature_frame(bars, FeatureConfig(("volume_change",)))["volume_change"]
    assert values.iloc[1] == changes


def test_rsi_is_100_without_losses_0_without_gains_and_50_when_flat() -> None:
    rising, flat = np.arange(1.0, 31.0), np.full(30, 3.0)
    assert compute_rsi(pd.Series(rising)).iloc[14:].eq(100.0).all()
    assert compute_rsi(pd.Series(-rising)).iloc[14:].eq(0.0).all()
    assert compute_rsi(pd.Series(flat)).iloc[14:].eq(50.0).all()


@pytest.mark.parametrize("window", [1, 2, 7, 14])
def test_rsi_equals_a_loop_over_gains_and_losses(window: int) -> None:
    close = real_bars()["close"].iloc[1000:1300]
    result = compute_rsi(close, window)
    assert result.isna().sum() == window
    assert result.name == f"rsi_{window}"
    pd.testing.assert_series_equal(result, rsi(close, window), check_names=False, rtol=1e-9)


def test_rsi_of_a_gap_is_missing_in_the_windows_that_touch_it() -> None:
    close = pd.Series(np.linspace(1, 2, 40))
    close.iloc[20] = np.nan
    assert np.flatnonzero(compute_rsi(close, 5).isna()).tolist() == [0, 1, 2, 3, 4, *range(20, 26)]
    assert compute_rsi(close.iloc[:0], 5).tolist() == []
