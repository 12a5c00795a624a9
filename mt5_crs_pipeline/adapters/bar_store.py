"""Bars in and out of PostgreSQL: append-only ingest with counts, reads of revisions, and what changed."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Self

import pandas as pd
import psycopg2.errors
import pyarrow as pa
import pyarrow.csv
from psycopg2.extras import execute_batch
from psycopg2.sql import SQL, Composed, Identifier

from mt5_crs_pipeline.adapters.postgres import WRITER_LOCK, Connection, connected
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, BAR_SCHEMA, KEY_COLUMNS, VALUE_COLUMNS, reject_reasons
from mt5_crs_pipeline.core.errors import TransientError

_WRITE_ATTEMPTS = 3


@dataclass(frozen=True)
class IngestCounts:
    """What became of every row that came in; the four add up to the rows offered."""

    inserted: int = 0
    unchanged: int = 0
    revised: int = 0
    quarantined: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class ChangedBars:
    """Bars of one symbol and month that arrived since a cursor, and the last bar their features reach into."""

    symbol: str
    month: str
    reach_month: str
    last_change: int


def ingest(url: str, bars: pd.DataFrame, timeframe: str, source: str, now: datetime) -> IngestCounts:
    """Store the valid closed bars of one timeframe and quarantine the rest, in one transaction.

    `bars` has BAR_COLUMNS with aware UTC times; an optional column `reason` marks rows already rejected. A bar that is
    stored with equal values is unchanged; with other values it is revised: added beside the old version and known
    from now on. Raises the errors of `connected`; then nothing was stored.
    """
    reasons = reject_reasons(bars, timeframe, now)
    if "reason" in bars:
        reasons = bars["reason"].where(bars["reason"].notna(), reasons)
    valid = bars[reasons.isna()]
    rejected = bars[reasons.notna()].assign(reason=reasons.dropna())
    for _ in range(_WRITE_ATTEMPTS):
        try:
            with connected(url) as connection:
                inserted, revised = _append(connection, valid)
                quarantine(connection, rejected, source)
            return IngestCounts(inserted, len(valid) - inserted - revised, revised, len(rejected))
        except psycopg2.errors.UniqueViolation:
            continue  # another program inserted the same new bar meanwhile: classify again
    raise TransientError(f"{source}: other programs keep inserting the same bars; run the command again")


def quarantine(connection: Connection, rejected: pd.DataFrame, source: str) -> None:
    """Keep rejected rows with their `reason`; a row already kept for the same source and reason is not repeated."""
    rows = [
        (
            _text(row.get("symbol")),
            _text(row.get("timeframe")),
            None if pd.isna(row.get("time")) else row["time"].to_pydatetime(),
            row["reason"],
            _text(source),
            json.dumps({str(name): _text(value) for name, value in row.items() if name != "reason"}, sort_keys=True),
        )
        for row in rejected.to_dict("records")
    ]
    with connection.cursor() as cursor:
        execute_batch(
            cursor,
            "insert into market_data_quarantine (symbol, timeframe, time, reason, source, row_content)"
            " values (%s, %s, %s, %s, %s, %s) on conflict do nothing",
            rows,
            page_size=1000,
        )


def read_latest(
    connection: Connection,
    timeframe: str,
    start: datetime | None = None,
    end: datetime | None = None,
    symbols: Iterable[str] = (),
    last: int | None = None,
) -> pa.Table:
    """Return the latest revision of each bar opened in [start, end), BAR_SCHEMA, sorted by symbol and time.

    No `symbols` means all of them; `last` keeps only that many newest bars per symbol.
    """
    columns = _names(BAR_SCHEMA.names)
    query = _bars_query("market_data_latest", start, end, symbols)
    if last is not None:
        query = SQL(
            "select {columns} from (select *, row_number() over (partition by symbol order by time desc) as age"
            " from ({query}) as bars) as numbered where age <= %(last)s"
        ).format(columns=columns, query=query)
    parameters = {"timeframe": timeframe, "start": start, "end": end, "symbols": list(symbols), "last": last}
    return _copy_out(connection, SQL("{} order by symbol, time").format(query), parameters, BAR_SCHEMA)


def read_revisions(
    connection: Connection,
    timeframe: str,
    start: datetime | None = None,
    end: datetime | None = None,
    symbols: Iterable[str] = (),
) -> pa.Table:
    """Return all revisions of the bars opened in [start, end), BAR_SCHEMA, sorted by symbol, time and known_at.

    No `symbols` means all of them. Waits for programs that are inserting bars: whatever they and others commit later is
    recorded after everything returned. Raises TransientError when they do not end.
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute("lock table market_data in share mode")
    except psycopg2.errors.LockNotAvailable as error:
        raise TransientError(
            "another program has inserted bars and not committed them for long: run again when it has ended"
        ) from error
    query = _bars_query("market_data", start, end, symbols)
    parameters = {"timeframe": timeframe, "start": start, "end": end, "symbols": list(symbols)}
    return _copy_out(connection, SQL("{} order by symbol, time, known_at").format(query), parameters, BAR_SCHEMA)


def months_with_bars(
    connection: Connection,
    timeframe: str,
    symbols: Iterable[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
) -> list[str]:
    """Return the months that hold bars opened in [start, end), sorted, such as ['2024-01', '2024-03']."""
    query = SQL("select distinct to_char(time at time zone 'UTC', 'YYYY-MM') from ({}) as bars order by 1").format(
        _bars_query("market_data", start, end, symbols)
    )
    with connection.cursor() as cursor:
        cursor.execute(query, {"timeframe": timeframe, "start": start, "end": end, "symbols": list(symbols)})
        return [month for (month,) in cursor.fetchall()]


def revisions_by_month(
    connection: Connection, timeframe: str, recorded_before: datetime, symbols: Iterable[str] = ()
) -> dict[str, int]:
    """Return, by month such as '2024-01', how many revisions of its bars were recorded before an instant."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select to_char(time at time zone 'UTC', 'YYYY-MM'), count(*) from market_data"
            " where timeframe = %(timeframe)s and recorded_at < %(before)s"
            " and (%(symbols)s = '{}' or symbol = any(%(symbols)s)) group by 1 order by 1",
            {"timeframe": timeframe, "before": recorded_before, "symbols": list(symbols)},
        )
        return dict(cursor.fetchall())


def stored_symbols(connection: Connection, timeframe: str) -> list[str]:
    """Return the symbols that have bars of `timeframe`, sorted."""
    with connection.cursor() as cursor:
        cursor.execute("select distinct symbol from market_data where timeframe = %s order by 1", (timeframe,))
        return [symbol for (symbol,) in cursor.fetchall()]


def changes_since(
    connection: Connection, timeframe: str, cursor_position: int | None, reach_bars: int, symbols: Iterable[str] = ()
) -> tuple[list[ChangedBars], int]:
    """Return what was committed since `cursor_position` (None: ever) and the position to remember.

    Positions are transaction ids below which everything has ended, so a transaction that commits late is seen in the
    call after its commit, never lost. A position from another server (higher than this one's) counts as None.
    `reach_bars` is how many later bars a change still influences.
    """
    with connection.cursor() as cursor:
        cursor.execute("select pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
        position = int(cursor.fetchall()[0][0])
        since = cursor_position if cursor_position is not None and cursor_position <= position else 0
        cursor.execute(*changes_query(timeframe, since, position, reach_bars, symbols))
        changed = [ChangedBars(symbol, month, reach, last) for symbol, month, last, reach in cursor.fetchall()]
    return changed, position


def changes_query(
    timeframe: str, since: int, until: int, reach_bars: int, symbols: Iterable[str]
) -> tuple[str, dict[str, Any]]:
    """Return the query, and its parameters, for the bars recorded by transactions of [since, until)."""
    query = """
        with changed as (
            select symbol, to_char(time at time zone 'UTC', 'YYYY-MM') as month,
                   max(time) as newest, max(recorded_by::text::bigint) as last_change
            from market_data
            where timeframe = %(timeframe)s and recorded_by >= %(since)s::text::xid8
              and recorded_by < %(until)s::text::xid8 and (%(symbols)s = '{}' or symbol = any(%(symbols)s))
            group by 1, 2
        )
        select symbol, month, last_change, to_char(coalesce(reach.time, newest) at time zone 'UTC', 'YYYY-MM')
        from changed left join lateral (
            select max(time) as time from (
                select distinct time from market_data later
                where later.symbol = changed.symbol and later.timeframe = %(timeframe)s
                  and later.time > changed.newest
                order by time limit %(reach)s
            ) as following
        ) as reach on true
        order by symbol, month
    """
    parameters = {
        "timeframe": timeframe,
        "since": str(since),
        "until": str(until),
        "reach": reach_bars,
        "symbols": list(symbols),
    }
    return query, parameters


def read_foreign_table(
    connection: Connection, table: str, mapping: dict[str, str], chunk_rows: int
) -> Iterator[pd.DataFrame]:
    """Yield an existing table's rows in chunks, its columns renamed by `mapping` (ours -> theirs).

    `table` is `name` or `schema.name`. Memory holds one chunk at a time.
    """
    columns = SQL(", ").join(
        SQL("{} as {}").format(Identifier(theirs), Identifier(ours)) for ours, theirs in mapping.items()
    )
    query = SQL("select {} from {}").format(columns, Identifier(*table.split(".", 1)))
    with connection.cursor("foreign_bars") as cursor:
        cursor.itersize = chunk_rows
        cursor.execute(query)
        while rows := cursor.fetchmany(chunk_rows):
            yield pd.DataFrame(rows, columns=list(mapping))


def foreign_columns(connection: Connection, table: str) -> list[str]:
    """Return the column names of `table` (`name` or `schema.name`); empty when there is no such table."""
    *schema, name = table.split(".", 1)
    with connection.cursor() as cursor:
        cursor.execute(
            "select attname from pg_attribute join pg_class on pg_class.oid = attrelid"
            " join pg_namespace on pg_namespace.oid = relnamespace"
            " where relname = %(name)s and relkind = any('{r,p,v,m,f}') and attnum > 0 and not attisdropped"
            " and case when %(schema)s = '{}' then pg_table_is_visible(pg_class.oid) else nspname = any(%(schema)s) end"
            " order by attnum",
            {"name": name, "schema": schema},
        )
        return [column for (column,) in cursor.fetchall()]


def _append(connection: Connection, bars: pd.DataFrame) -> tuple[int, int]:
    """Insert what is new and what differs from the latest revision; return both counts."""
    if bars.empty:
        return 0, 0
    columns = _names(BAR_COLUMNS)
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (WRITER_LOCK,))
        cursor.execute(
            SQL("create temporary table incoming on commit drop as select {} from market_data with no data").format(
                columns
            )
        )
        buffer = io.BytesIO()
        table = pa.Table.from_pandas(bars[list(BAR_COLUMNS)], preserve_index=False)
        pa.csv.write_csv(table, buffer, pa.csv.WriteOptions(include_header=False, quoting_style="needed"))
        buffer.seek(0)
        cursor.copy_expert(SQL("copy incoming ({}) from stdin with (format csv)").format(columns), buffer)
        cursor.execute("analyze incoming")
        cursor.execute(
            SQL(
                "create temporary table stored on commit drop as"
                " select distinct on (symbol, timeframe, time) {columns}, known_at"
                " from market_data join incoming using (symbol, timeframe, time)"
                " order by symbol, timeframe, time, known_at desc"
            ).format(columns=_qualified("market_data"))
        )
        insert = SQL("insert into market_data ({columns}, known_at) select {incoming}, ").format(
            columns=columns, incoming=_qualified("incoming")
        )
        cursor.execute(
            insert
            + SQL(
                "greatest(market_data_recorded_at(), market_data_close(incoming.timeframe, incoming.time),"
                " stored.known_at + interval '1 microsecond')"
                " from incoming join stored using (symbol, timeframe, time)"
                " where (select row({new})) is distinct from (select row({old}))"
            ).format(
                new=SQL(", ").join(Identifier("incoming", name) for name in VALUE_COLUMNS),
                old=SQL(", ").join(Identifier("stored", name) for name in VALUE_COLUMNS),
            )
        )
        revised = cursor.rowcount
        cursor.execute(
            insert
            + SQL(
                "market_data_close(incoming.timeframe, incoming.time) from incoming"
                " where not exists (select from stored where (stored.symbol, stored.timeframe, stored.time) ="
                " (incoming.symbol, incoming.timeframe, incoming.time))"
            )
        )
        inserted = cursor.rowcount
        # Until the server looks by itself, it would plan for a table as small as it was.
        cursor.execute("select reltuples < %s from pg_class where oid = 'market_data'::regclass", (inserted,))
        if cursor.fetchone() == (True,):
            cursor.execute("analyze (skip_locked) market_data")
        return inserted, revised


def _bars_query(relation: str, start: datetime | None, end: datetime | None, symbols: Iterable[str]) -> Composed:
    """Return the query for the BAR_SCHEMA columns of the bars opened in [start, end) in `relation`."""
    conditions = [SQL("timeframe = %(timeframe)s")]
    conditions += [SQL("time >= %(start)s")] if start else []
    conditions += [SQL("time < %(end)s")] if end else []
    conditions += [SQL("symbol = any(%(symbols)s)")] if symbols else []
    return SQL("select {columns} from {relation} where {conditions}").format(
        columns=_names(BAR_SCHEMA.names), relation=Identifier(relation), conditions=SQL(" and ").join(conditions)
    )


def _names(columns: Iterable[str]) -> Composed:
    return SQL(", ").join(map(Identifier, columns))


def _qualified(table: str) -> Composed:
    return SQL(", ").join(
        Identifier(name) if name in KEY_COLUMNS and table == "market_data" else Identifier(table, name)
        for name in BAR_COLUMNS
    )


def _copy_out(connection: Connection, query: Composed, parameters: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Run `query` and return its rows as Arrow; PostgreSQL prints doubles so that they read back to the same bits."""
    buffer = io.BytesIO()
    with connection.cursor() as cursor:
        bound = cursor.mogrify(query, parameters).decode()
        cursor.copy_expert(f"copy ({bound}) to stdout with (format csv)", buffer)
    buffer.seek(0)
    if not buffer.getbuffer().nbytes:
        return schema.empty_table()
    return pa.csv.read_csv(
        buffer,
        read_options=pa.csv.ReadOptions(column_names=schema.names),
        convert_options=pa.csv.ConvertOptions(
            column_types={field.name: field.type for field in schema}, null_values=[""], strings_can_be_null=False
        ),
    ).cast(schema)


def _text(value: object) -> str | None:
    """Return `value` as text PostgreSQL can store: no NUL character, and no half of a surrogate pair."""
    if value is None or value is pd.NaT:
        return None
    return str(value).replace("\x00", "\\0").encode("utf-8", "backslashreplace").decode()
