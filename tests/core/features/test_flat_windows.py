"""Windows in which nothing moves, and histories of one bar and none: every feature has a defined value, exactly."""

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from tests.core.features.test_formulas import ALL_NAMES, OTHER_NAMES
from tests.core.reference import expected_feature, family_of
from tests.core.samples import INPUTS, bits, random_bars, real_bars

# Of these only 7 and 0.5 are exact in binary: a sum of equal prices is not always a multiple.
LEVELS = (7.0, 0.5, 0.1, 1.3, 7.7, 100.1, 1e-5 / 3, 98765.4321)
VOLUMES = (0.0, 0.3, 1e6 / 7)
CALENDAR = ("hour_of_day", "day_of_week", "day_of_month", "month_of_year")


def flat_bars(length: int, level: float, volume: float, symbol: str = "FLAT") -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=length, freq="95min", tz="UTC")
    prices = dict.fromkeys(INPUTS[:4], level)
    return pd.DataFrame({**prices, "volume": volume}, index=range(length)).assign(time=times, symbol=symbol)


def flat_value(name: str, level: float, volume: float) -> float:
    """The value on a window of equal bars; 0 unless stated here."""
    stem, windows = family_of(name)
    values = {
        **dict.fromkeys(("sma", "ema"), level),
        "volume_sma": volume,
        **dict.fromkeys(("close_location", "stochastic", "stochastic_mean", "bollinger_b"), 0.5),
        **dict.fromkeys(("volume_ratio", "volatility_ratio"), 1.0),
        "rsi": 50.0,
        "williams_r": -50.0,
    }
    if stem == "close_rank":
        return (windows[0] + 1) / (2 * windows[0])
    return values.get(stem, 0.0)


def expected_flat(bars: pd.DataFrame, name: str) -> pd.Series:
    if name in CALENDAR:
        return expected_feature(bars, name)
    first = bars.iloc[0]
    return pd.Series(flat_value(name, first["close"], first["volume"]), bars.index)


@pytest.mark.parametrize("name", [*ALL_NAMES, *OTHER_NAMES])
def test_a_flat_window_has_a_defined_value_whatever_the_price_and_the_volume(name: str) -> None:
    config = FeatureConfig((name,))
    cases = [(level, volume) for level in LEVELS for volume in VOLUMES]
    parts = [flat_bars(config.lookback + 5, level, volume, f"{level} {volume}") for level, volume in cases]
    values = feature_frame(pd.concat(parts, ignore_index=True), config)[name].to_numpy().reshape(len(cases), -1)
    for part, found in zip(parts, values, strict=True):
        expected = expected_flat(part, name).mask(part.index < config.lookback - 1)
        assert (bits(found) == bits(expected)).all(), (part["symbol"].iloc[0], found[-1])


@pytest.mark.parametrize("name", ALL_NAMES)
def test_one_bar_has_the_features_that_need_no_history(name: str) -> None:
    bar = flat_bars(1, 7.7, 0.0)
    config = FeatureConfig((name,))
    value = feature_frame(bar, config)[name].tolist()
    missing = [pytest.approx(np.nan, nan_ok=True)]
    assert value == (expected_flat(bar, name).tolist() if config.lookback == 1 else missing)


def test_no_bars_have_no_features_and_the_same_columns() -> None:
    for config in (FeatureConfig(), FeatureConfig.scale_free()):
        empty = feature_frame(real_bars(5).iloc[:0], config)
        assert list(empty.columns) == list(config.features)
        assert empty.shape[0] == 0
        assert set(empty.dtypes) == {np.dtype("float64")}


@pytest.mark.parametrize("name", [*ALL_NAMES, *OTHER_NAMES])
def test_a_flat_run_is_flat_from_the_first_window_that_lies_in_it_to_the_last(name: str) -> None:
    """Nothing of the prices before it is left in a window, and one moving bar leaves with its window, too."""
    config = FeatureConfig((name,))
    flat = [config.lookback + extra for extra in (3, 1100, 2)]
    moving = random_bars(("A",), 301, seed=2)
    parts = []
    for run, count in zip(flat, (150, 1, 150), strict=True):
        parts += [moving.iloc[:count], flat_bars(run, 1.3, 0.3)]
        moving = moving.iloc[count:]
    bars = pd.concat([part[INPUTS] for part in parts], ignore_index=True)
    bars = bars.assign(time=pd.date_range("2020-02-29", periods=len(bars), freq="7h", tz="UTC"), symbol="A")
    same = (bars["close"] == 1.3).rolling(config.lookback, min_periods=1).min().eq(1)
    assert same.sum() == sum(run - config.lookback + 1 for run in flat)
    values = feature_frame(bars, config).loc[same, name]
    expected = expected_feature(bars, name) if name in CALENDAR else flat_value(name, 1.3, 0.3)
    assert (bits(values) == bits(pd.Series(expected, bars.index)[same])).all()


@pytest.mark.parametrize("window", [3, 20, 33])
def test_volume_that_never_changes_is_flat_while_prices_move(window: int) -> None:
    bars = real_bars(300).assign(volume=0.3)
    values = {"volume_ratio": 1.0, "volume_zscore": 0.0, "return_volume_correlation": 0.0, "volume_sma": 0.3}
    config = FeatureConfig(tuple(f"{stem}_{window}" for stem in values))
    found = feature_frame(bars, config).dropna()
    assert len(found) > 1_000
    for name, value in zip(config.features, values.values(), strict=True):
        assert (bits(found[name]) == bits(np.array([value]))).all(), name


@pytest.mark.parametrize("window", [3, 20, 33])
def test_prices_that_never_change_are_flat_while_volume_does(window: int) -> None:
    bars = real_bars(300).assign(**dict.fromkeys(INPUTS[:4], 1.3))
    stems = ("return_volume_correlation", "signed_volume_share", "obv_slope", "autocorrelation", "volatility", "cci")
    config = FeatureConfig(tuple(f"{stem}_{window}" for stem in stems))
    found = feature_frame(bars, config).dropna()
    assert len(found) > 1_000
    for name in config.features:
        assert (bits(found[name]) == 0).all(), name


@pytest.mark.parametrize("name", ["close_location", "upper_shadow", "lower_shadow"])
def test_a_bar_without_range_has_its_close_in_the_middle_and_no_shadows(name: str) -> None:
    bars = flat_bars(4, 1.3, 5.0)
    bars.loc[1, "high"] = 1.4
    found = feature_frame(bars, FeatureConfig((name,)))[name].tolist()
    flat = flat_value(name, 1.3, 5.0)
    assert found == [flat, {"close_location": 0.0, "upper_shadow": 1.0, "lower_shadow": 0.0}[name], flat, flat]
