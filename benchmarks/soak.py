"""A year of daily cycles in one process: store a day's bars, let the sensor look, retrain, predict; what grows?

Run `python benchmarks/soak.py`; 250 cycles take an hour on two cores, `--cycles 20` a few minutes. Printed every tenth
of the way: the memory of the process, its threads and open files, the files of the lake, and the size of PostgreSQL's
schemas. Bars and feature versions grow by what a day brings, Dagster's history by a run's events; the rest must not.
"""

import argparse
import atexit
import os
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MT5_CRS_NOISE_RUNS", "1")

import dagster as dg
import psutil

from mt5_crs_pipeline.adapters.bar_store import ingest
from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.core.bars import BAR_COLUMNS
from mt5_crs_pipeline.defs.partitions import range_tags
from mt5_crs_pipeline.settings import load_settings

SYMBOLS = ("AAPL", "IBM")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIZES = """
    select coalesce(sum(pg_total_relation_size(c.oid)), 0) from pg_class c join pg_namespace n on n.oid = relnamespace
    where relkind = 'r' and nspname = %s
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=250)
    cycles = parser.parse_args().cycles
    if load_settings().database_url.get_secret_value():
        parser.error("this fills a database: unset MT5_CRS_DATABASE_URL, so that it is one of its own")
    folder = tempfile.mkdtemp(prefix="soak")
    # Dagster's storage holds the server until the process ends; what is registered first comes last.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["MT5_CRS_HOME"] = str(Path(folder) / "home")
    run(cycles)


def run(cycles: int) -> None:
    # They read the state folder's place when they are loaded.
    from mt5_crs_pipeline.definitions import defs
    from mt5_crs_pipeline.defs.automation import market_data_revision_sensor
    from mt5_crs_pipeline.defs.resources import Stores
    from mt5_crs_pipeline.inference import predict_stored
    from mt5_crs_pipeline.runner import dagster_instance

    settings = load_settings()
    stores, process = Stores(settings), psutil.Process()
    bars = demo_bars()
    bars = bars[bars["symbol"].isin(SYMBOLS) & (bars["time"].dt.year >= 2011)][list(BAR_COLUMNS)]
    days = sorted(bars["time"].unique())
    first = len(days) - cycles
    cursor, memory, took = None, [], []
    with stores.database.url() as url, dagster_instance(settings, url) as instance:
        backfill, retrain = (defs.resolve_job_def(name) for name in ("market_data_backfill", "daily_retrain"))
        ingest(url, bars[bars["time"] < days[first]], "D1", "start", NOW)
        print("cycle  seconds  memory MB  threads  files  lake files  bars kB  feast kB  dagster kB", flush=True)
        for cycle in range(cycles + 1):
            began = time.perf_counter()
            if cycle:
                ingest(url, bars[bars["time"] == days[first + cycle - 1]], "D1", f"day {cycle}", NOW)
            context = dg.build_sensor_context(instance, cursor, resources={"stores": stores})
            tick = market_data_revision_sensor.evaluate_tick(context)
            cursor = tick.cursor
            for request in tick.run_requests or []:
                tags = {**request.tags, "dagster/run_key": str(request.run_key)}
                assert backfill.execute_in_process(instance=instance, tags=tags).success
            month = f"{days[max(first + cycle - 1, 0)]:%Y-%m}"
            since = f"{days[0]:%Y-%m}" if cycle == 0 else month
            assert retrain.execute_in_process(instance=instance, tags=range_tags(since, month)).success
            for symbol in SYMBOLS:
                predict_stored(settings, symbol)
            took.append(time.perf_counter() - began)
            memory.append(process.memory_info().rss / 1e6)
            if cycle % max(cycles // 10, 1) == 0:
                with stores.database.connection() as connection, connection.cursor() as session:
                    sizes = []
                    for schema in ("public", "feast", "dagster"):
                        session.execute(SIZES, (schema,))
                        sizes.append(int(session.fetchall()[0][0]) / 1e3)
                files = len(list(settings.lake.rglob("*.parquet")))
                print(
                    f"{cycle:5} {took[-1]:8.1f} {memory[-1]:10.0f} {process.num_threads():8} {process.num_fds():6}"
                    f" {files:11} {sizes[0]:8.0f} {sizes[1]:9.0f} {sizes[2]:11.0f}",
                    flush=True,
                )
    half = memory[len(memory) // 2 :]
    slope = statistics.linear_regression(range(len(half)), half).slope
    print(
        f"memory grows by {slope * 1000:.0f} kB a cycle in the second half; one takes {statistics.median(took):.1f} s"
    )


if __name__ == "__main__":
    main()
