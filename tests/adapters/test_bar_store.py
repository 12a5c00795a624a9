"""Bars in and out of a real PostgreSQL: counts, revisions, reads, and what changed since."""

import struct
import threading
import time as clock
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import psycopg2
import psycopg2.errors
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.adapters.bar_store import (
    IngestCounts,
    changes_since,
    ingest,
    months_with_bars,
    quarantine,
    read_latest,
    read_revisions,
    stored_symbols,
)
from mt5_crs_pipeline.adapters.postgres import connected, prepare_database
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, BAR_SCHEMA, VALUE_COLUMNS, latest_revisions
from mt5_crs_pipeline.core.errors import TransientError
from tests.adapters.made_up_bars import NOW, made_up_bars, plain_connection, query

HOSTILE = "'; drop table market_data; --"
INSERT = (
    "insert into market_data (symbol, timeframe, time, open, high, low, close, volume)"
    " values (%s, %s, %s, %s, %s, %s, %s, %s)"
)


@pytest.fixture
def url(database_url: str) -> str:
    prepare_database(database_url)
    return database_url


def store(url: str, bars: pd.DataFrame, timeframe: str = "D1", source: str = "test") -> IngestCounts:
    return ingest(url, bars, timeframe, source, NOW)


def plain_insert(url: str, *, symbol: str = "EURUSD", timeframe: str = "D1", time: str, close: float = 1.1) -> None:
    query(url, INSERT, (symbol, timeframe, time, 1.0, 2.0, 0.5, close, 7))


def latest(url: str, timeframe: str = "D1", **window: Any) -> pd.DataFrame:
    with connected(url) as connection:
        table = read_latest(connection, timeframe, **window)
    assert table.schema == BAR_SCHEMA
    return table.to_pandas()


def versions(url: str) -> list[tuple[Any, ...]]:
    return query(url, "select time, close, known_at from market_data order by symbol, time, known_at")


def bits(numbers: Any) -> list[bytes]:
    return [struct.pack("<d", number) for number in numbers]


# --- Counts ----------------------------------------------------------------------------------------------------------


def test_new_bars_are_inserted_then_unchanged_then_revised(url: str) -> None:
    bars = made_up_bars(5)
    assert store(url, bars) == IngestCounts(inserted=5)
    assert store(url, bars) == IngestCounts(unchanged=5)
    bars.loc[2, "close"] = bars.loc[2, "low"]
    more = pd.concat([bars, made_up_bars(3, symbol="GBPUSD")], ignore_index=True)
    assert store(url, more) == IngestCounts(inserted=3, unchanged=4, revised=1)
    assert query(url, "select count(*) from market_data") == [(9,)]


def test_counts_add_up_by_name() -> None:
    total = IngestCounts(1, 2, 3, 4) + IngestCounts(10, 20, 30, 40)
    assert total.to_dict() == {"inserted": 11, "unchanged": 22, "revised": 33, "quarantined": 44}


@pytest.mark.parametrize("column", VALUE_COLUMNS)
def test_a_change_in_any_single_value_is_a_revision(url: str, column: str) -> None:
    bars = made_up_bars(2).assign(adjusted_close=1.0, real_volume=5.0)
    store(url, bars)
    bars.loc[1, column] = np.nextafter(bars.loc[1, column], 0 if column == "open" else 2e6)
    bars.loc[1, ["high", "low"]] = [bars.loc[1, "high"] + (column == "high"), bars.loc[1, "low"]]
    assert store(url, bars) == IngestCounts(unchanged=1, revised=1)


@pytest.mark.parametrize("column", ["adjusted_close", "real_volume", "spread"])
def test_a_value_that_appears_or_goes_is_a_revision(url: str, column: str) -> None:
    without, with_value = made_up_bars(1).assign(**{column: np.nan}), made_up_bars(1).assign(**{column: 3.0})
    store(url, without)
    assert store(url, without) == IngestCounts(unchanged=1)
    assert store(url, with_value) == IngestCounts(revised=1)
    assert store(url, without) == IngestCounts(revised=1)
    assert [row[0] for row in query(url, f"select {column} from market_data order by known_at")] == [None, 3.0, None]


rows_to_offer = st.lists(
    st.tuples(
        st.sampled_from(["EURUSD", "GBPUSD", HOSTILE, "", None]),
        st.sampled_from(["D1", "D1", "D1", "H1"]),
        st.integers(0, 4),
        st.sampled_from([1.0, 1.5, -1.0, 0.0, np.nan, np.inf, 5e-324]),
        st.sampled_from([10.0, 0.0, -1.0, np.nan, 2.0**53 - 1, 2.0**53]),
        st.sampled_from([None, None, None, "unreadable_row"]),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows_to_offer, min_size=1, max_size=2))
def test_every_row_offered_is_counted_once(url: str, offers: list[list[tuple[Any, ...]]]) -> None:
    for offer in offers:
        frame = pd.DataFrame(
            {
                "symbol": pd.Series([row[0] for row in offer], dtype=object),
                "timeframe": pd.Series([row[1] for row in offer], dtype=object),
                "time": pd.to_datetime([f"2024-01-0{row[2] + 1}" for row in offer], utc=True).as_unit("us"),
                **{name: np.array([row[3] for row in offer], dtype=float) for name in ("open", "high", "low", "close")},
                "adjusted_close": np.nan,
                "volume": np.array([row[4] for row in offer], dtype=float),
                "real_volume": np.nan,
                "spread": np.nan,
                "reason": pd.Series([row[5] for row in offer], dtype=object),
            }
        )
        before = query(url, "select count(*) from market_data")[0][0]
        counts = store(url, frame)
        assert sum(counts.to_dict().values()) == len(offer)
        assert query(url, "select count(*) from market_data")[0][0] - before == counts.inserted + counts.revised
        assert query(url, "select count(*) from market_data where not (close > 0 and close < 1e9)") == [(0,)]


def test_a_frame_without_rows_is_fine(url: str) -> None:
    assert store(url, made_up_bars(3).iloc[:0]) == IngestCounts()


def test_the_server_plans_for_the_table_that_a_large_ingest_leaves(url: str) -> None:
    estimate = "select reltuples::int from pg_class where oid = 'market_data'::regclass"
    store(url, made_up_bars(30))
    assert query(url, estimate) == [(30,)]
    store(url, made_up_bars(40))
    assert query(url, estimate) == [(30,)]
    store(url, made_up_bars(200))
    assert query(url, estimate) == query(url, "select count(*)::int from market_data")


def test_a_failure_while_storing_leaves_nothing(url: str) -> None:
    query(url, "alter table market_data_quarantine add constraint never check (false)")
    bars = made_up_bars(3)
    bars.loc[1, "close"] = -1.0
    with pytest.raises(psycopg2.errors.CheckViolation):
        store(url, bars)
    assert query(url, "select count(*) from market_data") == [(0,)]


# --- When a bar was known --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeframe", "opens", "closes"),
    [
        ("D1", "2024-02-28", "2024-02-29"),
        ("H1", "2024-02-28 23:00", "2024-02-29"),
        ("MN1", "2024-02-01", "2024-03-01"),
        ("MN1", "2025-03-01", "2025-04-01"),
    ],
)
@pytest.mark.parametrize("way", ["ingest", "insert"])
def test_the_first_version_of_a_bar_was_known_at_its_close(
    url: str, timeframe: str, opens: str, closes: str, way: str
) -> None:
    if way == "ingest":
        store(url, made_up_bars(1, timeframe=timeframe, first=opens), timeframe)
    else:
        with plain_connection(url) as connection, connection.cursor() as cursor:
            cursor.execute("set timezone to 'America/New_York'")
            cursor.execute(INSERT, ("EURUSD", timeframe, f"{opens}+00", 1, 2, 0.5, 1.1, 7))
    assert [row[2] for row in versions(url)] == [pd.Timestamp(closes, tz="UTC").to_pydatetime()]


@pytest.mark.parametrize("way", ["ingest", "insert"])
def test_a_correction_is_known_from_its_arrival_and_both_versions_stay(url: str, way: str) -> None:
    bars = made_up_bars(1)
    store(url, bars)
    arrival = datetime.now(UTC)
    if way == "ingest":
        store(url, bars.assign(close=bars["low"]))
    else:
        plain_insert(url, time=str(bars["time"][0]))
    first, second = versions(url)
    assert first[1] == bars["close"][0] and second[1] != first[1]
    assert first[2] == bars["time"][0] + pd.Timedelta(days=1)
    assert arrival - timedelta(seconds=1) <= second[2] <= datetime.now(UTC) + timedelta(seconds=1)
    assert latest(url)["close"].tolist() == [second[1]]
    assert latest(url)["known_at"].tolist() == [second[2]]


def test_a_correction_back_to_the_first_values_is_a_third_version(url: str) -> None:
    bars = made_up_bars(1)
    wrong = bars.assign(close=bars["low"])
    assert [store(url, each) for each in (bars, wrong, bars)] == [
        IngestCounts(inserted=1),
        IngestCounts(revised=1),
        IngestCounts(revised=1),
    ]
    assert [row[1] for row in versions(url)] == [bars["close"][0], wrong["close"][0], bars["close"][0]]
    known = [row[2] for row in versions(url)]
    assert known == sorted(set(known))


def test_a_plain_insert_of_an_equal_bar_is_skipped(url: str) -> None:
    for _ in range(3):
        plain_insert(url, time="2024-01-02 00:00+00")
    assert len(versions(url)) == 1


def test_one_statement_with_several_versions_of_a_bar_keeps_each_in_order(url: str) -> None:
    values = "('EURUSD', 'D1', '2024-01-02 00:00+00', 1, 2, 0.5, %s, 7)"
    query(
        url,
        "insert into market_data (symbol, timeframe, time, open, high, low, close, volume) values "
        + ", ".join([values] * 4),
        (1.1, 1.2, 1.2, 1.3),
    )
    assert [row[1] for row in versions(url)] == [1.1, 1.2, 1.3]
    assert latest(url)["close"].tolist() == [1.3]


def test_revisions_of_a_forming_bar_are_not_known_before_its_close(url: str) -> None:
    opens = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for close in (1.1, 1.2, 1.3):
        plain_insert(url, time=opens.isoformat(), close=close)
    closes = opens + timedelta(days=1)
    assert [row[2] - closes for row in versions(url)] == [timedelta(microseconds=n) for n in range(3)]
    assert latest(url)["close"].tolist() == [1.3]


def test_a_loaded_correction_is_known_after_every_version_stored(url: str) -> None:
    opens = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for close in (1.1, 1.2):
        plain_insert(url, time=opens.isoformat(), close=close)
    bars = made_up_bars(1, first=f"{opens:%Y-%m-%d}")
    closes = opens + timedelta(days=1)
    assert ingest(url, bars, "D1", "test", closes) == IngestCounts(revised=1)
    assert [row[2] - closes for row in versions(url)] == [timedelta(microseconds=n) for n in range(3)]
    assert latest(url)["close"].tolist() == bars["close"].tolist()


def test_a_plain_insert_works_whatever_schema_its_session_searches(url: str) -> None:
    with plain_connection(url) as connection, connection.cursor() as cursor:
        cursor.execute("set search_path to ''")
        for close in (1.1, 1.1, 1.2):
            cursor.execute(
                INSERT.replace("market_data", "public.market_data"),
                ("EURUSD", "D1", "2024-01-02 00:00+00", 1, 2, 0.5, close, 7),
            )
    assert [row[1] for row in versions(url)] == [1.1, 1.2]


@pytest.mark.parametrize(
    "statement",
    [
        "update market_data set close = 9",
        "delete from market_data",
        "truncate market_data",
        "update market_data set close = 9 where false",
    ],
)
def test_stored_bars_cannot_be_changed(url: str, statement: str) -> None:
    store(url, made_up_bars(2))
    before = versions(url)
    with pytest.raises(psycopg2.errors.RestrictViolation, match="append-only: insert the corrected bar as a new row"):
        query(url, statement)
    assert versions(url) == before


def test_a_timeframe_nobody_knows_is_refused_by_the_database(url: str) -> None:
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        plain_insert(url, timeframe="H7", time="2024-01-02 00:00+00")


# --- Reads -----------------------------------------------------------------------------------------------------------


def test_every_double_reads_back_to_the_same_bits(url: str) -> None:
    random = np.random.default_rng(5)
    numbers = np.abs(random.integers(1, 2**62, 400).astype(np.uint64).view(np.float64))
    numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
    prices = np.concatenate([numbers, [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3]])
    bars = made_up_bars(len(prices)).assign(open=prices, high=prices, low=prices, close=prices, adjusted_close=prices)
    bars["volume"] = np.linspace(0, 2**53 - 1, len(bars)).round()
    bars = bars[bars["time"] < pd.Timestamp(NOW) - pd.Timedelta(days=2)]
    assert len(bars) > 300 and bars["volume"].max() > 2**52
    assert store(url, bars) == IngestCounts(inserted=len(bars))
    read = latest(url)
    for name in VALUE_COLUMNS:
        assert bits(read[name].dropna()) == bits(bars[name].dropna()), name
    assert read["time"].tolist() == bars["time"].tolist()


def test_the_largest_exact_volume_is_stored_and_the_next_refused(url: str) -> None:
    bars = made_up_bars(2).assign(volume=[2.0**53 - 1, 2.0**53])
    assert store(url, bars) == IngestCounts(inserted=1, quarantined=1)
    assert latest(url)["volume"].tolist() == [9007199254740991.0]


def test_odd_values_and_names_of_plain_inserts_read_back(url: str) -> None:
    names = [HOSTILE, 'a"b,c', "line\nbreak", "ü", "", "NULL", "NaN"]
    for name in names:
        query(url, INSERT, (name, "D1", "2024-01-02 03:04:05.000006+00", "NaN", "Infinity", "-Infinity", None, 7))
    read = latest(url)
    assert sorted(read["symbol"]) == sorted(names)
    assert np.isnan(read["open"]).all() and np.isnan(read["close"]).all()
    assert (read["high"] == np.inf).all() and (read["low"] == -np.inf).all()
    assert set(read["time"]) == {pd.Timestamp("2024-01-02 03:04:05.000006", tz="UTC")}
    assert latest(url, symbols=[HOSTILE])["symbol"].tolist() == [HOSTILE]
    assert latest(url, symbols=["%s", "%(symbols)s", "\\"]).empty
    assert query(url, "select count(*) from market_data") == [(len(names),)]


def test_a_window_holds_its_start_and_not_its_end(url: str) -> None:
    store(url, made_up_bars(5, first="2024-01-01"))
    start, end = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 4, tzinfo=UTC)
    assert latest(url, start=start, end=end)["time"].dt.day.tolist() == [2, 3]
    assert latest(url, start=end, end=start).empty


def test_rows_come_sorted_and_of_the_symbols_and_timeframe_asked_for(url: str) -> None:
    for symbol in ("GBPUSD", "AUDUSD", "eurusd"):
        store(url, made_up_bars(3, symbol=symbol).iloc[::-1])
    store(url, made_up_bars(3, timeframe="H1"), "H1")
    read = latest(url)
    assert read["symbol"].tolist() == ["AUDUSD"] * 3 + ["GBPUSD"] * 3 + ["eurusd"] * 3
    assert read.groupby("symbol")["time"].is_monotonic_increasing.all()
    assert set(latest(url, symbols=("AUDUSD", "absent"))["symbol"]) == {"AUDUSD"}
    with connected(url) as connection:
        assert stored_symbols(connection, "D1") == ["AUDUSD", "GBPUSD", "eurusd"]
        assert stored_symbols(connection, "H1") == ["EURUSD"]


def test_last_keeps_the_newest_bars_of_each_symbol(url: str) -> None:
    store(url, made_up_bars(9))
    store(url, made_up_bars(2, symbol="GBPUSD"))
    bars = made_up_bars(9)
    store(url, bars.assign(close=bars["low"]))
    read = latest(url, last=3)
    assert read["symbol"].tolist() == ["EURUSD"] * 3 + ["GBPUSD"] * 2
    assert read["time"].tolist()[:3] == bars["time"].tolist()[-3:]
    assert read["close"].tolist()[:3] == bars["low"].tolist()[-3:]
    assert latest(url, last=1, symbols=["GBPUSD"])["time"].tolist() == [bars["time"][1]]


def test_months_are_those_of_utc(url: str) -> None:
    plain_insert(url, time="2024-01-31 23:30-05")
    plain_insert(url, time="2023-12-31 23:59+00")
    plain_insert(url, time="2024-06-01 00:30+02", symbol="GBPUSD")
    with connected(url) as connection:
        assert months_with_bars(connection, "D1") == ["2023-12", "2024-02", "2024-05"]
        assert months_with_bars(connection, "D1", ["GBPUSD"]) == ["2024-05"]
        assert months_with_bars(connection, "D1", [HOSTILE]) == []
        assert months_with_bars(connection, "H1") == []


# --- All revisions, and when they arrived ----------------------------------------------------------------------------


def revisions(url: str, **window: Any) -> pd.DataFrame:
    with connected(url) as connection:
        table = read_revisions(connection, "D1", **window)
    assert table.schema == BAR_SCHEMA
    return table.to_pandas()


def test_every_revision_comes_sorted_and_of_the_window_and_symbols_asked_for(url: str) -> None:
    for symbol in ("GBPUSD", "AUDUSD"):
        bars = made_up_bars(3, symbol=symbol, first="2024-01-01")
        store(url, bars.iloc[::-1])
        store(url, bars.assign(close=bars["low"]))
    read = revisions(url)
    assert len(read) == 12
    pd.testing.assert_frame_equal(read, read.sort_values(["symbol", "time", "known_at"], ignore_index=True))
    assert read.groupby(["symbol", "time"])["close"].last().tolist() == latest(url)["close"].tolist()
    pd.testing.assert_frame_equal(latest_revisions(read), latest(url))
    window = {"start": datetime(2024, 1, 2, tzinfo=UTC), "end": datetime(2024, 1, 3, tzinfo=UTC)}
    assert revisions(url, **window)["time"].dt.day.tolist() == [2] * 4
    assert set(revisions(url, symbols=["AUDUSD"])["symbol"]) == {"AUDUSD"}
    assert revisions(url, symbols=[HOSTILE]).empty


@pytest.mark.parametrize("way", ["ingest", "insert"])
def test_all_rows_of_a_transaction_are_recorded_at_one_moment_and_each_transaction_at_its_own(
    url: str, way: str
) -> None:
    moments = []
    for close in (1.1, 1.2):
        before = datetime.now(UTC)
        if way == "ingest":
            store(url, made_up_bars(3).assign(open=1.0, high=2.0, low=0.5, close=close))
        else:
            with plain_connection(url) as connection, connection.cursor() as cursor:
                for day in (1, 2, 3):
                    cursor.execute(INSERT, ("EURUSD", "D1", f"2024-01-0{day}", 1, 2, 0.5, close, 7))
        moments.append((before, datetime.now(UTC)))
    recorded = revisions(url)["recorded_at"].unique()
    assert len(recorded) == 2 and len(revisions(url)) == 6
    for moment, (before, after) in zip(sorted(recorded), moments, strict=True):
        assert before <= moment <= after


def test_a_reader_waits_for_a_transaction_that_inserts_and_sees_its_bars(url: str) -> None:
    slow = psycopg2.connect(url)
    slow.cursor().execute(INSERT, ("SLOW", "D1", "2024-01-02 00:00+00", 1, 2, 0.5, 1.1, 7))
    plain_insert(url, symbol="FAST", time="2024-01-02 00:00+00")
    seen: list[pd.DataFrame] = []
    reader = threading.Thread(target=lambda: seen.append(revisions(url)))
    reader.start()
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    deadline = clock.monotonic() + 20
    while query(url, waits) == [(0,)]:
        assert clock.monotonic() < deadline
        clock.sleep(0.02)
    slow.commit()
    slow.close()
    reader.join()
    assert sorted(seen[0]["symbol"]) == ["FAST", "SLOW"]


def test_what_is_inserted_after_a_read_is_recorded_after_it_however_early_its_transaction_began(url: str) -> None:
    early = psycopg2.connect(url)
    early.cursor().execute("select now()")
    plain_insert(url, symbol="FAST", time="2024-01-02 00:00+00")
    newest = revisions(url)["recorded_at"].max()
    for day in (2, 3):
        early.cursor().execute("set local timezone to 'Asia/Kolkata'; set local datestyle to 'SQL, DMY'")
        early.cursor().execute(INSERT, ("EARLY", "D1", f"2024-01-0{day} 00:00+00", 1, 2, 0.5, 1.1, 7))
    early.commit()
    early.close()
    read = revisions(url)
    (later,) = read.loc[read["symbol"] == "EARLY", "recorded_at"].unique()
    assert newest < later <= pd.Timestamp.now(tz="UTC")


def test_a_transaction_that_never_ends_is_named_as_the_reason(url: str) -> None:
    stuck = psycopg2.connect(url)
    stuck.cursor().execute(INSERT, ("SLOW", "D1", "2024-01-02 00:00+00", 1, 2, 0.5, 1.1, 7))
    with pytest.raises(TransientError, match="has inserted bars and not committed"), connected(url) as connection:
        connection.cursor().execute("set lock_timeout to '100ms'")
        read_revisions(connection, "D1")
    stuck.close()


# --- What changed ----------------------------------------------------------------------------------------------------


def changes(url: str, position: int | None, reach: int = 2, symbols: tuple[str, ...] = ()) -> tuple[Any, int]:
    with connected(url) as connection:
        changed, new_position = changes_since(connection, "D1", position, reach, symbols)
    return [(each.symbol, each.month, each.reach_month) for each in changed], new_position


def test_a_change_is_seen_once(url: str) -> None:
    store(url, made_up_bars(5, first="2024-01-01"))
    first, position = changes(url, None)
    assert first == [("EURUSD", "2024-01", "2024-01")]
    again, position = changes(url, position)
    assert again == []
    store(url, made_up_bars(5, first="2024-01-01"))  # unchanged
    assert changes(url, position)[0] == []
    bars = made_up_bars(5, first="2024-01-01")
    store(url, bars.assign(close=bars["low"]))
    assert changes(url, position)[0] == first
    plain_insert(url, time="2023-05-05 00:00+00", symbol="GBPUSD")
    assert ("GBPUSD", "2023-05", "2023-05") in changes(url, position)[0]
    assert changes(url, position, symbols=("GBPUSD",))[0] == [("GBPUSD", "2023-05", "2023-05")]


def test_a_transaction_that_commits_late_is_not_lost(url: str) -> None:
    slow = psycopg2.connect(url)
    slow.cursor().execute(INSERT, ("SLOW", "D1", "2024-01-02 00:00+00", 1, 2, 0.5, 1.1, 7))
    plain_insert(url, symbol="FAST", time="2024-01-02 00:00+00")
    seen, position = changes(url, None)
    assert seen == []  # FAST began after SLOW, so it waits for it: nothing is seen twice
    slow.commit()
    slow.close()
    later, position = changes(url, position)
    assert later == [("FAST", "2024-01", "2024-01"), ("SLOW", "2024-01", "2024-01")]
    assert changes(url, position)[0] == []


def test_a_position_of_another_server_means_look_at_everything(url: str) -> None:
    store(url, made_up_bars(5, first="2024-01-01"))
    changed, position = changes(url, 2**40)
    assert changed == [("EURUSD", "2024-01", "2024-01")]
    assert position < 2**40


@pytest.mark.parametrize(("reach", "month"), [(0, "2024-01"), (1, "2024-01"), (2, "2024-02"), (40, "2024-03")])
def test_the_reach_of_a_change_counts_bars_not_versions(url: str, reach: int, month: str) -> None:
    store(url, made_up_bars(33, first="2024-01-30"))
    bars = made_up_bars(33, first="2024-01-30")
    store(url, bars.assign(close=bars["low"]))
    _, position = changes(url, None)
    store(url, bars.iloc[:1])
    assert changes(url, position, reach)[0] == [("EURUSD", "2024-01", month)]


def test_the_reach_of_the_newest_bars_is_their_own_month(url: str) -> None:
    store(url, made_up_bars(3, first="2024-01-29"))
    store(url, made_up_bars(90, symbol="GBPUSD", first="2024-01-29"))
    changed, _ = changes(url, None, reach=5, symbols=("EURUSD",))
    assert changed == [("EURUSD", "2024-01", "2024-01")]


# --- Quarantine ------------------------------------------------------------------------------------------------------


def test_a_rejected_row_is_kept_once_with_reason_source_and_content(url: str) -> None:
    bars = made_up_bars(3)
    bars.loc[1, "high"] = 0.001
    for _ in range(2):
        assert store(url, bars, source="a.csv").quarantined == 1
    assert store(url, bars, source="b.csv").quarantined == 1
    rows = query(
        url, "select symbol, timeframe, time, reason, source, row_content from market_data_quarantine order by source"
    )
    assert [row[:5] for row in rows] == [
        ("EURUSD", "D1", bars["time"][1], "high_below_low", source) for source in ("a.csv", "b.csv")
    ]
    assert rows[0][5]["high"] == "0.001" and rows[0][5]["close"] == str(bars["close"][1])


@pytest.mark.parametrize("text", ["a\x00b", "zażółć 漢字 🙂", "half \udcff", '"quoted", \\ and \n', HOSTILE])
def test_any_text_fits_into_quarantine(url: str, text: str) -> None:
    bars = made_up_bars(1).assign(symbol=text, reason="unreadable_row", raw=text)
    assert store(url, bars, source=text).quarantined == 1
    assert store(url, bars, source=text).quarantined == 1
    [(symbol, raw)] = query(url, "select symbol, row_content ->> 'raw' from market_data_quarantine")
    expected = {"a\x00b": "a\\0b", "half \udcff": "half \\udcff"}.get(text, text)
    assert symbol == raw == expected


def test_ten_thousand_rejected_rows_take_no_minute(url: str) -> None:
    bars = made_up_bars(10_000, timeframe="H1", first="2020-01-01").assign(close=-1.0)
    started = clock.monotonic()
    assert store(url, bars, "H1") == IngestCounts(quarantined=10_000)
    assert clock.monotonic() - started < 20
    assert query(url, "select count(*) from market_data_quarantine") == [(10_000,)]


def test_quarantine_takes_rows_without_time(url: str) -> None:
    rejected = pd.DataFrame({"symbol": [None], "time": pd.to_datetime([None], utc=True), "reason": ["missing_time"]})
    with connected(url) as connection:
        quarantine(connection, rejected, "x")
    assert query(url, "select symbol, timeframe, time from market_data_quarantine") == [(None, None, None)]


# --- Many at once ----------------------------------------------------------------------------------------------------


def test_two_loaders_of_the_same_bars_store_each_once(url: str) -> None:
    bars = made_up_bars(300)
    together, counts = threading.Barrier(4), []

    def load() -> None:
        together.wait()
        counts.append(store(url, bars))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts, IngestCounts()) == IngestCounts(inserted=300, unchanged=900)
    assert query(url, "select count(*) from market_data") == [(300,)]


def test_a_bar_another_program_inserts_meanwhile_is_classified_again(url: str) -> None:
    bars = made_up_bars(3)
    other = psycopg2.connect(url)
    other.cursor().execute(INSERT, ("EURUSD", "D1", bars["time"][1].isoformat(), 1, 2, 0.5, 1.1, 7))
    counts: list[IngestCounts] = []
    loader = threading.Thread(target=lambda: counts.append(store(url, bars)))
    loader.start()
    deadline = clock.monotonic() + 20
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    while query(url, waits) == [(0,)]:
        assert clock.monotonic() < deadline
        clock.sleep(0.02)
    other.commit()
    other.close()
    loader.join()
    assert counts == [IngestCounts(inserted=2, revised=1)]
    assert len(versions(url)) == 4


def test_a_hundred_thousand_bars_go_in_and_out_fast(url: str) -> None:
    bars = made_up_bars(100_000, timeframe="H1", first="2010-01-01")
    started = clock.monotonic()
    assert store(url, bars, "H1") == IngestCounts(inserted=100_000)
    assert store(url, bars, "H1") == IngestCounts(unchanged=100_000)
    read = latest(url, "H1")
    took = clock.monotonic() - started
    pd.testing.assert_frame_equal(read[list(BAR_COLUMNS)], bars, check_exact=True)
    assert took < 30, f"{took:.1f} s"


def test_reading_nothing_gives_an_empty_table_of_the_schema(url: str) -> None:
    with connected(url) as connection:
        table = read_latest(connection, "D1")
    assert table.num_rows == 0 and table.schema == BAR_SCHEMA and isinstance(table, pa.Table)
