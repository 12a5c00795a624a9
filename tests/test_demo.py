"""The demo end to end on its own embedded database: what it prints, that it is idempotent, that it survives kills."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from mt5_crs_pipeline.adapters.demo_bars import SYMBOLS
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.defs.partitions import range_tags
from tests.commands import comes_true, hashes, of_folder, read_until, started, succeed, write_daily_bars

STEPS = (
    *("market_data", "market_data_parquet", "feast_registry", "technical_features", "feast_online_store"),
    *("training_set", "xgboost_model", "noise_floor", "model_evaluation", "champion_model", "live_predictions"),
)
SMALL = {"START": "2011-01", "NOISE_RUNS": "1"}


@pytest.fixture(scope="module")
def ingested(demo_folder: Path) -> Path:
    """State folder with two years of AAPL, not trained on yet."""
    write_daily_bars(demo_folder / "AAPL_D1.csv", "2011-01-01", "2012-12-31")
    succeed(demo_folder / "small", "ingest", demo_folder / "AAPL_D1.csv", **SMALL)
    return demo_folder / "small"


@pytest.fixture(scope="module")
def undisturbed(demo_folder: Path, ingested: Path) -> dict[str, str]:
    """Hashes of what `retrain` makes of those two years when nobody kills it."""
    calm = shutil.copytree(ingested, demo_folder / "calm")
    succeed(calm, "retrain", **SMALL)
    return data_files(calm)


def test_the_demo_says_what_it_did_and_shows_its_progress(
    demo_home: Path, first_demo: "subprocess.CompletedProcess[str]"
) -> None:
    progress = first_demo.stderr.splitlines()
    assert "    12,154 inserted, 0 unchanged, 0 revised, 0 quarantined" in progress
    shown = [line.split(" ... ") for line in progress if " ... " in line]
    assert [name.strip() for name, _ in shown][-len(STEPS) :] == list(STEPS)
    assert all(took.split(" s")[0].replace(".", "").isdigit() for _, took in shown), progress
    assert not [line for line in progress if not line.startswith("  ")], "noise of a library"
    assert "\x1b" not in first_demo.stderr + first_demo.stdout

    lines = first_demo.stdout.splitlines()
    report = Path(next(line for line in lines if "report:" in line).split("report: ")[1])
    assert next(line for line in lines if line.startswith("Model ")).endswith(": not promoted, no edge shown")
    verdict = next(line.strip() for line in lines if "edge was shown" in line)
    assert verdict in report.read_text("utf-8")
    assert succeed(demo_home, "report").stdout == f"{report}\n"
    told = json.loads(succeed(demo_home, "report", "--json", "--model", report.stem).stdout)
    assert told == {"model_version": report.stem, "report": str(report)}
    assert [line.split(":")[0] for line in lines if " for the bar after 2013-03-02" in line] == list(SYMBOLS)
    assert sum(word in line for line in lines for word in ("UP with", "DOWN with")) == len(SYMBOLS)


def test_a_second_demo_even_after_a_killed_one_inserts_nothing_and_touches_no_file(demo_home: Path) -> None:
    before = {name: (path.stat().st_mtime_ns, sha) for name, path, sha in stored(demo_home)}
    kill_when(demo_home, "technical_features ...", "demo")
    again = succeed(demo_home, "demo", "--json")
    assert "    0 inserted, 12,154 unchanged, 0 revised, 0 quarantined" in again.stderr.splitlines()
    result = json.loads(again.stdout)
    assert result["bars"] == {"inserted": 0, "unchanged": 12_154, "revised": 0, "quarantined": 0}
    assert [prediction["symbol"] for prediction in result["predictions"]] == list(SYMBOLS)
    assert {name: (path.stat().st_mtime_ns, sha) for name, path, sha in stored(demo_home)} == before
    assert len(list((demo_home / "models" / "D1").glob("*/model.ubj"))) == 1
    assert_recovered(demo_home, ["SUCCESS", "FAILURE", "SUCCESS"])


def test_dagster_keeps_the_runs_in_postgresql(demo_home: Path) -> None:
    assert rows(demo_home, "select status from dagster.runs")
    assert not list((demo_home / "dagster").rglob("*.db"))


def test_nothing_runs_on_after_the_command_ended(demo_home: Path) -> None:
    assert comes_true(lambda: not of_folder(demo_home), 5), of_folder(demo_home)


def test_a_retrain_killed_with_its_database_then_stopped_by_ctrl_c_then_killed_ends_with_the_same_files(
    demo_folder: Path, ingested: Path, undisturbed: dict[str, str]
) -> None:
    home = shutil.copytree(ingested, demo_folder / "disturbed")
    kill_when(home, "market_data_parquet ...", "retrain", database_too=True)
    # As a kill in the middle of a write leaves it.
    leftover = home / "lake" / "D1" / "market_data" / f".partial-{2**22 + 1}-abc"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"PAR1")
    with started(home, "retrain", **SMALL) as process:
        assert process.stderr is not None
        said = read_until(process.stderr, "technical_features ...")
        os.kill(process.pid, signal.SIGINT)
        said += process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert [line for line in said.splitlines() if line and not line.startswith("  ")] == [
        "mt5-crs: interrupted: what was finished is kept, nothing is half written"
    ]
    kill_when(home, "xgboost_model ...", "retrain")
    succeed(home, "retrain", **SMALL)
    assert data_files(home) == undisturbed
    assert_recovered(home, ["FAILURE", "FAILURE", "FAILURE", "SUCCESS"])


def test_a_process_for_every_step_gives_the_same_bytes(
    demo_folder: Path, ingested: Path, undisturbed: dict[str, str]
) -> None:
    home = shutil.copytree(ingested, demo_folder / "processes")
    job = ["dagster", "job", "execute", "-m", "mt5_crs_pipeline.definitions", "-j", "market_data_backfill", "--tags"]
    said = succeed(home, "exec", *job, json.dumps(range_tags("2011-01", "2012-12")), **SMALL, EXECUTOR="multiprocess")
    assert len(set(re.findall(r"Started process for step|Launching subprocess for \"(\w+)\"", said.stderr))) == 4
    made = data_files(home)
    assert made == {path: digest for path, digest in undisturbed.items() if path in made}
    assert {path.split("/")[1] for path in made} == {"extract", "market_data", "technical_features"}


def kill_when(home: Path, marker: str, command: str, database_too: bool = False) -> None:
    """SIGKILL the command when its progress shows `marker`, and with `database_too` the server's main process."""
    with started(home, command, **(SMALL if command == "retrain" else {})) as process:
        read_until(process.stderr, marker)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        postmaster = psutil.Process(int((home / "postgres/data/postmaster.pid").read_text().split()[0]))
        if database_too:
            postmaster.kill()
            assert comes_true(lambda: not psutil.pid_exists(postmaster.pid), 10)
        else:
            assert postmaster.is_running()


def assert_recovered(home: Path, runs: list[str]) -> None:
    assert [status for (status,) in rows(home, "select status from dagster.runs order by id")] == runs
    assert not list(home.rglob(".partial-*"))
    assert comes_true(lambda: not of_folder(home), 5), of_folder(home)


def stored(home: Path) -> list[tuple[str, Path, str]]:
    """Name, path and hash of every file of lake, models and reports."""
    folders = [home / name for name in ("lake", "models", "reports")]
    return [(name, folder / name, sha) for folder in folders for name, sha in hashes(folder).items()]


def data_files(home: Path) -> dict[str, str]:
    """Hashes of everything that is made from the bars, less the files that name the moment of training or promotion."""
    found = hashes(home / "lake") | hashes(home / "models")
    moments = ("model_metadata.json", "SHA256SUMS", "champion.json")
    return {path: digest for path, digest in found.items() if Path(path).name not in moments}


def rows(home: Path, sql: str) -> list[tuple[Any, ...]]:
    with running_server(home / "postgres") as url:
        connection = psycopg2.connect(url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()
