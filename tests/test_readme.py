"""Every shell and Python block of the README runs, in order, in one folder, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg2
import pytest

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(sh|python|sql)\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
PRELUDE = """
from pathlib import Path
from mt5_crs_pipeline.adapters.mt5 import read_bars
bars = read_bars(Path("EURUSD_H1.csv")).bars
bar_opened_at = bars["time"].max() + (bars["time"].iloc[1] - bars["time"].iloc[0])
"""


def write_terminal_export(path: Path, bars: int) -> None:
    """A random walk as MetaTrader 5 exports it: tabs, CRLF, times of the broker's server."""
    random = np.random.default_rng(3)
    times = pd.bdate_range("2024-01-02", periods=bars // 24 + 1, freq="B")
    hours = [day + pd.Timedelta(hours=hour) for day in times for hour in range(24)][:bars]
    close = 1.1 * np.exp(np.cumsum(random.normal(0, 0.001, bars)))
    open_ = np.r_[close[0], close[:-1]]
    high, low = np.maximum(open_, close) * 1.0005, np.minimum(open_, close) * 0.9995
    lines = ["<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"]
    for time, *prices in zip(hours, open_, high, low, close, strict=True):
        cells = [f"{time:%Y.%m.%d}", f"{time:%H:%M:%S}", *(f"{price:.6f}" for price in prices)]
        lines.append("\t".join([*cells, str(random.integers(1, 5000)), "0", "7"]))
    path.write_bytes("\r\n".join([*lines, ""]).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    write_terminal_export(folder / "EURUSD_H1.csv", 2_500)
    (folder / "feature_repo").symlink_to(ROOT / "feature_repo")
    return folder


def test_the_readme_has_blocks_of_every_kind() -> None:
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "sql"}


def test_the_feature_that_is_shown_is_the_one_that_is_declared() -> None:
    (shown,) = re.findall(r"^```py\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
    assert shown in (ROOT / "mt5_crs_pipeline" / "core" / "features" / "formulas.py").read_text("utf-8")


def test_every_block_runs(folder: Path) -> None:
    settings = Settings(home=folder / ".mt5_crs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "MT5_CRS_NOISE_RUNS": "1", "PATH": path}
    # One server for all blocks: the database stays up between them.
    with Database(settings).url() as url:
        with psycopg2.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("create schema legacy")
            cursor.execute(
                "create table legacy.prices (symbol text, ts timestamp, open float, high float, low float, close float,"
                " qty bigint)"
            )
            cursor.execute("insert into legacy.prices values ('IBM', '2024-01-02', 10, 12, 9, 11, 500)")
        connection.close()
        for kind, block in BLOCKS:
            if kind == "sql":
                with psycopg2.connect(url) as connection, connection.cursor() as cursor:
                    cursor.execute(block)
                    assert cursor.rowcount == 1
                connection.close()
                continue
            program = ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", PRELUDE + block]
            chosen = environment if kind == "sh" else {**environment, "MT5_CRS_TIMEFRAME": "H1"}
            done = subprocess.run(
                program, cwd=folder, env=chosen, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
