"""Evaluation: how often the 95 % intervals hold the truth, and what evaluation and evidence cost beside training.

Run `python benchmarks/evaluation.py`; it takes about a quarter of an hour, with `--cases 100` four minutes.
"""

import argparse
import math
import time

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.economics import economics
from mt5_crs_pipeline.core.evaluation import evaluate
from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.intervals import accuracy_interval, wilson_interval
from mt5_crs_pipeline.core.metrics import metrics_with_intervals
from mt5_crs_pipeline.core.model import TrainingConfig, out_of_sample_predictions
from mt5_crs_pipeline.core.rank_ic import rank_ic_by_year

FEATURES = [f"feature_{number}" for number in range(60)]


def lasting_noise(noise: np.ndarray, lasting: float) -> np.ndarray:
    """Make each time of independent noise like the one before it."""
    made = noise.copy()
    for at in range(1, len(noise)):
        made[at] = lasting * made[at - 1] + math.sqrt(1 - lasting**2) * noise[at]
    return made


def predictions(times: int, symbols: int, together: float, lasting: float, seed: int) -> pd.DataFrame:
    """Predictions that are right in 55 % of the rows; symbols of one time, and times that follow, may agree."""
    random = np.random.default_rng(seed)
    shared = lasting_noise(random.normal(size=times), lasting)
    latent = math.sqrt(together) * shared[:, None] + math.sqrt(1 - together) * random.normal(size=(times, symbols))
    up, right = random.random((times, symbols)) < 0.5, latent < 0.12566
    probability = 0.5 + np.where(up == right, 1, -1) * random.uniform(0.01, 0.2, (times, symbols))
    return pd.DataFrame(
        {
            "symbol": np.tile([f"S{number}" for number in range(symbols)], times),
            "event_timestamp": pd.date_range("2010-01-01", periods=times, freq="D", tz="UTC").repeat(symbols),
            "target": up.ravel().astype(float),
            "probability": probability.ravel(),
        }
    )


def show_coverage(cases: int) -> None:
    for times, symbols, together, lasting in ((1000, 1, 0.0, 0.0), (1000, 5, 0.5, 0.0), (2500, 5, 0.5, 0.3)):
        # The truth of every metric is its mean over as many other cases.
        made = [metrics_with_intervals(predictions(times, symbols, together, lasting, seed)) for seed in range(cases)]
        other = range(cases, 2 * cases)
        truth = pd.concat(
            [metrics_with_intervals(predictions(times, symbols, together, lasting, seed))["value"] for seed in other],
            axis=1,
        ).mean(axis=1)
        print(f"{times} times x {symbols}, correlation {together}, from time to time {lasting}; {cases} cases:")
        held = pd.concat([one["lower"].le(truth) & one["upper"].ge(truth) for one in made], axis=1).sum(axis=1)
        for name, count in zip(made[0]["metric"], held, strict=True):
            share = wilson_interval(float(count), cases)
            print(
                f"  {name:<24} {share.estimate:6.1%} hold the truth ({share.lower:.1%} to {share.upper:.1%})",
                flush=True,
            )


def show_coverage_of_a_year(cases: int) -> None:
    """Of the accuracy of 250 times, as the tables by year, symbol and regime have it; each symbol's is half shared."""
    for symbols in (1, 5):
        for lasting in (0.0, 0.3, 0.6):
            held = 0
            for seed in range(cases):
                made = predictions(250, symbols, 0.5, lasting, seed)
                right = ((made["probability"] >= 0.5) == (made["target"] == 1)).to_numpy()
                found = accuracy_interval(right, np.repeat(np.arange(250), symbols))
                held += found.lower <= 0.55 <= found.upper
            share = wilson_interval(float(held), cases)
            print(
                f"accuracy of 250 times x {symbols}, from time to time {lasting}:"
                f" {share.estimate:6.1%} hold the truth ({share.lower:.1%} to {share.upper:.1%})",
                flush=True,
            )


def show_sharpe_coverage(cases: int) -> None:
    """Of returns whose ratio per period is 0.05, each like the one before it by `lasting`."""
    for periods in (30, 250, 2500):
        for lasting in (0.0, 0.6):
            held = 0
            for seed in range(cases):
                noise = lasting_noise(np.random.default_rng(seed).normal(size=periods), lasting)
                closes = pd.date_range("2010-01-01", periods=periods + 1, freq="D", tz="UTC")
                found = economics(
                    pd.DataFrame(
                        {
                            "symbol": "S",
                            "event_timestamp": closes[:-1],
                            "label_time": closes[1:],
                            "probability": 0.9,
                            "spread_share": 0.0,
                            "forward_return": 0.0005 + 0.01 * noise,
                        }
                    ),
                    recipes=1,
                )
                held += found.sharpe_lower <= 0.05 * math.sqrt(365.25) <= found.sharpe_upper
            share = wilson_interval(float(held), cases)
            print(
                f"Sharpe ratio of {periods} periods, from one to the next {lasting}:"
                f" {share.estimate:6.1%} hold the truth ({share.lower:.1%} to {share.upper:.1%})",
                flush=True,
            )


def show_rank_ic_coverage(cases: int) -> None:
    """Of a year's signals that last, and of returns over `horizon` bars, of which neighbours share all but one.

    Half of both is common to all symbols; what is a symbol's own correlates by 0.1.
    """
    times, own, common = 250, 0.1, 0.5
    when = pd.date_range("2010-01-01", periods=times, freq="D", tz="UTC")
    for symbols in (1, 2, 5):
        # What Spearman's correlation of n normal pairs is on average: Moran 1948, Rank correlation and product-moment
        # correlation. Over time, where n is all rows, the common halves are part of it; across symbols they are not.
        pairs, correlation = (symbols, own) if symbols > 2 else (times * symbols, own * (1 - common))
        truth = 6 / math.pi * (math.asin(correlation) + (pairs - 2) * math.asin(correlation / 2)) / (pairs + 1)
        for horizon in (1, 5):
            held = 0
            for seed in range(cases):
                random = np.random.default_rng(seed)
                signal = lasting_noise(random.normal(size=(times, symbols + 1)), 0.9)
                bars = random.normal(size=(times + horizon - 1, symbols + 1))
                noise = sum(bars[at : at + times] for at in range(horizon)) / math.sqrt(horizon)
                noise[:, 1:] = own * signal[:, 1:] + math.sqrt(1 - own**2) * noise[:, 1:]
                both = [
                    (math.sqrt(common) * made[:, :1] + math.sqrt(1 - common) * made[:, 1:]).ravel()
                    for made in (signal, noise)
                ]
                rows = pd.DataFrame(
                    {
                        "symbol": np.tile(np.arange(symbols), times),
                        "event_timestamp": when.repeat(symbols),
                        "probability": both[0],
                        "forward_return": both[1],
                    }
                )
                found = rank_ic_by_year(rows).iloc[-1]
                held += found["lower"] <= truth <= found["upper"]
            share = wilson_interval(float(held), cases)
            print(
                f"rank correlation {found['kind']}, {times} times x {symbols}, returns of {horizon} bars:"
                f" {share.estimate:6.1%} hold the truth ({share.lower:.1%} to {share.upper:.1%})",
                flush=True,
            )


def show_cost() -> None:
    random = np.random.default_rng(7)
    times = pd.date_range("2000-01-01", periods=4_000, freq="D", tz="UTC").repeat(5)
    rows = pd.DataFrame(random.normal(size=(len(times), len(FEATURES))), columns=FEATURES).assign(
        symbol=np.tile([f"S{number}" for number in range(5)], 4_000),
        event_timestamp=times,
        label_time=times + pd.Timedelta(days=1),
        target=random.integers(0, 2, len(times)).astype(float),
    )
    started = time.perf_counter()
    made = out_of_sample_predictions(rows, FEATURES, TrainingConfig())
    trained = time.perf_counter()
    evaluate(made, {})
    evaluated = time.perf_counter()
    against_chance(made, 1)
    ended = time.perf_counter()
    training = trained - started
    print(
        f"{len(rows):,} rows x {len(FEATURES)} features: walk-forward training {training:.1f} s,"
        f" evaluation {evaluated - trained:.2f} s, evidence {ended - evaluated:.2f} s:"
        f" {(ended - trained) / training:.1%} on top"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    show_cost()
    cases = parser.parse_args().cases
    show_coverage(cases)
    # These have larger counts, since they are quick.
    show_coverage_of_a_year(4 * cases)
    show_sharpe_coverage(4 * cases)
    show_rank_ic_coverage(2 * cases)


if __name__ == "__main__":
    main()
