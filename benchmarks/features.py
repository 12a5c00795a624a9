"""The features side by side: compute_features, the kernel beneath it, pandas, polars and TA-Lib, in one run.

Run `python benchmarks/features.py`; it takes about a minute and prints medians and ratios. `--rows 10000000` shows that
the cost grows with the rows; it needs 8 GB.
"""

import argparse
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import talib

from mt5_crs_pipeline.core.features import FeatureConfig, FeatureStream, compute_features
from mt5_crs_pipeline.core.features.engine import core_count, evaluate
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.panel import Panel

BARS = 5_000
DEFAULT, SCALE_FREE = FeatureConfig(), FeatureConfig.scale_free()


def random_bars(symbols: int, bars: int = BARS) -> pd.DataFrame:
    """Geometric random walks, symbol after symbol, with symbols as plain strings."""
    random = np.random.default_rng(7)
    rows = symbols * bars
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.01, (symbols, bars)), axis=1)).ravel()
    open_ = close * np.exp(random.normal(0, 0.003, rows))
    return pd.DataFrame(
        {
            "symbol": [name for name in (f"S{number:04d}" for number in range(symbols)) for _ in range(bars)],
            "time": np.tile(pd.date_range("2000-01-01", periods=bars, freq="h", tz="UTC"), symbols),
            "open": open_,
            "high": np.maximum(open_, close) * 1.001,
            "low": np.minimum(open_, close) * 0.999,
            "close": close,
            "volume": random.integers(1, 10_000, rows).astype(float),
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


def pandas_per_symbol(bars: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([pandas_recipe(one) for _, one in bars.groupby("symbol")]).dropna()


def polars_over(bars: pl.DataFrame) -> pl.DataFrame:
    close, volume = pl.col("close"), pl.col("volume")
    move, returns = close.diff(), close.pct_change()
    gain, loss = move.clip(lower_bound=0).rolling_mean(14), (-move).clip(lower_bound=0).rolling_mean(14)
    per_symbol = {
        **{f"sma_{n}": close.rolling_mean(n) for n in (5, 10, 20)},
        **{f"ema_{n}": close.ewm_mean(span=n, adjust=False) for n in (5, 10)},
        **{f"momentum_{n}": close.diff(n) for n in (5, 10)},
        **{f"volatility_{n}": returns.rolling_std(n) for n in (5, 10)},
        "rsi_14": 100 - 100 / (1 + gain / loss),
        "volume_sma_5": volume.rolling_mean(5),
        "volume_change": volume.pct_change(),
    }
    return bars.with_columns(
        price_range=pl.col("high") - pl.col("low"),
        price_change=close - pl.col("open"),
        price_change_pct=(close - pl.col("open")) / pl.col("open"),
        **{name: expression.over("symbol") for name, expression in per_symbol.items()},
    ).drop_nulls()


def talib_per_symbol(inputs: dict[str, np.ndarray], out: np.ndarray, bars: int) -> None:
    for start in range(0, out.shape[1], bars):
        part = slice(start, start + bars)
        open_, high, low, close, volume = (inputs[name][part] for name in INPUTS)
        returns = talib.ROCP(close, 1)
        columns = [
            high - low,
            close - open_,
            (close - open_) / open_,
            *(talib.SMA(close, n) for n in (5, 10, 20)),
            *(talib.EMA(close, n) for n in (5, 10)),
            *(talib.MOM(close, n) for n in (5, 10)),
            *(talib.STDDEV(returns, n) for n in (5, 10)),
            talib.RSI(close, 14),
            talib.SMA(volume, 5),
            talib.ROCP(volume, 1),
        ]
        for row, column in zip(out, columns, strict=True):
            row[part] = column


def median_ms(work: Callable[[], object], repeats: int = 5) -> float:
    return medians_ms([work], repeats)[0]


def medians_ms(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """In turns, so that a machine that is slower for a while is so for all."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, took in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            took.append(time.perf_counter() - started)
    return [statistics.median(took[1:]) * 1e3 for took in seconds]


def peak_mb(work: Callable[[], object]) -> float:
    """Memory that `work` needs at its highest, its result included: NumPy's highest, and what it holds of Arrow's."""
    tracemalloc.start()
    held = pa.total_allocated_bytes()
    result = work()
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - held
    tracemalloc.stop()
    del result
    return peak / 2**20


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {core_count()} cores, Python {platform.python_version()}"


def line(what: str, ms: float, remark: str = "") -> None:
    number = f"{ms:8.1f} ms" if ms >= 1 else f"{ms * 1e3:8.1f} us"
    print(f"{what:<56}{number}   {remark}", flush=True)


def compare_frames(bars: pd.DataFrame) -> None:
    ours = median_ms(lambda: compute_features(bars), 15)
    frame = pl.from_pandas(bars)
    line("compute_features, 15 features, DataFrame to DataFrame", ours)
    others = {
        "pandas rolling/ewm per symbol": lambda: pandas_per_symbol(bars),
        "polars .over, polars frames": lambda: polars_over(frame),
        "polars .over, from and to pandas": lambda: polars_over(pl.from_pandas(bars)).to_pandas(),
    }
    for name, work in others.items():
        theirs = median_ms(work, 3)
        line(name, theirs, f"{theirs / ours:.1f} times ours")
    shuffled = bars.sort_values("time", kind="stable", ignore_index=True)
    line("compute_features, the same rows in time order", median_ms(lambda: compute_features(shuffled)))


def cores_alone(bars: pd.DataFrame) -> tuple[float, str]:
    """One symbol again and again, in the cache of a core: what more cores give on this machine at best."""
    panel = Panel(bars.head(BARS), INPUTS)

    def work(_: object = None) -> None:
        out = np.empty((len(DEFAULT.features), len(panel)))
        for _ in range(200):
            evaluate(DEFAULT.program, panel, out, threads=1)

    with ThreadPoolExecutor(core_count()) as pool:
        one, together = medians_ms([work, lambda: [*pool.map(work, range(core_count()))]], 5)
    return one / 200, f"all cores are {core_count() * one / together:.2f} times faster"


def compare_arrays(bars: pd.DataFrame) -> None:
    panel = Panel(bars, INPUTS)
    out = np.empty((len(DEFAULT.features), len(panel)))
    ways = [lambda: evaluate(DEFAULT.program, panel, out), lambda: evaluate(DEFAULT.program, panel, out, threads=1)]
    # For ten seconds: where others use the machine too, a shorter time says more of them than of the kernel.
    kernel, one = medians_ms(ways, max(10, 100_000_000 // len(bars)))
    line("kernel, 15 features, arrays to arrays", kernel)
    inputs = {name: bars[name].to_numpy() for name in INPUTS}
    for name, work in {
        "TA-Lib per symbol, its nearest 15": lambda: talib_per_symbol(inputs, np.empty_like(out), BARS),
        "copying the 15 result columns once": lambda: out.copy(),
    }.items():
        theirs = median_ms(work)
        line(name, theirs, f"{theirs / kernel:.2f} times the kernel")
    line("kernel on one core", one, f"all cores are {one / kernel:.2f} times faster")
    line("  without memory in the way, each core its own bars", *cores_alone(bars))
    many = np.empty((len(SCALE_FREE.features), len(panel)))
    wide = median_ms(lambda: evaluate(SCALE_FREE.program, panel, many), 3)
    share = (wide / len(SCALE_FREE.features)) / (kernel / len(DEFAULT.features))
    line(f"kernel, {len(SCALE_FREE.features)} scale-free features", wide, f"{share:.2f} times as long per feature")


def compare_memory(bars: pd.DataFrame) -> None:
    compute_features(bars.head(BARS))
    size = bars.memory_usage(index=True).sum() / 2**20
    result = compute_features(bars).memory_usage(index=True).sum() / 2**20
    peak = peak_mb(lambda: compute_features(bars))
    print(f"memory: inputs {size:.0f} MB, result {result:.0f} MB, peak beside the inputs {peak:.0f} MB:"
          f" {(size + peak) / (size + result):.2f} times inputs and outputs")  # fmt: skip


def compare_one_bar() -> None:
    bars = random_bars(1, 2_000)
    stream = FeatureStream(DEFAULT)
    rows = [
        ("S", time_, *values) for time_, *values in zip(bars["time"], *(bars[name] for name in INPUTS), strict=True)
    ]
    took = []
    for row in rows:
        started = time.perf_counter()
        stream.push(*row)
        took.append(time.perf_counter() - started)
    ours = statistics.median(took[200:]) * 1e3
    line("one new bar, 15 features, from the rolling buffer", ours)
    tail = bars.tail(60)
    theirs = median_ms(lambda: pandas_recipe(tail).iloc[-1], 200)
    line("pandas over the last 60 bars", theirs, f"{theirs / ours:.0f} times ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    bars = random_bars(rows // BARS)
    print(f"{machine()}; {len(bars):,} rows = {rows // BARS} symbols x {BARS:,} bars; medians")
    compare_frames(bars)
    compare_arrays(bars)
    compare_memory(bars)
    compare_one_bar()


if __name__ == "__main__":
    main()
