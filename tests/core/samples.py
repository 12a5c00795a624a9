"""Bars to test on: real ones, random ones, and one good bar to break."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.core.bars import BAR_COLUMNS

NOW = datetime(2024, 6, 1, tzinfo=UTC)
INPUTS = ["open", "high", "low", "close", "volume"]


@cache
def _demo() -> pd.DataFrame:
    return demo_bars()


def real_bars(rows_per_symbol: int | None = None) -> pd.DataFrame:
    """Daily bars of five stocks, symbol after symbol; the volume is a double so that it can hold NaN."""
    bars = _demo()
    if rows_per_symbol is not None:
        bars = bars.groupby("symbol", sort=False).head(rows_per_symbol)
    return bars.reset_index(drop=True).assign(volume=lambda frame: frame["volume"].astype(float))


def random_bars(symbols: tuple[str, ...] = ("AAA", "BBB", "CCC"), length: int = 120, seed: int = 1) -> pd.DataFrame:
    """Valid daily bars of every symbol over the same days, with gaps, dull days and days without volume."""
    rng = np.random.default_rng(seed)
    frames = []
    for number, symbol in enumerate(symbols):
        close = 10.0 ** (number + 1) * np.exp(np.cumsum(rng.normal(0, 0.02, length)))
        open_ = close * np.exp(rng.normal(0, 0.01, length))
        dull = rng.random(length) < 0.05
        open_[dull] = close[dull]
        wide = np.where(dull, 0.0, 1.0)
        frames.append(
            pd.DataFrame(
                {
                    "symbol": symbol,
                    "timeframe": "D1",
                    "time": pd.date_range("2023-01-01", periods=length, freq="D", tz="UTC").as_unit("us"),
                    "open": open_,
                    "high": np.maximum(open_, close) * (1 + wide * rng.uniform(0, 0.01, length)),
                    "low": np.minimum(open_, close) * (1 - wide * rng.uniform(0, 0.01, length)),
                    "close": close,
                    "volume": np.where(rng.random(length) < 0.1, 0.0, rng.integers(1, 10**6, length)),
                    "adjusted_close": np.nan,
                    "real_volume": np.nan,
                    "spread": np.nan,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)[list(BAR_COLUMNS)]


def bars_of(*changes: dict[str, Any]) -> pd.DataFrame:
    """One good closed D1 bar per mapping, a day apart, with the mapping's values in place of its own."""
    rows = []
    for day, change in enumerate(changes):
        good = {"symbol": "EURUSD", "timeframe": "D1", "time": pd.Timestamp("2024-05-01", tz="UTC")}
        good["time"] += pd.Timedelta(days=day)
        prices = {"open": 1.1, "high": 1.3, "low": 1.0, "close": 1.2, "adjusted_close": np.nan}
        rows.append({**good, **prices, "volume": 100.0, "real_volume": np.nan, "spread": np.nan, **change})
    frame = pd.DataFrame(rows, columns=list(BAR_COLUMNS))
    return frame.assign(time=pd.Series(frame["time"].tolist(), dtype="datetime64[us, UTC]"))


def bits(values: pd.DataFrame | pd.Series | np.ndarray) -> np.ndarray:
    """The 64 bits of every double, so that NaN equals NaN and -0.0 differs from 0.0."""
    return np.ascontiguousarray(np.asarray(values, dtype=np.float64)).view(np.int64)
