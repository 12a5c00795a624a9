"""Feature values against textbook definitions computed another way, on real bars of several symbols at once."""

import math

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.features import FeatureConfig, compute_rsi, feature_frame, get_feature_names
from mt5_crs_pipeline.core.features.expressions import ema_length
from tests.core.reference import DEFAULT_NAMES, FAMILIES, ema_weights, expected_feature, family_of, rsi
from tests.core.samples import random_bars, real_bars

SCALE_FREE_NAMES = get_feature_names(FeatureConfig.scale_free())
ALL_NAMES = tuple(dict.fromkeys([*DEFAULT_NAMES, *SCALE_FREE_NAMES]))
# The shortest windows there are, and some that are no power of two, in either order.
OTHER_NAMES = (
    *("sma_1", "sma_33", "ema_1", "ema_2", "close_over_sma_1", "close_over_sma_63", "close_over_ema_1"),
    *("macd_over_close_1_1", "macd_over_close_9_4", "slope_over_close_2", "slope_over_close_37"),
    *("momentum_1", "momentum_37", "return_33", "log_return_65", "lagged_return_17"),
    *("efficiency_ratio_1", "efficiency_ratio_35", "drawdown_1", "drawdown_33", "age_of_high_2", "age_of_high_37"),
    *("close_rank_1", "close_rank_2", "close_rank_35", "autocorrelation_3", "autocorrelation_33"),
    *("volatility_2", "volatility_31", "volatility_ratio_2_2", "volatility_ratio_21_6"),
    *("realised_volatility_1", "realised_volatility_33", "parkinson_volatility_1", "parkinson_volatility_7"),
    *("garman_klass_volatility_1", "garman_klass_volatility_9", "atr_over_close_1", "atr_over_close_29"),
    *("skew_3", "skew_5", "skew_34", "kurtosis_4", "kurtosis_6", "kurtosis_33", "rsi_1", "rsi_2", "rsi_35"),
    *("stochastic_1", "stochastic_19", "stochastic_mean_1_1", "stochastic_mean_3_14", "williams_r_1", "williams_r_5"),
    *("cci_1", "cci_2", "cci_31", "bollinger_b_2", "bollinger_b_27", "bollinger_bandwidth_2", "bollinger_bandwidth_15"),
    *("volume_sma_1", "volume_sma_21", "volume_ratio_1", "volume_ratio_3", "volume_zscore_2", "volume_zscore_33"),
    *("obv_slope_2", "obv_slope_3", "obv_slope_33", "signed_volume_share_1", "signed_volume_share_37"),
    *("return_volume_correlation_3", "return_volume_correlation_35"),
)

RELATIVE = 1e-9
# Rounding errors of terms around 1 that cancel; CCI divides them by a hundredth of what it takes them from.
ABSOLUTE = {"cci": 1e-11, "autocorrelation": 1e-14, "return_volume_correlation": 1e-14}


def assert_is_as_defined(bars: pd.DataFrame, name: str) -> None:
    computed = feature_frame(bars, FeatureConfig((name,)))[name]
    absolute = ABSOLUTE.get(family_of(name)[0], 1e-15)
    expected = expected_feature(bars, name)
    pd.testing.assert_series_equal(computed, expected, check_names=False, rtol=RELATIVE, atol=absolute)


@pytest.fixture(scope="module")
def shuffled() -> pd.DataFrame:
    return real_bars(700).sample(frac=1, random_state=4)


@pytest.fixture(scope="module")
def dull() -> pd.DataFrame:
    bars = random_bars(length=200, seed=8)
    assert (bars["volume"] == 0).any() and (bars["high"] == bars["low"]).any()
    return bars


def test_the_default_features_are_those_of_the_contract_in_that_order() -> None:
    assert get_feature_names() == DEFAULT_NAMES
    assert list(feature_frame(real_bars(30)).columns) == DEFAULT_NAMES


def test_every_family_is_in_a_feature_set_and_has_a_definition_here() -> None:
    used = {family_of(name)[0] for name in ALL_NAMES}
    assert used == set(FAMILIES)
    with_windows = {stem for stem, windows in map(family_of, ALL_NAMES) if windows}
    assert {family_of(name)[0] for name in OTHER_NAMES} == with_windows
    with pytest.raises(ConfigurationError, match=f"declared are {', '.join(sorted(used))}$"):
        FeatureConfig(("unknown",))


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_feature_equals_its_definition_on_real_bars_of_all_symbols(name: str, shuffled: pd.DataFrame) -> None:
    assert shuffled["symbol"].nunique() == 5
    assert expected_feature(shuffled, name).notna().mean() > 0.8
    assert_is_as_defined(shuffled, name)


@pytest.mark.parametrize("name", [*ALL_NAMES, *OTHER_NAMES])
def test_a_feature_equals_its_definition_on_dull_days_without_volume(name: str, dull: pd.DataFrame) -> None:
    assert expected_feature(dull, name).notna().any()
    assert_is_as_defined(dull, name)


def test_calendar_features_are_those_of_utc_in_any_zone_and_between_hours() -> None:
    bars = random_bars(("A",), 300)
    minutes = pd.to_timedelta(np.arange(300) * 43 * 60 + 17, unit="s")
    time = (bars["time"] + minutes).dt.tz_convert("Asia/Kolkata")
    hours = expected_feature(bars.assign(time=time), "hour_of_day")
    assert hours.nunique() > 30 and (hours % 1 > 0).any()
    on_the_clock = bars.assign(time=time.dt.tz_localize(None).dt.tz_localize("UTC"))
    for name in ("hour_of_day", "day_of_week", "day_of_month", "month_of_year"):
        assert_is_as_defined(bars.assign(time=time), name)
        assert (expected_feature(on_the_clock, name) != expected_feature(bars.assign(time=time), name)).any()


@pytest.mark.parametrize("span", [1, 2, 3, 5, 10, 26, 200])
def test_an_exponential_average_leaves_out_under_a_ten_thousandth_of_the_weight(span: int) -> None:
    weights = ema_weights(span)
    assert ema_length(span) == len(weights)
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


@pytest.mark.parametrize(
    ("volumes", "changes"),
    [([4.0, 6.0], 0.5), ([4.0, 0.0], -1.0), ([0.0, 6.0], 1.0), ([0.0, 0.0], 0.0), ([5.0, 5.0], 0.0)],
)
def test_a_change_from_no_volume_is_one_to_some_and_none_to_none(volumes: list[float], changes: float) -> None:
    bars = random_bars(("A",), 2).assign(volume=volumes)
    values = feature_frame(bars, FeatureConfig(("volume_change",)))["volume_change"]
    assert values.iloc[1] == changes


@pytest.mark.parametrize("name", ["autocorrelation_20", "return_volume_correlation_20"])
def test_a_correlation_lies_between_minus_one_and_one(name: str) -> None:
    values = feature_frame(real_bars(), FeatureConfig((name,)))[name].dropna()
    assert len(values) > 10_000
    assert values.between(-1, 1).all()
    assert values.nunique() > 10_000


@pytest.mark.parametrize("name", ["close_rank_20", "age_of_high_20", "efficiency_ratio_20", "stochastic_14"])
def test_a_share_lies_between_zero_and_one(name: str) -> None:
    values = feature_frame(real_bars(), FeatureConfig((name,)))[name].dropna()
    assert len(values) > 10_000
    assert values.between(0, 1).all()
    assert values.min() < 0.1 and values.max() > 0.9


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
    pd.testing.assert_series_equal(result, rsi(close, window), check_names=False, rtol=RELATIVE)


def test_rsi_of_a_gap_is_missing_in_the_windows_that_touch_it() -> None:
    close = pd.Series(np.linspace(1, 2, 40))
    close.iloc[20] = np.nan
    assert np.flatnonzero(compute_rsi(close, 5).isna()).tolist() == [0, 1, 2, 3, 4, *range(20, 26)]
    assert compute_rsi(close.iloc[:0], 5).tolist() == []
