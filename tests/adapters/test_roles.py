"""Each role may do what its path needs, statement by statement, and nothing else."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2
import pytest

from mt5_crs_pipeline.adapters.bar_store import ingest, read_latest
from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.adapters.roles import READER, WRITER, create_roles, roles_sql
from mt5_crs_pipeline.core.bars import BAR_COLUMNS
from mt5_crs_pipeline.core.errors import DatabaseRefusedError

TABLES = (
    *("market_data", "market_data_latest", "market_data_timeframe", "market_data_quarantine"),
    *("model_trial", "model_verdict", "model_champion_change", "model_prediction", "mt5_crs_schema_version"),
)
NOT_FOR_WRITERS = {name for name in TABLES if name.startswith("model_")}
BAR = "insert into market_data (symbol, timeframe, time, open, high, low, close, volume) values"


@pytest.fixture
def administrator(database_url: str) -> Iterator[str]:
    """URL of the database's superuser; the roles, which are the whole server's, go with the test."""
    url = re.sub(r"//[^@]*@", "//postgres@", database_url)
    yield url
    with connected(url) as connection, connection.cursor() as cursor:
        for role in (READER, WRITER):
            cursor.execute("select from pg_roles where rolname = %s", (role,))
            if cursor.rowcount:
                cursor.execute(f"drop owned by {role}; drop role {role}")


def acting_as(administrator: str, role: str) -> str:
    return f"{administrator}{'&' if '?' in administrator else '?'}options=-crole%3D{role}"


def may(url: str, statement: str) -> bool:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(statement)
        except psycopg2.errors.InsufficientPrivilege:
            return False
        return True


def test_the_matrix_of_roles_and_statements(database_url: str, administrator: str) -> None:
    prepare_database(database_url)
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table feast.heads (symbol text)")
    assert create_roles(administrator) == "public"
    assert create_roles(administrator) == "public"
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table feast.later (symbol text)")
    reader, writer = acting_as(administrator, READER), acting_as(administrator, WRITER)
    for table in TABLES:
        assert may(reader, f"select from {table}"), table
        assert may(writer, f"select from {table}") == (table not in NOT_FOR_WRITERS), table
        kind = "view" if table == "market_data_latest" else "table"
        for statement in (f"drop {kind} {table}", *(("delete from " + table, "truncate " + table) * (kind == "table"))):
            assert not may(reader, statement) and not may(writer, statement), statement
        if kind == "table":
            assert not may(reader, f"insert into {table} default values"), table
    assert may(reader, "select from feast.heads") and not may(writer, "select from feast.heads")
    assert not may(reader, "insert into feast.heads values ('A')")
    bar = f"{BAR} ('A', 'D1', '2024-01-02', 1, 1, 1, 1, 1)"
    assert may(writer, bar) and not may(reader, bar)
    for statement in (
        "update market_data set close = 1",
        "insert into market_data_timeframe values ('M7', '7 minutes')",
        "create table elsewhere (x int)",
        "alter table market_data disable trigger all",
        "create role another",
    ):
        assert not may(reader, statement) and not may(writer, statement), statement
    for role in (READER, WRITER):
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(re.sub(r"//[^@]*@", f"//{role}@", database_url))


def test_the_paths_that_the_roles_are_for_work_with_them(database_url: str, administrator: str) -> None:
    prepare_database(database_url)
    create_roles(administrator)
    bars = demo_bars().head(300)[list(BAR_COLUMNS)]
    bars.loc[7, "high"] = bars.loc[7, "low"] / 2
    now = datetime(2026, 1, 1, tzinfo=UTC)
    counts = ingest(acting_as(administrator, WRITER), bars, "D1", "loader", now)
    assert (counts.inserted, counts.quarantined) == (299, 1)
    reader = acting_as(administrator, READER)
    prepare_database(reader)
    with connected(reader) as connection:
        assert read_latest(connection, "D1").num_rows == 299
    with pytest.raises(DatabaseRefusedError, match="refused: permission denied for table market_data"):
        ingest(reader, bars, "D1", "loader", now)


def test_who_may_not_create_roles_is_told_what_an_administrator_can_run(database_url: str, administrator: str) -> None:
    with pytest.raises(DatabaseRefusedError, match=r"may not create roles .*mt5-crs roles --sql"):
        create_roles(database_url)
    script = roles_sql(database_url)
    with connected(administrator) as connection, connection.cursor() as cursor:
        cursor.execute(script)
    assert may(acting_as(administrator, READER), "select from market_data")
    assert create_roles(database_url) == "public"
