"""Training: the pipeline's `fit` beside bare XGBoost on the same rows, in time and in memory.

Run `python benchmarks/training.py` on Linux; it takes two to four minutes and 3 GB. Both sides search the number of
trees on the same latest rows and then train as many on all rows. Each side runs in fresh processes, by turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from mt5_crs_pipeline.core.model import Model, TrainingConfig, fit
from mt5_crs_pipeline.core.splits import hold_out_latest

FEATURES = [f"feature_{number}" for number in range(60)]
# Every one of these rounds makes these rows' model better, so both sides train this many, twice.
CONFIG = TrainingConfig(max_rounds=60)
SYMBOLS = 200


def training_rows(rows: int) -> pd.DataFrame:
    """Rows as they come out of Parquet, sorted by time; a few features say a little about the target."""
    random = np.random.default_rng(7)
    values = random.normal(size=(len(FEATURES), rows))
    up = values[:5].sum(axis=0) * 0.1 + random.normal(size=rows) > 0
    times = pd.Timestamp("2000-01-01", tz="UTC") + pd.to_timedelta(np.arange(rows) // SYMBOLS, unit="h")
    frame = pd.DataFrame(values.T, columns=FEATURES, copy=False)
    frame["target"] = up.astype(float)
    frame["event_timestamp"] = times
    frame["label_time"] = times + pd.Timedelta(hours=1)
    frame["symbol"] = pd.Categorical.from_codes(np.arange(rows) % SYMBOLS, [f"S{n:03d}" for n in range(SYMBOLS)])
    return frame


def bare(rows: pd.DataFrame) -> Model:
    """The same work in the shortest way XGBoost's documentation has."""
    import xgboost

    parameters = CONFIG.booster_parameters()
    split = hold_out_latest(rows, CONFIG.early_stopping_share)
    head, tail = (
        xgboost.DMatrix(rows.iloc[at][FEATURES], label=rows.iloc[at]["target"]) for at in (split.train, split.test)
    )
    probe = xgboost.train(
        parameters,
        head,
        CONFIG.max_rounds,
        evals=[(tail, "latest")],
        early_stopping_rounds=CONFIG.early_stopping_rounds,
        verbose_eval=False,
    )
    whole = xgboost.DMatrix(rows[FEATURES], label=rows["target"])
    return Model({None: xgboost.train(parameters, whole, probe.best_iteration + 1)})


def measure(side: str, count: int) -> dict[str, float]:
    """Train once; peaks are those of the whole process, from the system."""
    import xgboost  # noqa: F401 - its own memory and loading time are not training's

    rows = training_rows(count)
    process = psutil.Process()
    _reset_peak()
    loaded = process.memory_info().rss
    started = time.perf_counter()
    model = fit(rows, FEATURES, CONFIG) if side == "fit" else bare(rows)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "loaded": loaded, "peak": _peak(), "trees": model.trees}


def _reset_peak() -> None:
    """Forget the peak of making the rows."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kilobytes) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=["fit", "bare"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.rows)))
        return
    matrix = options.rows * len(FEATURES) * 8
    print(
        f"{options.rows:,} rows x {len(FEATURES)} features = a matrix of {matrix / 2**20:,.0f} MB; medians", flush=True
    )
    runs: dict[str, list[dict[str, float]]] = {"fit": [], "bare": []}
    for _ in range(options.repeats):
        for side, made in runs.items():
            command = [sys.executable, __file__, "--rows", str(options.rows), "--side", side]
            made.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    median = {
        side: {key: statistics.median(run[key] for run in made) for key in made[0]} for side, made in runs.items()
    }
    assert {of["trees"] for of in median.values()} == {CONFIG.max_rounds}
    for side, of in median.items():
        total, above = of["peak"] / matrix, (of["peak"] - of["loaded"]) / matrix
        print(
            f"{side:<5}{of['seconds']:8.1f} s, {of['trees']:.0f} trees; peak memory {total:.2f} matrices in total,"
            f" {above:.2f} above what the loaded rows held"
        )
    ratio = median["fit"]["seconds"] / median["bare"]["seconds"]
    print(f"time: {ratio:.2f} times bare XGBoost (asked: at most 1.15)")
    print(f"memory: {median['fit']['peak'] / matrix:.2f} matrices, rows and libraries included (asked: at most 2.5)")


if __name__ == "__main__":
    main()
