"""Connections to PostgreSQL, its errors in one line each, and the versioned schema of the bars."""

import contextlib
import importlib.resources
import re
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg2
import psycopg2.extensions
import psycopg2.sql
from psycopg2.extensions import parse_dsn

from mt5_crs_pipeline.core.bars import BAR_SCHEMA, TIMEFRAME_MINUTES
from mt5_crs_pipeline.core.errors import (
    ConfigurationError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    SchemaMismatchError,
)

Connection = psycopg2.extensions.connection

# Every name this package keeps in the server besides the bars in the schema the user connects to.
FEAST_SCHEMA = "feast"
DAGSTER_SCHEMA = "dagster"

_MIGRATIONS = (
    "001_market_data.sql",
    "002_recorded_at.sql",
    "003_promotion.sql",
    "004_live_predictions.sql",
    "005_alert.sql",
    "006_recorded_in_order.sql",
)
# By the migration that creates them.
_OWN_TABLES = {
    1: ("market_data", "market_data_latest", "market_data_quarantine", "market_data_timeframe"),
    3: ("model_trial", "model_verdict", "model_champion_change"),
    4: ("model_prediction",),
    5: ("alert",),
}
_DATABASE_COLUMNS = (*BAR_SCHEMA.names, "recorded_by")
# Any number does, as long as every writer of this package uses the same one.
WRITER_LOCK = 0x6D743563


def libpq_url(url: str) -> str:
    """Return `url` as libpq takes it: no SQLAlchemy driver in the scheme.

    Raises ConfigurationError naming the form when it is no such URL; the message shows nothing of the password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"MT5_CRS_DATABASE_URL starts with {scheme.split(':')[0]!r}: write postgresql://user:password@host:5432/name"
        )
    plain = f"postgresql://{rest}"
    try:
        parse_dsn(plain)
        _ = urlsplit(plain).port
    except (psycopg2.ProgrammingError, ValueError):
        raise ConfigurationError(
            "MT5_CRS_DATABASE_URL is no valid URL: write postgresql://user:password@host:5432/name, and special"
            " characters in the password in percent code, for example %40 for @"
        ) from None
    return plain


def sqlalchemy_url(url: str, schema: str) -> str:
    """Return `url` for SQLAlchemy over psycopg2, with `schema` as the only one searched."""
    parts = urlsplit(libpq_url(url))
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "options"]
    query.append(("options", f"-csearch_path={schema}"))
    # SQLAlchemy 2.1 takes a plain postgresql:// for another driver.
    return urlunsplit(("postgresql+psycopg2", parts.netloc, parts.path, urlencode(query, quote_via=quote), ""))


def describe(url: str) -> str:
    """Return user, host and database of `url` without its password, for messages."""
    parts = parse_dsn(libpq_url(url))
    user, host, port, name = (parts.get(key, "") for key in ("user", "host", "port", "dbname"))
    return f"{user}@{host or 'localhost'}:{port or 5432}/{name}"


@contextlib.contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Yield a connection whose one transaction commits when the block ends and rolls back when it raises.

    The session runs in UTC. Raises DatabaseUnavailableError when nobody answers and DatabaseRefusedError when the
    server says no; neither shows the password.
    """
    with _one_line_errors(url):
        connection = psycopg2.connect(libpq_url(url), connect_timeout=10, application_name="mt5_crs")
        try:
            with connection:
                with connection.cursor() as cursor:
                    cursor.execute("set timezone to 'UTC'")
                    cursor.execute("set lock_timeout to '60s'")
                yield connection
        finally:
            connection.close()


def wait_for_lock(connection: Connection, name: str, waiting: Callable[[], None]) -> None:
    """Take the advisory lock called `name` until the connection's transaction ends, however long that takes.

    `waiting` is called once if somebody else has it. The server lets go of it when the process that has it dies.
    """
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_xact_lock(hashtextextended(%s, 0))", (name,))
        if not _single(cursor):
            waiting()
            cursor.execute("set local lock_timeout to 0")
            cursor.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))


def prepare_database(url: str) -> None:
    """Create or upgrade everything this package keeps in the server; a second call changes nothing.

    Raises SchemaMismatchError when one of its table names is taken by another table; nothing is altered then.
    """
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (WRITER_LOCK,))
        cursor.execute("select to_regclass('mt5_crs_schema_version') is not null")
        version = 0
        if _single(cursor):
            cursor.execute("select coalesce(max(version), 0) from mt5_crs_schema_version")
            version = int(str(_single(cursor)))
        if version > len(_MIGRATIONS):
            raise SchemaMismatchError(
                f"{describe(url)} has schema version {version}, this package knows {len(_MIGRATIONS)}: upgrade it"
            )
        _refuse_foreign_tables(url, cursor, version)
        if version == 0:
            cursor.execute(
                "create table if not exists mt5_crs_schema_version"
                " (version integer primary key, applied_at timestamptz not null default now())"
            )
        for number, name in enumerate(_MIGRATIONS[version:], start=version + 1):
            cursor.execute(importlib.resources.files(__package__).joinpath("schema", name).read_text("utf-8"))
            cursor.execute("insert into mt5_crs_schema_version (version) values (%s)", (number,))
        _refuse_changed_shape(url, cursor)
        lengths = [(name, f"{minutes} minutes") for name, minutes in TIMEFRAME_MINUTES.items()] + [("MN1", "1 month")]
        cursor.execute("select timeframe from market_data_timeframe")
        known = {name for (name,) in cursor.fetchall()}
        # Nothing is written where nothing is missing: those who may only read or bring bars pass here too.
        missing = [length for length in lengths if length[0] not in known]
        cursor.executemany("insert into market_data_timeframe values (%s, %s) on conflict do nothing", missing)
        for schema in (FEAST_SCHEMA, DAGSTER_SCHEMA):
            statement = psycopg2.sql.SQL("create schema if not exists {}").format(psycopg2.sql.Identifier(schema))
            cursor.execute("select to_regnamespace(%s) is not null", (schema,))
            if not _single(cursor):
                cursor.execute(statement)


def _refuse_foreign_tables(url: str, cursor: psycopg2.extensions.cursor, version: int) -> None:
    """Stop before the migrations after `version` when a table they create is already there, saying what it is."""
    for table in (name for number, names in _OWN_TABLES.items() if number > version for name in names):
        columns = _columns(cursor, table)
        if not columns:
            continue
        found, bars = f"its columns: {', '.join(columns)}", ""
        if table.startswith("market_data"):
            found, bars = _difference(columns), " and take its bars over with `mt5-crs ingest --table`"
        raise SchemaMismatchError(
            f"{describe(url)} already has a table {table!r} that this package did not create ({found}): point"
            f" MT5_CRS_DATABASE_URL at another database, or rename the table{bars}"
        )


def _refuse_changed_shape(url: str, cursor: psycopg2.extensions.cursor) -> None:
    columns = _columns(cursor, "market_data")
    if columns and not set(_DATABASE_COLUMNS) <= set(columns):
        raise SchemaMismatchError(
            f"{describe(url)}: table 'market_data' was changed by hand ({_difference(columns)}): restore its columns"
        )


def _columns(cursor: psycopg2.extensions.cursor, table: str) -> list[str]:
    cursor.execute(
        "select attname from pg_attribute where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
        (table,),
    )
    return [name for (name,) in cursor.fetchall()]


def _difference(columns: list[str]) -> str:
    missing = [name for name in _DATABASE_COLUMNS if name not in columns]
    extra = [name for name in columns if name not in _DATABASE_COLUMNS]
    return f"missing columns: {', '.join(missing) or 'none'}; other columns: {', '.join(extra) or 'none'}"


def _single(cursor: psycopg2.extensions.cursor) -> object:
    row = cursor.fetchone()
    return row[0] if row else None


@contextlib.contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    refused_before_login = re.compile(
        r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry"
    )
    try:
        yield
    except psycopg2.Error as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        said = re.sub(r"^.*FATAL:\s*", "", said)
        code = error.pgcode or ""
        where = f"PostgreSQL at {describe(url)}"
        if code in ("25006", "42501") or (not code and refused_before_login.search(str(error))):
            remedy = "check user, password and rights in MT5_CRS_DATABASE_URL"
            raise DatabaseRefusedError(f"{where} refused: {said}; {remedy}") from error
        if code in ("53100", "53200"):
            raise DatabaseRefusedError(f"{where} has no room left: {said}; free space on the server") from error
        if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
            raise DatabaseUnavailableError(
                f"{where} did not answer: {said}; is the server up, and is MT5_CRS_DATABASE_URL right?"
            ) from error
        raise
