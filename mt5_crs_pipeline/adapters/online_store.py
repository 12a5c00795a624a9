"""Feast's online store, written so that nothing older replaces anything newer and every correction arrives.

Stock Feast gives neither: its PostgreSQL writer lets an older window replace newer rows, its Redis writer skips a
corrected row of equal event time, and two runs at once may interleave. Here one run at a time compares and writes.
What is stored has Feast's own format, so `get_online_features` reads it.
"""

import io
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import Binary
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - the type, beside variables called cursor
from psycopg2.sql import SQL, Composed, Identifier, Literal

from mt5_crs_pipeline.adapters.lake import TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.postgres import FEAST_SCHEMA, connected
from mt5_crs_pipeline.core.feature_rows import KNOWN_AT, RECORDED_AT, feature_schema
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.core.online import StoredRow

# Of the versions of a symbol's rows the newest is the last in this order, of those columns that there are.
_VERSION_ORDER: Final = (EVENT_TIMESTAMP, RECORDED_AT, KNOWN_AT)
_UTC_WITHOUT_ZONE: Final = pa.timestamp("us")
# Any number does, as long as every writer of this package uses the same one.
_WRITER_LOCK: Final = 0x6D7435
# Half-empty pages: a row's new version fits beside the old one, so that no index entry has to be made for it.
_FILL: Final = "fillfactor=45"


@dataclass(frozen=True)
class OnlineWrite:
    """What came of a write: event timestamps (UTC) by symbol.

    Of what was written, and of what was left alone because the same row, or one of a later event, was there.
    """

    written: dict[str, datetime]
    left_alone: dict[str, datetime]


def newest_rows(rows: pa.Table) -> pa.Table:
    """Return the newest version of every symbol's newest row, sorted by symbol; all columns as they are."""
    order = [name for name in _VERSION_ORDER if name in rows.column_names]
    keys = pl.DataFrame(pl.from_arrow(rows.select(["symbol", *order]))).with_row_index("row")
    newest = keys.sort(order, maintain_order=True).group_by("symbol").last().sort("symbol")
    return rows.take(newest["row"].to_arrow())


def newest_in_lake(lake: Lake, months: Sequence[str]) -> pa.Table:
    """Return the newest version of the newest feature row in `months` of every symbol that has one, sorted by symbol.

    Read from the last month back, a month at a time, and whole only where a symbol has its first row.
    """
    found = [feature_schema().empty_table()]
    seen = pa.array([], pa.string())
    for month in sorted(months, reverse=True):
        symbols = lake.read(TECHNICAL_FEATURES, [month], feature_schema(), ["symbol"])["symbol"]
        if not pc.all(pc.is_in(symbols, seen), min_count=0).as_py():
            rows = newest_rows(lake.read(TECHNICAL_FEATURES, [month], feature_schema()))
            found.append(rows.filter(pc.invert(pc.is_in(rows["symbol"], seen))))
            seen = pa.concat_tables(found)["symbol"].combine_chunks()
    return pa.concat_tables(found).sort_by("symbol")


class OnlineStore:
    """The online rows of one feature view with the entity `symbol` and `names` as Float64 features.

    `store` is a feast.FeatureStore on the database at `url`, with its online store there or in Redis.
    """

    def __init__(self, store: Any, view: str, names: Sequence[str], url: str) -> None:
        self._store = store
        self._view = store.get_feature_view(view)
        self._names = list(names)
        self._url = url
        self._in_redis = store.config.online_store.type == "redis"

    def prepare(self) -> None:
        """Make rewriting rows cheap; a second call changes nothing."""
        if not self.is_prepared():
            with connected(self._url) as connection, connection.cursor() as cursor:
                cursor.execute(SQL("alter table {} set (" + _FILL + ")").format(self._table()))

    def is_prepared(self) -> bool:
        """Say whether the rows have a place, and `prepare` has been there."""
        if self._in_redis:
            return True
        with connected(self._url) as connection, connection.cursor() as cursor:
            cursor.execute(
                "select %s = any(reloptions) from pg_class where oid = to_regclass(%s)",
                (_FILL, f'{FEAST_SCHEMA}."{self._table_name()}"'),
            )
            return cursor.fetchone() == (True,)

    def write(self, candidates: Callable[[], pa.Table]) -> OnlineWrite:
        """Write the newest row per symbol of `candidates`, except where the store has it, or one of a later event.

        `candidates` returns rows with symbol, event_timestamp, known_at (and recorded_at), all UTC, and the features;
        NaN and null are stored as missing. It is called under the lock that all writers of this view share, so that
        rows read before a correction never replace it. Symbols that are not among the rows are not touched.
        """
        with connected(self._url) as connection, connection.cursor() as cursor:
            cursor.execute("select pg_advisory_xact_lock(%s, hashtext(%s))", (_WRITER_LOCK, self._table_name()))
            newest = newest_rows(candidates())
            write = self._write_redis if self._in_redis else self._write_postgres
            left_alone = write(cursor, newest) if newest.num_rows else set()
        times = dict(zip(newest["symbol"].to_pylist(), _datetimes(newest[EVENT_TIMESTAMP]), strict=True))
        return OnlineWrite(
            written={symbol: time for symbol, time in times.items() if symbol not in left_alone},
            left_alone={symbol: time for symbol, time in times.items() if symbol in left_alone},
        )

    def read(self, symbols: Collection[str]) -> list[StoredRow]:
        """Return what is stored of each of `symbols`, in their order, whatever its age; a missing value is NaN."""
        keys = [_entity_key(symbol) for symbol in symbols]
        found = self._store._get_provider().online_read(self._store.config, self._view, keys, self._names.copy())
        return [self._stored_row(symbol, *row) for symbol, row in zip(symbols, found, strict=True)]

    def _stored_row(self, symbol: str, time: datetime | None, values: dict[str, Any] | None) -> StoredRow:
        # The Redis store says 1970 where it has nothing.
        if time is None or values is None or not time.timestamp():
            return StoredRow(symbol, None, {})
        doubles = {
            name: value.double_val if value.HasField("double_val") else math.nan for name, value in values.items()
        }
        return StoredRow(symbol, time.astimezone(UTC), {name: doubles.get(name, math.nan) for name in self._names})

    def _write_redis(self, cursor: Cursor, rows: pa.Table) -> set[str]:
        """Write `rows` by Feast's own writer without its comparison; return the symbols that were left alone."""
        from feast.protos.feast.types.Value_pb2 import Value

        stored = {row.symbol: row for row in self.read(rows["symbol"].to_pylist())}
        # A session that the server ended holds no lock any more: this fails then, before anything is written.
        cursor.execute("select 1")
        config = self._store.config.model_copy()
        config._online_store = config.online_store.model_copy(update={"skip_dedup": True})
        stamps = rows["symbol"].to_pylist(), _datetimes(rows[EVENT_TIMESTAMP]), _datetimes(rows[KNOWN_AT])
        data, left_alone = [], set()
        for symbol, time, known_at, *values in zip(*stamps, *self._values(rows).T.tolist(), strict=True):
            there = stored[symbol]
            # As text -0.0 is not 0.0, and NaN is NaN.
            same = there.event_timestamp == time and repr(values) == repr([there.values[name] for name in self._names])
            if same or (there.event_timestamp is not None and there.event_timestamp > time):
                left_alone.add(symbol)
                continue
            messages = [Value() if math.isnan(value) else Value(double_val=value) for value in values]
            data.append((_entity_key(symbol), dict(zip(self._names, messages, strict=True)), time, known_at))
        self._store._get_provider().online_write_batch(config, self._view, data, None)
        return left_alone

    def _write_postgres(self, cursor: Cursor, rows: pa.Table) -> set[str]:
        """Write `rows` in the transaction of `cursor`; return the symbols that were left alone.

        One line per symbol that is written goes to the server, which unfolds it in place. Feast's writer sends a
        statement for each value, and rewrites both indexes for each: several times the work.
        """
        from feast.infra.key_encoding_utils import serialize_entity_key

        version = self._store.config.entity_key_serialization_version
        symbols = rows["symbol"].to_pylist()
        keys = [serialize_entity_key(_entity_key(symbol), version) for symbol in symbols]
        cursor.execute(self._statement(_HOLD_OFF), (keys, _datetimes(rows[EVENT_TIMESTAMP])))
        newer = {row for (row,) in cursor.fetchall()}
        kept = [row for row in range(rows.num_rows) if row not in newer]
        if not kept:
            return {*symbols}
        cursor.execute(
            "create temp table candidate (entity_key bytea, event_ts timestamptz, created_ts timestamptz,"
            " value bytea, value_text text[]) on commit drop"
        )
        cursor.copy_expert("copy candidate from stdin", self._lines(rows.take(kept), [keys[row] for row in kept]))
        cursor.execute(self._statement(_UPDATE), (self._names,))
        if cursor.rowcount == len(kept) * len(self._names):
            return {symbols[row] for row in newer}
        # The others are the same, or not there.
        cursor.execute(self._statement(_COUNT), (self._names,))
        if cursor.fetchone() != (len(kept) * len(self._names),):
            cursor.execute(self._statement(_INSERT), (self._names,))
        cursor.execute(self._statement(_WRITTEN))
        written = {bytes(key) for (key,) in cursor.fetchall()}
        return {symbol for symbol, key in zip(symbols, keys, strict=True) if key not in written}

    def _values(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        """Return the features, a row per row; what is missing is NaN, and there is one NaN."""
        values = np.column_stack([rows[name].to_numpy() for name in self._names]).astype("<f8")
        values[np.isnan(values)] = math.nan
        return values

    def _lines(self, rows: pa.Table, keys: Sequence[bytes]) -> io.StringIO:
        """Return a line per row for COPY: entity key, event and created time, values as Feast has them.

        The encoding of a double is a prefix and its eight bytes, whatever the double.
        """
        prefix = _encoded(1.0)[:-8]
        values = self._values(rows)
        encoded = np.empty(values.shape, dtype=[("prefix", f"S{len(prefix)}"), ("double", "<f8")])
        encoded["prefix"], encoded["double"] = prefix, values
        times, known = (rows[name].cast(_UTC_WITHOUT_ZONE).cast("string") for name in (EVENT_TIMESTAMP, KNOWN_AT))
        columns = zip(keys, times.to_pylist(), known.to_pylist(), encoded, values.tolist(), strict=True)
        return io.StringIO(
            "\n".join(
                f"\\\\x{key.hex()}\t{time}Z\t{known_at}Z\t\\\\x{doubles.tobytes().hex()}"
                f"\t{{{repr(numbers)[1:-1].replace('nan', 'NULL')}}}"
                for key, time, known_at, doubles, numbers in columns
            )
        )

    def _statement(self, statement: str) -> Composed:
        return SQL(statement).format(table=self._table(), value=SQL(_VALUE).format(Literal(Binary(_encoded(math.nan)))))

    def _table(self) -> Identifier:
        return Identifier(FEAST_SCHEMA, self._table_name())

    def _table_name(self) -> str:
        from feast.infra.online_stores.helpers import compute_table_id

        name: str = compute_table_id(self._store.config.project, self._view)
        return name


# Nine bytes for each double; a missing value is an empty message. Each of the texts is found by going through those
# before it, so they are not looked at but for what is written.
_VALUE: Final = "coalesce(nullif(substring(c.value from 9 * i::int - 8 for 9), {}), '')"
_HOLD_OFF: Final = (
    # By the times of all features: a view that has changed holds some that are no longer, or not yet, among the names.
    "select c.row - 1 from unnest(%s::bytea[], %s::timestamptz[]) with ordinality as c (entity_key, event_ts, row)"
    " where exists"
    " (select from {table} as stored where stored.entity_key = c.entity_key and stored.event_ts > c.event_ts)"
)
_UPDATE: Final = (
    "update {table} as stored set value = {value}, value_text = c.value_text[i], vector_value = null,"
    " event_ts = c.event_ts, created_ts = c.created_ts"
    " from candidate as c, unnest(%s::text[]) with ordinality as feature (name, i)"
    " where stored.entity_key = c.entity_key and stored.feature_name = name"
    " and (stored.event_ts, stored.created_ts, stored.value) is distinct from (c.event_ts, c.created_ts, {value})"
)
_COUNT: Final = (
    "select count(*) from {table} where entity_key in (select entity_key from candidate) and feature_name = any (%s)"
)
_INSERT: Final = (
    "insert into {table} (entity_key, feature_name, value, value_text, event_ts, created_ts)"
    " select c.entity_key, name, {value}, c.value_text[i], c.event_ts, c.created_ts"
    " from candidate as c, unnest(%s::text[]) with ordinality as feature (name, i)"
    " on conflict (entity_key, feature_name) do nothing"
)
_WRITTEN: Final = "select distinct entity_key from {table} where xmin = pg_current_xact_id()::xid"


def _encoded(value: float) -> bytes:
    """Return a double as Feast stores it."""
    from feast.protos.feast.types.Value_pb2 import Value

    message: bytes = Value(double_val=value).SerializeToString()
    return message


def _datetimes(column: pa.ChunkedArray) -> list[datetime]:
    """Return microsecond UTC timestamps as aware datetimes; Arrow's own conversion takes a hundred times as long."""
    return [time.replace(tzinfo=UTC) for time in column.to_numpy().tolist()]


def _entity_key(symbol: str) -> Any:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    return EntityKey(join_keys=["symbol"], entity_values=[Value(string_val=symbol)])
