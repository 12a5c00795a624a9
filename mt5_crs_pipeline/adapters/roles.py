"""SQL roles with the least rights: one that reads what the pipeline keeps, one that brings bars and nothing else."""

from typing import Final

import psycopg2.errors
from psycopg2.sql import SQL, Composable, Identifier

from mt5_crs_pipeline.adapters.postgres import FEAST_SCHEMA, Connection, connected, prepare_database
from mt5_crs_pipeline.core.errors import DatabaseRefusedError

READER: Final = "mt5_crs_reader"
WRITER: Final = "mt5_crs_writer"

_BARS = ("market_data", "market_data_latest", "market_data_timeframe", "market_data_quarantine")
_MODELS = ("model_trial", "model_verdict", "model_champion_change", "model_prediction")
_VERSION = ("mt5_crs_schema_version",)
# (role, right, tables); that a table is append-only is a trigger's to refuse, not a right's.
_RIGHTS: Final = (
    (READER, "select", (*_BARS, *_MODELS, *_VERSION)),
    (WRITER, "select", (*_BARS, *_VERSION)),
    (WRITER, "insert", ("market_data", "market_data_quarantine")),
)


def create_roles(url: str) -> str:
    """Create the roles that are not there, set their rights, and return the schema they hold for.

    Nobody can log in as them: grant them to logins of your own. A second call changes nothing. Raises
    DatabaseRefusedError when the user of `url` may not create roles; then nothing was changed.
    """
    prepare_database(url)
    with connected(url) as connection, connection.cursor() as cursor:
        try:
            for statement in _statements(connection):
                cursor.execute(statement)
        except psycopg2.errors.InsufficientPrivilege as error:
            raise DatabaseRefusedError(
                f"this user may not create roles ({str(error).splitlines()[0]}): let an administrator of the database"
                " run what `mt5-crs roles --sql` prints"
            ) from error
        return _schema(connection)


def roles_sql(url: str) -> str:
    """Return what `create_roles` would execute, as a script for an administrator."""
    prepare_database(url)
    with connected(url) as connection:
        return "\n".join(f"{statement.as_string(connection)};" for statement in _statements(connection))


def _statements(connection: Connection) -> list[Composable]:
    schema = Identifier(_schema(connection))
    made: list[Composable] = []
    for role in (READER, WRITER):
        if not _exists(connection, role):
            made.append(SQL("create role {} nologin").format(Identifier(role)))
        made.append(SQL("grant usage on schema {} to {}").format(schema, Identifier(role)))
    for role, right, tables in _RIGHTS:
        names = SQL(", ").join(SQL("{}.{}").format(schema, Identifier(table)) for table in tables)
        made.append(SQL("grant {} on {} to {}").format(SQL(right), names, Identifier(role)))
    feast, reader = Identifier(FEAST_SCHEMA), Identifier(READER)
    made.append(SQL("grant usage on schema {} to {}").format(feast, reader))
    made.append(SQL("grant select on all tables in schema {} to {}").format(feast, reader))
    # Of tables that Feast is still to create.
    made.append(SQL("alter default privileges in schema {} grant select on tables to {}").format(feast, reader))
    return made


def _exists(connection: Connection, role: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select from pg_roles where rolname = %s", (role,))
        return cursor.rowcount > 0


def _schema(connection: Connection) -> str:
    with connection.cursor() as cursor:
        cursor.execute("select current_schema()")
        return str(cursor.fetchall()[0][0])
