"""PostgreSQL sources: tables and queries, read and written as Arrow tables."""

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from feast.data_source import DataSource
from feast.errors import DataSourceNotFoundException, SavedDatasetLocationAlreadyExists
from feast.repo_config import RepoConfig

from mt5_crs_pipeline.adapters.asof_files import in_types_of
from mt5_crs_pipeline.core.errors import DatabaseRefusedError, DatabaseUnavailableError, InputError

_REFUSED_BEFORE_LOGIN = re.compile(r"authentication failed|no password supplied|FATAL: .*(does not exist|pg_hba\.conf)")
# SQLSTATE classes: connection lost, no resources, shut down by an operator.
_SERVER_IS_GONE = ("08", "53", "57")


def postgres_columns(config: RepoConfig, source: DataSource) -> list[str]:
    """Return the column names of a table or query; raise DataSourceNotFoundException when there is no such table."""
    with _postgres(config) as connection, connection.cursor() as cursor:
        return list(_schema(cursor, _relation(cursor, source)).names)


def read_postgres(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    time_column: str,
    start: datetime | None,
    end: datetime | None,
) -> pa.Table:
    """Return `columns` of the rows in the window, which the server compares."""
    from psycopg.sql import SQL, Identifier

    bounds = [(operator, bound) for operator, bound in ((">=", start), ("<=", end)) if bound is not None]
    conditions = [
        SQL("{} {} ${}").format(Identifier(time_column), SQL(operator), SQL(str(number)))
        for number, (operator, _) in enumerate(bounds, start=1)
    ]
    with _postgres(config) as connection, connection.cursor() as cursor:
        query = SQL("select {columns} from {relation} where {conditions}").format(
            columns=SQL(", ").join(map(Identifier, columns)),
            relation=SQL(_relation(cursor, source)),
            conditions=SQL(" and ").join(conditions) if conditions else SQL("true"),
        )
        cursor.execute(query.as_string(None), tuple(bound.astimezone(UTC) for _, bound in bounds) or None)
        return _plain(cursor.fetch_arrow_table())


def query_postgres(config: RepoConfig, query: str) -> pa.Table:
    """Return the rows of a query of the user's own."""
    with _postgres(config) as connection, connection.cursor() as cursor:
        cursor.execute(_part_of_a_query(query))
        return _plain(cursor.fetch_arrow_table())


def append_to_postgres(config: RepoConfig, source: DataSource, table: pa.Table) -> None:
    """Add `table` to the rows of a table; raise InputError for a value that would change, and for a query."""
    from psycopg.sql import SQL, Identifier

    _table(source)
    with _postgres(config) as connection, connection.cursor() as cursor:
        relation = _relation(cursor, source)
        stored = _schema(cursor, relation)
        # Types that only PostgreSQL knows are left to the server: by way of a table, since COPY converts nothing.
        types = [table.schema.field(one.name) if isinstance(one.type, pa.BaseExtensionType) else one for one in stored]
        table = in_types_of(pa.schema(types), table)
        staging = Identifier(f"rows_{uuid.uuid4().hex}")
        cursor.adbc_ingest(staging.as_string(None).strip('"'), table, temporary=True)
        columns = [Identifier(name) for name in table.column_names]
        names = [Identifier(stored.field(name).metadata[b"POSTGRESQL:type"].decode()) for name in table.column_names]
        insert = SQL("insert into {} ({}) select {} from pg_temp.{}").format(
            SQL(relation),
            SQL(", ").join(columns),
            SQL(", ").join(map(SQL("{}::{}").format, columns, names)),
            staging,
        )
        cursor.execute(insert.as_string(None))
        connection.commit()


def save_to_postgres(config: RepoConfig, source: DataSource, table: pa.Table, *, allow_overwrite: bool) -> None:
    """Make `table` the table; raise SavedDatasetLocationAlreadyExists when there is one, unless that is allowed."""
    with _postgres(config) as connection, connection.cursor() as cursor:
        cursor.execute("select parse_ident($1)", (_table(source),))
        *schema, name = cursor.fetchone()[0]
        if len(schema) > 1:
            raise InputError(f"{_table(source)} is no table: write table or schema.table")
        place = schema[0] if schema else config.offline_store.db_schema
        cursor.execute("select to_regclass(format('%I.%I', $1, $2)) is not null", (place, name))
        if cursor.fetchone()[0] and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=_table(source))
        cursor.adbc_ingest(name, table, mode="replace", db_schema_name=place)
        connection.commit()


@contextlib.contextmanager
def _postgres(config: RepoConfig) -> Iterator[Any]:
    """Yield an ADBC connection in UTC; what the server says comes as one line without the password."""
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi
    from psycopg.conninfo import make_conninfo

    store = config.offline_store
    if not store.host:
        raise InputError("a PostgreSQL source needs host, database, user and password below offline_store")
    where = f"PostgreSQL at {store.user}@{store.host}:{store.port}/{store.database}"
    conninfo = make_conninfo(
        host=store.host,
        port=store.port,
        dbname=store.database,
        user=store.user,
        password=store.password or None,
        sslmode=store.sslmode,
        sslkey=store.sslkey_path,
        sslcert=store.sslcert_path,
        sslrootcert=store.sslrootcert_path,
        options=f"-c search_path={store.db_schema},public -c timezone=UTC",
        connect_timeout=10,
    )
    try:
        with adbc_driver_postgresql.dbapi.connect(conninfo) as connection:
            yield connection
    except adbc_driver_manager.Error as error:
        said = _said(error)
        state = error.sqlstate or ""
        if not state and _REFUSED_BEFORE_LOGIN.search(str(error)):
            raise DatabaseRefusedError(f"{where} refused: {said}; check the connection below offline_store") from error
        gone = state[:2] in _SERVER_IS_GONE if state else "ERROR:" not in str(error)
        if gone and isinstance(error, adbc_driver_manager.OperationalError):
            raise DatabaseUnavailableError(f"{where} did not answer: {said}; is the server up?") from error
        raise InputError(f"{where} refused: {said}") from error


def _said(error: Exception) -> str:
    """Return the server's words in one line, without the query and what the driver adds."""
    words = re.split(r"\s+(?:LINE \d+|Query was):|\.? SQLSTATE:", str(error))[0]
    return " ".join(re.sub(r"^.*?(?:ERROR:|FATAL:|\[libpq\])", "", words, flags=re.DOTALL).split())


def _table(source: DataSource) -> str:
    name: str = source._postgres_options._table
    if not name:
        raise InputError(f"source {source.name!r} is a query: nothing can be written into it")
    return name


def _relation(cursor: Any, source: DataSource) -> str:
    """Return the source as it stands after FROM: the server quotes a table's name, a query is the user's own text."""
    query: str = source._postgres_options._query
    if query:
        return f"({_part_of_a_query(query)}) as source"
    cursor.execute("select to_regclass($1)::text", (_table(source),))
    name = cursor.fetchone()[0]
    if name is None:
        raise DataSourceNotFoundException(_table(source))
    return str(name)


def _schema(cursor: Any, relation: str) -> pa.Schema:
    cursor.execute(f"select * from {relation} limit 0")  # noqa: S608, quoted by the server
    return cursor.fetch_arrow_table().schema


def _part_of_a_query(query: str) -> str:
    """Return the query without its semicolon, and with an end to the comment that may close it."""
    return f"{query.strip().rstrip(';')}\n"


def _plain(table: pa.Table) -> pa.Table:
    """Return numerics as doubles and other types that only PostgreSQL knows as what they are sent as."""
    for at, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):
            stored = pa.chunked_array([chunk.storage for chunk in table[at].chunks], field.type.storage_type)
            is_numeric = (field.metadata or {}).get(b"POSTGRESQL:type") == b"numeric"
            table = table.set_column(at, field.name, stored.cast(pa.float64()) if is_numeric else stored)
    return table.replace_schema_metadata()
