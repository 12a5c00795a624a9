"""Every feature once more, from its textbook definition: pandas per symbol, dot products and loops."""

from collections.abc import Callable

import numpy as np
import pandas as pd

DEFAULT_NAMES = [
    *("price_range", "price_change", "price_change_pct"),
    *("sma_5", "sma_10", "sma_20", "ema_5", "ema_10", "momentum_5", "momentum_10"),
    *("volatility_5", "volatility_10", "rsi_14", "volume_sma_5", "volume_change"),
]


def ema_weights(span: int) -> np.ndarray:
    """Newest first: as few as leave out under 1e-4 of the weight of the whole history, scaled to sum to 1."""
    keep = 1 - 2 / (span + 1)
    weights = [1.0]
    while keep ** len(weights) >= 1e-4:
        weights.append(keep ** len(weights))
    return np.array(weights) / sum(weights)


def ema(close: pd.Series, span: int) -> pd.Series:
    weights = ema_weights(span)
    return close.rolling(len(weights)).apply(lambda window: np.dot(window[::-1], weights), raw=True)


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


def where_flat(values: pd.Series, size: pd.Series, flat: float) -> pd.Series:
    return values.mask((size == 0).to_numpy(), flat)


def true_range(b: pd.DataFrame) -> pd.Series:
    before = b["close"].shift(1)
    parts = [b["high"] - b["low"], (b["high"] - before).abs(), (b["low"] - before).abs()]
    return pd.concat(parts, axis=1).max(axis=1, skipna=False)


def stochastic(b: pd.DataFrame, n: int) -> pd.Series:
    low, high = b["low"].rolling(n).min(), b["high"].rolling(n).max()
    return where_flat((b["close"] - low) / (high - low), high - low, 0.5)


def efficiency(c: pd.Series, n: int) -> pd.Series:
    path = c.diff().abs().rolling(n).sum()
    return where_flat(c.diff(n).abs() / path, path, 0.0)


def volume_change(v: pd.Series) -> pd.Series:
    change = (v - v.shift(1)) / v.shift(1)
    return change.mask((v.shift(1) == 0) & (v > 0), 1.0).mask((v.shift(1) == 0) & (v == 0), 0.0)


def bollinger(c: pd.Series, n: int) -> pd.Series:
    spread = c.rolling(n).apply(lambda window: np.std(window, ddof=1), raw=True)
    middle = c.rolling(n).apply(np.mean, raw=True)
    return (c - middle) / spread


def volatility(c: pd.Series, n: int) -> pd.Series:
    return returns(c).rolling(n).apply(lambda window: np.std(window, ddof=1), raw=True)


FAMILIES: dict[str, Callable[..., pd.Series]] = {
    "price_range": lambda b: b["high"] - b["low"],
    "price_change": lambda b: b["close"] - b["open"],
    "price_change_pct": lambda b: b["close"] / b["open"] - 1,
    "range_over_close": lambda b: b["high"] / b["close"] - b["low"] / b["close"],
    "close_location": lambda b: where_flat((b["close"] - b["low"]) / (b["high"] - b["low"]), b["high"] - b["low"], 0.5),
    "gap": lambda b: (b["open"] - b["close"].shift(1)) / b["close"].shift(1),
    "sma": lambda b, n: b["close"].rolling(n).mean(),
    "ema": lambda b, n: ema(b["close"], n),
    "close_over_sma": lambda b, n: b["close"] / b["close"].rolling(n).mean() - 1,
    "close_over_ema": lambda b, n: b["close"] / ema(b["close"], n) - 1,
    "momentum": lambda b, n: b["close"].diff(n),
    "return": lambda b, n: returns(b["close"], n),
    "lagged_return": lambda b, n: returns(b["close"]).shift(n),
    "efficiency_ratio": lambda b, n: efficiency(b["close"], n),
    "drawdown": lambda b, n: b["close"] / b["high"].rolling(n).max() - 1,
    "volatility": lambda b, n: volatility(b["close"], n),
    "parkinson_volatility": lambda b, n: np.sqrt(
        ((np.log(b["high"]) - np.log(b["low"])) ** 2).rolling(n).sum().clip(lower=0) / (4 * n * np.log(2))
    ),
    "atr_over_close": lambda b, n: true_range(b).rolling(n).mean() / b["close"],
    "rsi": lambda b, n: rsi(b["close"], n),
    "stochastic": stochastic,
    "bollinger_score": lambda b, n: bollinger(b["close"], n),
    "volume_sma": lambda b, n: b["volume"].rolling(n).mean(),
    "volume_change": lambda b: volume_change(b["volume"]),
    "volume_ratio": lambda b, n: b["volume"] / b["volume"].rolling(n).mean(),
}


def expected_feature(bars: pd.DataFrame, name: str) -> pd.Series:
    """The feature of every row of `bars`, symbol by symbol in time order, in the frame's own index."""
    stem, _, number = name.rpartition("_")
    windows = [int(number)] if number.isdigit() else []
    family = FAMILIES[stem if windows else name]
    parts = [family(part.sort_values("time"), *windows) for _, part in bars.groupby("symbol")]
    return pd.concat(parts).reindex(bars.index)
