"""Kill everything at a random moment, run again, and compare with a run that nobody disturbed.

Run `python benchmarks/crash_loop.py`; fifty kills take half an hour on two cores, `--kills 3` two minutes. A trained
state of two symbols is the start. A run then stores a file of new, late and corrected bars and retrains. It is killed
with SIGKILL, the process group and the database server with all its processes, at a moment drawn evenly from the time
an undisturbed run takes, and run again to its end. Then the bars, the lake, the feature versions, the training set, the
online rows, the model, its predictions, the champion, the verdict and the ledger must be those of the undisturbed run,
but for the times of arrival; the lake must be what a full rebuild makes, every file whole, and no run left at work.
"""

import argparse
import atexit
import contextlib
import hashlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MT5_CRS_NOISE_RUNS", "0")

import dagster as dg
import pandas as pd
import psutil

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.adapters.lake import EXTRACT, MARKET_DATA, TECHNICAL_FEATURES, read_parquet
from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.ingest import ingest_files
from mt5_crs_pipeline.rebuild import rebuild_check
from mt5_crs_pipeline.runner import AT_WORK, dagster_instance, newest_result, retrain
from mt5_crs_pipeline.settings import Settings

SYMBOLS = ("AAPL", "IBM")
ARRIVAL = ["known_at", "recorded_at", "recorded_by"]


def write_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the files of the start, and those with new bars, late ones, and a corrected one; one file a symbol."""
    bars = demo_bars()
    bars = bars[bars["symbol"].isin(SYMBOLS) & bars["time"].dt.year.isin([2011, 2012])]
    bars = bars[["symbol", "timeframe", "time", "open", "high", "low", "close", "volume"]]
    late = (bars["symbol"] == "IBM") & (bars["time"].dt.strftime("%Y-%m") == "2012-03")
    new = bars["time"] >= pd.Timestamp("2012-10-01", tz="UTC")
    corrected = bars[(bars["symbol"] == "AAPL") & (bars["time"].dt.strftime("%Y-%m") == "2012-05")].head(1)
    corrected = corrected.assign(close=(corrected["low"] + corrected["high"]) / 2)
    parts = {"first": bars[~late & ~new], "second": pd.concat([bars[late | new], corrected])}
    files: dict[str, list[Path]] = {"first": [], "second": []}
    for name, part in parts.items():
        for symbol, own in part.groupby("symbol"):
            files[name].append(folder / f"{symbol}_{name}.parquet")
            own.to_parquet(files[name][-1], index=False)
    return files["first"], files["second"]


def run(home: Path, bars: list[Path]) -> None:
    """Store files of bars and retrain."""
    os.environ["MT5_CRS_HOME"] = str(home)  # read by the code location, which only this process loads
    settings = Settings()
    for _ in ingest_files(settings, bars, None, None, None):
        pass
    retrain(settings, Database(settings), lambda text: None)


def in_child(what: Callable[[], object], log: Path) -> int:
    """Run `what` in a forked process, a group of its own; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        what()
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        atexit._run_exitfuncs()  # as at the end of any process: Dagster's storage lets go of the server
        os._exit(code)


def finish(what: Callable[[], object], log: Path) -> None:
    _, status = os.waitpid(in_child(what, log), 0)
    if status:
        raise SystemExit(f"a run failed: see {log}\n{log.read_text('utf-8')[-2000:]}")


def kill(child: int, home: Path) -> None:
    """End the child's group and the database server of `home` at once, as a machine does that stops."""
    victims = []
    for record in home.rglob("postmaster.pid"):
        with contextlib.suppress(psutil.Error, OSError, ValueError, IndexError):
            server = psutil.Process(int(record.read_text().split()[0]))
            if "postgres" in server.name():
                victims += [server, *server.children(recursive=True)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    os.waitpid(child, 0)


def state(home: Path) -> dict[str, str]:
    """What a run leaves behind, by part, as hashes and words; nothing of when it happened."""
    settings = Settings(home=home)
    stores, found = Stores(settings), {}
    with stores.database.url() as url:
        rebuild = rebuild_check(settings)
        found["rebuild"] = f"{len(rebuild.different)} different, {len(rebuild.waiting)} waiting"
        with stores.database.connection() as connection, connection.cursor() as cursor:
            for table, order in (
                ("market_data", "symbol, time, known_at"),
                ("market_data_quarantine", "1"),
                ("model_trial", "recipe_hash"),
            ):
                cursor.execute(f"select to_jsonb({table}) from {table} order by {order}")
                rows = [{k: v for k, v in row.items() if not _is_arrival(k)} for (row,) in cursor.fetchall()]
                found[table] = f"{len(rows)} {_hash(rows)}"
            cursor.execute("select model_version, promoted, reason from model_verdict order by number desc limit 1")
            found["verdict"] = str(cursor.fetchall())
        with stores.feast() as feast:
            online = feast.online_rows(list(SYMBOLS))
        found["online"] = _hash(online.to_dict("list"))
        with dagster_instance(settings, url) as instance:
            found["runs at work"] = str(len(instance.get_runs(dg.RunsFilter(statuses=AT_WORK))))
    for stage, key in (
        (EXTRACT, ["symbol", "time", "known_at"]),
        (MARKET_DATA, ["symbol", "time", "known_at"]),
        (TECHNICAL_FEATURES, ["symbol", EVENT_TIMESTAMP, "known_at", "recorded_at"]),
    ):
        rows = pd.concat(
            [read_parquet(stores.lake.file(stage, month)).to_pandas() for month in stores.lake.months(stage)]
        )
        found[f"duplicates in {stage}"] = str(int(rows.duplicated(key).sum()))
        kept = rows.drop(columns=ARRIVAL, errors="ignore")
        found[stage] = f"{len(rows)} {hashlib.sha256(kept.to_csv().encode()).hexdigest()[:12]}"
    found["training set"] = _hash_file(stores.lake.training_set)
    models = ModelStore(settings.models)
    bundle = models.load(str(newest_result(settings)["model_version"]))
    found["model"] = " ".join(_hash_file(path) for path in sorted(bundle.folder.glob("*")) if path.suffix != ".json")
    found["champion"] = str((models.champion() or {}).get("model_version"))
    found["left over"] = str([path.name for path in (home / "lake").rglob("*") if path.name.startswith(".")])
    return found


def _is_arrival(name: str) -> bool:
    return name in ARRIVAL or name.endswith("_at")


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _hash_file(path: Path) -> str:
    # The checksums name the metadata, which has the date of training.
    content = path.read_bytes() if path.name != "SHA256SUMS" else b""
    return hashlib.sha256(content).hexdigest()[:12]


def state_in_child(home: Path, folder: Path) -> dict[str, Any]:
    """As `state`, of a process of its own: this one must stay without threads to fork from."""
    answer = folder / "state.json"

    def look() -> None:
        pd.Series(state(home)).to_json(answer)

    finish(look, folder / "state.log")
    return dict(pd.read_json(answer, typ="series", dtype=False, convert_dates=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    moments, wrong = random.Random(arguments.seed), Counter[str]()
    # A socket needs a short path.
    folder = Path(tempfile.mkdtemp(prefix="crash"))
    try:
        first, second = write_files(folder)
        start, undisturbed = folder / "start", folder / "undisturbed"
        finish(partial(run, start, first), folder / "start.log")
        shutil.copytree(start, undisturbed)
        began = time.perf_counter()
        finish(partial(run, undisturbed, second), folder / "undisturbed.log")
        whole = time.perf_counter() - began
        expected = state_in_child(undisturbed, folder)
        print(f"an undisturbed run takes {whole:.1f} s and leaves {expected['technical_features']}", flush=True)
        again = []
        for number in range(arguments.kills):
            home = folder / f"home{number}"
            shutil.copytree(start, home)
            after = moments.uniform(0, whole)
            child = in_child(partial(run, home, second), folder / "killed.log")
            time.sleep(after)
            kill(child, home)
            began = time.perf_counter()
            finish(partial(run, home, second), folder / f"again{number}.log")
            again.append(time.perf_counter() - began)
            found = state_in_child(home, folder)
            differing = [name for name in expected if found[name] != expected[name]]
            wrong.update(differing)
            for name in differing:
                print(f"  {name}: {found[name]}\n  instead of {expected[name]}")
            print(f"kill {number + 1:3} after {after:5.1f} s: {differing or 'equal'}", flush=True)
            shutil.rmtree(home)
        equal = f"{arguments.kills - max(wrong.values(), default=0)} of {arguments.kills} final states are equal"
        print(
            f"{equal}; the run after a kill took {statistics.median(again):.1f} s (median); wrong parts: {dict(wrong)}"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
