"""Features against the same quantity as TA-Lib, pandas and SciPy compute it, on real bars."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.stats
import talib

from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from mt5_crs_pipeline.core.features.expressions import EMA_TAIL, ema_length
from tests.core.reference import DEFAULT_NAMES, family_of
from tests.core.samples import INPUTS, real_bars

Array = npt.NDArray[np.float64]
ALL = FeatureConfig(tuple(dict.fromkeys([*DEFAULT_NAMES, *FeatureConfig.scale_free().features])))


@dataclass(frozen=True)
class Bars:
    """Bars of one symbol in time order."""

    time: pd.DatetimeIndex
    open: Array
    high: Array
    low: Array
    close: Array
    volume: Array


def before(values: Array) -> Array:
    return np.concatenate([[np.nan], values[:-1]])


def returns(b: Bars) -> Array:
    return talib.ROCP(b.close, 1)


def pandas_returns(b: Bars) -> pd.Series:
    return pd.Series(b.close).pct_change()


def accumulation(b: Bars) -> Array:
    """Where each close lies in its bar: Chaikin's line adds (2 location - 1) times the volume, which is 1 here."""
    line = talib.AD(b.high, b.low, b.close, np.ones(len(b.close)))
    return (np.diff(line, prepend=0.0) + 1) / 2


def bands(b: Bars, n: int) -> tuple[Array, Array, Array]:
    upper, middle, lower = talib.BBANDS(b.close, n, nbdevup=2.0, nbdevdn=2.0)
    return lower, middle, upper


def bollinger_b(b: Bars, n: int) -> Array:
    lower, _, upper = bands(b, n)
    return (b.close - lower) / (upper - lower)


def bollinger_bandwidth(b: Bars, n: int) -> Array:
    lower, middle, upper = bands(b, n)
    return (upper - lower) / middle


def strength(b: Bars, n: int) -> Array:
    """Cutler's RSI: TA-Lib's own smooths with Wilder's recursion."""
    moves = talib.MOM(b.close, 1)
    gain, loss = talib.SUM(np.maximum(moves, 0.0), n), talib.SUM(np.maximum(-moves, 0.0), n)
    return 100 * gain / (gain + loss)


def stochastic_lines(b: Bars, n: int, m: int) -> tuple[Array, Array]:
    return talib.STOCHF(b.high, b.low, b.close, fastk_period=n, fastd_period=m)


def signed_volume_share(b: Bars, n: int) -> Array:
    balance = talib.OBV(b.close, b.volume)
    return talib.MOM(balance, n) / talib.SUM(b.volume, n)


def scipy_shape(b: Bars, n: int, statistic: Callable[..., Array]) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(returns(b)[1:], n)
    return np.concatenate([np.full(n, np.nan), statistic(windows, axis=1, bias=False)])


def fitted_slope(b: Bars, n: int) -> Array:
    """LAPACK's least squares."""
    windows = np.lib.stride_tricks.sliding_window_view(b.close, n)
    return np.concatenate([np.full(n - 1, np.nan), np.polyfit(np.arange(n), windows.T, 1)[0]]) / b.close


def scipy_zscore(b: Bars, n: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(b.volume, n)
    return np.concatenate([np.full(n - 1, np.nan), scipy.stats.zscore(windows, axis=1, ddof=1)[:, -1]])


def scipy_rank(b: Bars, n: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(b.close, n)
    return np.concatenate([np.full(n - 1, np.nan), scipy.stats.rankdata(windows, axis=1)[:, -1] / n])


# By family: the library's values, the relative error, and the absolute one, which is that of the library where it
# subtracts sums of squares.
Library = tuple[Callable[..., Array], float, float]
TALIB: dict[str, Library] = {
    "price_range": (lambda b: talib.SUB(b.high, b.low), 0, 0),
    "price_change": (lambda b: talib.BOP(b.open, b.high, b.low, b.close) * (b.high - b.low), 1e-11, 1e-12),
    "close_location": (accumulation, 0, 1e-13),
    "gap": (lambda b: b.open / before(b.close) - 1, 1e-12, 1e-15),
    "sma": (lambda b, n: talib.SMA(b.close, n), 1e-12, 0),
    "close_over_sma": (lambda b, n: b.close / talib.SMA(b.close, n) - 1, 1e-9, 1e-12),
    "slope_over_close": (lambda b, n: talib.LINEARREG_SLOPE(b.close, n) / b.close, 1e-9, 1e-13),
    "momentum": (lambda b, n: talib.MOM(b.close, n), 0, 0),
    "return": (lambda b, n: talib.ROCP(b.close, n), 1e-12, 1e-15),
    "log_return": (lambda b, n: talib.LN(talib.ROCR(b.close, n)), 1e-12, 1e-15),
    "lagged_return": (lambda b, n: pd.Series(talib.ROCP(b.close, 1)).shift(n).to_numpy(), 1e-12, 1e-15),
    "efficiency_ratio": (
        lambda b, n: np.abs(talib.MOM(b.close, n)) / talib.SUM(np.abs(talib.MOM(b.close, 1)), n),
        1e-9,
        1e-13,
    ),
    "drawdown": (lambda b, n: b.close / talib.MAX(b.high, n) - 1, 1e-12, 1e-15),
    "age_of_high": (lambda b, n: 1 - talib.AROON(b.high, b.low, n - 1)[1] / 100, 1e-12, 1e-14),
    "autocorrelation": (lambda b, n: talib.CORREL(returns(b), before(returns(b)), n), 1e-9, 1e-11),
    "volatility": (lambda b, n: talib.STDDEV(returns(b), n) * np.sqrt(n / (n - 1)), 1e-9, 1e-12),
    "volatility_ratio": (
        lambda b, n, m: (
            talib.STDDEV(returns(b), n) / talib.STDDEV(returns(b), m) * np.sqrt(n / (n - 1) / (m / (m - 1)))
        ),
        1e-9,
        1e-12,
    ),
    "realised_volatility": (lambda b, n: talib.SQRT(talib.SMA(talib.LN(talib.ROCR(b.close, 1)) ** 2, n)), 1e-9, 0),
    "parkinson_volatility": (
        lambda b, n: talib.SQRT(talib.SMA(talib.LN(b.high / b.low) ** 2, n) / (4 * np.log(2))),
        1e-9,
        0,
    ),
    "garman_klass_volatility": (
        lambda b, n: talib.SQRT(
            talib.SMA(talib.LN(b.high / b.low) ** 2 / 2 - (2 * np.log(2) - 1) * talib.LN(b.close / b.open) ** 2, n)
        ),
        1e-9,
        0,
    ),
    "atr_over_close": (lambda b, n: talib.SMA(talib.TRANGE(b.high, b.low, b.close), n) / b.close, 1e-11, 0),
    "rsi": (strength, 1e-11, 1e-11),
    "stochastic": (lambda b, n: stochastic_lines(b, n, 1)[0] / 100, 1e-12, 1e-14),
    "stochastic_mean": (lambda b, n, m: stochastic_lines(b, n, m)[1] / 100, 1e-12, 1e-14),
    "williams_r": (lambda b, n: talib.WILLR(b.high, b.low, b.close, n), 1e-12, 1e-14),
    "cci": (lambda b, n: talib.CCI(b.high, b.low, b.close, n), 1e-9, 1e-11),
    "bollinger_b": (bollinger_b, 1e-9, 1e-9),
    "bollinger_bandwidth": (bollinger_bandwidth, 1e-8, 1e-10),
    "volume_sma": (lambda b, n: talib.SMA(b.volume, n), 1e-12, 0),
    "volume_change": (lambda b: talib.ROCP(b.volume, 1), 1e-12, 1e-15),
    "volume_ratio": (lambda b, n: b.volume / talib.SMA(b.volume, n), 1e-12, 0),
    "volume_zscore": (
        lambda b, n: (b.volume - talib.SMA(b.volume, n)) / talib.STDDEV(b.volume, n) * np.sqrt((n - 1) / n),
        1e-8,
        1e-9,
    ),
    "obv_slope": (
        lambda b, n: talib.LINEARREG_SLOPE(talib.OBV(b.close, b.volume), n) / talib.SMA(b.volume, n),
        1e-9,
        1e-12,
    ),
    "signed_volume_share": (signed_volume_share, 1e-9, 1e-12),
    "return_volume_correlation": (lambda b, n: talib.CORREL(returns(b), b.volume, n), 1e-9, 1e-11),
}
PANDAS: dict[str, Library] = {
    "sma": (lambda b, n: pd.Series(b.close).rolling(n).mean(), 1e-12, 0),
    "momentum": (lambda b, n: pd.Series(b.close).diff(n), 0, 0),
    "return": (lambda b, n: pd.Series(b.close).pct_change(n), 1e-12, 1e-15),
    "lagged_return": (lambda b, n: pandas_returns(b).shift(n), 1e-12, 1e-15),
    "close_rank": (lambda b, n: pd.Series(b.close).rolling(n).rank(pct=True), 1e-15, 0),
    "autocorrelation": (lambda b, n: pandas_returns(b).rolling(n).corr(pandas_returns(b).shift(1)), 1e-9, 1e-11),
    "volatility": (lambda b, n: pandas_returns(b).rolling(n).std(), 1e-9, 0),
    "volatility_ratio": (
        lambda b, n, m: pandas_returns(b).rolling(n).std() / pandas_returns(b).rolling(m).std(),
        1e-9,
        0,
    ),
    "skew": (lambda b, n: pandas_returns(b).rolling(n).skew(), 1e-9, 1e-11),
    "kurtosis": (lambda b, n: pandas_returns(b).rolling(n).kurt(), 1e-9, 1e-10),
    "bollinger_bandwidth": (
        lambda b, n: 4 * pd.Series(b.close).rolling(n).std(ddof=0) / pd.Series(b.close).rolling(n).mean(),
        1e-8,
        1e-12,
    ),
    "return_volume_correlation": (
        lambda b, n: pandas_returns(b).rolling(n).corr(pd.Series(b.volume)),
        1e-9,
        1e-11,
    ),
    "hour_of_day": (lambda b: b.time.hour + b.time.minute / 60, 0, 0),
    "day_of_week": (lambda b: b.time.dayofweek, 0, 0),
    "day_of_month": (lambda b: b.time.day, 0, 0),
    "month_of_year": (lambda b: b.time.month, 0, 0),
}
SCIPY: dict[str, Library] = {
    "skew": (lambda b, n: scipy_shape(b, n, scipy.stats.skew), 1e-9, 1e-12),
    "kurtosis": (lambda b, n: scipy_shape(b, n, scipy.stats.kurtosis), 1e-9, 1e-11),
    "volume_zscore": (scipy_zscore, 1e-12, 1e-13),
    "close_rank": (scipy_rank, 1e-15, 0),
    "slope_over_close": (fitted_slope, 1e-9, 1e-14),
}


@pytest.fixture(scope="module")
def symbols() -> dict[str, Bars]:
    parts = real_bars().groupby("symbol")
    return {
        str(symbol): Bars(pd.DatetimeIndex(part["time"]), *(part[name].to_numpy() for name in INPUTS))
        for symbol, part in parts
    }


@pytest.fixture(scope="module")
def computed() -> pd.DataFrame:
    bars = real_bars()
    return feature_frame(bars, ALL).assign(symbol=bars["symbol"])


def cases(libraries: dict[str, Library]) -> list[str]:
    return [name for name in ALL.features if family_of(name)[0] in libraries]


def assert_agrees(library: Library, name: str, symbols: dict[str, Bars], computed: pd.DataFrame) -> None:
    compute, relative, absolute = library
    for symbol, bars in symbols.items():
        expected = np.asarray(compute(bars, *family_of(name)[1]), dtype=float)
        found = computed.loc[computed["symbol"] == symbol, name].to_numpy()
        assert np.isfinite(expected).sum() > 100
        np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute, err_msg=symbol)


@pytest.mark.parametrize("name", cases(TALIB))
def test_a_feature_is_ta_libs(name: str, symbols: dict[str, Bars], computed: pd.DataFrame) -> None:
    assert_agrees(TALIB[family_of(name)[0]], name, symbols, computed)


@pytest.mark.parametrize("name", cases(PANDAS))
def test_a_feature_is_that_of_pandas(name: str, symbols: dict[str, Bars], computed: pd.DataFrame) -> None:
    assert_agrees(PANDAS[family_of(name)[0]], name, symbols, computed)


@pytest.mark.parametrize("name", cases(SCIPY))
def test_a_feature_is_that_of_scipy_or_a_least_squares_fit(
    name: str, symbols: dict[str, Bars], computed: pd.DataFrame
) -> None:
    assert_agrees(SCIPY[family_of(name)[0]], name, symbols, computed)


# An exponential average of TA-Lib or pandas has all history in it; ours leaves out what weighs under EMA_TAIL.


def tail(b: Bars) -> float:
    """How far what is left out can move an average of the prices there are."""
    return EMA_TAIL * float(b.close.max() - b.close.min())


def assert_averages_differ_by_the_tail(found: Array, recursion: Array, spans: tuple[int, ...], b: Bars) -> None:
    # The recursion's first value is a plain mean of `span` bars: from here on, that is among what is left out.
    first = ema_length(max(spans)) + max(spans)
    errors = np.abs(found - recursion)[first:]
    assert len(errors) >= 50
    assert 0 < errors.max() < len(spans) * tail(b)


@pytest.mark.parametrize("span", [5, 10, 20])
def test_an_exponential_average_is_ta_libs_but_for_its_tail(
    span: int, symbols: dict[str, Bars], computed: pd.DataFrame
) -> None:
    for symbol, b in symbols.items():
        own = computed[computed["symbol"] == symbol]
        recursions = talib.EMA(b.close, span), pd.Series(b.close).ewm(span=span, adjust=False).mean().to_numpy()
        implied = b.close / (1 + own[f"close_over_ema_{span}"].to_numpy())
        for recursion in recursions:
            assert_averages_differ_by_the_tail(implied, recursion, (span,), b)
            if f"ema_{span}" in own:
                assert_averages_differ_by_the_tail(own[f"ema_{span}"].to_numpy(), recursion, (span,), b)


def test_macd_is_ta_libs_but_for_the_tails_of_its_averages(symbols: dict[str, Bars], computed: pd.DataFrame) -> None:
    for symbol, b in symbols.items():
        found = computed.loc[computed["symbol"] == symbol, "macd_over_close_12_26"].to_numpy() * b.close
        lines = talib.MACD(b.close, 12, 26, 9)[0], talib.EMA(b.close, 12) - talib.EMA(b.close, 26)
        for line in lines:
            assert_averages_differ_by_the_tail(found, line, (12, 26), b)
