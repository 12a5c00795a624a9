"""The online store on PostgreSQL and on Redis: nothing older over anything newer, every correction, nothing else.

The same scenario goes wrong through stock Feast, on either store in its own way; that it does is tested as well.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg2
import pyarrow as pa
import pytest

from mt5_crs_pipeline.adapters.feast_store import TECHNICAL_FEATURES as VIEW
from mt5_crs_pipeline.adapters.feast_store import FeastStore, _quiet
from mt5_crs_pipeline.adapters.lake import TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.adapters.online_store import newest_in_lake, newest_rows
from mt5_crs_pipeline.adapters.postgres import prepare_database
from mt5_crs_pipeline.core.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    FeaturesExpiredError,
    FeaturesFromTheFutureError,
    FeaturesIncompleteError,
    FeaturesNotStoredError,
    InputError,
    PipelineError,
)
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES, feature_schema
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.online import TIME_TO_LIVE
from tests.adapters.made_up_bars import query
from tests.conftest import REDIS_PASSWORD

NAMES = get_feature_names(PIPELINE_FEATURES)
DAY = timedelta(days=1)
JANUARY, FEBRUARY = datetime(2024, 1, 30, tzinfo=UTC), datetime(2024, 2, 27, tzinfo=UTC)
HARD_VALUES = [-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e-5, 1e16, 1.0, -1 / 3]
Write = Callable[[FeastStore, Lake, str], Any]


def values(seed: int) -> dict[str, float]:
    return dict(zip(NAMES, np.random.default_rng(seed).normal(size=len(NAMES)).tolist(), strict=True))


def row(symbol: str, close: datetime, seed: int, known_at: datetime | None = None, **changed: Any) -> dict[str, Any]:
    """A feature row of a daily bar, of values that `seed` stands for; recorded when it was known."""
    stamps = {"symbol": symbol, "time": close - DAY, "event_timestamp": close, "known_at": known_at or close}
    stamps["recorded_at"] = stamps["known_at"]
    return {**stamps, "is_complete": True, **values(seed), **changed}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=feature_schema())


def bits(numbers: Any) -> list[bytes]:
    return [struct.pack("<d", number) for number in numbers]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.write(TECHNICAL_FEATURES, "2024-01", table(row("A", JANUARY, 1), row("B", JANUARY, 2)))
    lake.write(TECHNICAL_FEATURES, "2024-02", table(row("A", FEBRUARY - DAY, 3), row("A", FEBRUARY, 4)))
    return lake


@pytest.fixture(params=["postgres", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_store(
    kind: str, request: pytest.FixtureRequest, database_url: str, lake: Lake
) -> Iterator[Callable[[], FeastStore]]:
    """Opens a feature store of the kind, on an empty database of the test's own."""
    prepare_database(database_url)
    address = ""
    if kind == "redis":
        import redis

        address = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(address) as client:
            client.flushall()
    opened: list[FeastStore] = []

    def open_one() -> FeastStore:
        opened.append(FeastStore(database_url, "D1", lake.folder, address))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def feast(open_store: Callable[[], FeastStore]) -> FeastStore:
    store = open_store()
    store.apply()
    return store


def ours(feast: FeastStore, lake: Lake, month: str) -> Any:
    return feast.write_online(lambda: newest_in_lake(lake, [month]))


def stock(feast: FeastStore, _: Lake, month: str) -> None:
    start = pd.Timestamp(f"{month}-01", tz="UTC")
    with _quiet():
        feast.store.materialize(start.to_pydatetime(), (start + pd.offsets.MonthEnd()).to_pydatetime(), [VIEW])


def stored(feast: FeastStore, symbol: str) -> tuple[Any, list[bytes]]:
    (found,) = feast.online_rows([symbol]).to_dict("records")
    return found["event_timestamp"], bits(found[name] for name in NAMES)


def what_goes_wrong(feast: FeastStore, lake: Lake, write: Write) -> set[str]:
    """Write the newest month, then an older one, then the newest month again with a corrected row in it."""
    wrong = set()
    write(feast, lake, "2024-02")
    assert stored(feast, "A") == (FEBRUARY, bits(values(4).values()))
    write(feast, lake, "2024-01")
    if stored(feast, "A") != (FEBRUARY, bits(values(4).values())):
        wrong.add("an older window replaced a newer row")
    write(feast, lake, "2024-02")
    lake.write(TECHNICAL_FEATURES, "2024-02", table(row("A", FEBRUARY, 4), row("A", FEBRUARY, 5, FEBRUARY + DAY)))
    write(feast, lake, "2024-02")
    if stored(feast, "A") != (FEBRUARY, bits(values(5).values())):
        wrong.add("a correction was lost")
    return wrong


def contents(kind: str, database_url: str, request: pytest.FixtureRequest) -> Any:
    """Everything the online store holds, to the byte."""
    if kind == "postgres":
        columns = "entity_key, feature_name, value, value_text, vector_value, event_ts, created_ts"
        found = query(database_url, f"select {columns} from feast.mt5_crs_d1_technical_features order by 1, 2")
        return [tuple(bytes(item) if isinstance(item, memoryview) else item for item in line) for line in found]
    import redis

    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
        return {key: client.hgetall(key) for key in sorted(client.keys())}


# --- The scenario ----------------------------------------------------------------------------------------------------


def test_nothing_older_replaces_anything_newer_and_every_correction_arrives(feast: FeastStore, lake: Lake) -> None:
    assert what_goes_wrong(feast, lake, ours) == set()


def test_the_same_goes_wrong_through_stock_feast(kind: str, feast: FeastStore, lake: Lake) -> None:
    expected = {"postgres": "an older window replaced a newer row", "redis": "a correction was lost"}
    assert what_goes_wrong(feast, lake, stock) == {expected[kind]}


# --- What is written -------------------------------------------------------------------------------------------------


def test_what_is_stored_is_byte_for_byte_what_stock_feast_stores(
    kind: str, feast: FeastStore, lake: Lake, database_url: str, request: pytest.FixtureRequest
) -> None:
    hard = dict(zip(NAMES, HARD_VALUES, strict=False))
    late = FEBRUARY + timedelta(hours=5, microseconds=123456)
    rows = [
        row("A", late, 1, late + DAY, **hard),
        row("Ünï \\t'\"{}", FEBRUARY, 2, **{NAMES[3]: np.nan, NAMES[5]: None}),
    ]
    lake.write(TECHNICAL_FEATURES, "2024-02", table(*rows))
    stock(feast, lake, "2024-02")
    expected = contents(kind, database_url, request)
    assert len(expected) == 2 * (len(NAMES) if kind == "postgres" else 1)
    # Once over rows that are there, and once into nothing.
    lake.write(TECHNICAL_FEATURES, "2024-02", table(*(line | values(9) for line in rows)))
    assert len(ours(feast, lake, "2024-02").written) == 2
    assert contents(kind, database_url, request) != expected
    lake.write(TECHNICAL_FEATURES, "2024-02", table(*rows))
    ours(feast, lake, "2024-02")
    assert contents(kind, database_url, request) == expected
    if kind == "postgres":
        query(database_url, "delete from feast.mt5_crs_d1_technical_features")
        ours(feast, lake, "2024-02")
        assert contents(kind, database_url, request) == expected


def test_stock_get_online_features_serves_the_parquet_row_to_the_bit(feast: FeastStore, lake: Lake) -> None:
    lake.write(
        TECHNICAL_FEATURES,
        "2024-03",
        table(row("C", FEBRUARY + 9 * DAY, 7, **dict(zip(NAMES, HARD_VALUES, strict=False)))),
    )
    months = lake.months(TECHNICAL_FEATURES)
    assert feast.write_online(lambda: newest_in_lake(lake, months)).left_alone == {}
    parquet = pd.concat([pd.read_parquet(lake.file(TECHNICAL_FEATURES, month)) for month in months])
    newest = parquet.sort_values("event_timestamp").groupby("symbol").tail(1).set_index("symbol")
    assert sorted(newest.index) == ["A", "B", "C"]
    for symbol, expected in newest.iterrows():
        found = feast.store.get_online_features([f"{VIEW}:{name}" for name in NAMES], [{"symbol": symbol}]).to_dict()
        assert bits(found[name][0] for name in NAMES) == bits(expected[NAMES])
        assert stored(feast, str(symbol)) == (expected["event_timestamp"], bits(expected[NAMES]))


def test_only_symbols_with_rows_in_the_window_are_touched(feast: FeastStore, lake: Lake) -> None:
    assert ours(feast, lake, "2024-01").written == {"A": JANUARY, "B": JANUARY}
    lake.write(TECHNICAL_FEATURES, "2024-01", table(row("A", JANUARY, 11), row("B", JANUARY, 12)))
    told = ours(feast, lake, "2024-02")
    assert (told.written, told.left_alone) == ({"A": FEBRUARY}, {})
    assert stored(feast, "B") == (JANUARY, bits(values(2).values()))
    told = ours(feast, lake, "2024-01")
    assert (told.written, told.left_alone) == ({"B": JANUARY}, {"A": JANUARY})
    assert stored(feast, "A") == (FEBRUARY, bits(values(4).values()))
    assert stored(feast, "B") == (JANUARY, bits(values(12).values()))
    told = ours(feast, lake, "2023-12")
    assert (told.written, told.left_alone) == ({}, {})


def test_a_row_that_is_there_is_not_written_again_and_one_that_differs_in_a_bit_is(
    kind: str, feast: FeastStore, lake: Lake, database_url: str
) -> None:
    def write(**changed: float) -> Any:
        rows = table(row("A", JANUARY, 1, **{NAMES[1]: np.nan} | changed), row("B", JANUARY, 2))
        return feast.write_online(lambda: rows)

    assert write(**{NAMES[0]: 0.0}).written == {"A": JANUARY, "B": JANUARY}
    told = write(**{NAMES[0]: 0.0})
    assert (told.written, told.left_alone) == ({}, {"A": JANUARY, "B": JANUARY})
    # Missing is missing, whatever the bits of the NaN.
    assert write(**{NAMES[0]: 0.0, NAMES[1]: -np.nan}).written == {}
    told = write(**{NAMES[0]: -0.0})
    assert (told.written, told.left_alone) == ({"A": JANUARY}, {"B": JANUARY})
    assert stored(feast, "A")[1][0] == bits([-0.0])[0]
    if kind == "postgres":
        online = "feast.mt5_crs_d1_technical_features"
        ((transactions,),) = query(database_url, f"select count(distinct xmin::text) from {online}")
        assert transactions == 2
        # What was damaged in the store is repaired by the same row.
        query(database_url, f"update {online} set value = '' where feature_name = %s", (NAMES[5],))
        assert write(**{NAMES[0]: -0.0}).written == {"A": JANUARY, "B": JANUARY}
        assert stored(feast, "B") == (JANUARY, bits(values(2).values()))
        # Feast's created_timestamp tells when it was known.
        known_later = table(row("B", JANUARY, 2, JANUARY + DAY))
        assert feast.write_online(lambda: known_later).written == {"B": JANUARY}
    # Of two features side by side the other is missing.
    first, second = sorted(NAMES)[:2]
    for changed in ({first: 5.0, second: np.nan}, {first: np.nan, second: 5.0}):
        assert "A" in write(**changed).written
        assert write(**changed).written == {}


def test_a_changed_feature_set_does_not_let_an_older_row_in(
    kind: str, feast: FeastStore, lake: Lake, database_url: str, request: pytest.FixtureRequest
) -> None:
    ours(feast, lake, "2024-02")
    if kind == "postgres":
        query(database_url, "delete from feast.mt5_crs_d1_technical_features where feature_name = %s", (NAMES[0],))
    else:
        import redis
        from feast.infra.online_stores.helpers import _mmh3

        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            (key,) = client.keys()
            assert client.hdel(key, _mmh3(f"{VIEW}:{NAMES[0]}")) == 1
    assert ours(feast, lake, "2024-01").left_alone == {"A": JANUARY}
    refusal = feast.online_features(["A"], FEBRUARY)[0].refusal
    assert isinstance(refusal, FeaturesIncompleteError) and NAMES[0] in str(refusal)
    ours(feast, lake, "2024-02")
    assert stored(feast, "A") == (FEBRUARY, bits(values(4).values()))


# --- The lock --------------------------------------------------------------------------------------------------------


def test_candidates_are_read_inside_the_lock_so_that_the_correction_wins(
    open_store: Callable[[], FeastStore], feast: FeastStore, lake: Lake
) -> None:
    reading, may_end, second_reads = threading.Event(), threading.Event(), threading.Event()

    def slow() -> pa.Table:
        rows = newest_in_lake(lake, ["2024-02"])
        reading.set()
        assert may_end.wait(30)
        return rows

    def corrected() -> pa.Table:
        second_reads.set()
        return table(row("A", FEBRUARY, 5, FEBRUARY + DAY))

    other = open_store()
    first = threading.Thread(target=feast.write_online, args=(slow,))
    second = threading.Thread(target=other.write_online, args=(corrected,))
    first.start()
    assert reading.wait(30)
    second.start()
    assert not second_reads.wait(1)
    may_end.set()
    first.join()
    second.join()
    assert second_reads.is_set()
    assert stored(other, "A") == (FEBRUARY, bits(values(5).values()))


def test_a_writer_whose_session_the_server_ended_writes_nothing(
    feast: FeastStore, lake: Lake, database_url: str
) -> None:
    """It holds the lock no longer."""
    ours(feast, lake, "2024-01")

    def interrupted() -> pa.Table:
        ended = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
        assert query(database_url, ended) == [(True,)]
        return newest_in_lake(lake, ["2024-02"])

    with pytest.raises(DatabaseUnavailableError):
        feast.write_online(interrupted)
    assert stored(feast, "A") == (JANUARY, bits(values(1).values()))
    assert ours(feast, lake, "2024-02").written == {"A": FEBRUARY}


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_online_features_are_the_row_or_the_reason(feast: FeastStore, lake: Lake) -> None:
    lake.write(TECHNICAL_FEATURES, "2024-02", table(row("A", FEBRUARY, 4), row("C", FEBRUARY, 5, **{NAMES[2]: np.nan})))
    feast.write_online(lambda: newest_in_lake(lake, lake.months(TECHNICAL_FEATURES)))
    now = JANUARY + TIME_TO_LIVE
    a, b, c, d, again = feast.online_features(["A", "B", "C", "D", "A"], now)
    assert a == again and a.refusal is None and a.event_timestamp == FEBRUARY
    assert list(a.values) == NAMES and bits(a.values.values()) == bits(values(4).values())
    assert b.refusal is None and b.event_timestamp == JANUARY
    assert isinstance(c.refusal, FeaturesIncompleteError) and c.values == {}
    assert isinstance(d.refusal, FeaturesNotStoredError) and d.event_timestamp is None
    later = feast.online_features(["A", "B"], now + timedelta(microseconds=1))
    assert later[0].refusal is None and isinstance(later[1].refusal, FeaturesExpiredError) and later[1].values == {}
    (early,) = feast.online_features(["A"], FEBRUARY - timedelta(microseconds=1))
    assert isinstance(early.refusal, FeaturesFromTheFutureError) and early.values == {}
    assert feast.online_features([], now) == []
    with pytest.raises(InputError, match="time zone"):
        feast.online_features(["A"], datetime(2024, 2, 28))
    # Stock Feast serves the expired row.
    assert feast.store.get_online_features([f"{VIEW}:{NAMES[0]}"], [{"symbol": "B"}]).to_dict()[NAMES[0]] != [None]


def test_the_time_to_live_is_the_views(feast: FeastStore) -> None:
    assert {view.ttl for view in feast.store.list_feature_views()} == {TIME_TO_LIVE}


def test_before_anything_was_applied_every_question_is_refused(open_store: Callable[[], FeastStore]) -> None:
    with pytest.raises(FeaturesNotStoredError, match="mt5-crs retrain"):
        open_store().online_features(["A"], FEBRUARY)


# --- The newest row --------------------------------------------------------------------------------------------------


def test_the_newest_version_is_the_last_by_event_time_then_record_then_knowledge() -> None:
    rows = [
        row("B", JANUARY, 1),
        row("A", FEBRUARY, 2, FEBRUARY + DAY),
        # A late bar may push a corrected one out of the window: recorded last, and known earlier.
        row("A", FEBRUARY, 3, FEBRUARY, recorded_at=FEBRUARY + 2 * DAY),
        row("A", FEBRUARY, 4, FEBRUARY + 3 * DAY, recorded_at=FEBRUARY),
        row("A", JANUARY, 5, FEBRUARY + 9 * DAY),
    ]
    assert newest_rows(table(*rows)).to_pylist() == table(rows[2], rows[0]).to_pylist()
    tied = [
        row("A", FEBRUARY, seed, FEBRUARY + days * DAY, recorded_at=FEBRUARY) for seed, days in ((1, 0), (2, 2), (3, 1))
    ]
    assert newest_rows(table(*tied)).to_pylist() == table(tied[1]).to_pylist()


def test_the_newest_rows_of_months_are_those_of_all_their_rows(lake: Lake) -> None:
    lake.write(TECHNICAL_FEATURES, "2023-12", table(row("C", JANUARY - 40 * DAY, 6), row("A", JANUARY - 40 * DAY, 7)))
    for months in ([], ["2024-01"], ["2024-02", "2023-12"], ["2023-12", "2024-01", "2024-02", "2024-03"]):
        every = lake.read(TECHNICAL_FEATURES, months, feature_schema())
        assert newest_in_lake(lake, months).to_pylist() == newest_rows(every).to_pylist()


# --- Servers that do not play along ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda url: "redis://:t0p-s3cret@127.0.0.1:1", DatabaseUnavailableError),
        (lambda url: url.replace("t0p", "wrong"), DatabaseRefusedError),
    ],
    ids=["unreachable", "wrong password"],
)
def test_a_redis_that_does_not_answer_or_refuses_is_one_line_without_the_password(
    database_url: str, redis_url: str, lake: Lake, change: Callable[[str], str], expected: type[PipelineError]
) -> None:
    prepare_database(database_url)
    store = FeastStore(database_url, "D1", lake.folder, change(redis_url))
    store.apply()
    for act in (lambda: ours(store, lake, "2024-01"), lambda: store.online_features(["A"], FEBRUARY)):
        with pytest.raises(expected) as error:
            act()
        text = str(error.value)
        assert "127.0.0.1" in text and "MT5_CRS_REDIS_URL" in text and "\n" not in text
        assert "s3cret" not in text and REDIS_PASSWORD not in text
    store.close()
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_locks where locktype = 'advisory'")
        assert cursor.fetchall() == [(0,)]
    connection.close()
