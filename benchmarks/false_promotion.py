"""How often chance is promoted, and how soon an edge is: three rules on the same simulated markets.

Run `python benchmarks/false_promotion.py`; it takes three quarters of an hour on two cores, with
`--panels 60 --edges 10` a quarter of one. Every market has ten years of daily bars with volatility clustering and
drift, alone or as ten symbols that move together. A model is trained anew every month on all bars before it, predicts
the month, and every rule looks after every month. A rule that promotes once, at any look, has promoted. In the markets
with an edge tomorrow goes today's way in 53, 55 or 58 % of the days; in the others nothing can be known.
"""

import argparse
import math
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import xgboost

from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, get_feature_names
from mt5_crs_pipeline.core.intervals import Z_95, wilson_interval
from mt5_crs_pipeline.core.labels import labelled_bars
from mt5_crs_pipeline.core.metrics import base_rate
from mt5_crs_pipeline.core.model import Model, TrainingConfig, predict

YEARS, DAYS, MONTH, FIRST = 10, 252, 21, 252
# A fifth of the pipeline's features, the last return among them.
CONFIG = FeatureConfig(tuple(sorted({*get_feature_names(FeatureConfig.scale_free())[::5], "return_1"})))
NAMES = get_feature_names(CONFIG)
PARAMETERS = {**TrainingConfig().booster_parameters(), "nthread": 1}
ROUNDS = 25
MINIMUM_ROWS = 250


@dataclass(frozen=True)
class Market:
    symbols: int
    persistence: float
    """The chance that tomorrow goes today's way."""
    seed: int


def bars(market: Market) -> pd.DataFrame:
    """Daily bars of GARCH(1, 1) returns with drift, half of whose variance is the market's."""
    random = np.random.default_rng(market.seed)
    days, symbols = YEARS * DAYS, market.symbols
    shared = np.sqrt(0.5) * random.normal(size=(days, 1)) if symbols > 1 else 0.0
    own = (np.sqrt(0.5) if symbols > 1 else 1.0) * random.normal(size=(days, symbols))
    shocks = shared + own
    if market.persistence != 0.5:
        # Signs that follow each other; sizes as they were.
        stays = random.random((days, symbols)) < market.persistence
        sign = np.where(np.cumsum(~stays, axis=0) % 2, -1.0, 1.0)
        shocks = np.abs(shocks) * sign
    variance, returns = np.full(symbols, 1e-4), np.empty((days, symbols))
    for day in range(days):
        returns[day] = 2e-4 + np.sqrt(variance) * shocks[day]
        variance = 2e-6 + 0.9 * variance + 0.08 * (returns[day] - 2e-4) ** 2
    close = 100 * np.exp(np.cumsum(returns, axis=0))
    open_ = close * np.exp(random.normal(0, 0.002, close.shape))
    spread = np.exp(np.abs(random.normal(0, 0.004, close.shape)))
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], days),
            "time": pd.date_range("2010-01-01", periods=days, freq="D", tz="UTC").as_unit("us").repeat(symbols),
            "open": open_.ravel(),
            "high": (np.maximum(open_, close) * spread).ravel(),
            "low": (np.minimum(open_, close) / spread).ravel(),
            "close": close.ravel(),
            "volume": random.integers(1_000, 9_000, close.size).astype(float),
        }
    )


def predictions(market: Market) -> pd.DataFrame:
    """Out-of-sample predictions of a model trained anew every month."""
    history = bars(market)
    features = feature_frame(history, CONFIG, threads=1).assign(
        symbol=history["symbol"], event_timestamp=history["time"] + pd.Timedelta(days=1)
    )
    rows = labelled_bars(history, "D1").merge(features).dropna(subset=NAMES).sort_values(["event_timestamp", "symbol"])
    times = rows["event_timestamp"].unique()
    parts = []
    for start in range(FIRST, len(times), MONTH):
        train = rows[rows["label_time"] < times[start]]
        month = rows[rows["event_timestamp"].isin(times[start : start + MONTH])]
        matrix = xgboost.QuantileDMatrix(train[NAMES], label=train["target"])
        booster = xgboost.train(PARAMETERS, matrix, num_boost_round=ROUNDS)
        probability = predict(Model({None: booster}), month)
        parts.append(month[["symbol", "event_timestamp", "target"]].assign(probability=probability, look=start))
    return pd.concat(parts, ignore_index=True)


def usual_lower_end(correct: np.ndarray, times: pd.Series) -> float:
    """Of the usual 95 % interval of an accuracy: normal with rows of one time as a cluster, or Wilson's if wider."""
    _, membership, counts = np.unique(times.dt.tz_localize(None).to_numpy(), return_inverse=True, return_counts=True)
    residuals = np.bincount(membership, weights=correct - correct.mean())
    variance = len(counts) / (len(counts) - 1) * float(residuals @ residuals) / len(correct) ** 2
    by_rows = wilson_interval(float(correct.sum()), len(correct))
    return min(float(correct.mean()) - Z_95 * math.sqrt(variance), by_rows.lower)


def first_promotions(market: Market) -> dict[str, int | None]:
    """After how many bars each rule promotes, None for never."""
    made = predictions(market)
    evidence = against_chance(made, recipes=1)
    ends = made.groupby("look")["event_timestamp"].max()
    wealth = evidence.curve.reindex(ends)
    first: dict[str, int | None] = dict.fromkeys(RULES)
    for number, look in enumerate(ends.index):
        seen = made[made["look"] <= look]
        correct = ((seen["probability"] >= 0.5) == (seen["target"] == 1)).to_numpy()
        enough = len(seen) >= MINIMUM_ROWS
        passed = dict(
            zip(
                RULES,
                (
                    wealth.iloc[number] > evidence.threshold,
                    enough and correct.mean() > 0.52,
                    enough and usual_lower_end(correct, seen["event_timestamp"]) > base_rate(seen["target"].to_numpy()),
                ),
                strict=True,
            )
        )
        for name, holds in passed.items():
            if holds and first[name] is None:
                first[name] = int(look) - FIRST + MONTH
    return first


RULES = ("evidence above ln 20", "accuracy above 52 %", "interval above base rate")


def report(what: str, markets: list[Market], workers: ProcessPoolExecutor) -> None:
    started = time.perf_counter()
    found = list(workers.map(first_promotions, markets, chunksize=1))
    print(f"{what}, {len(markets)} markets ({time.perf_counter() - started:.0f} s):")
    for rule in RULES:
        after = [one[rule] for one in found if one[rule] is not None]
        share = wilson_interval(len(after), len(markets))
        waited = f", after {statistics.median(after):,.0f} bars (median)" if after else ""
        print(
            f"  {rule:<26} promotes {share.estimate:6.1%}"
            f" (95 % interval {share.lower:.1%} to {share.upper:.1%}){waited}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--panels", type=int, default=200, help="markets without an edge of each kind")
    parser.add_argument("--edges", type=int, default=20, help="markets with each edge")
    arguments = parser.parse_args()
    with ProcessPoolExecutor() as workers:
        for symbols, name in ((1, "one symbol"), (10, "ten symbols together")):
            markets = [Market(symbols, 0.5, seed) for seed in range(arguments.panels)]
            report(f"Nothing to know, {name}", markets, workers)
        for persistence in (0.53, 0.55, 0.58):
            for symbols, name in ((1, "one symbol"), (10, "ten symbols")):
                markets = [Market(symbols, persistence, 10_000 + seed) for seed in range(arguments.edges)]
                report(f"An edge of {persistence:.0%}, {name}", markets, workers)


if __name__ == "__main__":
    main()
