"""The 15 default features side by side: compute_features against the usual pandas recipe per symbol, in one run.

Run `python benchmarks/features.py`; it takes seconds and prints medians and their ratio.
"""

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.features import compute_features

SYMBOLS, BARS = 20, 5_000


def random_bars() -> pd.DataFrame:
    """Geometric random walks with symbols as plain strings."""
    random = np.random.default_rng(7)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.01, (SYMBOLS, BARS)), axis=1)).ravel()
    open_ = close * np.exp(random.normal(0, 0.003, SYMBOLS * BARS))
    return pd.DataFrame(
        {
            "symbol": np.repeat([f"S{number:02d}" for number in range(SYMBOLS)], BARS),
            "time": np.tile(pd.date_range("2000-01-01", periods=BARS, freq="h", tz="UTC"), SYMBOLS),
            "open": open_,
            "high": np.maximum(open_, close) * 1.001,
            "low": np.minimum(open_, close) * 0.999,
            "close": close,
            "volume": random.integers(1, 10_000, SYMBOLS * BARS).astype(float),
        }
    )


def pandas_recipe(one: pd.DataFrame) -> pd.DataFrame:
    """The features of one symbol as they are usually written; the averages run over all history."""
    close, volume = one["close"], one["volume"]
    move, returns = close.diff(), close.pct_change()
    gain, loss = move.clip(lower=0).rolling(14).mean(), (-move).clip(lower=0).rolling(14).mean()
    return one.assign(
        price_range=one["high"] - one["low"],
        price_change=close - one["open"],
        price_change_pct=(close - one["open"]) / one["open"],
        **{f"sma_{n}": close.rolling(n).mean() for n in (5, 10, 20)},
        **{f"ema_{n}": close.ewm(span=n, adjust=False).mean() for n in (5, 10)},
        **{f"momentum_{n}": close.diff(n) for n in (5, 10)},
        **{f"volatility_{n}": returns.rolling(n).std() for n in (5, 10)},
        rsi_14=100 - 100 / (1 + gain / loss),
        volume_sma_5=volume.rolling(5).mean(),
        volume_change=volume.pct_change(),
    )


def median_ms(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


def main() -> None:
    bars = random_bars()
    recipe = median_ms(lambda: pd.concat([pandas_recipe(one) for _, one in bars.groupby("symbol")]).dropna())
    ours = median_ms(lambda: compute_features(bars))
    print(f"{platform.machine()}, Python {platform.python_version()}, {len(bars):,} rows of {SYMBOLS} symbols")
    print(f"pandas recipe per symbol  {recipe:8.1f} ms")
    print(f"compute_features          {ours:8.1f} ms   {recipe / ours:.1f} times faster")


if __name__ == "__main__":
    main()
