"""Every feature once more, from its textbook definition: whole windows in NumPy, symbol by symbol."""

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

DEFAULT_NAMES = [
    *("price_range", "price_change", "price_change_pct"),
    *("sma_5", "sma_10", "sma_20", "ema_5", "ema_10", "momentum_5", "momentum_10"),
    *("volatility_5", "volatility_10", "rsi_14", "volume_sma_5", "volume_change"),
]


def windows_of(values: pd.Series, n: int) -> np.ndarray:
    """A row per bar: the last n values, oldest first; NaN before the first bar."""
    padded = np.concatenate([np.full(n - 1, np.nan), values.to_numpy(dtype=float)])
    return np.lib.stride_tricks.sliding_window_view(padded, n)


def over(values: pd.Series, n: int, statistic: Callable[[np.ndarray], np.ndarray]) -> pd.Series:
    """A statistic of every row of windows."""
    return pd.Series(statistic(windows_of(values, n)), values.index)


def fraction(x: pd.Series, y: pd.Series, flat: float) -> pd.Series:
    return (x / y).mask((y == 0) & x.notna(), flat)


def deviations(w: np.ndarray) -> np.ndarray:
    # Moving all values by one of them first makes the deviations of equal values exactly 0.
    moved = w - w[:, -1:]
    return moved - moved.mean(axis=1, keepdims=True)


def mean(values: pd.Series, n: int) -> pd.Series:
    return over(values, n, lambda w: w.mean(axis=1))


def total(values: pd.Series, n: int) -> pd.Series:
    return over(values, n, lambda w: w.sum(axis=1))


def highest(values: pd.Series, n: int) -> pd.Series:
    return over(values, n, lambda w: w.max(axis=1))


def lowest(values: pd.Series, n: int) -> pd.Series:
    return over(values, n, lambda w: w.min(axis=1))


def deviation(values: pd.Series, n: int, ddof: int = 1) -> pd.Series:
    return over(values, n, lambda w: np.sqrt((deviations(w) ** 2).sum(axis=1) / (n - ddof)))


def slope(w: np.ndarray) -> np.ndarray:
    """Least squares: covariance with the time over the variance of the time."""
    time = np.arange(w.shape[1]) - (w.shape[1] - 1) / 2
    return (deviations(w) * time).sum(axis=1) / (time**2).sum()


def rank(w: np.ndarray) -> np.ndarray:
    newest = w[:, -1:]
    others_equal = (w[:, :-1] == newest).sum(axis=1)
    share = ((w < newest).sum(axis=1) + others_equal / 2 + 1) / w.shape[1]
    return np.where(np.isnan(w).any(axis=1), np.nan, share)


def age_of_highest(w: np.ndarray) -> np.ndarray:
    newest_first = w[:, ::-1]
    return np.where(np.isnan(w).any(axis=1), np.nan, newest_first.argmax(axis=1))


def correlation(x: pd.Series, y: pd.Series, n: int) -> pd.Series:
    dx, dy = deviations(windows_of(x, n)), deviations(windows_of(y, n))
    size = np.sqrt((dx**2).sum(axis=1)) * np.sqrt((dy**2).sum(axis=1))
    return fraction(pd.Series((dx * dy).sum(axis=1), x.index), pd.Series(size, x.index), 0.0)


def standardised_moment(values: pd.Series, n: int, power: int) -> pd.Series:
    """Sum of the deviations, in sample standard deviations, to the power."""
    sums = over(values, n, lambda w: (deviations(w) ** power).sum(axis=1))
    return fraction(sums, deviation(values, n) ** power, np.nan)


def skewness(values: pd.Series, n: int) -> pd.Series:
    skewed = n / ((n - 1) * (n - 2)) * standardised_moment(values, n, 3)
    return skewed.mask(deviation(values, n) == 0, 0.0)


def excess_kurtosis(values: pd.Series, n: int) -> pd.Series:
    scale = n * (n + 1) / ((n - 1) * (n - 2) * (n - 3))
    heavy = scale * standardised_moment(values, n, 4) - 3 * (n - 1) ** 2 / ((n - 2) * (n - 3))
    return heavy.mask(deviation(values, n) == 0, 0.0)


def ema_weights(span: int) -> np.ndarray:
    """Newest first: as few as leave out under 1e-4 of the weight of the whole history, scaled to sum to 1."""
    keep = 1 - 2 / (span + 1)
    weights = [1.0]
    while keep ** len(weights) >= 1e-4:
        weights.append(keep ** len(weights))
    return np.array(weights) / sum(weights)


def ema(close: pd.Series, span: int) -> pd.Series:
    weights = ema_weights(span)[::-1]
    return over(close, len(weights), lambda w: (w * weights).sum(axis=1))


def rsi(close: pd.Series, window: int) -> pd.Series:
    values = close.tolist()
    result = [np.nan] * len(values)
    for end in range(window, len(values)):
        gain = loss = 0.0
        for earlier, later in zip(values[end - window : end], values[end - window + 1 : end + 1], strict=True):
            gain += max(later - earlier, 0.0) if later == later else np.nan
            loss += max(earlier - later, 0.0) if earlier == earlier else np.nan
        if gain + loss == 0:
            result[end] = 50.0
        elif loss == 0:
            result[end] = 100.0
        else:
            result[end] = 100 - 100 / (1 + gain / loss)
    return pd.Series(result, close.index)


def returns(close: pd.Series, bars: int = 1) -> pd.Series:
    return (close - close.shift(bars)) / close.shift(bars)


def logarithmic(values: pd.Series) -> pd.Series:
    return pd.Series(np.log(values), values.index)


def true_range(b: pd.DataFrame) -> pd.Series:
    before = b["close"].shift(1)
    parts = [b["high"] - b["low"], (b["high"] - before).abs(), (b["low"] - before).abs()]
    return pd.concat(parts, axis=1).max(axis=1, skipna=False)


def shadow(length: pd.Series, b: pd.DataFrame) -> pd.Series:
    return fraction(length, b["high"] - b["low"], 0.0)


def stochastic(b: pd.DataFrame, n: int) -> pd.Series:
    low, high = lowest(b["low"], n), highest(b["high"], n)
    return fraction(b["close"] - low, high - low, 0.5)


def williams(b: pd.DataFrame, n: int) -> pd.Series:
    low, high = lowest(b["low"], n), highest(b["high"], n)
    return fraction(-100 * (high - b["close"]), high - low, -50.0)


def cci(b: pd.DataFrame, n: int) -> pd.Series:
    typical = (b["high"] + b["low"] + b["close"]) / 3
    spread = over(typical, n, lambda w: np.abs(deviations(w)).mean(axis=1))
    return fraction(typical - mean(typical, n), 0.015 * spread, 0.0)


def bollinger_bands(c: pd.Series, n: int) -> tuple[pd.Series, pd.Series, pd.Series]:
    middle, width = mean(c, n), 2 * deviation(c, n, ddof=0)
    return middle - width, middle, middle + width


def bollinger_b(c: pd.Series, n: int) -> pd.Series:
    lower, _, upper = bollinger_bands(c, n)
    return fraction(c - lower, upper - lower, 0.5)


def bollinger_bandwidth(c: pd.Series, n: int) -> pd.Series:
    lower, middle, upper = bollinger_bands(c, n)
    return (upper - lower) / middle


def efficiency(c: pd.Series, n: int) -> pd.Series:
    return fraction(c.diff(n).abs(), total(c.diff().abs(), n), 0.0)


def parkinson(b: pd.DataFrame, n: int) -> pd.Series:
    heights = (logarithmic(b["high"]) - logarithmic(b["low"])) ** 2
    return pd.Series(np.sqrt(total(heights, n) / (4 * n * np.log(2))), b.index)


def garman_klass(b: pd.DataFrame, n: int) -> pd.Series:
    heights = (logarithmic(b["high"]) - logarithmic(b["low"])) ** 2
    bodies = (logarithmic(b["close"]) - logarithmic(b["open"])) ** 2
    return pd.Series(np.sqrt(mean(heights / 2 - (2 * np.log(2) - 1) * bodies, n)), b.index)


def realised(c: pd.Series, n: int) -> pd.Series:
    return pd.Series(np.sqrt(mean(logarithmic(c).diff() ** 2, n)), c.index)


def volume_change(v: pd.Series) -> pd.Series:
    change = (v - v.shift(1)) / v.shift(1)
    return change.mask((v.shift(1) == 0) & (v > 0), 1.0).mask((v.shift(1) == 0) & (v == 0), 0.0)


def signed_volume(b: pd.DataFrame) -> pd.Series:
    """The volume of a rising bar, minus that of a falling one, 0 between."""
    return pd.Series(np.sign(b["close"].diff()) * b["volume"], b.index)


def on_balance_slope(b: pd.DataFrame, n: int) -> pd.Series:
    """The line through the running totals that start with the oldest bar of the window."""
    # The oldest bar's own volume is part of every total, and does not tilt the line.
    steps = windows_of(signed_volume(b), n)[:, 1:]
    totals = np.concatenate([np.zeros((len(b), 1)), steps.cumsum(axis=1)], axis=1)
    return fraction(pd.Series(slope(totals), b.index), mean(b["volume"], n), 0.0)


def utc(b: pd.DataFrame) -> pd.Series:
    return b["time"].dt.tz_convert("UTC")


def hour_of_day(b: pd.DataFrame) -> pd.Series:
    time = utc(b).dt
    return time.hour + time.minute / 60 + time.second / 3600 + time.microsecond / 3.6e9 + time.nanosecond / 3.6e12


FAMILIES: dict[str, Callable[..., pd.Series]] = {
    "price_range": lambda b: b["high"] - b["low"],
    "price_change": lambda b: b["close"] - b["open"],
    "price_change_pct": lambda b: b["close"] / b["open"] - 1,
    "range_over_close": lambda b: b["high"] / b["close"] - b["low"] / b["close"],
    "close_location": lambda b: fraction(b["close"] - b["low"], b["high"] - b["low"], 0.5),
    "upper_shadow": lambda b: shadow(b["high"] - np.maximum(b["open"], b["close"]), b),
    "lower_shadow": lambda b: shadow(np.minimum(b["open"], b["close"]) - b["low"], b),
    "gap": lambda b: (b["open"] - b["close"].shift(1)) / b["close"].shift(1),
    "sma": lambda b, n: mean(b["close"], n),
    "ema": lambda b, n: ema(b["close"], n),
    "close_over_sma": lambda b, n: b["close"] / mean(b["close"], n) - 1,
    "close_over_ema": lambda b, n: b["close"] / ema(b["close"], n) - 1,
    "macd_over_close": lambda b, n, m: ema(b["close"], n) / b["close"] - ema(b["close"], m) / b["close"],
    "slope_over_close": lambda b, n: over(b["close"], n, slope) / b["close"],
    "momentum": lambda b, n: b["close"].diff(n),
    "return": lambda b, n: returns(b["close"], n),
    "log_return": lambda b, n: logarithmic(b["close"]).diff(n),
    "lagged_return": lambda b, n: returns(b["close"]).shift(n),
    "efficiency_ratio": lambda b, n: efficiency(b["close"], n),
    "drawdown": lambda b, n: b["close"] / highest(b["high"], n) - 1,
    "age_of_high": lambda b, n: over(b["high"], n, age_of_highest) / (n - 1),
    "close_rank": lambda b, n: over(b["close"], n, rank),
    "autocorrelation": lambda b, n: correlation(returns(b["close"]), returns(b["close"]).shift(1), n),
    "volatility": lambda b, n: deviation(returns(b["close"]), n),
    "volatility_ratio": lambda b, n, m: fraction(
        deviation(returns(b["close"]), n), deviation(returns(b["close"]), m), 1.0
    ),
    "realised_volatility": lambda b, n: realised(b["close"], n),
    "parkinson_volatility": parkinson,
    "garman_klass_volatility": garman_klass,
    "atr_over_close": lambda b, n: mean(true_range(b), n) / b["close"],
    "skew": lambda b, n: skewness(returns(b["close"]), n),
    "kurtosis": lambda b, n: excess_kurtosis(returns(b["close"]), n),
    "rsi": lambda b, n: rsi(b["close"], n),
    "stochastic": stochastic,
    "stochastic_mean": lambda b, n, m: mean(stochastic(b, n), m),
    "williams_r": williams,
    "cci": cci,
    "bollinger_b": lambda b, n: bollinger_b(b["close"], n),
    "bollinger_bandwidth": lambda b, n: bollinger_bandwidth(b["close"], n),
    "volume_sma": lambda b, n: mean(b["volume"], n),
    "volume_change": lambda b: volume_change(b["volume"]),
    "volume_ratio": lambda b, n: fraction(b["volume"], mean(b["volume"], n), 1.0),
    "volume_zscore": lambda b, n: fraction(b["volume"] - mean(b["volume"], n), deviation(b["volume"], n), 0.0),
    "obv_slope": on_balance_slope,
    "signed_volume_share": lambda b, n: fraction(total(signed_volume(b), n), total(b["volume"], n), 0.0),
    "return_volume_correlation": lambda b, n: correlation(returns(b["close"]), b["volume"], n),
    "hour_of_day": hour_of_day,
    "day_of_week": lambda b: utc(b).dt.dayofweek,
    "day_of_month": lambda b: utc(b).dt.day,
    "month_of_year": lambda b: utc(b).dt.month,
}


def family_of(name: str) -> tuple[str, tuple[int, ...]]:
    """The name without its windows, and the windows: macd_over_close_12_26 has 12 and 26."""
    match = re.fullmatch(r"(.*?)((?:_\d+)*)", name)
    assert match
    return match[1], tuple(int(window) for window in match[2].split("_")[1:])


def expected_feature(bars: pd.DataFrame, name: str) -> pd.Series:
    """The feature of every row of `bars`, symbol by symbol in time order, in the frame's own index."""
    stem, windows = family_of(name)
    parts = [FAMILIES[stem](part.sort_values("time"), *windows) for _, part in bars.groupby("symbol")]
    return pd.concat(parts).reindex(bars.index).astype(float)
