"""What changed is found through the index, however large the table is."""

from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from mt5_crs_pipeline.adapters.bar_store import changes_query, changes_since
from mt5_crs_pipeline.adapters.postgres import Connection, prepare_database

FILL = """
    insert into market_data (symbol, timeframe, time, open, high, low, close, volume, known_at)
    select 'S' || symbol, 'D1', day, 1, 1, 1, 1, 1, day + interval '1 day'
    from generate_series(1, 50) as symbol,
         generate_series(timestamptz '2000-01-01 00:00+00', '2009-12-31', interval '1 day') as day
"""
CORRECT = """
    insert into market_data (symbol, timeframe, time, open, high, low, close, volume)
    values ('S7', 'D1', '2005-05-05', 1, 2, 1, 2, 1), ('S9', 'D1', '2005-06-30', 1, 2, 1, 2, 1)
"""


@pytest.fixture
def table(database_url: str) -> Iterator[Connection]:
    """182,650 daily bars, as a server that has just been filled knows them."""
    prepare_database(database_url)
    with closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("set timezone to 'UTC'")
            cursor.execute(FILL)
            cursor.execute("analyze market_data")
        yield connection


def test_a_tick_reads_what_changed_and_no_more(table: Connection) -> None:
    _, position = changes_since(table, "D1", None, 99)
    assert changes_since(table, "D1", position, 99)[0] == []
    with table.cursor() as cursor:
        cursor.execute(CORRECT)
        changes, _ = changes_since(table, "D1", position, 99)
        assert [(one.symbol, one.month, one.reach_month) for one in changes] == [
            ("S7", "2005-05", "2005-08"),
            ("S9", "2005-06", "2005-10"),
        ]
        query, parameters = changes_query("D1", position, position + 10, 99, ())
        cursor.execute(f"explain (analyze, buffers, format json) {cursor.mogrify(query, parameters).decode()}")
        plan = cursor.fetchall()[0][0][0]["Plan"]
    scans = list(nodes(plan))
    assert not [scan for scan in scans if scan["Node Type"] == "Seq Scan"]
    assert "market_data_recorded_by" in {scan.get("Index Name") for scan in scans}
    # Two bars, and for each the 99 after it: a few hundred rows of 182,650.
    assert max(scan["Actual Rows"] for scan in scans) <= 100
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200


def nodes(plan: dict) -> Iterator[dict]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
