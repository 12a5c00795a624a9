"""Bad input to the as-of store: one clear line each, Feast's own exception where it has one, and nothing written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.errors import (
    DataSourceNotFoundException,
    EntityDFNotDateTime,
    EntityTimestampInferenceException,
    FeastEntityDFMissingColumnsError,
    FeastJoinKeysDuringMaterialization,
    FeastOfflineStoreUnsupportedDataSource,
    FeatureViewNotFoundException,
    InvalidEntityType,
    SpecifiedFeaturesNotPresentError,
)
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.infra.offline_stores.redshift_source import RedshiftSource
from feast.types import Float64, String

from mt5_crs_pipeline.adapters.files import sha256
from mt5_crs_pipeline.adapters.postgres import libpq_url
from mt5_crs_pipeline.core.errors import DatabaseRefusedError, DatabaseUnavailableError, InputError
from tests.adapters.made_up_bars import query
from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    SYMBOL,
    connection_settings,
    entity_frame,
    feature_store,
    made_view,
    minute,
    write_table,
)

BARS = made_view(
    "bars", ["symbol"], [{"symbol": symbol, "at": at, "price": float(at)} for at in range(50) for symbol in "AB"]
)
QUESTIONS = entity_frame([{"symbol": "A", "minutes": 9, "venue": 0}], ["symbol", "event_timestamp"])


def applied(folder: Path, view: FeatureView, **offline_store: Any) -> FeatureStore:
    store = feature_store(folder, {"type": ASOF, **offline_store})
    store.apply([*ENTITIES.values(), view])
    return store


def ask(store: FeatureStore, entities: Any = QUESTIONS, features: Any = None) -> pd.DataFrame:
    return store.get_historical_features(entity_df=entities, features=features or BARS.references).to_df()


def refused(expected: type[Exception], call: Callable[[], object], *words: str) -> str:
    """The one line with which `call` is refused; it holds the words."""
    with pytest.raises(expected) as refusal:
        call()
    said = str(refusal.value)
    assert "\n" not in said.strip() and 10 < len(said) < 700, said
    for word in words:
        assert word in said, said
    return said


def files_of(folder: Path) -> dict[Path, str]:
    return {path: sha256(path) for path in folder.rglob("*.parquet")}


# --- The data --------------------------------------------------------------------------------------------------------


def changed(folder: Path, **columns: Any) -> FeatureView:
    """The view over rows of which columns are replaced, or left out when None."""
    rows = BARS.rows
    for name, values in columns.items():
        index = rows.column_names.index(name)
        rows = rows.remove_column(index) if values is None else rows.set_column(index, name, values)
    pq.write_table(rows, folder / "changed.parquet")
    return BARS.with_source(FileSource(path=str(folder / "changed.parquet"), **BARS.source_arguments()))


def test_a_feature_that_the_data_lacks(tmp_path: Path) -> None:
    store = applied(tmp_path, changed(tmp_path, bars_count=None))
    refused(SpecifiedFeaturesNotPresentError, lambda: ask(store), "bars_count", "bars_source")
    assert ask(store, features=["bars:bars_price"])["bars_price"].tolist() == [9.0]


@pytest.mark.parametrize("name", ["symbol", "at"])
def test_a_key_or_time_that_the_data_lacks(tmp_path: Path, name: str) -> None:
    store = applied(tmp_path, changed(tmp_path, **{name: None}))
    refused(FeastJoinKeysDuringMaterialization, lambda: ask(store), name, "bars_source")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_where_numbers_are_declared(tmp_path: Path, kind: pa.DataType) -> None:
    store = applied(tmp_path, changed(tmp_path, raw=pa.array(["1.5"] * len(BARS.rows)).cast(kind)))
    refused(InputError, lambda: ask(store), "'bars'", "raw", "Float64", "string")


@pytest.mark.parametrize("asked", [[1], [True], [1.5], [2.0**60]])
def test_a_key_of_another_type(tmp_path: Path, asked: list[Any]) -> None:
    text = applied(tmp_path, BARS.on_files(tmp_path))
    entities = QUESTIONS.assign(symbol=asked)
    refused(InputError, lambda: ask(text, entities), "'symbol'", str(pa.array(asked).type), "string")
    if asked != [1]:
        numbers = applied(tmp_path, changed(tmp_path, symbol=pa.array(range(len(BARS.rows)), pa.int64())))
        refused(InputError, lambda: ask(numbers, entities), "'symbol'", "int64")


def test_times_that_are_none(tmp_path: Path) -> None:
    size = len(BARS.rows)
    store = applied(tmp_path, changed(tmp_path, at=pa.array(["2024-03-01"] * (size - 1) + ["soon"])))
    refused(InputError, lambda: ask(store), "no time", "'soon'", "'at'")
    store = applied(tmp_path, changed(tmp_path, at=pa.array(range(size))))
    refused(InputError, lambda: ask(store), "int64", "'at'")


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_file_or_folder_that_is_not_there(tmp_path: Path) -> None:
    view = BARS.on_files(tmp_path)
    store = applied(tmp_path, view)
    (tmp_path / "bars.parquet").unlink()
    for call in (
        lambda: ask(store),
        lambda: store.materialize(minute(0).to_pydatetime(), minute(9).to_pydatetime()),
        lambda: store._get_provider().ingest_df_to_offline_store(view, BARS.rows),
    ):
        refused(DataSourceNotFoundException, call, str(tmp_path / "bars.parquet"))
    assert not files_of(tmp_path)


@pytest.mark.parametrize("name", ["folder", "folder/*.parquet", "folder/**/*.parquet"])
def test_a_folder_or_pattern_without_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder" / "month=1").mkdir(parents=True)
    view = BARS.with_source(FileSource(path=str(tmp_path / name), **BARS.source_arguments()))
    refused(DataSourceNotFoundException, lambda: ask(applied(tmp_path, view)), str(tmp_path / name))


def damage(path: Path, at: float) -> None:
    """Flip a bit at the place, a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"symbol,at\nA,1\n", b"PAR1" + bytes(400) + b"PAR1"])
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_a_file_that_is_no_parquet(tmp_path: Path, layout: str, content: bytes) -> None:
    view = BARS.on_files(tmp_path, layout)
    store = applied(tmp_path, view)
    for path in sorted(files_of(tmp_path)):
        good = path.read_bytes()
        path.write_bytes(content)
        refused(InputError, lambda: ask(store), str(path), "read")
        if layout == "file":
            refused(InputError, lambda: store._get_provider().ingest_df_to_offline_store(view, BARS.rows), str(path))
        assert path.read_bytes() == content
        path.write_bytes(good)
    assert ask(store)["bars_price"].tolist() == [9.0]


def test_a_flipped_bit_in_a_page(tmp_path: Path) -> None:
    """Found by the page's checksum, where the file still decodes."""
    path = tmp_path / "bars.parquet"
    view = BARS.on_files(tmp_path)
    pq.write_table(BARS.rows, path, write_page_checksum=True, compression="none", use_dictionary=False)
    store = applied(tmp_path, view)
    value = np.float64(9).tobytes()
    content = path.read_bytes()
    path.write_bytes(content.replace(value, np.float64(10).tobytes()[:7] + value[7:], 1))
    assert path.read_bytes() != content
    assert pq.read_table(path).num_rows == len(BARS.rows)
    before = files_of(tmp_path)
    refused(InputError, lambda: ask(store, features=["bars:bars_price"]), str(path), "CRC")
    refused(InputError, lambda: store._get_provider().ingest_df_to_offline_store(view, BARS.rows), str(path), "CRC")
    assert files_of(tmp_path) == before


def test_a_file_of_a_folder_that_lacks_a_column(tmp_path: Path) -> None:
    """Which Arrow would fill with nulls."""
    store = applied(tmp_path, BARS.on_files(tmp_path, "folder"))
    path = tmp_path / "bars" / "two.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["raw"]), path)
    refused(InputError, lambda: ask(store), str(path), "raw")
    assert ask(store, features=["bars:bars_note"])["bars_note"].tolist() == [None]


def test_files_of_a_folder_that_do_not_go_together(tmp_path: Path) -> None:
    store = applied(tmp_path, BARS.on_files(tmp_path, "folder"))
    path = tmp_path / "bars" / "two.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(rows.column_names.index("raw"), "raw", pa.array(["x"] * len(rows))), path)
    late = QUESTIONS.assign(event_timestamp=minute(49))
    refused(InputError, lambda: ask(store, late), str(tmp_path / "bars"), "'x'")


# --- The database ----------------------------------------------------------------------------------------------------


def database_view(**where: Any) -> FeatureView:
    return BARS.with_source(PostgreSQLSource(**BARS.source_arguments() | where))


def test_a_server_that_is_not_there(tmp_path: Path, database_url: str) -> None:
    view = database_view(table="bars")
    for change in ({"host": str(tmp_path)}, {"host": "127.0.0.1", "port": 1}):
        settings = connection_settings(database_url, password="s3cret-word", **change)
        said = refused(
            DatabaseUnavailableError, lambda settings=settings: ask(applied(tmp_path, view, **settings)), change["host"]
        )
        assert "s3cret" not in said


def test_no_connection_settings(tmp_path: Path) -> None:
    refused(InputError, lambda: ask(applied(tmp_path, database_view(table="bars"))), "host", "offline_store")


def test_a_database_or_user_that_is_not_there(tmp_path: Path, database_url: str) -> None:
    for change in ({"database": "nosuch"}, {"user": "nosuch"}):
        settings = connection_settings(database_url, **change)
        store = applied(tmp_path, database_view(table="bars"), **settings)
        refused(DatabaseRefusedError, lambda store=store: ask(store), "nosuch", "offline_store")


def test_a_wrong_password_is_refused_and_shown_nowhere(tmp_path: Path, database_url: str) -> None:
    admin = psycopg2.connect(libpq_url(database_url).replace("mt5_crs@", "postgres@"))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("show hba_file")
        hba = Path(cursor.fetchone()[0])
        rules = hba.read_text()
        cursor.execute("create role asof_reader login password 'right-word'; grant pg_read_all_data to asof_reader")
        try:
            hba.write_text("local all asof_reader scram-sha-256\n" + rules)
            cursor.execute("select pg_reload_conf()")
            write_table(BARS.rows, database_url, "bars")
            view = database_view(table="bars")
            right = connection_settings(database_url, user="asof_reader", password="right-word")
            assert ask(applied(tmp_path, view, **right))["bars_price"].tolist() == [9.0]
            for password in ("wr0ng-word", "it's \\ wr0ng-word", ""):
                store = applied(tmp_path, view, **right | {"password": password})
                said = refused(DatabaseRefusedError, lambda store=store: ask(store), "asof_reader", "password")
                assert "wr0ng" not in said
        finally:
            hba.write_text(rules)
            cursor.execute("select pg_reload_conf(); revoke pg_read_all_data from asof_reader; drop role asof_reader")
    admin.close()


@pytest.mark.parametrize("table", ["nosuch", "nosuch.bars", '"Bars"'])
def test_a_table_that_is_not_there(tmp_path: Path, database_url: str, table: str) -> None:
    write_table(BARS.rows, database_url, "bars")
    view = database_view(table=table)
    store = applied(tmp_path, view, **connection_settings(database_url))
    refused(DataSourceNotFoundException, lambda: ask(store), table)
    refused(
        DataSourceNotFoundException, lambda: store._get_provider().ingest_df_to_offline_store(view, BARS.rows), table
    )
    assert query(database_url, "select count(*) from pg_tables where schemaname !~ '^(pg_|information_)'") == [(1,)]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("selec 1", "syntax error at or near"),
        ("select * from nosuch", '"nosuch" does not exist'),
        ("select 1/0 as one", "division by zero"),
        ("select 1; drop table bars", "syntax error"),
        ("delete from bars returning *", "syntax error"),
    ],
)
def test_a_query_that_is_wrong(tmp_path: Path, database_url: str, source: str, word: str) -> None:
    write_table(BARS.rows, database_url, "bars")
    connection = connection_settings(database_url)
    said = refused(
        (InputError, FeastJoinKeysDuringMaterialization),  # type: ignore[arg-type]
        lambda: ask(applied(tmp_path, database_view(query=source), **connection)),
    )
    assert word in said or "1/0" in source  # a query without rows to read is not run
    store = applied(tmp_path, database_view(table="bars"), **connection)
    if "delete" not in source:
        said = refused(InputError, lambda: ask(store, source))
        assert word in said or ";" in source
    assert query(database_url, "select count(*) from bars") == [(len(BARS.rows),)]


def test_a_query_that_writes_changes_nothing(tmp_path: Path, database_url: str) -> None:
    """As entity rows: what it did is rolled back with the connection, whatever it returned."""
    write_table(BARS.rows, database_url, "bars")
    store = applied(tmp_path, database_view(table="bars"), **connection_settings(database_url))
    ask(store, "delete from bars returning symbol, at as event_timestamp")
    assert query(database_url, "select count(*) from bars") == [(len(BARS.rows),)]


def test_a_column_of_a_table_that_is_not_there(tmp_path: Path, database_url: str) -> None:
    write_table(BARS.rows.drop_columns(["bars_note"]), database_url, "bars")
    store = applied(tmp_path, database_view(table="bars"), **connection_settings(database_url))
    refused(SpecifiedFeaturesNotPresentError, lambda: ask(store), "bars_note")


# --- Entity rows -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return applied(tmp_path, BARS.on_files(tmp_path))


def test_entity_rows_without_the_key(store: FeatureStore) -> None:
    refused(FeastEntityDFMissingColumnsError, lambda: ask(store, QUESTIONS.drop(columns="symbol")), "symbol")


def test_entity_rows_without_a_time_column(store: FeatureStore) -> None:
    refused(EntityTimestampInferenceException, lambda: ask(store, QUESTIONS[["symbol"]]), "event_timestamp")
    two = QUESTIONS.rename(columns={"event_timestamp": "one"}).assign(two=minute(0))
    refused(EntityTimestampInferenceException, lambda: ask(store, two), "event_timestamp")


@pytest.mark.parametrize("times", [["soon"], [3], [1.5], [True], [b"2024-03-01"], [None]])
def test_times_of_entity_rows_that_are_none(store: FeatureStore, times: list[Any]) -> None:
    refused(EntityDFNotDateTime, lambda: ask(store, QUESTIONS.assign(event_timestamp=times)), "timestamp")


@pytest.mark.parametrize(
    "values", [["A", 1], [1.5, "A"], [b"A", "A", 1], [object(), object()], [minute(0), "A"], [{"a": 1}, 3]]
)
def test_values_of_mixed_types_in_one_column(store: FeatureStore, values: list[Any]) -> None:
    rows = pd.DataFrame({"symbol": "A", "event_timestamp": minute(9), "odd": pd.Series(values, dtype=object)})
    refused(InputError, lambda: ask(store, rows), "odd")
    refused(InputError, lambda: ask(store, rows.assign(symbol=rows["odd"])), "symbol")


def test_a_column_that_is_there_twice(store: FeatureStore) -> None:
    twice = pd.concat([QUESTIONS, QUESTIONS[["symbol"]]], axis=1)
    refused(InputError, lambda: ask(store, twice), "symbol")
    refused(InputError, lambda: ask(store, QUESTIONS.assign(bars_price=0.0)), "'bars_price'", "full_feature_names")


def test_entity_rows_that_are_none(store: FeatureStore) -> None:
    for entities in ([1, 2], {"symbol": ["A"]}, BARS.rows):
        name = type(entities).__name__
        refused(InvalidEntityType, lambda entities=entities: ask(store, entities), name, "DataFrame")


def test_times_in_any_order_and_to_come_are_questions_like_others(store: FeatureStore) -> None:
    """Not refused: the answer is what is known now."""
    offsets = [9, 10**6, -5, 10**8, 0]
    rows = entity_frame([{"symbol": "B", "minutes": n, "venue": 0} for n in offsets], ["symbol", "event_timestamp"])
    assert ask(store, rows)["bars_price"].fillna(-1).tolist() == [9.0, 49.0, -1.0, 49.0, 0.0]


def test_a_feature_or_view_that_is_unknown(store: FeatureStore) -> None:
    said = refused(Exception, lambda: ask(store, features=["bars:nosuch"]), "nosuch")
    assert "bars" in said
    refused(FeatureViewNotFoundException, lambda: ask(store, features=["nosuch:bars_price"]), "nosuch")


# --- Sources of other stores -----------------------------------------------------------------------------------------


def test_a_source_of_another_store(tmp_path: Path) -> None:
    pq.write_table(BARS.rows, tmp_path / "bars.parquet")
    sources = [
        RedshiftSource(name="elsewhere", table="bars", schema="public", timestamp_field="at"),
        FileSource(name="delta", path=str(tmp_path / "bars.parquet"), timestamp_field="at", file_format=DeltaFormat()),
    ]
    for source in sources:
        view = FeatureView(
            name="bars",
            entities=[SYMBOL],
            schema=[Field(name="symbol", dtype=String), Field(name="raw", dtype=Float64)],
            source=source,
        )
        store = applied(tmp_path, view)
        for call in (
            lambda store=store: ask(store, features=["bars:raw"]),
            lambda store=store: store.materialize(minute(0).to_pydatetime(), minute(9).to_pydatetime()),
            lambda store=store, view=view: store._get_provider().ingest_df_to_offline_store(view, BARS.rows),
        ):
            refused(FeastOfflineStoreUnsupportedDataSource, call, "AsofOfflineStore", source.name)
