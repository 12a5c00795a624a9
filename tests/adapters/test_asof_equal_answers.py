"""The as-of store's answers beside those of the stock stores, which join in another way."""

import itertools
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg2
import pytest
from feast import FeatureService, FeatureStore, FeatureView, FileSource
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    OFFSETS,
    MadeCase,
    MadeView,
    connection_settings,
    feature_store,
    made_cases,
    made_view,
    made_views,
    minute,
    write_parquet,
    write_table,
)

_folders = itertools.count(1)
# Not shrunk: a failing case is small already, and each try asks two stores.
few = settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asof")


@pytest.fixture(scope="module")
def url(server: str) -> Iterator[str]:
    admin = psycopg2.connect(re.sub(r"//[^@]*@/[^?]*", "//postgres@/postgres", server))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("create database asof_equal owner mt5_crs")
        yield re.sub(r"@/[^?]*", "@/asof_equal", server)
        cursor.execute("drop database asof_equal with (force)")
    admin.close()


def applied(store: FeatureStore, views: list[FeatureView]) -> FeatureStore:
    store.apply([*ENTITIES.values(), *views])
    return store


def ask(store: FeatureStore, case: MadeCase, **arguments: Any) -> pd.DataFrame:
    job = store.get_historical_features(
        entity_df=case.entities.copy(),
        features=case.references,
        full_feature_names=case.full_feature_names,
        **arguments,
    )
    return job.to_df()


def assert_equal_to_stock(ours: pd.DataFrame, stock: pd.DataFrame, case: MadeCase) -> None:
    """The same columns, types and values; ours in the order of the entity rows, which stock does not promise."""
    assert ours["row"].tolist() == case.entities["row"].tolist()
    stock = stock.sort_values("row", ignore_index=True)
    if stock["event_timestamp"].dt.tz is None:  # stock PostgreSQL drops the zone on the way back
        stock["event_timestamp"] = stock["event_timestamp"].dt.tz_localize("UTC")
    assert_frame_equal(ours, stock, check_exact=True)


@few
@given(made_cases(unknown_arrival=True), st.sampled_from(["file", "folder", "hive", "glob"]))
def test_files_are_answered_as_by_the_duckdb_store(root: Path, case: MadeCase, layout: str) -> None:
    folder = root / str(next(_folders))
    stock = applied(feature_store(root, {"type": "duckdb"}), [view.on_files(folder) for view in case.views])
    views = [view.on_files(folder / "ours", layout) for view in case.views]
    plain = applied(feature_store(root, {"type": ASOF, "as_known": False}), views)
    as_known = applied(feature_store(root, {"type": ASOF}), views)
    assert_equal_to_stock(ask(plain, case), ask(stock, case), case)
    known = ask(as_known, case)
    assert_equal_to_stock(known, ask(stock, case, filter_by_created_timestamp=True), case)
    assert_frame_equal(known, ask(plain, case, filter_by_created_timestamp=True), check_exact=True)


@few
@given(made_cases(unknown_arrival=False), st.sampled_from(["table", "query"]), st.booleans())
def test_tables_are_answered_as_by_the_postgresql_store(
    root: Path, url: str, case: MadeCase, kind: str, qualified: bool
) -> None:
    """Not asked here: rows of unknown arrival, whose order stock takes from where NULL sorts, before all others."""
    assume(case.entities["symbol"].notna().any())  # stock cannot upload a column of nothing
    schema = "elsewhere." if qualified else ""
    views = [view.on_postgres(url, f"{schema}{view.name}_{next(_folders)}", kind) for view in case.views]
    connection = connection_settings(url)
    stock = applied(feature_store(root, {"type": "postgres"} | connection), views)
    plain = applied(feature_store(root, {"type": ASOF, "as_known": False} | connection), views)
    as_known = applied(feature_store(root, {"type": ASOF} | connection), views)
    assert_equal_to_stock(ask(plain, case), ask(stock, case), case)
    known = ask(as_known, case)
    assert_equal_to_stock(known, ask(stock, case, filter_by_created_timestamp=True), case)
    assert_frame_equal(known, ask(plain, case, filter_by_created_timestamp=True), check_exact=True)


# --- What random cases do not reach ----------------------------------------------------------------------------------

ROWS = [
    {"symbol": "A", "venue": 1, "at": 0, "known": 0, "price": 1.0, "count": 1, "note": "a"},
    {"symbol": "A", "venue": 2, "at": 2, "known": 9, "price": 2.0, "count": None, "note": None},
    {"symbol": "B", "venue": 1, "at": 1, "known": 1, "price": None, "count": 3, "note": "c"},
    {"symbol": "B", "venue": 1, "at": 1, "known": 4, "price": 4.0, "count": 4, "note": "d"},
]
BARS = made_view("bars", ["symbol"], [{k: v for k, v in row.items() if k != "venue"} for row in ROWS])
PAIRS = made_view("pairs", ["symbol", "venue"], ROWS, timedelta(minutes=6))
Stores = tuple[FeatureStore, FeatureStore]


def both(root: Path, url: str, kind: str, *views: MadeView) -> tuple[Stores, list[FeatureView]]:
    """Ours without `as_known` and the stock store over the same sources."""
    folder, number = root / str(next(_folders)), next(_folders)
    if kind == "duckdb":
        applied_views = [view.on_files(folder) for view in views]
        connection: dict[str, Any] = {}
    else:
        applied_views = [view.on_postgres(url, f"{view.name}_{number}") for view in views]
        connection = connection_settings(url)
    ours = applied(feature_store(root, {"type": ASOF, "as_known": False} | connection), applied_views)
    return (ours, applied(feature_store(root, {"type": kind} | connection), applied_views)), applied_views


def answers_of_both(stores: Stores, entities: pd.DataFrame, features: Any, **arguments: Any) -> list[pd.DataFrame]:
    frames = []
    for store in stores:
        job = store.get_historical_features(entity_df=entities.copy(), features=features, **arguments)
        frame = job.to_df().sort_values("row", ignore_index=True)
        if frame["event_timestamp"].dt.tz is None:
            frame["event_timestamp"] = frame["event_timestamp"].dt.tz_localize("UTC")
        frames.append(frame)
    return frames


PAIR_QUESTIONS = pd.DataFrame(
    {
        "row": range(5),
        "buyer": ["A", "B", "A", "B", "C"],
        "seller": ["B", "A", "A", "B", "B"],
        "venue": [1, 2, 2, 1, 1],
        "place": [2, 1, 1, 1, 1],
        "event_timestamp": pd.Series([minute(n) for n in (3, 3, 2, 8, 1)]).dt.as_unit("us"),
    }
)
kinds = pytest.mark.parametrize("kind", ["duckdb", "postgres"])


@kinds
@pytest.mark.parametrize("full", [True, False])
def test_one_view_under_two_names_is_answered_alike(root: Path, url: str, kind: str, full: bool) -> None:
    stores, (bars,) = both(root, url, kind, BARS)
    buyer = bars.with_name("buying").with_join_key_map({"symbol": "buyer"})[["bars_price"]]
    seller = bars.with_name("selling").with_join_key_map({"symbol": "seller"})[["bars_note", "bars_count"]]
    service = FeatureService(name="both", features=[buyer, seller])
    for store in stores:
        store.apply([service])
    ours, stock = answers_of_both(stores, PAIR_QUESTIONS, service, full_feature_names=full)
    assert_frame_equal(ours, stock, check_exact=True)
    price = "buying__bars_price" if full else "bars_price"
    assert ours[price].notna().sum() == 4


@kinds
def test_a_map_renames_both_keys_of_a_view(root: Path, url: str, kind: str) -> None:
    stores, (pairs,) = both(root, url, kind, PAIRS)
    mapped = FeatureService(
        name="mapped", features=[pairs.with_join_key_map({"symbol": "buyer", "venue": "place"})[["pairs_count"]]]
    )
    for store in stores:
        store.apply([mapped])
    ours, stock = answers_of_both(stores, PAIR_QUESTIONS, mapped)
    assert_frame_equal(ours, stock, check_exact=True)
    assert ours["pairs_count"].notna().sum() == 2


def test_a_map_of_one_key_of_two_keeps_the_other(root: Path, url: str) -> None:
    """As stock PostgreSQL does; stock DuckDB then joins on the mapped key alone, and mixes the venues."""
    stores, (pairs,) = both(root, url, "postgres", PAIRS)
    mapped = FeatureService(name="mapped", features=[pairs.with_join_key_map({"symbol": "buyer"})[["pairs_price"]]])
    for store in stores:
        store.apply([mapped])
    ours, stock = answers_of_both(stores, PAIR_QUESTIONS, mapped)
    assert_frame_equal(ours, stock, check_exact=True)
    files, (on_files,) = both(root, url, "duckdb", PAIRS)
    service = FeatureService(name="mapped", features=[on_files.with_join_key_map({"symbol": "buyer"})[["pairs_price"]]])
    files[0].apply([service])
    assert_frame_equal(answers_of_both(files[:1], PAIR_QUESTIONS, service)[0], ours)


def test_a_view_as_itself_and_under_another_name_in_one_service_is_answered(root: Path, url: str) -> None:
    """Feast itself cannot compare two projections of which one has no alias: the view's own name is one."""
    stores, (bars,) = both(root, url, "duckdb", BARS)
    other = bars.with_name("other").with_join_key_map({"symbol": "seller"})[["bars_price"]]
    questions = PAIR_QUESTIONS.rename(columns={"buyer": "symbol"})
    no_alias = FeatureService(name="no_alias", features=[bars[["bars_price"]], other])
    service = FeatureService(name="both", features=[bars.with_name("bars")[["bars_price"]], other])
    for store in stores:
        store.apply([no_alias])
        with pytest.raises(TypeError, match="NoneType"):
            answers_of_both((store,), questions, no_alias, full_feature_names=True)
        store.delete_feature_service("no_alias")
        store.apply([service])
    ours, stock = answers_of_both(stores, questions, service, full_feature_names=True)
    assert_frame_equal(ours, stock, check_exact=True)
    assert ours["bars__bars_price"].tolist()[:2] == ours["other__bars_price"].tolist()[1::-1] == [2.0, 4.0]


@kinds
def test_text_and_naive_times_are_utc_as_in_the_stock_store(root: Path, url: str, kind: str) -> None:
    stores, _ = both(root, url, kind, BARS)
    times = PAIR_QUESTIONS["event_timestamp"]
    shapes = {"naive": times.dt.tz_localize(None), "elsewhere": times.dt.tz_convert("Asia/Tokyo")}
    if kind == "duckdb":  # stock PostgreSQL compares text with a time, which the server refuses
        shapes["text"] = times.dt.strftime("%Y-%m-%d %H:%M:%S")
    questions = PAIR_QUESTIONS.rename(columns={"buyer": "symbol"})
    for shape in shapes.values():
        ours, stock = answers_of_both(stores, questions.assign(event_timestamp=shape), BARS.references)
        stock["event_timestamp"] = stock["event_timestamp"].dt.as_unit(ours["event_timestamp"].dt.unit)
        assert_frame_equal(ours, stock, check_exact=True)
        assert ours["bars_price"].notna().any()


@kinds
def test_a_mapped_time_column_is_found_under_its_own_name(root: Path, url: str, kind: str) -> None:
    """Feast names times as the mapping renames them."""
    folder = root / str(next(_folders))
    mapping = {"at": "happened", "known": "heard", "raw": "bars_price"}
    names: dict[str, Any] = {
        "timestamp_field": "happened", "created_timestamp_column": "heard", "field_mapping": mapping, "name": "s"
    }  # fmt: skip
    if kind == "duckdb":
        view = BARS.with_source(FileSource(path=write_parquet(BARS.rows, folder, "file"), **names))
        connection: dict[str, Any] = {}
    else:
        write_table(BARS.rows, url, "mapped_times")
        view = BARS.with_source(PostgreSQLSource(table="mapped_times", **names))
        connection = connection_settings(url)
    stores = tuple(applied(feature_store(root, {"type": store} | connection), [view]) for store in (ASOF, kind))
    questions = PAIR_QUESTIONS.rename(columns={"buyer": "symbol"})
    ours, stock = answers_of_both(stores, questions, BARS.references, filter_by_created_timestamp=True)
    assert_frame_equal(ours, stock, check_exact=True)


# --- Pulling and materializing ---------------------------------------------------------------------------------------


@few
@given(
    made_views("bars", unknown_arrival=False),
    st.sampled_from(["duckdb", "postgres"]),
    OFFSETS,
    OFFSETS,
    st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_pulled_rows_are_those_of_the_stock_store(
    root: Path, url: str, view: MadeView, kind: str, first: float, second: float, sides: tuple[bool, bool]
) -> None:
    (ours, stock), (applied_view,) = both(root, url, kind, view)
    start, end = (minute(offset).to_pydatetime() for offset in sorted((first, second)))
    columns = (view.keys, ["raw", "bars_count", "bars_note"], "at", "known" if view.has_known else None)
    for pull in ("pull_latest_from_table_or_query", "pull_all_from_table_or_query"):
        if pull.startswith("pull_latest") and not view.keys:
            continue  # stock PostgreSQL adds a column of its own, and stock DuckDB takes one row in any order
        if pull.startswith("pull_all"):
            start, end = (bound if side else None for bound, side in zip((start, end), sides, strict=True))
        frames = []
        for store in (ours, stock):
            job = getattr(store._get_provider().offline_store, pull)(
                store.config, applied_view.batch_source, *columns, start, end
            )
            frame = job.to_df().drop(columns=[] if view.keys else "__dummy_id", errors="ignore")
            for name in ("at", "known"):
                if name in frame and frame[name].dt.tz is None:
                    frame[name] = frame[name].dt.tz_localize("UTC")
            # By all columns but the values: equal rows of those are the same version.
            frames.append(frame.sort_values([*view.keys, *frame.columns[frame.columns.isin(["at", "known"])]]))
        assert_frame_equal(*(frame.reset_index(drop=True) for frame in frames), check_exact=True)


@kinds
@pytest.mark.parametrize("newest_only", [True, False])
def test_materialized_rows_are_those_of_the_stock_store(root: Path, url: str, kind: str, newest_only: bool) -> None:
    stores, _ = both(root, url, kind, PAIRS)
    found = []
    for store in stores:
        store.config.materialization_config.pull_latest_features = newest_only
        store.materialize(minute(-1).to_pydatetime(), minute(6).to_pydatetime())
        keys = [{"symbol": symbol, "venue": venue} for symbol in "ABC" for venue in (1, 2)]
        found.append(store.get_online_features(features=PAIRS.references, entity_rows=keys).to_dict())
    assert found[0] == found[1]
    assert found[0]["pairs_price"] == [1.0, 2.0, 4.0, None, None, None]


@kinds
@pytest.mark.parametrize("newest_only", [True, False])
def test_a_view_without_entities_is_materialized(root: Path, url: str, kind: str, newest_only: bool) -> None:
    """Which stock DuckDB cannot, nor stock PostgreSQL with all rows: they lack the key that Feast looks for."""
    clock = made_view("clock", [], [{"at": n, "price": float(n), "count": n, "note": None} for n in (2, 7, 5)])
    (ours, _), _ = both(root, url, kind, clock)
    ours.config.materialization_config.pull_latest_features = newest_only
    ours.materialize(minute(-1).to_pydatetime(), minute(6).to_pydatetime())
    keys = [{"symbol": "A"}, {"symbol": "B"}]
    assert ours.get_online_features(features=clock.references, entity_rows=keys).to_dict()["clock_count"] == [5, 5]
