"""`mt5-crs ui` for real: its webserver answers GraphQL, its daemon runs and senses, and it leaves no process behind."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import psycopg2
import pytest

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from tests.commands import comes_true, of_folder, run, short_folder, succeed, write_daily_bars
from tests.ui import ASSETS, RANGE, Ui, free_port, running_ui

SETTINGS = {"START": "2011-06"}
FIRST, LAST = "2011-06", "2012-12"


def leaves_nothing(ui: Ui, number: signal.Signals) -> None:
    before = of_folder(ui.home)
    words = " ".join(" ".join(process.cmdline()) for process in before)
    assert all(name in words for name in ("dagster-webserver", "dagster-daemon", "cluster_name")), words
    os.kill(ui.process.pid, number)
    assert ui.process.wait(timeout=60) == 0
    assert comes_true(lambda: not [p for p in before if p.is_running()] and not of_folder(ui.home), 10)
    assert not (ui.home / "ui.processes").exists()


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with short_folder() as folder:
        write_daily_bars(folder / "AAPL_D1.csv", f"{FIRST}-01", f"{LAST}-31")
        succeed(folder / "home", "ingest", folder / "AAPL_D1.csv")
        yield folder / "home"


@pytest.fixture(scope="module")
def ui(home: Path) -> Iterator[Ui]:
    with running_ui(home, **SETTINGS) as running:
        yield running


def test_the_code_location_loads_with_all_assets_and_the_sensor_running(ui: Ui) -> None:
    loaded = ui.ask(
        "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError"
        " { __typename ... on PythonError { message } } } } }"
        " assetNodes { assetKey { path } description groupName owners { __typename } }"
        ' sensorsOrError(repositorySelector: {repositoryName: "__repository__",'
        ' repositoryLocationName: "mt5_crs_pipeline"}) { ... on Sensors { results { name sensorState { status } } } } }'
    )
    (location,) = loaded["workspaceOrError"]["locationEntries"]
    assert location["locationOrLoadError"]["__typename"] == "RepositoryLocation", location
    assert {node["assetKey"]["path"][0] for node in loaded["assetNodes"]} == ASSETS
    assert all(node["description"] and node["groupName"] and node["owners"] for node in loaded["assetNodes"])
    sensors = {one["name"]: one["sensorState"]["status"] for one in loaded["sensorsOrError"]["results"]}
    assert sensors == {"market_data_revision_sensor": "RUNNING", "run_failure_alerts": "RUNNING"}


def test_a_materialization_of_all_assets_succeeds_and_its_run_is_in_postgresql(ui: Ui) -> None:
    run_id = ui.launch("daily_retrain", FIRST, LAST)
    assert comes_true(lambda: ui.runs()[run_id]["status"] in ("SUCCESS", "FAILURE", "CANCELED"), 180)
    assert ui.runs()[run_id]["status"] == "SUCCESS", (ui.home / "logs" / "dagster-daemon.log").read_text()[-4000:]
    assert ui.materialized(run_id) == ASSETS
    assert rows(ui.home, "select status from dagster.runs where run_id = %s", run_id) == [("SUCCESS",)]
    assert len(list((ui.home / "reports" / "D1").glob("*.html"))) == 1


def test_a_bar_inserted_by_plain_sql_is_sensed_and_exactly_its_months_are_computed_again(ui: Ui) -> None:
    assert comes_true(ui.has_settled, 180), ui.runs()  # the first look finds every stored bar new
    before = set(ui.runs())
    times = pd.DatetimeIndex([t for (t,) in rows(ui.home, "select distinct time from market_data order by 1")])
    corrected = 200
    assert rows(
        ui.home,
        "insert into market_data (symbol, timeframe, time, open, high, low, close, volume)"
        " select symbol, timeframe, time, open, high, low, (open + low) / 2, volume from market_data_latest"
        " where time = %s returning symbol",
        times[corrected].to_pydatetime(),
    ) == [("AAPL",)]
    expected = tuple(f"{times[i]:%Y-%m}" for i in (corrected, corrected + PIPELINE_FEATURES.lookback - 1))
    assert comes_true(lambda: bool(set(ui.runs()) - before), 120)
    assert comes_true(lambda: all(one["status"] == "SUCCESS" for one in ui.runs().values()), 120)
    (new,) = (one for run_id, one in ui.runs().items() if run_id not in before)
    assert new["jobName"] == "market_data_backfill"
    assert tuple(new["tags"][name] for name in RANGE) == expected
    bars = pd.read_parquet(ui.home / "lake" / "D1" / "market_data" / f"{times[corrected]:%Y-%m}.parquet")
    first, second = bars[bars["time"] == times[corrected]].sort_values("known_at").to_dict("records")
    assert second["close"] == (first["open"] + first["low"]) / 2 != first["close"]


def test_a_second_one_on_the_same_port_or_the_same_state_folder_is_refused_in_one_line(ui: Ui) -> None:
    with short_folder() as folder:
        taken = run(folder / "home", "ui", "--port", ui.port)
    assert (taken.returncode, taken.stderr.splitlines()) == (
        2,
        [f"mt5-crs: port {ui.port} is taken or not allowed: choose another with --port"],
    )
    second = run(ui.home, "ui", "--port", free_port())
    assert second.returncode == 2
    assert second.stderr.splitlines() == [
        f"mt5-crs: another `mt5-crs ui` runs on {ui.home}: stop it, or set another MT5_CRS_HOME"
    ]


def test_ctrl_c_stops_webserver_daemon_code_servers_and_database(ui: Ui) -> None:
    leaves_nothing(ui, signal.SIGINT)


def test_the_next_start_ends_what_a_kill_left_and_runs_again_what_died_with_everything(home: Path) -> None:
    with running_ui(home, **SETTINGS) as killed:
        killed.process.kill()
        killed.process.wait()
    left = of_folder(home)
    assert any("dagster-daemon" in " ".join(process.cmdline()) for process in left)
    with running_ui(home, **SETTINGS) as killed:
        dagster = [p for p in left if p.is_running() and "dagster" in " ".join(p.cmdline())]
        assert not dagster, [p.cmdline() for p in dagster]
        died = killed.launch("market_data_backfill", FIRST, LAST)
        assert comes_true(lambda: killed.runs()[died]["status"] == "STARTED", 120)
        for process in [*of_folder(home), psutil.Process(killed.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        killed.process.wait()
    with running_ui(home, **SETTINGS) as again:
        assert again.runs()[died]["status"] == "FAILURE"

        def is_done_again() -> bool:
            others = again.runs().values()
            return any(r["tags"].get("dagster/parent_run_id") == died and r["status"] == "SUCCESS" for r in others)

        assert comes_true(is_done_again, 180), again.runs()
        leaves_nothing(again, signal.SIGTERM)


def rows(home: Path, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    with running_server(home / "postgres") as url:
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql, parameters)
                return cursor.fetchall()
        finally:
            connection.close()
