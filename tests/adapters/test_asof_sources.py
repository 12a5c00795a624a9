"""Where the as-of store reads and writes: files in every layout, tables and queries on a real server."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore, FeatureView, Field, FileSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import (
    PostgreSQLSource,
)
from feast.types import Float64, Int64, String

from mt5_crs_pipeline.adapters.postgres import connected
from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    SYMBOL,
    TIMESTAMP,
    MadeView,
    connection_settings,
    entity_frame,
    feature_store,
    made_view,
    minute,
    write_table,
)

ROWS = [
    {"symbol": "A", "at": 0, "known": 0, "price": 1.0, "count": 1, "note": "x"},
    {"symbol": "A", "at": 0, "known": 5, "price": 1.5, "count": 2, "note": None},
    {"symbol": "B", "at": 3, "known": 3, "price": 2.0, "count": None, "note": "y"},
]
VIEW = made_view("bars", ["symbol"], ROWS)
COLUMNS = ["symbol", "event_timestamp", "row"]
PRICES = ["bars:bars_price"]


def asked(*pairs: tuple[str, float]) -> pd.DataFrame:
    return entity_frame([{"symbol": symbol, "minutes": minutes, "venue": 0} for symbol, minutes in pairs], COLUMNS)


QUESTIONS = asked(("A", 4), ("B", 9), ("A", 5), ("A", -1))
ANSWERS = [1.0, 2.0, 1.5, np.nan]


def applied(folder: Path, *views: FeatureView, **offline_store: Any) -> FeatureStore:
    store = feature_store(folder, {"type": ASOF, **offline_store})
    store.apply([*ENTITIES.values(), *views])
    return store


def prices(store: FeatureStore, entities: Any = None, references: list[str] | None = None) -> list[float]:
    frame = QUESTIONS if entities is None else entities
    result = store.get_historical_features(entity_df=frame, features=references or PRICES).to_df()
    return result[(references or PRICES)[0].split(":")[1]].tolist()


def same(found: list[float], expected: list[float]) -> bool:
    return bool(np.array_equal(np.array(found, dtype=float), np.array(expected, dtype=float), equal_nan=True))


def file_view(path: Path | str, **changes: Any) -> FeatureView:
    return VIEW.with_source(FileSource(path=str(path), **VIEW.source_arguments() | changes))


def database_view(**where: Any) -> FeatureView:
    return VIEW.with_source(PostgreSQLSource(**VIEW.source_arguments() | where))


@pytest.fixture
def database(database_url: str) -> Iterator[dict[str, Any]]:
    """Settings that lead to a database with the rows in table bars."""
    write_table(VIEW.rows, database_url, "bars")
    yield connection_settings(database_url)


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["file", "folder", "hive", "glob"])
def test_every_layout_of_files_is_read(tmp_path: Path, layout: str) -> None:
    assert same(prices(applied(tmp_path, VIEW.on_files(tmp_path, layout))), ANSWERS)


def test_a_path_below_the_repository_and_a_file_url_are_read(tmp_path: Path) -> None:
    pq.write_table(VIEW.rows, tmp_path / "bars.parquet")
    assert same(prices(applied(tmp_path, file_view((tmp_path / "bars.parquet").as_uri()))), ANSWERS)
    store = applied(tmp_path, file_view("bars.parquet"))
    store.config.repo_path = tmp_path
    assert same(prices(store), ANSWERS)


def test_a_path_with_characters_of_patterns_is_that_path(tmp_path: Path) -> None:
    folder = tmp_path / "bars [1]? *"
    folder.mkdir()
    pq.write_table(VIEW.rows, folder / "rows.parquet")
    assert same(prices(applied(tmp_path, file_view(folder / "rows.parquet"))), ANSWERS)
    assert same(prices(applied(tmp_path, file_view(folder))), ANSWERS)


@pytest.mark.parametrize("pattern", ["", "/*/*.parquet", "/**/*.parquet"])
def test_folders_named_like_columns_are_columns(tmp_path: Path, pattern: str) -> None:
    """As a key and as a feature, below a folder and for a pattern alike."""
    ds.write_dataset(
        pa.table({"venue": [1, 2], "at": pa.array([minute(0), minute(1)], TIMESTAMP), "lot": [7, 8]}),
        tmp_path / "lots",
        format="parquet",
        partitioning=["venue"],
        partitioning_flavor="hive",
    )
    view = FeatureView(
        name="lots",
        entities=[ENTITIES["venue"]],
        schema=[Field(name="lot", dtype=Int64)],
        source=FileSource(path=f"{tmp_path}/lots{pattern}", timestamp_field="at"),
    )
    entities = entity_frame([{"minutes": 5, "venue": venue} for venue in (2, 1, 3)], ["venue", "event_timestamp"])
    assert same(prices(applied(tmp_path, view), entities, ["lots:lot"]), [8, 7, np.nan])


def test_what_is_no_data_in_a_folder_is_left_alone(tmp_path: Path) -> None:
    """Temporary files of a writer at work, and markers that other programs put beside data."""
    view = VIEW.on_files(tmp_path, "folder")
    (tmp_path / "bars" / ".partial-1-x").write_bytes(b"half a file")
    (tmp_path / "bars" / "_SUCCESS").write_bytes(b"")
    assert same(prices(applied(tmp_path, view)), ANSWERS)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_every_unit_and_zone_mean_the_same(tmp_path: Path, unit: str, zone: str | None) -> None:
    rows = VIEW.rows
    for name in ("at", "known"):
        times = rows[name].cast(pa.timestamp("us")) if zone is None else rows[name]
        index = rows.column_names.index(name)
        rows = rows.set_column(index, name, times.cast(pa.timestamp(unit, zone)))
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert same(prices(applied(tmp_path, file_view(tmp_path / "rows.parquet"))), ANSWERS)


def test_dates_and_text_are_times(tmp_path: Path) -> None:
    """Both ends of the window included, which the store compares itself here."""
    texts = ["2024-02-27", "2024-02-28", "2024-02-29", "2024-03-09"]
    days = pd.DataFrame({"symbol": "A", "at": texts, "raw": [0.0, 1.0, 2.0, 3.0]})
    days.to_parquet(tmp_path / "text.parquet")
    days.assign(at=pd.to_datetime(days["at"]).dt.date).to_parquet(tmp_path / "date.parquet")
    day = 24 * 60
    for name in ("text", "date"):
        view = MadeView("bars", ["symbol"], VIEW.rows, timedelta(days=1))
        path = str(tmp_path / f"{name}.parquet")
        source = FileSource(path=path, **view.source_arguments() | {"created_timestamp_column": ""})
        store = applied(tmp_path, view.with_source(source))
        assert same(prices(store, asked(("A", -day), ("A", -2 * day))), [2.0, 1.0]), name
        assert same(prices(store, asked(("A", 0), ("A", 1))), [2.0, np.nan]), name


@pytest.mark.parametrize("ttl", [timedelta(days=365 * 400), timedelta(days=365 * 5000)])
@pytest.mark.parametrize("unit", ["us", "ns"])
def test_a_ttl_that_reaches_before_all_time_is_no_limit(tmp_path: Path, ttl: timedelta, unit: str) -> None:
    rows = VIEW.rows.set_column(
        VIEW.rows.column_names.index("at"), "at", VIEW.rows["at"].cast(pa.timestamp(unit, "UTC"))
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    view = MadeView("bars", ["symbol"], VIEW.rows, ttl)
    source = FileSource(path=str(tmp_path / "rows.parquet"), **view.source_arguments())
    assert same(prices(applied(tmp_path, view.with_source(source))), ANSWERS)


def test_questions_of_the_far_future_and_past_are_answered(tmp_path: Path) -> None:
    """Beyond what nanoseconds can say, over a source in nanoseconds."""
    rows = VIEW.rows.set_column(
        VIEW.rows.column_names.index("at"), "at", VIEW.rows["at"].cast(pa.timestamp("ns", "UTC"))
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    times = pd.Series(np.array(["2500-01-01", "1500-01-01", "2024-03-01T00:04"], "datetime64[us]")).dt.tz_localize(
        "UTC"
    )
    entities = pd.DataFrame({"symbol": "A", "event_timestamp": times})
    assert same(prices(applied(tmp_path, file_view(tmp_path / "rows.parquet")), entities), [1.5, np.nan, 1.0])


def test_a_column_that_is_empty_in_one_file_is_read(tmp_path: Path) -> None:
    """pandas writes a column without a value, and one of whole numbers, with a type of its own."""
    folder = tmp_path / "bars"
    folder.mkdir()
    frames = [pd.DataFrame({"symbol": ["A"], "raw": [3], "bars_note": [None]})]
    frames += [pd.DataFrame({"symbol": ["B"], "raw": [2.5], "bars_note": ["y"]})]
    for order in (frames, frames[::-1]):
        for number, frame in enumerate(order):
            at = pa.array([minute(0)], TIMESTAMP).to_pandas()
            frame.assign(at=at).to_parquet(folder / f"{number}.parquet")
        store = applied(tmp_path, file_view(folder, created_timestamp_column=""))
        job = store.get_historical_features(
            entity_df=asked(("A", 1), ("B", 1)), features=["bars:bars_price", "bars:bars_note"]
        )
        assert job.to_df()["bars_price"].tolist() == [3.0, 2.5]
        assert job.to_df()["bars_note"].tolist() == [None, "y"]


def test_an_empty_source_answers_nothing_with_its_types(tmp_path: Path) -> None:
    for layout in ("file", "folder"):
        empty = MadeView("bars", ["symbol"], VIEW.rows.slice(0, 0))
        store = applied(tmp_path, empty.on_files(tmp_path / layout, layout))
        table = store.get_historical_features(entity_df=QUESTIONS, features=empty.references).to_arrow()
        assert [str(table[name].type) for name in ("bars_price", "bars_count", "bars_note")] == [
            "double",
            "int64",
            "string",
        ]
        assert table["bars_price"].null_count == len(QUESTIONS)


def test_values_of_every_type_come_back_as_they_are_stored(tmp_path: Path) -> None:
    values: dict[str, pa.Array] = {
        "bool": pa.array([True, None]),
        "int8": pa.array([-1, None], pa.int8()),
        "uint64": pa.array([2**64 - 1, None], pa.uint64()),
        "float32": pa.array([0.1, None], pa.float32()),
        "decimal": pa.array([None, None], pa.decimal128(10, 2)),
        "date32": pa.array([19000, None], pa.date32()),
        "date64": pa.array([86_400_000, None], pa.date64()),
        "second": pa.array([1, None], pa.timestamp("s")),
        "time32": pa.array([3, None], pa.time32("s")),
        "time64": pa.array([3, None], pa.time64("us")),
        "duration": pa.array([3, None], pa.duration("s")),
        "binary": pa.array([b"\x00", None]),
        "list": pa.array([[1.0, None], None]),
        "struct": pa.array([{"a": 1}, None]),
        "category": pa.array(["x", None]).dictionary_encode(),
        "nothing": pa.array([None, None], pa.null()),
        "large": pa.array(["x", None], pa.large_string()),
    }
    table = pa.table({"symbol": ["A", "B"], "at": pa.array([minute(0)] * 2, TIMESTAMP), **values})
    pq.write_table(table, tmp_path / "rows.parquet")
    stored = pq.read_table(tmp_path / "rows.parquet")
    view = FeatureView(
        name="all",
        entities=[SYMBOL],
        schema=[Field(name=name, dtype=String) for name in values],
        source=FileSource(path=str(tmp_path / "rows.parquet"), timestamp_field="at"),
    )
    store = feature_store(tmp_path, {"type": ASOF})
    store.apply([SYMBOL, view])
    job = store.get_historical_features(
        entity_df=asked(("B", 1), ("A", 1), ("C", 1)), features=[f"all:{name}" for name in values]
    )
    for name in values:
        expected = pa.concat_arrays([stored[name].combine_chunks().take(pa.array([1, 0, None]))])
        assert job.to_arrow()[name].combine_chunks().equals(expected), name


# --- Keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [pa.int8(), pa.int32(), pa.int64(), pa.uint32()])
@pytest.mark.parametrize("dtype", ["int16", "int64", "uint8", "Int64", "float64"])
def test_integers_of_any_width_are_the_same_key(tmp_path: Path, stored: pa.DataType, dtype: str) -> None:
    """As doubles too: pandas makes them of integers, one of which is missing."""
    table = pa.table({"venue": pa.array([1, 2], stored), "at": pa.array([minute(0)] * 2, TIMESTAMP), "lot": [7, 8]})
    pq.write_table(table, tmp_path / "lots.parquet")
    source = FileSource(path=str(tmp_path / "lots.parquet"), timestamp_field="at")
    view = FeatureView(
        name="lots", entities=[ENTITIES["venue"]], schema=[Field(name="lot", dtype=Int64)], source=source
    )
    missing = [None] if dtype in ("Int64", "float64") else []
    entities = pd.DataFrame({"venue": pd.Series([2, 1, 9, *missing], dtype=dtype), "event_timestamp": minute(1)})
    expected = [8, 7, np.nan, *([np.nan] * len(missing))]
    assert same(prices(applied(tmp_path, view), entities, ["lots:lot"]), expected)


def test_categories_and_every_kind_of_text_are_the_same_key(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        index = VIEW.rows.column_names.index("symbol")
        rows = VIEW.rows.set_column(index, "symbol", VIEW.rows["symbol"].cast(kind))
        pq.write_table(rows, tmp_path / "rows.parquet")
        store = applied(tmp_path, file_view(tmp_path / "rows.parquet"))
        for dtype in ("object", "string", "category"):
            assert same(prices(store, QUESTIONS.astype({"symbol": dtype})), ANSWERS), (kind, dtype)


# --- Tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where",
    [
        {"table": "bars"},
        {"table": "public.bars"},
        {"table": '"Upper ""Case"'},
        {"table": "Other.BARS"},
        {"query": "select * from bars"},
        {"query": "select * from bars;\n"},
        {"query": "select * from bars -- all of them"},
        {"query": "with b as (select *, '100%'::text as share, '$1' as cost from bars) select * from b"},
    ],
)
def test_every_way_to_name_a_table_is_read(
    tmp_path: Path, database_url: str, database: dict[str, Any], where: dict[str, str]
) -> None:
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            'create schema other; create table other.bars as table bars; create view "Upper ""Case" as table bars'
        )
    assert same(prices(applied(tmp_path, database_view(**where), **database)), ANSWERS)


def test_tables_are_looked_up_in_the_configured_schema_first(
    tmp_path: Path, database_url: str, database: dict[str, Any]
) -> None:
    write_table(VIEW.rows.slice(2), database_url, "mine.bars")
    view = database_view(table="bars")
    assert same(prices(applied(tmp_path, view, **database, db_schema="mine")), [np.nan, 2.0, np.nan, np.nan])
    assert same(prices(applied(tmp_path, view, **database, db_schema="nowhere")), ANSWERS)


def test_naive_times_of_a_table_are_utc_whatever_the_zone_of_the_server(
    tmp_path: Path, database_url: str, database: dict[str, Any]
) -> None:
    for zone in ("Asia/Tokyo", "America/New_York"):
        with connected(database_url) as connection, connection.cursor() as cursor:
            cursor.execute(
                f"alter role mt5_crs set timezone = '{zone}'; drop table if exists naive; create table naive as"
                " select symbol, at at time zone 'UTC' as at, known at time zone 'UTC' as known, raw from bars"
            )
        view = MadeView("bars", ["symbol"], VIEW.rows, timedelta(minutes=6))
        source = PostgreSQLSource(table="naive", **view.source_arguments())
        found = prices(applied(tmp_path, view.with_source(source), **database))
        with connected(database_url) as connection, connection.cursor() as cursor:
            cursor.execute("alter role mt5_crs reset timezone")
        assert same(found, ANSWERS), zone


def test_dates_of_a_table_are_the_beginning_of_their_day(tmp_path: Path, database_url: str) -> None:
    write_table(VIEW.rows, database_url, "bars")
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("create table days as select symbol, date '2024-02-29' + bars_count::int as at, raw from bars")
    view = MadeView("bars", ["symbol"], VIEW.rows, timedelta(days=1))
    source = PostgreSQLSource(table="days", **view.source_arguments() | {"created_timestamp_column": ""})
    store = applied(tmp_path, view.with_source(source), **connection_settings(database_url))
    day = 24 * 60
    entities = asked(("A", -1), ("A", 0), ("A", day - 1), ("A", day), ("A", 2 * day), ("A", 2 * day + 1))
    assert same(prices(store, entities), [np.nan, 1.0, 1.0, 1.5, 1.5, np.nan])


def test_types_that_only_the_server_knows_are_read(tmp_path: Path, database_url: str) -> None:
    with connected(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "create table odd (symbol varchar(3), at timestamp, n numeric, big numeric(30, 10), i int2, d date,"
            " j jsonb, b bool, r real, u uuid, t text[]);"
            " insert into odd values"
            " ('A', '2024-03-01', 1.25, 12345678901234567890.5, 3, '2024-01-02', '{\"a\": 1}', true, 0.5,"
            " '00000000-0000-0000-0000-000000000001', array['x', null]),"
            " ('B', '2024-03-01', 'NaN', null, null, null, null, null, null, null, null),"
            " ('C', '2024-03-01', 'Infinity', -1, 1, 'infinity', '[]', false, 'NaN', null, '{}')"
        )
    names = ["n", "big", "i", "j", "b", "r", "t"]
    view = FeatureView(
        name="odd",
        entities=[SYMBOL],
        schema=[Field(name=name, dtype=String if name in ("j", "t") else Float64) for name in names],
        source=PostgreSQLSource(table="odd", timestamp_field="at"),
    )
    store = applied(tmp_path, view, **connection_settings(database_url))
    frame = store.get_historical_features(
        entity_df=asked(("A", 0), ("B", 0), ("C", 0)), features=[f"odd:{name}" for name in names]
    ).to_df()
    assert frame["n"].tolist()[::2] == [1.25, np.inf] and np.isnan(frame["n"][1])
    assert same(frame["big"].tolist(), [12345678901234567890.5, np.nan, -1])
    assert same(frame["i"].tolist(), [3, np.nan, 1])
    assert frame["b"].tolist() == [True, None, False] and same(frame["r"].tolist(), [0.5, np.nan, np.nan])
    assert frame["j"].tolist() == ['{"a": 1}', None, "[]"]
    assert [None if value is None else list(value) for value in frame["t"]] == [["x", None], None, []]


def test_entity_rows_come_from_a_query(tmp_path: Path, database: dict[str, Any]) -> None:
    store = applied(
        tmp_path, database_view(table="bars"), VIEW_ON_MINUTES.with_source(minutes_source(tmp_path)), **database
    )
    entities = (
        "select symbol, at + n * interval '1 minute' as event_timestamp, n as row"
        " from bars, generate_series(4, 0, -2) as n where known = at order by symbol desc, n desc -- newest first"
    )
    job = store.get_historical_features(entity_df=entities, features=PRICES)
    frame = job.to_df()
    assert list(frame.columns) == ["symbol", "event_timestamp", "row", "bars_price"]
    assert list(zip(frame["symbol"], frame["row"], frame["bars_price"], strict=True)) == [
        *(("B", n, 2.0) for n in (4, 2, 0)),
        *(("A", n, 1.0) for n in (4, 2, 0)),
    ]
    # A question from the server, answered from a file.
    assert same(prices(store, entities, ["minutes:minutes_count"]), [7, 5, 3, 4, 2, 0])


VIEW_ON_MINUTES = made_view("minutes", [], [{"at": n, "price": 0.0, "count": n, "note": ""} for n in range(9)])


def minutes_source(folder: Path) -> FileSource:
    pq.write_table(VIEW_ON_MINUTES.rows, folder / "minutes.parquet")
    return FileSource(path=str(folder / "minutes.parquet"), **VIEW_ON_MINUTES.source_arguments())
