"""Bars taken over from somebody else's table."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from mt5_crs_pipeline.adapters import foreign_table
from mt5_crs_pipeline.adapters.foreign_table import map_columns, read_bars_from_table
from mt5_crs_pipeline.core.bars import BAR_COLUMNS
from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseRefusedError, InputError
from mt5_crs_pipeline.ingest import ingest_table
from mt5_crs_pipeline.settings import Settings
from tests.adapters.made_up_bars import query

CONSTANTS = {"symbol": "EURUSD", "timeframe": "D1"}
PLAIN = "open float8, high float8, low float8, close float8, volume float8"


@pytest.fixture
def connection(server: str) -> Iterator[Any]:
    """One transaction that is never committed, so that each test finds the database empty."""
    connection = psycopg2.connect(server)
    connection.cursor().execute("set timezone to 'UTC'")
    yield connection
    connection.close()


def run(connection: Any, sql: str, *parameters: Any) -> None:
    connection.cursor().execute(sql, parameters)


def read(
    connection: Any, table: str, constants: dict[str, str] = CONSTANTS, timezone: str = "UTC", **given: str
) -> pd.DataFrame:
    mapping = map_columns(connection, table, given, set(constants))
    parts = [bars for _, bars in read_bars_from_table(connection, table, mapping, constants, timezone)]
    bars = pd.concat(parts, ignore_index=True)
    return bars.assign(reason=bars["reason"].astype(object).where(bars["reason"].notna(), None))


def take_over(settings: Settings, table: str, columns: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    given = {"source_url": None, "symbol": None, "timeframe": None, "timezone": None} | options
    [report] = ingest_table(settings, table, columns or {}, **given)
    return report


# --- Which column is which -------------------------------------------------------------------------------------------


def test_equal_and_common_other_names_are_recognised_in_any_case(connection: Any) -> None:
    run(
        connection,
        'create table t ("Ticker" text, tf text, "TimeStamp" timestamptz, "OPEN" real, "High" real, low real,'
        ' close real, "Adj_Close" real, tick_volume bigint, spread int, unrelated text)',
    )
    assert map_columns(connection, "t", {"timeframe": "tf"}, set()) == {
        "symbol": "Ticker",
        "timeframe": "tf",
        "time": "TimeStamp",
        "open": "OPEN",
        "high": "High",
        "low": "low",
        "close": "close",
        "adjusted_close": "Adj_Close",
        "volume": "tick_volume",
        "spread": "spread",
    }


def test_a_given_mapping_wins_over_equal_names(connection: Any) -> None:
    run(connection, f"create table t (time timestamptz, ts timestamptz, px float8, {PLAIN})")
    mapping = map_columns(connection, "t", {"time": "ts", "close": "px"}, set(CONSTANTS))
    assert mapping["time"] == "ts" and mapping["close"] == "px" and mapping["open"] == "open"
    assert "symbol" not in mapping


def test_constants_win_over_columns_of_that_name(connection: Any) -> None:
    run(connection, f"create table t (symbol text, timeframe text, time timestamptz, {PLAIN})")
    run(connection, "insert into t values ('other', 'H1', '2024-01-02', 1, 2, 0.5, 1.5, 7)")
    bars = read(connection, "t")
    assert bars[["symbol", "timeframe"]].to_numpy().tolist() == [["EURUSD", "D1"]]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({}, InputError, "has no column for close, symbol, timeframe"),
        ({"clse": "a"}, ConfigurationError, "column mapping names clse"),
        ({"close": "nope"}, ConfigurationError, "column mapping names nope"),
    ],
)
def test_missing_columns_are_named_with_those_there_are(
    connection: Any, given: dict[str, str], kind: type[Exception], words: str
) -> None:
    run(connection, "create table t (a int, time timestamptz, open real, high real, low real, volume real)")
    with pytest.raises(kind, match=words) as error:
        map_columns(connection, "t", given, set())
    assert "a, time, open" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("table", ["absent", "public.absent", "absent.t", "", "a.b.c", "t; drop table t", "t_index"])
def test_a_table_that_is_not_there_is_named(connection: Any, table: str) -> None:
    run(connection, "create table t (a int); create index t_index on t (a)")
    with pytest.raises(InputError) as error:
        map_columns(connection, table, {}, set())
    assert repr(table) in str(error.value) and "does not exist" in str(error.value)


HOSTILE_NAMES = ['we"ird; drop table t; --', "Mixed Case", "100%s", "ünïcode", "select"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_odd_schema_table_and_column_names_are_quoted(connection: Any, name: str) -> None:
    run(connection, f"create table t (time timestamptz, {PLAIN})")
    run(connection, "insert into t values ('2024-01-02', 1, 2, 0.5, 1.5, 7)")
    connection.cursor().execute(SQL("create schema {}").format(Identifier(name)))
    connection.cursor().execute(SQL("alter table t rename column close to {}").format(Identifier(name)))
    connection.cursor().execute(SQL("alter table t rename to {}").format(Identifier(name)))
    assert read(connection, name, close=name)["close"].tolist() == [1.5]
    connection.cursor().execute(SQL("alter table {} set schema {}").format(Identifier(name), Identifier(name)))
    assert read(connection, f"{name}.{name}", close=name)["close"].tolist() == [1.5]


def test_a_view_is_as_good_as_a_table(connection: Any) -> None:
    run(connection, "create view v as select now() as time, 1 as open, 2 as high, 1 as low, 1 as close, 3 as volume")
    assert read(connection, "v")["high"].tolist() == [2.0]


# --- What a value becomes --------------------------------------------------------------------------------------------


def test_numbers_of_every_type_become_doubles(connection: Any) -> None:
    run(
        connection,
        "create table t (time timestamptz, open numeric, high real, low smallint, close text, volume bigint)",
    )
    run(connection, "insert into t values ('2024-01-02', 1.10000000000000000001, 1.5, 1, '1.25', %s)", 2**53 - 1)
    run(connection, "insert into t values ('2024-01-03', 'NaN', 'NaN', 1, 'abc', %s)", 2**60)
    bars = read(connection, "t")
    assert bars.loc[0, ["open", "high", "low", "close", "volume"]].tolist() == [1.1, 1.5, 1.0, 1.25, 2.0**53 - 1]
    assert bars["reason"].tolist() == [None, "unreadable_number"]
    assert list(bars.columns) == [*BAR_COLUMNS, "reason"]


def test_a_missing_price_is_said_and_missing_optional_values_are_fine(connection: Any) -> None:
    run(connection, f"create table t (time timestamptz, {PLAIN}, spread int)")
    run(connection, "insert into t values ('2024-01-02', 1, 2, 0.5, null, 7, null), ('2024-01-03', 1, 2, 1, 1, 1, 3)")
    bars = read(connection, "t")
    assert bars["reason"].tolist() == ["missing_value", None]
    assert np.isnan(bars["spread"][0]) and bars["spread"][1] == 3.0


@pytest.mark.parametrize(
    ("kind", "written", "timezone", "expected"),
    [
        ("timestamptz", "2024-07-02 12:00+02", "UTC", "2024-07-02 10:00"),
        ("timestamptz", "2024-07-02 12:00+02", "mt5-server", "2024-07-02 10:00"),
        ("timestamp", "2024-07-02 12:00", "UTC", "2024-07-02 12:00"),
        ("timestamp", "2024-07-02 12:00", "mt5-server", "2024-07-02 09:00"),
        ("timestamp", "2024-07-02 12:00:00.000001", "Europe/Athens", "2024-07-02 09:00:00.000001"),
        ("date", "2024-07-02", "UTC", "2024-07-02"),
        ("bigint", "1719921600", "UTC", "2024-07-02 12:00"),
        ("bigint", "1719921600", "mt5-server", "2024-07-02 09:00"),
        ("numeric", "1719921600", "UTC", "2024-07-02 12:00"),
        ("float8", "1719921600.5", "UTC", "2024-07-02 12:00:00.5"),
        ("text", "2024-07-02 12:00", "UTC", "2024-07-02 12:00"),
    ],
)
@pytest.mark.parametrize("with_null", [False, True])
def test_times_of_every_type_become_utc(
    connection: Any, kind: str, written: str, timezone: str, expected: str, with_null: bool
) -> None:
    run(connection, f"create table t (time {kind}, {PLAIN})")
    run(connection, "insert into t values (%s, 1, 2, 0.5, 1, 7)", written)
    if with_null:
        run(connection, "insert into t values (null, 1, 2, 0.5, 1, 7)")
    bars = read(connection, "t", timezone=timezone)
    assert bars["time"].dtype == "datetime64[us, UTC]"
    assert bars["time"][0] == pd.Timestamp(expected, tz="UTC")
    assert bars["time"].isna().tolist()[1:] == [True] * with_null
    assert bars["reason"].tolist() == [None] * len(bars)


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("timestamp", "2024-03-31 03:30"),  # does not exist in Athens
        ("timestamp", "infinity"),
        ("bigint", "1719921600000"),  # milliseconds
        ("text", "yesterday"),
    ],
)
def test_a_time_without_a_place_is_rejected_with_its_reason(connection: Any, kind: str, written: str) -> None:
    run(connection, f"create table t (time {kind}, {PLAIN})")
    run(connection, "insert into t values (%s, 1, 2, 0.5, 1, 7)", written)
    bars = read(connection, "t", timezone="Europe/Athens")
    assert bars["time"].isna().all()
    assert bars["reason"].tolist() == ["unreadable_or_ambiguous_time"]


# --- Into the database -----------------------------------------------------------------------------------------------


def make_mixed_table(url: str) -> None:
    query(url, f"create table quotes (symbol text, timeframe text, ts timestamptz, {PLAIN})")
    query(
        url,
        "insert into quotes select s, f, timestamptz '2024-01-01' + n * interval '1 day', 1, 2, 0.5, 1 + n / 100.0, n"
        " from unnest(array['EURUSD', 'GBPUSD']) s, unnest(array['D1', 'H4', 'M1']) f, generate_series(1, 20) n",
    )
    query(
        url,
        """insert into quotes values
        (null, 'D1', '2024-02-01', 1, 2, 0.5, 1, 1), ('EURUSD', null, '2024-02-01', 1, 2, 0.5, 1, 1),
        ('EURUSD', '1h', '2024-02-01', 1, 2, 0.5, 1, 1), ('EURUSD', 'D1', '2024-02-02', 1, 2, 0.5, 5, 1),
        ('a b', 'D1', '2024-02-01', 1, 2, 0.5, 1, 1), ('EURUSD', 'D1', null, 1, 2, 0.5, 1, 1)""",
    )


@pytest.mark.parametrize("chunk_rows", [29, 100_000])
def test_many_timeframes_in_any_chunks_give_the_same_counts_and_drop_nothing(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch, chunk_rows: int
) -> None:
    make_mixed_table(database_url)
    monkeypatch.setattr(foreign_table, "CHUNK_ROWS", chunk_rows)
    report = take_over(settings, "quotes", {"time": "ts"})
    assert report["counts"] == {"inserted": 120, "unchanged": 0, "revised": 0, "quarantined": 6}
    assert report["symbols"] == "EURUSD, GBPUSD"
    assert report["timeframe"] == "D1, H4, M1"
    assert report["first"] == "2024-01-02T00:00:00Z" and report["last"] == "2024-01-21T00:00:00Z"
    assert report["reasons"] == {
        "unknown_timeframe": 2,
        "invalid_symbol": 2,
        "close_outside_range": 1,
        "missing_time": 1,
    }
    stored = query(database_url, "select timeframe, count(*), sum(close) from market_data group by 1 order by 1")
    assert [(name, count, round(total, 6)) for name, count, total in stored] == [
        (name, 40, 44.2) for name in ("D1", "H4", "M1")
    ]
    assert query(database_url, "select count(*) from market_data_quarantine") == [(6,)]
    assert query(database_url, "select count(*) from market_data where symbol = 'None'") == [(0,)]
    again = take_over(settings, "quotes", {"time": "ts"})["counts"]
    assert again == {"inserted": 0, "unchanged": 120, "revised": 0, "quarantined": 6}
    assert query(database_url, "select count(*) from market_data_quarantine") == [(6,)]


def test_bars_come_over_from_another_database(settings: Settings, database_url: str, server: str) -> None:
    query(server, "drop schema if exists theirs cascade; create schema theirs")
    query(server, f"create table theirs.bars (symbol text, timeframe text, time timestamptz, {PLAIN})")
    query(server, "insert into theirs.bars values ('EURUSD', 'D1', '2024-01-02', 1, 2, 0.5, 1.5, 7)")
    try:
        report = take_over(settings, "theirs.bars", source_url=server)
    finally:
        query(server, "drop schema theirs cascade")
    assert report["counts"]["inserted"] == 1 and report["source"] == "table theirs.bars"
    assert query(database_url, "select symbol, close, known_at from market_data") == [
        ("EURUSD", 1.5, datetime(2024, 1, 3, tzinfo=UTC))
    ]


def test_a_table_nobody_lets_us_read_is_refused_in_one_line(settings: Settings, database_url: str) -> None:
    with pytest.raises(DatabaseRefusedError, match="permission denied") as error:
        take_over(
            settings,
            "pg_catalog.pg_authid",
            dict.fromkeys(("symbol", "time", "open", "high", "low", "close", "volume"), "rolname"),
            timeframe="D1",
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("symbol", "a b"), ("timeframe", "H7"), ("timezone", "Mars/Base")])
def test_a_senseless_option_changes_nothing(settings: Settings, database_url: str, option: str, value: str) -> None:
    make_mixed_table(database_url)
    query(database_url, "alter table quotes alter ts type timestamp")
    with pytest.raises(ConfigurationError, match=value):
        take_over(settings, "quotes", {"time": "ts"}, **{option: value})
    [(stored,)] = query(database_url, "select to_regclass('market_data')")
    assert stored is None or query(database_url, "select count(*) from market_data") == [(0,)]
