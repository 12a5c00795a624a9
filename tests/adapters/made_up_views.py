"""Feature stores over made-up views: rows that collide, and questions between, before and after them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from adbc_driver_postgresql import dbapi
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_source import DataSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Float64, Int64, String
from hypothesis import strategies as st

from mt5_crs_pipeline.adapters.database import libpq_url

ASOF = "mt5_crs_pipeline.adapters.asof_offline_store.AsofOfflineStore"
START = pd.Timestamp("2024-03-01", tz="UTC")
SYMBOL = Entity(name="symbol", join_keys=["symbol"], value_type=ValueType.STRING)
VENUE = Entity(name="venue", join_keys=["venue"], value_type=ValueType.INT64)
ENTITIES = {"symbol": SYMBOL, "venue": VENUE}
KEY_TYPES = {"symbol": pa.string(), "venue": pa.int64()}
KEY_VALUES: dict[str, list[Any]] = {"symbol": ["A", "B"], "venue": [1, 2]}
TIMESTAMP = pa.timestamp("us", tz="UTC")
FEATURES = {"price": pa.float64(), "count": pa.int64(), "note": pa.string()}
_numbers = itertools.count(1)


def minute(offset: float | None) -> pd.Timestamp | None:
    """The time so many minutes after START."""
    return None if offset is None else START + pd.Timedelta(minutes=offset)


@dataclass(frozen=True)
class MadeView:
    """A view and the rows of its source: keys, `at` (event), `known` where there is one, and price, count, note."""

    name: str
    keys: list[str]
    rows: pa.Table
    ttl: timedelta | None = None

    @property
    def has_known(self) -> bool:
        return "known" in self.rows.column_names

    @property
    def references(self) -> list[str]:
        return [f"{self.name}:{self.name}_{feature}" for feature in FEATURES]

    def with_source(self, source: DataSource) -> FeatureView:
        types = {"price": Float64, "count": Int64, "note": String}
        return FeatureView(
            name=self.name,
            entities=[ENTITIES[key] for key in self.keys],
            ttl=self.ttl,
            schema=[Field(name=f"{self.name}_{feature}", dtype=dtype) for feature, dtype in types.items()],
            source=source,
        )

    def source_arguments(self) -> dict[str, Any]:
        """What every kind of source is told: times, and that the price has another name in the data."""
        return {
            "name": f"{self.name}_source",
            "timestamp_field": "at",
            "created_timestamp_column": "known" if self.has_known else "",
            "field_mapping": {"raw": f"{self.name}_price"},
        }

    def on_files(self, folder: Path, layout: str = "file") -> FeatureView:
        """The view over Parquet below `folder`."""
        path = write_parquet(self.rows, folder / self.name, layout)
        return self.with_source(FileSource(path=path, **self.source_arguments()))

    def on_postgres(self, url: str, table: str, kind: str = "table") -> FeatureView:
        """The view over a new `table` of the database, which is named in the source or in its query."""
        write_table(self.rows, url, table)
        where = {"table": table} if kind == "table" else {"query": f"select * from {table}"}
        return self.with_source(PostgreSQLSource(**where, **self.source_arguments()))


def made_view(
    name: str, keys: Sequence[str], records: Sequence[dict[str, Any]], ttl: timedelta | None = None
) -> MadeView:
    """A view of `records`, whose times are minutes after START."""
    known = any("known" in record for record in records)
    times = ["at", "known"] if known else ["at"]
    fields = [(key, KEY_TYPES[key]) for key in keys] + [(time, TIMESTAMP) for time in times]
    fields += [("raw", pa.float64()), (f"{name}_count", pa.int64()), (f"{name}_note", pa.string())]
    renamed = {"price": "raw", "count": f"{name}_count", "note": f"{name}_note"}
    rows = [
        {renamed.get(column, column): minute(value) if column in times else value for column, value in record.items()}
        for record in records
    ]
    return MadeView(name, list(keys), pa.Table.from_pylist(rows, schema=pa.schema(fields)), ttl)


def write_parquet(rows: pa.Table, path: Path, layout: str) -> str:
    """Write `rows` in the layout, return the path of the source."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "file":
        pq.write_table(rows, f"{path}.parquet", write_page_checksum=True)
        return f"{path}.parquet"
    if layout == "hive":
        months = pa.array([str(number % 3) for number in range(len(rows))], pa.string())
        parts = rows.append_column("part", months)
        ds.write_dataset(parts, path, format="parquet", partitioning=["part"], partitioning_flavor="hive")
        if not len(rows):
            path.mkdir()
            pq.write_table(rows, path / "empty.parquet")
        return str(path)
    path.mkdir()
    half = len(rows) // 2
    for name, part in (("one", rows.slice(0, half)), ("two", rows.slice(half))):
        pq.write_table(part, path / f"{name}.parquet")
    return str(path) if layout == "folder" else f"{path}/*.parquet"


def write_table(rows: pa.Table, url: str, table: str) -> None:
    """Make `rows` the table, whose name may hold a schema."""
    *schema, name = table.split(".")
    with dbapi.connect(libpq_url(url)) as connection, connection.cursor() as cursor:
        if schema:
            cursor.execute(f"create schema if not exists {schema[0]}")
        cursor.adbc_ingest(name, rows, mode="replace", db_schema_name=schema[0] if schema else "public")
        connection.commit()


def feature_store(folder: Path, offline_store: dict[str, Any], registry: str = "") -> FeatureStore:
    """A new, empty feature store below `folder`."""
    name = f"store{next(_numbers)}"
    return FeatureStore(
        config=RepoConfig(
            project="made_up",
            provider="local",
            registry=registry or str(folder / f"{name}.db"),
            online_store={"type": "sqlite", "path": str(folder / f"{name}.sqlite")},
            offline_store=offline_store,
            entity_key_serialization_version=3,
        )
    )


def connection_settings(url: str, **changes: Any) -> dict[str, Any]:
    """The settings below `offline_store` that lead to the database."""
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(libpq_url(url))
    settings = {
        "host": parts["host"],
        "port": int(parts.get("port", 5432)),
        "database": parts["dbname"],
        "user": parts["user"],
        "password": parts.get("password") or "",
        "sslmode": "prefer",
    }
    return settings | changes


def entity_frame(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Entity rows at `minutes`, with their number in `row`."""
    frame = pd.DataFrame(
        {
            "event_timestamp": pd.Series(
                [minute(record["minutes"]) for record in records], dtype="datetime64[us, UTC]"
            ),
            "symbol": pd.Series([record.get("symbol") for record in records], dtype=object),
            "venue": pd.Series([record.get("venue") for record in records], dtype="int64"),
            "row": pd.Series(range(len(records)), dtype="int64"),
            "weight": pd.Series([0.5] * len(records), dtype="float64"),
        }
    )
    return frame[list(columns)]


@dataclass(frozen=True)
class MadeCase:
    """Views and questions to them."""

    views: list[MadeView]
    entities: pd.DataFrame
    full_feature_names: bool = False
    references: list[str] = field(default_factory=list)


OFFSETS = st.one_of(st.integers(-3, 12), st.sampled_from([0.5, 7.25]))


@st.composite
def made_views(draw: st.DrawFn, name: str, *, unknown_arrival: bool) -> MadeView:
    """Rows of which none but the last version of a key and event could be meant: there stock stores agree."""
    keys = draw(st.sampled_from([["symbol"], ["venue"], ["symbol", "venue"], []]))
    known = draw(st.booleans())
    fields: dict[str, Any] = {key: st.sampled_from(KEY_VALUES[key]) for key in keys} | {"at": OFFSETS}
    if known:
        fields["known"] = st.one_of(OFFSETS, st.none()) if unknown_arrival else OFFSETS
    fields |= {
        "price": st.none() | st.sampled_from([0.1, -0.0, 1e300, float("inf")]),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "note": st.none() | st.sampled_from(["", "x", "é\n"]),
    }
    version = (*keys, "at", "known") if known else (*keys, "at")
    records = draw(
        st.lists(
            st.fixed_dictionaries(fields), max_size=14, unique_by=lambda record: tuple(record[name] for name in version)
        )
    )
    ttl = draw(st.sampled_from([None, timedelta(0), timedelta(minutes=2), timedelta(minutes=5), timedelta(days=3650)]))
    view = made_view(name, keys, records, ttl)
    if known and not records:
        view = MadeView(name, view.keys, view.rows.add_column(0, "known", pa.array([], TIMESTAMP)), ttl)
    return view


@st.composite
def made_cases(draw: st.DrawFn, *, unknown_arrival: bool) -> MadeCase:
    """One to three views, features in any order, entity rows in any order."""
    names = ["bars", "quotes", "news"][: draw(st.integers(1, 3))]
    views = [draw(made_views(name, unknown_arrival=unknown_arrival)) for name in names]
    record = st.fixed_dictionaries(
        {
            "minutes": st.one_of(OFFSETS, st.just(20)),
            "symbol": st.sampled_from(["A", "B", "nobody", None]),
            "venue": st.sampled_from([1, 2, 99]),
        }
    )
    records = draw(st.lists(record, min_size=1, max_size=10))
    columns = draw(st.permutations(["event_timestamp", "symbol", "venue", "row", "weight"]))
    references = draw(st.permutations([reference for view in views for reference in view.references]))
    wanted = draw(st.integers(1, len(references)))
    return MadeCase(views, entity_frame(records, columns), draw(st.booleans()), list(references[:wanted]))
