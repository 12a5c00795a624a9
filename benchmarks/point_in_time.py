"""Point-in-time joins side by side: stock Feast on PostgreSQL and DuckDB, the as-of store on both, the bare joins.

Run `python benchmarks/point_in_time.py`; it takes about ten minutes, nearly all of it in the stock stores. With
`--rows` above 100,000 the stock stores are left out, whose time grows with the square of the bars per symbol, and a
tenth of the rows is timed beside all.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2.extensions import parse_dsn

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.adapters.feast_import import import_feast

import_feast()
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType  # noqa: E402
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource  # noqa: E402
from feast.types import Float64  # noqa: E402

BARS, FEATURES, STOCK_LIMIT = 5_000, 15, 100_000
NAMES = [f"feature_{number}" for number in range(FEATURES)]
TTL = timedelta(days=30)
ASOF = "mt5_crs_pipeline.adapters.asof_offline_store.AsofOfflineStore"


def feature_table(rows: int) -> pa.Table:
    """Hourly rows of rows / 5,000 symbols, each known at its event."""
    symbols, random = rows // BARS, np.random.default_rng(7)
    hours = pd.date_range("2020-01-01", periods=BARS, freq="h", tz="UTC").as_unit("us").asi8
    times = pa.array(np.tile(hours, symbols)).cast(pa.timestamp("us", "UTC"))
    names = pa.array([f"S{number:05d}" for number in range(symbols)])
    codes = pa.array(np.repeat(np.arange(symbols, dtype=np.int32), BARS))
    values = {name: random.random(rows) for name in NAMES}
    symbol = pa.DictionaryArray.from_arrays(codes, names).cast(pa.string())
    return pa.table({"symbol": symbol, "event_timestamp": times, "known_at": times, **values})


def entity_frame(table: pa.Table) -> pd.DataFrame:
    """One entity row per feature row, up to an hour later, in random order."""
    frame: pd.DataFrame = table.select(["symbol", "event_timestamp"]).to_pandas()
    frame["event_timestamp"] += pd.to_timedelta(np.random.default_rng(8).integers(0, 3_600, len(frame)), unit="s")
    return frame.sample(frac=1, random_state=9, ignore_index=True)


def feature_store(folder: Path, offline_store: dict[str, Any], source: Any) -> FeatureStore:
    folder.mkdir()
    config = RepoConfig(
        project="point_in_time",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store=offline_store,
        online_store={"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    symbol = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
    schema = [Field(name=name, dtype=Float64) for name in NAMES]
    store.apply([symbol, FeatureView(name="bars", entities=[symbol], ttl=TTL, schema=schema, source=source)])
    return store


def through_feast(store: FeatureStore, entities: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    references = [f"bars:{name}" for name in NAMES]
    return lambda: store.get_historical_features(entities, references).to_df()


def bare_polars(file: Path, entities: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    def join() -> pd.DataFrame:
        left = pl.from_pandas(entities).cast({"event_timestamp": pl.Datetime("us", "UTC")}).sort("event_timestamp")
        right = pl.read_parquet(file, columns=["symbol", "event_timestamp", *NAMES]).sort("event_timestamp")
        joined = left.join_asof(right, on="event_timestamp", by="symbol", tolerance=TTL, check_sortedness=False)
        return joined.to_pandas()

    return join


def bare_duckdb(file: Path, entities: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    columns = ", ".join(f"bars.{name}" for name in NAMES)

    def join() -> pd.DataFrame:
        with duckdb.connect() as connection:
            connection.register("entities", entities)
            return connection.execute(
                f"select entities.*, {columns} from entities asof left join read_parquet(?) bars"
                " on entities.symbol = bars.symbol and entities.event_timestamp >= bars.event_timestamp",
                [str(file)],
            ).df()

    return join


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    return statistics.median(timed(work) for _ in range(repeats))


def peak_memory(work: Callable[[], pd.DataFrame]) -> tuple[float, float]:
    """Resident megabytes that `work` adds at its highest, and those of its result."""
    process, done, highest = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    done.set()
    watcher.join()
    return (highest - before) / 2**20, result.memory_usage(deep=False).sum() / 2**20


def memory_in_a_process_of_its_own(file: Path, entities: Path) -> str:
    """Nothing else has used the process's memory before."""
    command = [sys.executable, __file__, "--memory-of", str(file), str(entities)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def line(what: str, seconds: float, ours: float | None = None) -> None:
    ratio = f"{seconds / ours:8.1f} times ours" if ours else ""
    print(f"{what:<52}{seconds * 1e3:12.0f} ms   {ratio}", flush=True)


def parquet_source(table: pa.Table, file: Path) -> FileSource:
    pq.write_table(table, file)
    return FileSource(path=str(file), timestamp_field="event_timestamp", created_timestamp_column="known_at")


def show_growth(rows: int, folder: Path, ours: Callable[[], pd.DataFrame]) -> None:
    """In turns, so that a machine that is slower for a while is so for both."""
    table = feature_table(rows // 10)
    store = feature_store(folder / "tenth", {"type": ASOF}, parquet_source(table, folder / "tenth.parquet"))
    tenth = through_feast(store, entity_frame(table))
    tenth()
    times = [(timed(tenth), timed(ours)) for _ in range(9)]
    small, large = (statistics.median(taken) for taken in zip(*times, strict=True))
    line(f"  {rows // 10:,} rows, in turns with all", small)
    print(f"  ten times the rows take {large / small:.1f} times the time", flush=True)


def compare(rows: int, folder: Path, url: str) -> None:
    table, file = feature_table(rows), folder / "bars.parquet"
    files = parquet_source(table, file)
    entities = entity_frame(table)
    entities.to_parquet(folder / "entities.parquet")
    tables = PostgreSQLSource(
        name="bars", table="bars", timestamp_field="event_timestamp", created_timestamp_column="known_at"
    )
    parts = parse_dsn(url)
    server = {
        "host": parts["host"],
        "port": int(parts["port"]),
        "database": parts["dbname"],
        "user": parts["user"],
        "password": parts.get("password", ""),
        "sslmode": "disable",
    }
    store = feature_store(folder / "ours", {"type": ASOF}, files)
    ours = through_feast(store, entities)
    first = timed(ours)
    on_files = median_seconds(ours)
    line("as-of store on Parquet, frame to frame", on_files)
    line("  the first call of the process", first, on_files)
    ordered = entities.sort_values(["symbol", "event_timestamp"], ignore_index=True)
    line("  entity rows symbol by symbol, as labels come", median_seconds(through_feast(store, ordered)), on_files)
    del ordered
    if rows > STOCK_LIMIT:
        show_growth(rows, folder, ours)
    line("bare polars join_asof on the same file", median_seconds(bare_polars(file, entities)), on_files)
    line("bare DuckDB ASOF JOIN on the same file", median_seconds(bare_duckdb(file, entities)), on_files)
    print(f"  memory: {memory_in_a_process_of_its_own(file, folder / 'entities.parquet')}")
    import adbc_driver_postgresql.dbapi

    with adbc_driver_postgresql.dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("bars", table, mode="create")
        cursor.execute("create index on bars (symbol, event_timestamp)")
        connection.commit()
        connection.adbc_connection.set_autocommit(True)
        cursor.execute("analyze bars")
    del table
    on_server = feature_store(folder / "ours_on_postgres", {"type": ASOF, **server}, tables)
    line("as-of store on PostgreSQL", median_seconds(through_feast(on_server, entities), 3))
    if rows > STOCK_LIMIT:
        return
    stock = feature_store(folder / "duckdb", {"type": "duckdb"}, files)
    line("stock Feast, DuckDB store", timed(through_feast(stock, entities)), on_files)
    stock = feature_store(folder / "postgres", {"type": "postgres", **server}, tables)
    line("stock Feast, PostgreSQL store", timed(through_feast(stock, entities)), on_files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=STOCK_LIMIT)
    parser.add_argument("--memory-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.memory_of:
            file, entities = arguments.memory_of
            source = FileSource(path=str(file), timestamp_field="event_timestamp", created_timestamp_column="known_at")
            store = feature_store(folder / "ours", {"type": ASOF}, source)
            through_feast(store, entity_frame(feature_table(BARS)))()
            peak, result = peak_memory(through_feast(store, pd.read_parquet(entities)))
            print(f"{peak:.0f} MB at the highest, result {result:.0f} MB: {peak / result:.1f} times the result")
            return
        rows = arguments.rows
        print(f"{rows:,} entity rows x {FEATURES} features, {rows // BARS} symbols x {BARS:,} hourly rows; medians")
        with running_server(folder / "postgres_server") as url:
            compare(rows, folder, url)


if __name__ == "__main__":
    main()
