"""Corrections while backfills run: what the sensor asks for, what it costs, and whether it ends as a rebuild does.

Run `python benchmarks/revisions.py`; a quarter of an hour on two cores, with `--symbols 50` minutes. A table of daily
bars is filled, computed once, and corrected: first single bars, whose backfills are timed against computing everything,
then a thousand random ones, stored in bursts while the runs that the sensor asked for are at work. Then every file must
be what a full rebuild makes, and every correction must be in the table and in the lake. Last, the sensor's query is
timed on ten million bars (`--tick-bars`).
"""

import argparse
import atexit
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import dagster as dg
import numpy as np
import pandas as pd

from mt5_crs_pipeline.adapters.bar_store import changes_since, ingest
from mt5_crs_pipeline.adapters.lake import MARKET_DATA
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, CLOSED_BAR_SCHEMA, OPTIONAL_COLUMNS
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import feast_online_store, technical_features
from mt5_crs_pipeline.defs.automation import RUN_KEY_TAG, market_data_backfill, market_data_revision_sensor
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.standing import every_change_has_arrived
from mt5_crs_pipeline.rebuild import rebuild_check
from mt5_crs_pipeline.runner import dagster_instance
from mt5_crs_pipeline.settings import Settings

ASSETS = [market_data, market_data_parquet, technical_features, feast_online_store]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REACH = PIPELINE_FEATURES.lookback - 1


class Automation:
    """The sensor and its job, as the daemon runs them."""

    def __init__(self, settings: Settings, instance: dg.DagsterInstance) -> None:
        self.stores, self.instance, self.runs = Stores(settings), instance, 0
        self.cursor: str | None = None
        checks, resources = [every_change_has_arrived], {"stores": self.stores}
        defs = dg.Definitions(ASSETS, asset_checks=checks, jobs=[market_data_backfill], resources=resources)
        self.job = defs.resolve_job_def(market_data_backfill.name)

    def catch_up(self) -> list[str]:
        """Look until nothing is asked for; return the months of every run that was made."""
        made = []
        while True:
            context = dg.build_sensor_context(self.instance, self.cursor, resources={"stores": self.stores})
            tick = market_data_revision_sensor.evaluate_tick(context)
            self.cursor = tick.cursor
            for request in tick.run_requests or []:
                tags = {**request.tags, RUN_KEY_TAG: str(request.run_key)}
                self.job.execute_in_process(instance=self.instance, tags=tags)
                made.append(str(request.run_key)[:15])
            if not tick.run_requests:
                self.runs += len(made)
                return made


def random_bars(symbols: int, years: int) -> pd.DataFrame:
    random = np.random.default_rng(5)
    days = pd.bdate_range("2014-01-01", periods=260 * years, tz="UTC").as_unit("us")
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.01, (symbols, len(days))), axis=1)).ravel()
    open_ = close * np.exp(random.normal(0, 0.003, close.size))
    bars = pd.DataFrame(
        {
            "symbol": np.repeat([f"S{number:03d}" for number in range(symbols)], len(days)),
            "timeframe": "D1",
            "time": np.tile(days, symbols),
            "open": open_,
            "high": np.maximum(open_, close) * 1.002,
            "low": np.minimum(open_, close) * 0.998,
            "close": close,
            "volume": random.integers(1_000, 9_000, close.size).astype(float),
        }
    )
    return bars.assign(**dict.fromkeys(OPTIONAL_COLUMNS, np.nan))[list(BAR_COLUMNS)]


def corrected(bars: pd.DataFrame, seed: int) -> pd.DataFrame:
    share = np.random.default_rng(seed).random(len(bars))
    return bars.assign(close=bars["low"] + (bars["high"] - bars["low"]) * share)


def corrections(settings: Settings, bars: pd.DataFrame, count: int) -> pd.DataFrame:
    """Store that many corrections in bursts, with pauses as they come; return them."""
    wanted = corrected(bars.sample(count, random_state=11), 12)
    with Stores(settings).database.url() as url:
        for burst in np.array_split(np.arange(count), 20):
            ingest(url, wanted.iloc[burst], "D1", "corrections", NOW)
            time.sleep(0.5)
    return wanted


def tick_times(settings: Settings, bars: int) -> list[float]:
    """Milliseconds that the sensor's query takes on that many bars, a hundred of which have changed."""
    fill = """
        insert into market_data (symbol, timeframe, time, open, high, low, close, volume, known_at)
        select 'T' || symbol, 'M15', t, 1, 1, 1, 1, 1, t + interval '15 minutes'
        from generate_series(1, %s) as symbol,
             generate_series(timestamptz '2014-01-01 00:00+00', timestamptz '2014-01-01 00:00+00'
                             + 9999 * interval '15 minutes', interval '15 minutes') as t
    """
    change = """
        insert into market_data (symbol, timeframe, time, open, high, low, close, volume)
        select symbol, timeframe, time, open, high + 1, low, close, volume from market_data
        where timeframe = 'M15' and time = '2014-02-01 00:00+00' limit 100
    """
    database = Stores(settings).database
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(fill, (bars // 10_000,))
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute("analyze market_data")
        _, position = changes_since(connection, "M15", None, REACH)
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.execute(change)
    times = []
    for _ in range(20):
        with database.connection() as connection:
            began = time.perf_counter()
            changes, _ = changes_since(connection, "M15", position, REACH)
            times.append((time.perf_counter() - began) * 1000)
            assert len(changes) == min(100, bars // 10_000)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--corrections", type=int, default=1_000)
    parser.add_argument("--tick-bars", type=int, default=10_000_000)
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp()
    # Dagster's storage holds the server until the process ends; what is registered first comes last.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = Settings(home=Path(folder) / "home", start="2014-01")
    if settings.database_url.get_secret_value():
        parser.error("this fills a database: unset MT5_CRS_DATABASE_URL, so that it is one of its own")
    with Stores(settings).database.url() as url, dagster_instance(settings, url) as instance:
        bars = random_bars(arguments.symbols, arguments.years)
        ingest(url, bars, "D1", "start", NOW)
        automation = Automation(settings, instance)
        began = time.perf_counter()
        automation.catch_up()
        whole = time.perf_counter() - began
        print(f"{len(bars):,} bars of {arguments.symbols} symbols, all computed in {whole:.1f} s", flush=True)

        recent = bars[bars["time"] >= bars["time"].max() - pd.Timedelta(days=20)]
        for which, among in (("of the last weeks", recent), ("of any day", bars)):
            times = []
            for seed in range(5):
                ingest(url, corrected(among.sample(1, random_state=seed), seed), "D1", "one", NOW)
                began = time.perf_counter()
                (months,) = automation.catch_up()
                times.append(time.perf_counter() - began)
            one = statistics.median(times)
            print(f"one corrected bar {which}: {one:.2f} s, {whole / one:.0f} times less; {months}", flush=True)

        before, stored = automation.runs, []
        writer = threading.Thread(target=lambda: stored.append(corrections(settings, bars, arguments.corrections)))
        began = time.perf_counter()
        writer.start()
        while writer.is_alive():
            automation.catch_up()
        writer.join()
        automation.catch_up()
        runs, took = automation.runs - before, time.perf_counter() - began
        print(f"{arguments.corrections:,} corrections in 20 bursts: {runs} runs, {took:.1f} s", flush=True)
        lake = automation.stores.lake
        kept = lake.read(MARKET_DATA, lake.months(MARKET_DATA), CLOSED_BAR_SCHEMA).to_pandas()
        key = ["symbol", "time", "close"]
        arrived = len(stored[0][key].merge(kept[key]).drop_duplicates())
        found = rebuild_check(settings)
        print(
            f"{arrived:,} of them are in the lake; {found.equal} files equal a full rebuild,"
            f" {len(found.waiting)} wait, {len(found.different)} differ",
            flush=True,
        )
        ticks = tick_times(settings, arguments.tick_bars)
        print(
            f"a tick on {arguments.tick_bars:,} bars, 100 changed: {statistics.median(ticks):.1f} ms (median),"
            f" {max(ticks):.1f} ms (worst of {len(ticks)})"
        )
    sys.exit(arrived != len(stored[0]) or bool(found.waiting or found.different))


if __name__ == "__main__":
    main()
