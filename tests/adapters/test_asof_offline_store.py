"""What the as-of store promises through Feast: as known, as of an instant, in the order and types of what is asked."""

import itertools
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureService, FeatureStore, Field, PushSource, RequestSource
from feast.errors import RequestDataNotFoundInEntityDfException
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from hypothesis import HealthCheck, Phase, given, settings
from pandas.testing import assert_frame_equal

from mt5_crs_pipeline.adapters.asof_offline_store import as_of
from mt5_crs_pipeline.core.errors import InputError
from tests.adapters.made_up_views import (
    ASOF,
    ENTITIES,
    OFFSETS,
    TIMESTAMP,
    MadeCase,
    MadeView,
    connection_settings,
    entity_frame,
    feature_store,
    made_cases,
    made_view,
    made_views,
    minute,
)

_folders = itertools.count(1)
few = settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# The second event of A is corrected at 9; the first is corrected at 6, after the second has come.
ROWS = [
    {"symbol": "A", "at": 0, "known": 0, "price": 1.0, "count": 1, "note": "first"},
    {"symbol": "A", "at": 4, "known": 4, "price": 2.0, "count": 2, "note": None},
    {"symbol": "A", "at": 0, "known": 6, "price": 1.5, "count": 3, "note": "first, corrected"},
    {"symbol": "A", "at": 4, "known": 9, "price": 2.5, "count": 4, "note": "corrected"},
    {"symbol": "B", "at": 2, "known": 3, "price": -1.0, "count": 5, "note": "b"},
]
BARS = made_view("bars", ["symbol"], ROWS)
PRICE = ["bars:bars_price"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asof")


def applied(folder: Path, *objects: Any, registry: str = "", **offline_store: Any) -> FeatureStore:
    store = feature_store(folder, {"type": ASOF, **offline_store}, registry)
    store.apply([*ENTITIES.values(), *objects])
    return store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return applied(tmp_path, BARS.on_files(tmp_path))


def asked(*pairs: tuple[str | None, float]) -> pd.DataFrame:
    records = [{"symbol": symbol, "minutes": minutes, "venue": 0} for symbol, minutes in pairs]
    return entity_frame(records, ["symbol", "event_timestamp"])


def prices(store: FeatureStore, entities: pd.DataFrame, **arguments: Any) -> list[float | None]:
    frame = store.get_historical_features(entity_df=entities, features=PRICE, **arguments).to_df()
    return frame["bars_price"].astype(object).where(frame["bars_price"].notna(), None).tolist()


# --- As known --------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_newest_event_as_it_was_known(store: FeatureStore) -> None:
    times = [-1, 0, 3, 4, 6, 8, 9, 99]
    assert prices(store, asked(*[("A", time) for time in times])) == [None, 1.0, 1.0, 2.0, 2.0, 2.0, 2.5, 2.5]
    assert prices(store, asked(("B", 2), ("B", 3), (None, 9), ("C", 9))) == [None, -1.0, None, None]


def test_without_as_known_corrections_count_from_their_event(tmp_path: Path) -> None:
    store = applied(tmp_path, BARS.on_files(tmp_path), as_known=False)
    entities = asked(("A", 0), ("A", 4), ("B", 2))
    assert prices(store, entities) == [1.5, 2.5, -1.0]
    assert prices(store, entities, filter_by_created_timestamp=True) == [1.0, 2.0, None]


@few
@given(made_cases(unknown_arrival=True), OFFSETS)
def test_changing_what_was_not_known_yet_changes_no_answer(root: Path, case: MadeCase, offset: float) -> None:
    """No look-ahead: rows that arrived after a question may as well not be there."""
    instant = minute(offset)
    entities = case.entities[case.entities["event_timestamp"] <= instant]
    answers = []
    for cut in (False, True):
        folder = root / str(next(_folders))
        views = []
        for view in case.views:
            rows = view.rows
            if cut:
                arrived = pa.compute.less_equal(
                    rows["known" if view.has_known else "at"], pa.scalar(instant, TIMESTAMP)
                )
                rows = rows.filter(arrived)
            views.append(MadeView(view.name, view.keys, rows, view.ttl).on_files(folder))
        job = applied(root, *views).get_historical_features(entity_df=entities, features=case.references)
        answers.append(job.to_df())
    assert_frame_equal(*answers, check_exact=True)


# --- As of an instant ------------------------------------------------------------------------------------------------


RECORDED = BARS.rows.append_column("written", pa.array([minute(n) for n in (0, 4, 6, 20, 3)], TIMESTAMP))
# The same event and arrival, recorded again.
RECORDED_AGAIN = pa.concat_tables(
    [
        RECORDED,
        RECORDED.slice(3, 1)
        .set_column(RECORDED.column_names.index("raw"), "raw", pa.array([2.75]))
        .set_column(RECORDED.column_names.index("written"), "written", pa.array([minute(30)], TIMESTAMP)),
    ]
)


def test_as_of_without_a_recorded_column_goes_by_created_times(store: FeatureStore) -> None:
    """History with the corrections that had arrived by then, whatever the entity row's time."""
    entities = asked(("A", 0), ("A", 4), ("A", 99), ("B", 2))
    expected = {
        -1: [None, None, None, None],
        0: [1.0, 1.0, 1.0, None],
        5: [1.0, 2.0, 2.0, -1.0],
        6: [1.5, 2.0, 2.0, -1.0],
        9: [1.5, 2.5, 2.5, -1.0],
    }
    for offset, answers in expected.items():
        with as_of(minute(offset).to_pydatetime()):
            assert prices(store, entities) == answers, offset
    assert prices(store, entities) == [1.0, 2.0, 2.5, None]
    with as_of(None):
        assert prices(store, entities) == [1.0, 2.0, 2.5, None]


@pytest.mark.parametrize("kind", ["files", "table"])
def test_as_of_with_a_recorded_column_goes_by_it(tmp_path: Path, database_url: str, kind: str) -> None:
    """The correction known at 9 was written at 20, and again at 30: until then nobody could have used it."""
    view = MadeView("bars", ["symbol"], RECORDED_AGAIN)
    applied_view = view.on_files(tmp_path) if kind == "files" else view.on_postgres(database_url, "bars")
    connection = {} if kind == "files" else connection_settings(database_url)
    store = applied(tmp_path, applied_view, recorded_timestamp_column="written", **connection)
    entities = asked(("A", 5), ("A", 8), ("A", 9), ("A", 50))
    expected = {3: [1.0] * 4, 19: [2.0] * 4, 20: [2.0, 2.0, 2.5, 2.5], 30: [2.0, 2.0, 2.75, 2.75]}
    for offset, answers in expected.items():
        with as_of(minute(offset).to_pydatetime()):
            assert prices(store, entities) == answers, offset
    assert prices(store, entities) == [2.0, 2.0, 2.75, 2.75]
    with as_of(minute(20).tz_convert("Asia/Tokyo").to_pydatetime()):
        job = store.get_historical_features(entity_df=entities, features=PRICE)
    assert job.to_df()["bars_price"].tolist() == [2.0, 2.0, 2.5, 2.5]  # the instant is the request's, not the answer's


def test_as_of_reaches_pulled_rows(tmp_path: Path) -> None:
    view = MadeView("bars", ["symbol"], RECORDED_AGAIN)
    store = applied(tmp_path, view.on_files(tmp_path), recorded_timestamp_column="written")
    store.config.materialization_config.pull_latest_features = True
    for offset, price in ((19, 2.0), (20, 2.5), (30, 2.75)):
        with as_of(minute(offset).to_pydatetime()):
            store.materialize(minute(-1).to_pydatetime(), minute(60).to_pydatetime())
        online = store.get_online_features(features=PRICE, entity_rows=[{"symbol": "A"}]).to_dict()
        assert online["bars_price"] == [price]


def test_a_source_without_the_recorded_column_is_read_as_if_none_were_named(tmp_path: Path) -> None:
    store = applied(tmp_path, BARS.on_files(tmp_path), recorded_timestamp_column="written")
    with as_of(minute(5).to_pydatetime()):
        assert prices(store, asked(("A", 0), ("A", 99))) == [1.0, 2.0]


def test_as_of_needs_a_zone_and_ends_with_its_block(store: FeatureStore) -> None:
    with pytest.raises(InputError, match=r"2024-03-01T00:00:00 has no time zone.*\+00:00"), as_of(datetime(2024, 3, 1)):
        pass
    with pytest.raises(ZeroDivisionError), as_of(minute(0).to_pydatetime()):
        1 / 0  # noqa: B018
    assert prices(store, asked(("A", 99))) == [2.5]


# --- What is asked comes back ----------------------------------------------------------------------------------------


def test_entity_rows_keep_their_order_columns_types_and_repetitions(store: FeatureStore) -> None:
    entities = pd.DataFrame(
        {
            "weight": np.array([0.5, np.nan, 2.0, 0.5], dtype="float32"),
            "event_timestamp": [minute(n) for n in (9, 3, 9, 9)],
            "tag": pd.Categorical(["x", None, "y", "x"]),
            "symbol": ["A", "B", "A", "A"],
            "seen": pd.to_datetime(["2020-01-01", None, "2021-01-01", "2020-01-01"], utc=True),
            "flag": [True, False, True, True],
            "many": [[1, 2], None, [], [1, 2]],
        },
        index=[7, 7, 3, 0],
    )
    before = entities.copy(deep=True)
    job = store.get_historical_features(entity_df=entities, features=BARS.references)
    frame = job.to_df()
    assert_frame_equal(entities, before)
    assert list(frame.columns) == [*entities.columns, "bars_price", "bars_count", "bars_note"]
    given, expected = frame[list(entities.columns)], entities.reset_index(drop=True)
    assert_frame_equal(given.drop(columns="many"), expected.drop(columns="many"))
    assert [None if value is None else list(value) for value in given["many"]] == expected["many"].tolist()
    assert frame["bars_price"].tolist() == [2.5, -1.0, 2.5, 2.5]


def test_every_frame_of_a_job_is_equal_writable_and_nobody_elses(store: FeatureStore) -> None:
    entities = asked(("A", 9), ("B", 9), ("A", 0))
    job = store.get_historical_features(entity_df=entities, features=BARS.references)
    table, first = job.to_arrow(), job.to_df()
    expected = first.copy(deep=True)
    for name in first.columns:
        assert first[name].to_numpy().flags.writeable, name
        first.loc[0, name] = first.loc[1, name]
    assert not first.equals(expected)
    assert_frame_equal(job.to_df(), expected)
    assert_frame_equal(table.to_pandas(), expected)
    assert job.to_arrow().equals(table)
    assert entities["symbol"].tolist() == ["A", "B", "A"]


@few
@given(made_cases(unknown_arrival=True))
def test_an_answer_in_another_order_is_the_same_answer(root: Path, case: MadeCase) -> None:
    """Of entity rows and of the source's rows, where no two are the same version."""
    folder = root / str(next(_folders))
    store = applied(root, *[view.on_files(folder) for view in case.views])
    expected = store.get_historical_features(entity_df=case.entities, features=case.references).to_df()
    turned = [
        MadeView(view.name, view.keys, view.rows.take(np.arange(len(view.rows))[::-1]), view.ttl) for view in case.views
    ]
    other = applied(root, *[view.on_files(folder / "turned") for view in turned])
    answer = other.get_historical_features(entity_df=case.entities.iloc[::-1], features=case.references).to_df()
    assert_frame_equal(answer.iloc[::-1].reset_index(drop=True), expected, check_exact=True)


def test_no_entity_rows_give_no_rows_with_the_types_of_the_features(store: FeatureStore) -> None:
    frame = store.get_historical_features(entity_df=asked(), features=BARS.references).to_df()
    assert len(frame) == 0
    assert frame.dtypes.astype(str).tolist()[2:] == ["float64", "int64", "object"]
    no_times = asked(("A", 1)).assign(event_timestamp=pd.Series([pd.NaT], dtype="datetime64[ns, UTC]"))
    assert prices(store, no_times) == [None]


def test_metadata_tell_what_was_asked(store: FeatureStore) -> None:
    job = store.get_historical_features(
        entity_df=asked(("A", 9), ("B", 3)), features=BARS.references, full_feature_names=True
    )
    assert job.full_feature_names
    assert job.metadata.features == BARS.references and job.metadata.keys == ["symbol"]
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (minute(3), minute(9))


def test_a_time_column_of_another_name_is_found(store: FeatureStore) -> None:
    assert prices(store, asked(("A", 9)).rename(columns={"event_timestamp": "when"})) == [2.5]


def test_the_sql_registry_serves_the_same_answers(tmp_path: Path) -> None:
    registry: Any = {"registry_type": "sql", "path": f"sqlite:///{tmp_path / 'registry.sqlite'}"}
    store = applied(tmp_path, BARS.on_files(tmp_path), registry=registry)
    assert prices(store, asked(("A", 9), ("A", 8))) == [2.5, 2.0]


# --- Views of every kind ---------------------------------------------------------------------------------------------


def test_a_view_without_entities_is_joined_on_time_alone(tmp_path: Path) -> None:
    clock = made_view("clock", [], [{"at": n, "price": float(n), "count": n, "note": ""} for n in (5, 0, 2)])
    store = applied(tmp_path, clock.on_files(tmp_path), BARS.on_files(tmp_path))
    frame = store.get_historical_features(
        entity_df=asked(("A", 4), (None, 1), ("A", -1), ("B", 9)), features=["clock:clock_count", *PRICE]
    ).to_df()
    assert frame["clock_count"].fillna(-9).tolist() == [2, 0, -9, 5]


def test_a_view_on_a_push_source_is_read_from_its_batch_source(tmp_path: Path) -> None:
    batch = BARS.on_files(tmp_path).batch_source
    store = applied(tmp_path, BARS.with_source(PushSource(name="pushed", batch_source=batch)))
    assert prices(store, asked(("A", 9), ("A", 8))) == [2.5, 2.0]


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")
def test_transformations_of_both_modes_are_applied(tmp_path: Path) -> None:
    bars = BARS.on_files(tmp_path)
    request = RequestSource(name="asked", schema=[Field(name="weight", dtype=Float64)])

    @on_demand_feature_view(sources=[bars, request], schema=[Field(name="weighted", dtype=Float64)], mode="pandas")
    def by_frame(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"weighted": inputs["bars_price"] * inputs["weight"]})

    @on_demand_feature_view(sources=[bars], schema=[Field(name="next_count", dtype=Int64)], mode="python")
    def by_value(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"next_count": [count + 1 for count in inputs["bars_count"]]}

    service = FeatureService(name="all", features=[bars[["bars_price"]], by_frame, by_value])
    store = applied(tmp_path, bars, by_frame, by_value, service)
    entities = asked(("A", 9), ("B", 3), ("A", 4)).assign(weight=[2.0, 3.0, None])
    for full in (False, True):
        job = store.get_historical_features(entity_df=entities, features=service, full_feature_names=full)
        frame = job.to_df()
        weighted, following = ("by_frame__weighted", "by_value__next_count") if full else ("weighted", "next_count")
        assert frame[weighted].fillna(-9).tolist() == [5.0, -3.0, -9]
        assert frame[following].tolist() == [5, 6, 3]
        assert_frame_equal(frame, job.to_arrow().to_pandas())
    with pytest.raises(RequestDataNotFoundInEntityDfException, match="weight"):
        store.get_historical_features(entity_df=entities.drop(columns="weight"), features=service)


# --- A date range ----------------------------------------------------------------------------------------------------


def between(store: FeatureStore, start: float, end: float, features: Any = None) -> list[tuple[Any, ...]]:
    job = store.get_historical_features(
        features=features or PRICE, start_date=minute(start).to_pydatetime(), end_date=minute(end).to_pydatetime()
    )
    frame = job.to_df()
    minutes = (frame.pop("event_timestamp") - minute(0)) // pd.Timedelta(minutes=1)
    return list(zip(minutes, *[frame[name] for name in frame.columns], strict=True))


def test_a_date_range_gives_each_event_once_as_known_at_its_end(store: FeatureStore) -> None:
    """Stock PostgreSQL returns the versions that were superseded as well."""
    assert between(store, 0, 99) == [(0, "A", 1.5), (2, "B", -1.0), (4, "A", 2.5)]
    assert between(store, 0, 8) == [(0, "A", 1.5), (2, "B", -1.0), (4, "A", 2.0)]
    assert between(store, 1, 4) == [(2, "B", -1.0), (4, "A", 2.0)]
    assert between(store, 5, 99) == []
    with as_of(minute(5).to_pydatetime()):
        assert between(store, 0, 99) == [(0, "A", 1.0), (2, "B", -1.0), (4, "A", 2.0)]


def test_a_date_range_with_a_recorded_column_is_as_known_at_its_end_too(tmp_path: Path) -> None:
    view = MadeView("bars", ["symbol"], RECORDED_AGAIN)
    store = applied(tmp_path, view.on_files(tmp_path), recorded_timestamp_column="written")
    assert between(store, 0, 25) == [(0, "A", 1.5), (2, "B", -1.0), (4, "A", 2.5)]
    assert between(store, 0, 19) == [(0, "A", 1.5), (2, "B", -1.0), (4, "A", 2.0)]


def test_a_date_range_takes_events_of_all_views_and_their_values_at_each(tmp_path: Path) -> None:
    lots = made_view(
        "lots", ["symbol"], [{"symbol": "A", "at": at, "price": float(at)} for at in (1, 3)], timedelta(minutes=2)
    )
    store = applied(tmp_path, BARS.on_files(tmp_path), lots.on_files(tmp_path))
    rows = between(store, 0, 99, ["lots:lots_price", *PRICE])
    expected = [(0, "A", None, 1.5), (1, "A", 1.0, 1.5), (2, "B", None, -1.0), (3, "A", 3.0, 1.5), (4, "A", 3.0, 2.5)]
    assert [tuple(None if value != value else value for value in row) for row in rows] == expected


def test_a_date_range_leaves_rows_without_a_key_or_time_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"symbol": None, "at": 1, "price": 1.0},
        {"symbol": "A", "at": None, "price": 2.0},
        {"symbol": "A", "at": 3, "price": 3.0},
    ]
    store = applied(tmp_path, made_view("bars", ["symbol"], rows).on_files(tmp_path))
    assert between(store, 0, 99) == [(3, "A", 3.0)]


def test_views_of_different_entities_have_no_common_date_range(tmp_path: Path) -> None:
    clock = made_view("clock", [], [{"at": 1, "price": 1.0}])
    store = applied(tmp_path, BARS.on_files(tmp_path), clock.on_files(tmp_path))
    with pytest.raises(InputError, match="one after the other"):
        between(store, 0, 9, [*PRICE, "clock:clock_price"])


@few
@given(made_views("bars", unknown_arrival=True), OFFSETS, OFFSETS)
def test_a_date_range_is_what_its_own_events_are_answered(root: Path, view: MadeView, one: float, two: float) -> None:
    """The same as asking for every event of the window from its end, by a plain loop."""
    start, end = (minute(offset) for offset in sorted((one, two)))
    store = applied(root, view.on_files(root / str(next(_folders))))
    frame = store.get_historical_features(
        features=view.references, start_date=start.to_pydatetime(), end_date=end.to_pydatetime()
    ).to_df()
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in view.rows.to_pylist():
        known = row["known"] if view.has_known else row["at"]
        if row["at"] < start or row["at"] > end or known is None or known > end:
            continue
        key = (row["at"], *[row[name] for name in view.keys])
        if key not in newest or not view.has_known or newest[key]["known"] <= known:
            newest[key] = row
    assert list(frame.columns) == ["event_timestamp", *sorted(view.keys), "bars_price", "bars_count", "bars_note"]
    found = frame.to_dict("records")
    assert [(row["event_timestamp"], *[row[name] for name in view.keys]) for row in found] == sorted(
        newest, key=lambda key: (key[0], *[value for _, value in sorted(zip(view.keys, key[1:], strict=True))])
    )
    notes = [newest[row["event_timestamp"], *[row[name] for name in view.keys]]["bars_note"] for row in found]
    assert frame["bars_note"].tolist() == notes
