"""What the as-of store writes: appended rows, saved datasets and logs, each whole or not at all."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureStore, FeatureView, FileSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import FeatureServiceLoggingSource, LoggingConfig
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
    SavedDatasetPostgreSQLStorage,
)
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from pandas.testing import assert_frame_equal

from mt5_crs_pipeline.adapters.files import TEMPORARY_PREFIX, sha256
from mt5_crs_pipeline.adapters.postgres import connected
from mt5_crs_pipeline.core.errors import InputError, StateFolderError
from tests.adapters.made_up_bars import query
from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    connection_settings,
    entity_frame,
    feature_store,
    made_view,
    minute,
    write_table,
)

pytestmark = pytest.mark.filterwarnings("ignore:Saving dataset is an experimental feature:RuntimeWarning")
VIEW = made_view(
    "bars",
    ["symbol"],
    [
        {"symbol": "A", "at": 0, "known": 0, "price": 1.0, "count": 1, "note": "x"},
        {"symbol": "B", "at": 3, "known": 3, "price": 2.0, "count": None, "note": None},
    ],
)
NEW = pd.DataFrame(
    {
        "symbol": ["A", "C"],
        "at": pd.to_datetime(["2024-03-01T00:10", "2024-03-01T00:11"], utc=True),
        "known": pd.to_datetime(["2024-03-01T00:10", "2024-03-01T00:11"], utc=True),
        "raw": [3.0, None],
        "bars_count": [3, 4],
        "bars_note": ["z", "é"],
    }
)
QUESTIONS = entity_frame(
    [{"symbol": symbol, "minutes": 20, "venue": 0} for symbol in ("C", "A", "B")], ["symbol", "event_timestamp", "row"]
)


def applied(folder: Path, view: FeatureView, **offline_store: Any) -> FeatureStore:
    store = feature_store(folder, {"type": ASOF, **offline_store})
    store.apply([*ENTITIES.values(), view])
    return store


def answers(store: FeatureStore) -> dict[str, list[Any]]:
    frame = store.get_historical_features(entity_df=QUESTIONS, features=VIEW.references).to_df()
    return frame[["bars_price", "bars_count", "bars_note"]].astype(object).where(frame.notna(), None).to_dict("list")


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob(f"{TEMPORARY_PREFIX}*"))


WRITTEN = {"bars_price": [None, 3.0, 2.0], "bars_count": [4, 3, None], "bars_note": ["é", "z", None]}


# --- Appending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["file", "folder", "hive"])
def test_rows_are_appended_to_files_in_their_own_types(tmp_path: Path, layout: str) -> None:
    view = VIEW.on_files(tmp_path, layout)
    source = view.batch_source
    assert isinstance(source, FileSource)
    before = ds.dataset(source.path, partitioning="hive")
    rows, schema, files = before.count_rows(), before.schema, set(before.files)
    store = applied(tmp_path, view)
    new = NEW.assign(part=1) if layout == "hive" else NEW
    store.write_to_offline_store("bars", new)
    after = ds.dataset(source.path, partitioning="hive")
    assert after.count_rows() == rows + len(NEW)
    assert all(pq.read_schema(file).field(name).type == schema.field(name).type for file in after.files for name in NEW)
    assert files <= set(after.files) and no_leftovers(tmp_path)
    assert answers(store) == WRITTEN


def test_rows_are_appended_to_a_table_in_its_own_types(tmp_path: Path, database_url: str) -> None:
    """Of other widths and precision than Arrow's; and where the search path leads, not the configured schema."""
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create schema mine; create table bars (symbol varchar(8), at timestamptz, known timestamp,"
            " raw numeric(12, 3), bars_count int4, bars_note text);"
            " insert into bars values ('B', '2024-03-01T00:03Z', '2024-03-01T00:03', 2, null, null)"
        )
    view = VIEW.with_source(PostgreSQLSource(table="bars", **VIEW.source_arguments() | {"name": "s"}))
    store = applied(tmp_path, view, **connection_settings(database_url, db_schema="mine"))
    store.write_to_offline_store("bars", NEW)
    assert answers(store) == WRITTEN
    assert query(database_url, "select pg_typeof(raw)::text, count(*) from public.bars group by 1") == [("numeric", 3)]


def test_a_table_takes_what_fits_its_types_and_nothing_else(tmp_path: Path, database_url: str) -> None:
    """A column of nulls alone has no type, JSON comes as text, a fraction is no whole number; COPY takes bytes."""
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create table bars (symbol text, at timestamptz, known timestamptz, raw float8, bars_count int8,"
            " bars_note jsonb)"
        )
    view = VIEW.with_source(PostgreSQLSource(table="bars", **VIEW.source_arguments() | {"name": "s"}))
    store = applied(tmp_path, view, **connection_settings(database_url))
    store.write_to_offline_store("bars", NEW.assign(raw=[3, 4], bars_count=None, bars_note=['{"a": 1}', None]))
    written = [(3.0, None, '{"a": 1}'), (4.0, None, None)]
    assert query(database_url, "select raw, bars_count, bars_note::text from bars order by raw") == written
    with pytest.raises(InputError, match="bars_count"):
        store.write_to_offline_store("bars", NEW.assign(bars_count=[1.5, 2.0], bars_note=None))
    assert query(database_url, "select raw, bars_count, bars_note::text from bars order by raw") == written


@pytest.mark.parametrize("table", ['"Upper ""Case"', "Other.BARS", '"o.ther"."b.ars"'])
def test_tables_of_any_name_are_appended_to(tmp_path: Path, database_url: str, table: str) -> None:
    write_table(VIEW.rows, database_url, "bars")
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(f'create schema other; create schema "o.ther"; create table {table} as table bars')
    view = VIEW.with_source(PostgreSQLSource(table=table, **VIEW.source_arguments()))
    store = applied(tmp_path, view, **connection_settings(database_url))
    store.write_to_offline_store("bars", NEW)
    assert answers(store) == WRITTEN


@pytest.mark.parametrize("layout", ["file", "folder"])
@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.drop(columns="bars_note"),
        lambda frame: frame.assign(more=1),
        lambda frame: frame.rename(columns={"raw": "cooked"}),
    ],
)
def test_other_columns_are_refused_and_nothing_is_written(tmp_path: Path, layout: str, change: Any) -> None:
    view = VIEW.on_files(tmp_path, layout)
    store = applied(tmp_path, view)
    before = {path: sha256(path) for path in tmp_path.rglob("*.parquet")}
    with pytest.raises(ValueError, match="columns"):
        store.write_to_offline_store("bars", change(NEW))
    with pytest.raises(ValueError, match=r"'bars'.* in this order"):
        store._get_provider().ingest_df_to_offline_store(view, pa.Table.from_pandas(change(NEW)))
    assert {path: sha256(path) for path in tmp_path.rglob("*.parquet")} == before


@pytest.mark.parametrize("layout", ["file", "folder", "postgres"])
def test_values_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, database_url: str, layout: str
) -> None:
    if layout == "postgres":
        view = VIEW.on_postgres(database_url, "bars")
        store = applied(tmp_path, view, **connection_settings(database_url))
    else:
        store = applied(tmp_path, VIEW.on_files(tmp_path, layout))
    before = {path: sha256(path) for path in tmp_path.rglob("*.parquet")}
    for values in (["three", "four"], [1.5, 2.0], [2.0**70, 1.0]):
        with pytest.raises(InputError) as refusal:
            store.write_to_offline_store("bars", NEW.assign(bars_count=values))
        assert "\n" not in str(refusal.value) and "bars_count" in str(refusal.value)
    assert {path: sha256(path) for path in tmp_path.rglob("*.parquet")} == before
    if layout == "postgres":
        assert query(database_url, "select count(*) from bars") == [(2,)]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = VIEW.on_files(tmp_path)
    store = applied(tmp_path, view)
    before = (tmp_path / "bars.parquet").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(StateFolderError, match="the disk is full"):
        store.write_to_offline_store("bars", NEW)
    assert (tmp_path / "bars.parquet").read_bytes() == before and no_leftovers(tmp_path)


def test_a_pattern_of_files_or_a_query_is_nothing_to_write_into(tmp_path: Path, database_url: str) -> None:
    with pytest.raises(InputError, match=r"\*\.parquet.* nothing can be written"):
        applied(tmp_path, VIEW.on_files(tmp_path, "glob"))._get_provider().ingest_df_to_offline_store(
            VIEW.on_files(tmp_path / "again", "glob"), VIEW.rows
        )
    view = VIEW.on_postgres(database_url, "bars", "query")
    store = applied(tmp_path, view, **connection_settings(database_url))
    with pytest.raises(InputError, match="is a query: nothing can be written into it"):
        store.write_to_offline_store("bars", NEW)
    assert sorted(path.name for path in tmp_path.rglob("*.parquet")) == ["one.parquet"] * 2 + ["two.parquet"] * 2


# --- Saved datasets --------------------------------------------------------------------------------------------------


def retrieval(store: FeatureStore) -> Any:
    return store.get_historical_features(entity_df=QUESTIONS, features=VIEW.references)


@pytest.mark.parametrize("name", ["saved.parquet", "saved"])
def test_an_answer_is_saved_to_a_file_or_folder_once(tmp_path: Path, name: str) -> None:
    store = applied(tmp_path, VIEW.on_files(tmp_path))
    storage = SavedDatasetFileStorage(path=str(tmp_path / name))
    expected = retrieval(store).to_df().drop(columns="row")
    saved = store.create_saved_dataset(from_=retrieval(store), name="saved", storage=storage)
    assert_frame_equal(saved.to_df()[list(expected)], expected)
    files = {path: path.read_bytes() for path in tmp_path.rglob("saved*") if path.is_file()}
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(from_=retrieval(store), name="saved", storage=storage)
    assert {path: path.read_bytes() for path in files} == files
    again = store.create_saved_dataset(from_=retrieval(store), name="saved", storage=storage, allow_overwrite=True)
    assert len(again.to_df()) == len(expected) and no_leftovers(tmp_path)


def test_overwriting_a_folder_leaves_what_else_lies_in_it(tmp_path: Path) -> None:
    store = applied(tmp_path, VIEW.on_files(tmp_path))
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved"))
    retrieval(store).persist(storage)
    (tmp_path / "saved" / "notes.txt").write_text("kept")
    shorter = store.get_historical_features(entity_df=QUESTIONS.head(1), features=VIEW.references)
    shorter.persist(storage, allow_overwrite=True)
    assert ds.dataset(list(map(str, (tmp_path / "saved").glob("*.parquet")))).count_rows() == 1
    assert (tmp_path / "saved" / "notes.txt").read_text() == "kept"


def test_columns_of_every_type_are_saved_to_a_table(tmp_path: Path, database_url: str) -> None:
    store = applied(tmp_path, VIEW.on_files(tmp_path), **connection_settings(database_url))
    extra = QUESTIONS.assign(
        tag=pd.Categorical(["x", None, "y"]),
        small=pd.Series([1, 2, 3], dtype="int8"),
        flag=[True, False, True],
        many=[[1.0], [], None],
        day=[datetime(2024, 1, 1).date(), None, None],
    )
    store.get_historical_features(entity_df=extra, features=VIEW.references).persist(
        SavedDatasetPostgreSQLStorage(table_ref="saved")
    )
    rows = query(database_url, "select tag, small, flag, many, day::text from saved order by row")
    assert rows == [("x", 1, True, [1.0], "2024-01-01"), (None, 2, False, [], None), ("y", 3, True, None, None)]


@pytest.mark.parametrize("table", ["saved", "Saved", '"Saved"', "elsewhere.saved"])
def test_an_answer_is_saved_to_a_table_once(tmp_path: Path, database_url: str, table: str) -> None:
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("create schema elsewhere")
    store = applied(tmp_path, VIEW.on_files(tmp_path), **connection_settings(database_url))
    storage = SavedDatasetPostgreSQLStorage(table_ref=table)
    expected = retrieval(store).to_df().drop(columns="row")
    expected["event_timestamp"] = expected["event_timestamp"].dt.as_unit("us")
    saved = store.create_saved_dataset(from_=retrieval(store), name="saved", storage=storage)
    assert_frame_equal(saved.to_df()[list(expected)], expected)
    assert query(database_url, f"select count(*) from {table}") == [(3,)]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(from_=retrieval(store), name="saved", storage=storage)
    shorter = store.get_historical_features(entity_df=QUESTIONS.head(1), features=VIEW.references)
    store.create_saved_dataset(from_=shorter, name="saved", storage=storage, allow_overwrite=True)
    assert query(database_url, f"select count(*) from {table}") == [(1,)]


def test_a_table_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, database_url: str) -> None:
    write_table(VIEW.rows, database_url, "saved")
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("create view uses_it as table saved")
    store = applied(tmp_path, VIEW.on_files(tmp_path), **connection_settings(database_url))
    with pytest.raises(InputError, match="other objects depend on it"):
        retrieval(store).persist(SavedDatasetPostgreSQLStorage(table_ref="saved"), allow_overwrite=True)
    assert query(database_url, "select count(*) from uses_it") == [(2,)]


def test_a_name_that_is_none_is_refused_and_nothing_is_created(tmp_path: Path, database_url: str) -> None:
    store = applied(tmp_path, VIEW.on_files(tmp_path), **connection_settings(database_url))
    for table in ("a.b.c.d", "no such; drop", "nowhere.saved"):
        with pytest.raises(InputError) as refusal:
            retrieval(store).persist(SavedDatasetPostgreSQLStorage(table_ref=table))
        assert "\n" not in str(refusal.value)
    assert query(database_url, "select count(*) from pg_tables where schemaname = 'public'") == [(0,)]


# --- Logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition_by", [None, ["symbol"]])
def test_logged_features_are_added_as_files_and_read_back(tmp_path: Path, partition_by: list[str] | None) -> None:
    view = VIEW.on_files(tmp_path)
    destination = FileLoggingDestination(path=str(tmp_path / "log"), partition_by=partition_by)
    service = FeatureService(
        name="service", features=[view], logging_config=LoggingConfig(sample_rate=1.0, destination=destination)
    )
    store = applied(tmp_path, view)
    store.apply([service])
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    now = datetime(2024, 3, 1, 12, tzinfo=UTC)
    values: dict[str, Any] = {"symbol": ["A", "B"], "bars__bars_price": [1.0, None], "__log_timestamp": [now, now]}
    log = pa.table(
        [pa.array(values.get(field.name, [None, None]), field.type) for field in schema],
        schema=pa.schema([pa.field(field.name, field.type) for field in schema]),
    )
    written = tmp_path / "collected"
    written.mkdir()
    pq.write_table(log, written / "part.parquet")
    store.write_logged_features(log, service)
    store.write_logged_features(written, service)
    assert ds.dataset(tmp_path / "log", partitioning="hive").count_rows() == 4
    dataset = store._get_provider().retrieve_feature_service_logs(
        service, minute(0).to_pydatetime(), minute(2000).to_pydatetime(), store.config, store.registry
    )
    frame = dataset.to_df()
    assert sorted(frame["symbol"]) == ["A", "A", "B", "B"]
    assert frame["bars__bars_price"].dropna().tolist() == [1.0, 1.0]
