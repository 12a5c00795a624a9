"""Connections, their errors in one line, and the versioned schema."""

import importlib.resources
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn

from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.adapters.postgres import (
    DAGSTER_SCHEMA,
    FEAST_SCHEMA,
    connected,
    describe,
    libpq_url,
    prepare_database,
    sqlalchemy_url,
)
from mt5_crs_pipeline.core.bars import TIMEFRAMES
from mt5_crs_pipeline.core.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    PipelineError,
    SchemaMismatchError,
)
from tests.adapters.made_up_bars import query

NEWEST = 6
VERSIONS = [(number,) for number in range(1, NEWEST + 1)]
CATALOG = """
select 'table', relname::text, relkind::text, relfilenode::text from pg_class
where relnamespace::regnamespace::text in ('public', 'feast', 'dagster')
union all
select 'column', attrelid::regclass::text, attname::text, atttypid::regtype::text from pg_attribute
join pg_class on pg_class.oid = attrelid where relnamespace = 'public'::regnamespace
union all
select 'function', proname::text, md5(prosrc), oid::text from pg_proc where pronamespace = 'public'::regnamespace
union all
select 'trigger', tgname::text, tgrelid::regclass::text, oid::text from pg_trigger
union all
select 'schema', nspname::text, oid::text, '' from pg_namespace
union all
select 'version', version::text, applied_at::text, xmin::text from mt5_crs_schema_version
union all
select 'timeframe', timeframe, length::text, xmin::text from market_data_timeframe
order by 1, 2, 3, 4
"""


def one_line(error: pytest.ExceptionInfo[PipelineError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.strip() == text and text
    return text


# --- The schema ------------------------------------------------------------------------------------------------------


def test_a_second_preparation_changes_nothing_in_the_catalog(database_url: str) -> None:
    prepare_database(database_url)
    before = query(database_url, CATALOG)
    prepare_database(database_url)
    assert query(database_url, CATALOG) == before
    kinds = {kind for kind, *_ in before}
    assert kinds == {"table", "column", "function", "trigger", "schema", "version", "timeframe"}


def test_the_schema_is_versioned_and_knows_every_timeframe(database_url: str) -> None:
    prepare_database(database_url)
    assert query(database_url, "select version from mt5_crs_schema_version") == VERSIONS
    known = {timeframe for (timeframe,) in query(database_url, "select timeframe from market_data_timeframe")}
    assert known == set(TIMEFRAMES)
    schemas = {name for (name,) in query(database_url, "select nspname from pg_namespace")}
    assert {FEAST_SCHEMA, DAGSTER_SCHEMA} <= schemas


def test_six_first_starts_at_once_all_succeed(database_url: str) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(6)

    def start() -> None:
        together.wait()
        try:
            prepare_database(database_url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert query(database_url, "select version from mt5_crs_schema_version") == VERSIONS


@pytest.mark.parametrize(
    "name", ["market_data", "market_data_quarantine", "market_data_latest", "market_data_timeframe"]
)
def test_a_foreign_table_of_our_name_is_refused_with_its_difference_and_left_alone(
    database_url: str, name: str
) -> None:
    query(database_url, f"create table {name} (symbol text, ts timestamp, px numeric)")
    query(database_url, f"insert into {name} values ('EURUSD', '2024-01-01', 1.25)")
    with pytest.raises(SchemaMismatchError) as error:
        prepare_database(database_url)
    text = one_line(error)
    assert repr(name) in text and "ingest --table" in text
    assert "other columns: ts, px" in text and "missing columns: timeframe, time, open" in text
    columns = "select attname::text from pg_attribute where attrelid = %s::regclass and attnum > 0"
    assert query(database_url, columns, (name,)) == [("symbol",), ("ts",), ("px",)]
    assert [(symbol, float(px)) for symbol, px in query(database_url, f"select symbol, px from {name}")] == [
        ("EURUSD", 1.25)
    ]
    tables = query(database_url, "select relname::text from pg_class where relnamespace = 'public'::regnamespace")
    assert tables == [(name,)]


def test_a_dropped_column_is_refused_by_name(database_url: str) -> None:
    prepare_database(database_url)
    query(database_url, "alter table market_data drop column spread cascade")
    with pytest.raises(SchemaMismatchError, match="missing columns: spread;") as error:
        prepare_database(database_url)
    one_line(error)


def test_a_column_somebody_added_is_no_obstacle(database_url: str) -> None:
    prepare_database(database_url)
    query(database_url, "alter table market_data add column remark text")
    prepare_database(database_url)


def first_version(url: str) -> None:
    """The database as the first version of the schema left it, with a bar and its correction."""
    folder = importlib.resources.files("mt5_crs_pipeline.adapters").joinpath("schema")
    query(url, folder.joinpath("001_market_data.sql").read_text("utf-8"))
    query(
        url,
        "create table mt5_crs_schema_version"
        " (version integer primary key, applied_at timestamptz not null default now());"
        " insert into mt5_crs_schema_version (version) values (1);"
        " insert into market_data_timeframe values ('D1', '1 day')",
    )
    for close in (1.1, 1.2):
        query(url, "insert into market_data values ('EURUSD', 'D1', '2024-01-02', 1, 2, 0.5, %s, null, 7)", (close,))


def test_rows_of_the_first_version_of_the_schema_count_as_recorded_when_it_is_upgraded(database_url: str) -> None:
    first_version(database_url)
    columns = "symbol, time, close, known_at, recorded_by"
    before = query(database_url, f"select {columns} from market_data order by known_at")
    started = datetime.now(UTC)
    prepare_database(database_url)
    assert query(database_url, f"select {columns} from market_data order by known_at") == before
    [(first, last)] = query(database_url, "select min(recorded_at), max(recorded_at) from market_data")
    assert first == last and abs(first - started) < timedelta(minutes=1)
    assert query(database_url, "select close, recorded_at from market_data_latest") == [(1.2, first)]
    assert query(database_url, "select version from mt5_crs_schema_version order by 1") == VERSIONS
    prepare_database(database_url)
    query(database_url, "insert into market_data values ('EURUSD', 'D1', '2024-01-03', 1, 2, 0.5, 1, null, 7)")
    assert query(database_url, "select recorded_at > %s from market_data where time = '2024-01-03'", (first,)) == [
        (True,)
    ]


def test_an_upgrade_of_a_table_changed_by_hand_is_refused_and_changes_nothing(database_url: str) -> None:
    first_version(database_url)
    query(database_url, "alter table market_data drop column spread cascade")
    with pytest.raises(SchemaMismatchError, match="missing columns: spread;"):
        prepare_database(database_url)
    assert query(database_url, "select max(version) from mt5_crs_schema_version") == [(1,)]


@pytest.mark.parametrize("name", ["model_trial", "model_verdict", "model_champion_change", "model_prediction"])
def test_an_upgrade_that_meets_a_foreign_table_of_its_name_is_refused_and_changes_nothing(
    database_url: str, name: str
) -> None:
    first_version(database_url)
    query(database_url, f"create table {name} (id int, score numeric)")
    with pytest.raises(SchemaMismatchError, match=f"'{name}'.*its columns: id, score.*or rename the table$") as error:
        prepare_database(database_url)
    one_line(error)
    assert query(database_url, "select version from mt5_crs_schema_version") == [(1,)]


def test_a_newer_schema_is_refused(database_url: str) -> None:
    prepare_database(database_url)
    query(database_url, "insert into mt5_crs_schema_version (version) values (99)")
    with pytest.raises(SchemaMismatchError, match=f"version 99, this package knows {NEWEST}: upgrade it") as error:
        prepare_database(database_url)
    one_line(error)


def test_a_failed_migration_leaves_nothing_behind(database_url: str) -> None:
    query(database_url, "create function market_data_refuse_change() returns int language sql as 'select 1'")
    with pytest.raises(psycopg2.Error):
        prepare_database(database_url)
    assert query(database_url, "select relname::text from pg_class where relnamespace = 'public'::regnamespace") == []


# --- Errors ----------------------------------------------------------------------------------------------------------


PASSWORD = "s3cret p@ss/wörd%:#?"


@pytest.fixture(scope="module")
def tcp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a TCP server as the role `reader`, whose password needs percent code."""
    from urllib.parse import quote

    with running_server(tmp_path_factory.mktemp("tcp") / "postgres", over_tcp=True) as url:
        folder = next(tmp_path_factory.getbasetemp().glob("tcp*/postgres"))
        superuser = re.sub(r"//.*@", f"//postgres:{(folder / 'password-postgres').read_text()}@", url)
        connection = psycopg2.connect(superuser)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("create role reader login password %s", (PASSWORD,))
            cursor.execute("create database quotes owner reader")
        connection.close()
        yield re.sub(r"//.*@(.*)/.*", rf"//reader:{quote(PASSWORD, safe='')}@\1/quotes", url)


def test_a_password_in_percent_code_lets_in_through_libpq_and_sqlalchemy(tcp_server: str) -> None:
    prepare_database(tcp_server)
    with connected(tcp_server) as connection, connection.cursor() as cursor:
        cursor.execute("select current_user, current_setting('timezone')")
        assert cursor.fetchone() == ("reader", "UTC")
    engine = sqlalchemy.create_engine(sqlalchemy_url(tcp_server, FEAST_SCHEMA))
    with engine.connect() as session:
        assert session.execute(sqlalchemy.text("select current_user::text")).scalar() == "reader"
    engine.dispose()


@pytest.mark.parametrize(
    ("pattern", "replacement", "kind", "words"),
    [
        (r"reader:[^@]*@", "reader:wr0ngSecret@", DatabaseRefusedError, "password authentication failed"),
        (r"reader:[^@]*@", "reader@", DatabaseRefusedError, "no password supplied"),
        (r"reader:", "nobody-here:", DatabaseRefusedError, "authentication failed"),
        (r"/quotes$", "/absent", DatabaseRefusedError, 'database "absent" does not exist'),
        (r"127.0.0.1:\d+", "127.0.0.1:1", DatabaseUnavailableError, "Connection refused"),
        (r"127.0.0.1:\d+", "no-such-host.invalid:5432", DatabaseUnavailableError, "did not answer"),
        (r"127.0.0.1:\d+", "127.0.0.1:notaport", ConfigurationError, "no valid URL"),
        (r"127.0.0.1:\d+", "127.0.0.1:99999", ConfigurationError, "no valid URL"),
        (r"^postgresql", "mysql", ConfigurationError, "starts with 'mysql'"),
    ],
)
def test_a_server_that_says_no_or_nothing_gets_one_line_without_the_password(
    tcp_server: str, pattern: str, replacement: str, kind: type[PipelineError], words: str
) -> None:
    url = re.sub(pattern, replacement, tcp_server)
    assert url != tcp_server
    with pytest.raises(kind) as error, connected(url):
        pass
    text = one_line(error)
    assert words in text and "MT5_CRS_DATABASE_URL" in text
    assert "s3cret" not in text and "wr0ng" not in text


@pytest.mark.parametrize("password", ["50%zz", "has space%", "in@side:p#w", "a[b"])
def test_a_password_without_percent_code_is_explained_and_not_shown(password: str) -> None:
    with pytest.raises(PipelineError) as error, connected(f"postgresql://u:{password}@127.0.0.1:1/d"):
        pass
    assert password not in one_line(error)
    assert password[:3] not in str(error.value)


def test_an_unreachable_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError) as error, connected(f"postgresql://u@/d?host={tmp_path}"):
        pass
    assert str(tmp_path) in one_line(error)


def test_a_read_only_database_is_refused_in_one_line(tcp_server: str) -> None:
    prepare_database(tcp_server)
    query(tcp_server, "alter database quotes set default_transaction_read_only to on")
    try:
        prepare_database(tcp_server)  # has nothing to write
        with pytest.raises(DatabaseRefusedError, match="read-only") as error, connected(tcp_server) as connection:
            connection.cursor().execute("insert into market_data_timeframe values ('M7', '7 minutes')")
        assert "s3cret" not in one_line(error)
    finally:
        query(tcp_server, "set transaction read write; alter database quotes reset default_transaction_read_only")


def test_a_missing_right_is_refused_in_one_line(database_url: str) -> None:
    with pytest.raises(DatabaseRefusedError, match="permission denied") as error, connected(database_url) as connection:
        connection.cursor().execute("select * from pg_authid")
    one_line(error)


def test_a_block_that_raises_leaves_no_trace(database_url: str) -> None:
    with pytest.raises(KeyError), connected(database_url) as connection:
        connection.cursor().execute("create table trace (x int)")
        raise KeyError
    assert query(database_url, "select to_regclass('trace')") == [(None,)]


def test_a_connection_ends_with_its_block(database_url: str) -> None:
    with connected(database_url) as connection:
        pass
    assert connection.closed


# --- URLs ------------------------------------------------------------------------------------------------------------


def test_sqlalchemy_creates_its_tables_in_the_schema_given(database_url: str) -> None:
    prepare_database(database_url)
    engine = sqlalchemy.create_engine(sqlalchemy_url(database_url, DAGSTER_SCHEMA))
    table = sqlalchemy.Table("runs", sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Integer))
    table.create(engine)
    engine.dispose()
    found = query(database_url, "select schemaname::text from pg_tables where tablename = 'runs'")
    assert found == [(DAGSTER_SCHEMA,)]


def test_options_of_the_user_do_not_override_the_schema(database_url: str) -> None:
    prepare_database(database_url)
    url = f"{database_url}&options=-csearch_path%3Dpublic"
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, FEAST_SCHEMA))
    with engine.connect() as session:
        assert session.execute(sqlalchemy.text("select current_schema()::text")).scalar() == FEAST_SCHEMA
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"])
def test_every_common_scheme_becomes_one_libpq_takes(scheme: str) -> None:
    assert libpq_url(f"{scheme}://u:p@h:1/d") == "postgresql://u:p@h:1/d"


def test_a_description_has_no_password_wherever_the_url_keeps_it() -> None:
    assert describe("postgresql://ann:top%40secret@db.example:6000/bars") == "ann@db.example:6000/bars"
    assert describe("postgresql://ann@/bars?host=%2Ftmp%2FS&password=hidden") == "ann@/tmp/S:5432/bars"
    assert describe("postgresql://db.example/bars") == "@db.example:5432/bars"


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1))
def test_any_password_in_percent_code_reaches_libpq_and_sqlalchemy_unchanged(password: str) -> None:
    from urllib.parse import quote

    url = f"postgresql+psycopg2://u:{quote(password, safe='')}@h:1/d"
    assert parse_dsn(libpq_url(url))["password"] == password
    assert sqlalchemy.make_url(sqlalchemy_url(url, "s")).password == password
    assert describe(url) == "u@h:1/d"
