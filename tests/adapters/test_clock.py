"""A server whose clock is set back by an hour, by libfaketime: what arrives then is recorded in the order it came."""

import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import psycopg2
import pytest

from mt5_crs_pipeline.adapters import embedded_postgres_site
from mt5_crs_pipeline.adapters.bar_store import ingest, read_revisions
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.core.feature_rows import feature_rows
from tests.commands import short_folder
from tests.defs.small_lake import year_of_bars


@pytest.fixture
def an_hour_ago() -> dict[str, str]:
    """The environment in which programs see the time of an hour ago; skips loudly where libfaketime is absent."""
    program = shutil.which("faketime")
    if program is None:
        pytest.skip("SKIPPED LOUDLY: no faketime is installed")
    said = subprocess.run([program, "-f", "-1h", "env"], capture_output=True, text=True, check=True).stdout
    told = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    return {name: told[name] for name in ("LD_PRELOAD", "FAKETIME")}


def store(folder: Path, bars: pd.DataFrame) -> tuple[datetime, pd.DataFrame]:
    """Store bars in a server that runs for this alone; return its time, and all revisions it then has."""
    with running_server(folder / "postgres") as url:
        prepare_database(url)
        ingest(url, bars, "D1", "test", datetime.now(UTC))
        with connected(url) as connection:
            found = read_revisions(connection, "D1").to_pandas()
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("select clock_timestamp()")
            return cursor.fetchall()[0][0], found


def test_a_correction_after_the_clock_was_set_back_is_recorded_after_what_it_corrects(
    an_hour_ago: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = year_of_bars().query("symbol == 'AAPL'").reset_index(drop=True)
    corrected = bars.loc[[100]].assign(close=bars["low"])
    with short_folder() as folder:
        _, before = store(folder, bars)
        kept = embedded_postgres_site.KEPT_VARIABLES
        monkeypatch.setattr(embedded_postgres_site, "KEPT_VARIABLES", (*kept, *an_hour_ago))
        for name, value in an_hour_ago.items():
            monkeypatch.setenv(name, value)
        clock, after = store(folder, corrected)

    assert timedelta(minutes=59) < datetime.now(UTC) - clock < timedelta(minutes=61)
    newest = before["recorded_at"].max()
    (new,) = after[after["recorded_at"] > newest].to_dict("records")
    assert (new["time"], new["close"]) == (bars.loc[100, "time"], bars.loc[100, "low"])
    assert len(after) == len(before) + 1
    # Every version of a feature row that was known then is still known, to the bit.
    then, now = feature_rows(before, "D1"), feature_rows(after, "D1")
    old = now[now["recorded_at"] <= newest].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, then, check_exact=True)
    assert len(now) > len(then)
