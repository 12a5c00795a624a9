"""The online store side by side with stock Feast: writing the newest rows of 1,000 symbols, and reading one.

Run `python benchmarks/online.py`; it starts its own PostgreSQL server in a temporary folder, takes half a minute and
prints medians and ratios. Stock writes with `store.materialize` and reads with `store.get_online_features`. Both write
the same window of the same Parquet files, each into a project of its own, after other values of the same symbols. What
is read back is compared to the bit.
"""

import argparse
import contextlib
import functools
import io
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.lake import TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.online_store import OnlineStore, newest_rows
from mt5_crs_pipeline.adapters.postgres import prepare_database
from mt5_crs_pipeline.core.bars import TIMESTAMP
from mt5_crs_pipeline.core.features import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.online import servable

VIEW = "online_benchmark"
NAMES = get_feature_names(FeatureConfig())
MONTHS = ["2024-01", "2024-02", "2024-03"]
SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        *((name, TIMESTAMP) for name in ("event_timestamp", "known_at")),
        *((name, pa.float64()) for name in NAMES),
    ]
)


def month_of_rows(symbols: int, month: str, seed: int) -> pa.Table:
    """One row per symbol and weekday, sorted by symbol, as the lake has them."""
    days = pd.date_range(f"{month}-01", periods=31, tz="UTC", unit="us")
    days = days[(days.dayofweek < 5) & (days.strftime("%Y-%m") == month)]
    stamps = pd.DataFrame({"symbol": [f"S{number:04d}" for number in range(symbols)]}).merge(
        pd.DataFrame({"event_timestamp": days, "known_at": days}), how="cross"
    )
    values = np.random.default_rng(seed).normal(size=(len(stamps), len(NAMES)))
    frame = stamps.join(pd.DataFrame(values, columns=NAMES))
    return pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False).replace_schema_metadata()


def apply(store: Any, lake: Lake) -> None:
    """Register one view of Float64 features over the files of the lake, as feature_repo does."""
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    source = FileSource(
        name="files",
        path=str(lake.stage_folder(TECHNICAL_FEATURES) / "*.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="known_at",
    )
    schema = [Field(name=name, dtype=Float64) for name in NAMES]
    view = FeatureView(name=VIEW, entities=[symbol], ttl=timedelta(days=30), schema=schema, source=source, online=True)
    store.apply([symbol, view])


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_side_by_side(symbols: int, repeats: int, lake: Lake, ours: OnlineStore, stock: Any) -> None:
    last = MONTHS[-1]
    start = datetime.fromisoformat(f"{last}-01T00:00:00+00:00")

    def write_ours() -> None:
        ours.write(lambda: lake.read(TECHNICAL_FEATURES, [last], SCHEMA))

    def write_stock() -> None:
        stock.materialize(start, start + timedelta(days=31), feature_views=[VIEW])

    taken: dict[str, list[float]] = {"ours": [], "stock": []}
    for seed in range(repeats + 1):
        # Corrected values each time: rewriting equal ones is not what a pipeline does.
        lake.write(TECHNICAL_FEATURES, last, month_of_rows(symbols, last, seed))
        for name, work in (("ours", write_ours), ("stock", write_stock)):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                taken[name].append(seconds(work))
    # The first round meets an empty table and cold caches.
    first = {name: values.pop(0) for name, values in taken.items()}
    for name, values in taken.items():
        median, best = statistics.median(values) * 1e3, min(values) * 1e3
        print(f"  {name:<6} median {median:.1f} ms, best {best:.1f} ms; into nothing {first[name] * 1e3:.1f} ms")
    medians, bests = ([what(taken[name]) for name in ("stock", "ours")] for what in (statistics.median, min))
    print(f"  stock / ours: {medians[0] / medians[1]:.1f} by medians, {bests[0] / bests[1]:.1f} by the best")


def read_side_by_side(symbols: int, reads: int, lake: Lake, ours: OnlineStore, store: Any) -> None:
    newest = newest_rows(lake.read(TECHNICAL_FEATURES, MONTHS[-1:], SCHEMA)).to_pandas().set_index("symbol")
    now = newest["event_timestamp"].max().to_pydatetime() + timedelta(days=1)
    asked = [f"S{number:04d}" for number in np.random.default_rng(1).integers(0, symbols, reads)]

    def read_ours(symbol: str) -> dict[str, float]:
        (row,) = ours.read([symbol])
        return dict(servable(row, NAMES, now).values)

    def read_stock(symbol: str) -> dict[str, float]:
        response = store.get_online_features([f"{VIEW}:{name}" for name in NAMES], [{"symbol": symbol}])
        return {name: value[0] for name, value in response.to_dict().items()}

    for name, read in (("ours", read_ours), ("stock", read_stock)):
        for symbol in asked[:200]:
            assert [read(symbol)[feature] for feature in NAMES] == newest.loc[symbol, NAMES].tolist()
        taken = np.array([seconds(functools.partial(read, symbol)) for symbol in asked]) * 1e3
        p50, p99 = np.percentile(taken, [50, 99])
        print(f"  {name:<6} p50 {p50:.3f} ms, p99 {p99:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--reads", type=int, default=5_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "postgres") as url:
        prepare_database(url)
        lake = Lake(Path(folder) / "lake")
        for number, month in enumerate(MONTHS):
            lake.write(TECHNICAL_FEATURES, month, month_of_rows(options.symbols, month, number))
        with (
            contextlib.closing(FeastStore(url, "D1", lake.folder)) as of_ours,
            contextlib.closing(FeastStore(url, "H1", lake.folder)) as of_stock,
        ):
            for store in (of_ours.store, of_stock.store):
                apply(store, lake)
            ours = OnlineStore(of_ours.store, VIEW, NAMES, url)
            ours.prepare()
            print(f"Python {platform.python_version()}, {options.symbols} symbols x {len(NAMES)} features, PostgreSQL")
            print(f"writing the newest rows, {options.repeats} times:")
            write_side_by_side(options.symbols, options.repeats, lake, ours, of_stock.store)
            print(f"reading one symbol, {options.reads} times:")
            read_side_by_side(options.symbols, options.reads, lake, ours, of_ours.store)


if __name__ == "__main__":
    main()
