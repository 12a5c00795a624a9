"""Which months the schedule and the sensor ask for, and that they ask for them once."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pandas as pd
import psycopg2
import pyarrow as pa
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from mt5_crs_pipeline.adapters.bar_store import ChangedBars
from mt5_crs_pipeline.adapters.calendars import has_news
from mt5_crs_pipeline.adapters.lake import MARKET_DATA
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, closed_revisions, month_of
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.defs.automation import (
    RUN_KEY_TAG,
    backfill_requests,
    daily_retrain,
    daily_retrain_schedule,
    market_data_backfill,
    market_data_revision_sensor,
)
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.defs.timing import FRESHNESS
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import execute, store, year_of_bars

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
REVISE = """
    insert into market_data (symbol, timeframe, time, open, high, low, close, volume)
    select symbol, timeframe, time, open, high, low, (high + low) / 2 + %s, volume from market_data_latest
    where symbol = 'AAPL' and time = %s
"""


def change(month: str, reach: str | None = None, number: int = 1, symbol: str = "AAPL") -> ChangedBars:
    return ChangedBars(symbol, month, reach or month, number)


def ranges(
    changes: list[ChangedBars], first: str | None = "2000-01", last: str | None = "2026-12"
) -> list[tuple[str, str]]:
    return [(one.first, one.last) for one in backfill_requests(changes, first, last)]


# ---------------------------------------------------------------- the decision


def test_the_months_of_the_changes_and_those_they_reach_are_asked_for_and_no_other() -> None:
    assert ranges([]) == []
    assert ranges([change("2012-05")]) == [("2012-05", "2012-05")]
    assert ranges([change("2012-11", "2013-02")]) == [("2012-11", "2013-02")]
    assert ranges([change("2012-05", "2012-06"), change("2012-09", symbol="IBM")]) == [
        ("2012-05", "2012-06"),
        ("2012-09", "2012-09"),
    ]


def test_neighbouring_and_overlapping_months_are_one_request() -> None:
    overlapping = [change("2012-05", "2012-07"), change("2012-06", symbol="IBM"), change("2012-08", symbol="FB")]
    assert ranges(overlapping) == ranges(overlapping[::-1]) == [("2012-05", "2012-08")]
    assert ranges([change("2011-12"), change("2012-01")]) == [("2011-12", "2012-01")]


def test_months_that_are_no_partitions_are_left_out() -> None:
    changes = [change("1999-11", "2000-02"), change("2026-12", "2027-03"), change("1998-01")]
    assert ranges(changes) == [("2000-01", "2000-02"), ("2026-12", "2026-12")]
    assert ranges([change("1998-01", "1998-03")]) == []
    assert ranges([change("1998-01")], None, None) == [("1998-01", "1998-01")]


def test_a_request_names_the_months_whose_bars_changed() -> None:
    changes = [change("1999-12", "2000-02"), change("2000-02", "2000-04"), change("2000-02", "2000-03", symbol="IBM")]
    (request,) = backfill_requests(changes, "2000-01", "2026-12")
    assert (request.first, request.last, request.changed) == ("2000-01", "2000-04", ("2000-02",))


def test_a_second_correction_gets_another_key_and_the_same_changes_the_same_key() -> None:
    changes = [change("2012-05", number=7), change("2012-05", number=8, symbol="IBM")]
    (request,) = backfill_requests(changes, "2000-01", "2026-12")
    assert backfill_requests(changes[::-1], "2000-01", "2026-12") == [request]
    (later,) = backfill_requests([change("2012-05", number=9), changes[1]], "2000-01", "2026-12")
    assert later.key != request.key


def test_the_key_of_a_range_does_not_depend_on_changes_elsewhere() -> None:
    alone = backfill_requests([change("2012-05")], "2000-01", "2026-12")
    both = backfill_requests([change("2012-05"), change("2013-05")], "2000-01", "2026-12")
    assert both[0] == alone[0] and len(both) == 2


# ---------------------------------------------------------------- the sensor


@pytest.fixture
def stores(settings: Settings) -> Stores:
    store(settings, year_of_bars())
    return Stores(settings)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def look(stores: Stores, instance: dg.DagsterInstance, cursor: str | None) -> tuple[list[dg.RunRequest], str]:
    """One look of the sensor: what it asks for, and what it remembers."""
    context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"stores": stores})
    tick = market_data_revision_sensor.evaluate_tick(context)
    assert tick.cursor is not None
    return list(tick.run_requests or []), tick.cursor


def succeed(instance: dg.DagsterInstance, requests: list[dg.RunRequest], status: str = "SUCCESS") -> None:
    """Record a run of every request as ended."""
    for request in requests:
        tags = {**request.tags, RUN_KEY_TAG: str(request.run_key)}
        run = dg.DagsterRun(market_data_backfill.name, status=dg.DagsterRunStatus(status), tags=tags)
        instance.add_run(run)


def months(requests: list[dg.RunRequest]) -> list[tuple[str, ...]]:
    return [tuple(request.tags[name] for name in RANGE) for request in requests]


def test_the_first_look_asks_for_everything_stored_and_the_next_for_nothing(
    stores: Stores, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    assert months(requests) == [("2012-01", "2012-12")]
    succeed(instance, requests)
    again, later = look(stores, instance, cursor)
    assert again == [] and json.loads(later)["done"] >= json.loads(cursor)["asked"]


def test_a_correction_by_plain_sql_asks_for_exactly_its_months(
    stores: Stores, settings: Settings, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    times = year_of_bars().query("symbol == 'AAPL'")["time"].sort_values(ignore_index=True)
    for position in (30, 200):
        execute(settings, REVISE, 0, times[position].to_pydatetime())
    requests, cursor = look(stores, instance, cursor)
    reached = [(times[at], times[min(at + PIPELINE_FEATURES.lookback - 1, len(times) - 1)]) for at in (30, 200)]
    assert months(requests) == [(f"{first:%Y-%m}", f"{last:%Y-%m}") for first, last in reached]
    first_key = requests[0].run_key
    succeed(instance, requests)

    execute(settings, REVISE, 0.01, times[30].to_pydatetime())
    requests, cursor = look(stores, instance, cursor)
    assert months(requests) == [(f"{reached[0][0]:%Y-%m}", f"{reached[0][1]:%Y-%m}")]
    assert requests[0].run_key != first_key
    succeed(instance, requests)
    assert look(stores, instance, cursor)[0] == []


def test_a_look_that_was_not_remembered_asks_again_with_the_same_key(
    stores: Stores, settings: Settings, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    execute(settings, REVISE, 0, datetime(2012, 12, 31, tzinfo=UTC))
    (first,), later = look(stores, instance, cursor)
    (again,), _ = look(stores, instance, cursor)
    (never_made,), _ = look(stores, instance, later)
    assert months([first]) == [("2012-12", "2012-12")]
    assert again.run_key == never_made.run_key == first.run_key


def test_twenty_looks_at_once_ask_for_one_run(stores: Stores, settings: Settings, instance: dg.DagsterInstance) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    execute(settings, REVISE, 0, datetime(2012, 12, 31, tzinfo=UTC))
    with ThreadPoolExecutor(20) as looks:
        seen = list(looks.map(lambda _: look(stores, instance, cursor), range(20)))
    # Dagster makes one run of equal run keys.
    assert {request.run_key for asked, _ in seen for request in asked} == {seen[0][0][0].run_key}
    assert all(len(asked) == 1 for asked, _ in seen)


def test_what_is_unchanged_or_of_another_timeframe_or_symbol_asks_for_nothing(
    stores: Stores, settings: Settings, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    assert store(settings, year_of_bars())["unchanged"] == len(year_of_bars())
    insert = "insert into market_data (symbol, timeframe, time, open, high, low, close, volume) values"
    execute(settings, f"{insert} ('AAPL', 'H1', '2012-05-15', 1, 1, 1, 1, 1)")
    assert look(stores, instance, cursor)[0] == []
    execute(settings, f"{insert} ('NEW', 'D1', '2012-05-15', 1, 1, 1, 1, 1)")
    only = Stores(settings.model_copy(update={"symbols": ("AAPL",)}))
    assert look(only, instance, cursor)[0] == []
    assert months(look(stores, instance, cursor)[0]) == [("2012-05", "2012-05")]


def test_an_unreachable_database_is_an_error_and_moves_no_cursor(
    settings: Settings, instance: dg.DagsterInstance
) -> None:
    nowhere = Stores(Settings(home=settings.home, database_url="postgresql://me@127.0.0.1:1/bars"))
    context = dg.build_sensor_context(instance=instance, cursor='{"done": 5}', resources={"stores": nowhere})
    with pytest.raises(Exception, match=r"did not answer|Connection refused"):
        market_data_revision_sensor.evaluate_tick(context)
    assert context.cursor == '{"done": 5}'


def test_a_correction_whose_run_failed_is_asked_for_again_and_not_passed_over(
    stores: Stores, settings: Settings, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    execute(settings, REVISE, 0, datetime(2012, 12, 31, tzinfo=UTC))
    failed, cursor = look(stores, instance, cursor)
    done = json.loads(cursor)["done"]
    succeed(instance, failed, "STARTED")
    assert look(stores, instance, cursor) == ([], cursor)  # waits
    (run,) = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: str(failed[0].run_key)}))
    instance.report_run_failed(run)

    # A bar that comes meanwhile does not let the failed one be forgotten.
    execute(settings, REVISE, 0.01, datetime(2012, 12, 28, tzinfo=UTC))
    nothing, cursor = look(stores, instance, cursor)
    assert nothing == [] and json.loads(cursor)["done"] == done
    memory = {**json.loads(cursor), "again_at": "2020-01-01T00:00:00+00:00"}  # the pause is over
    again, cursor = look(stores, instance, json.dumps(memory))
    assert months(again) == [("2012-12", "2012-12")] and again[0].run_key != failed[0].run_key
    succeed(instance, again)
    nothing, cursor = look(stores, instance, cursor)
    assert nothing == [] and json.loads(cursor)["done"] > done


def test_one_change_of_a_transaction_that_commits_late_is_not_passed_over(
    stores: Stores, settings: Settings, instance: dg.DagsterInstance
) -> None:
    requests, cursor = look(stores, instance, None)
    succeed(instance, requests)
    late = psycopg2.connect(settings.database_url.get_secret_value())
    try:
        with late.cursor() as session:
            session.execute(REVISE, (0, datetime(2012, 5, 15, tzinfo=UTC)))
        # A later transaction commits first, and its months are done.
        execute(settings, REVISE, 0, datetime(2012, 12, 31, tzinfo=UTC))
        for _ in range(2):
            requests, cursor = look(stores, instance, cursor)
            succeed(instance, requests)
        late.commit()
    finally:
        late.close()
    seen = []
    for _ in range(3):
        requests, cursor = look(stores, instance, cursor)
        succeed(instance, requests)
        seen += months(requests)
    assert seen[0][0] == "2012-05"


# ---------------------------------------------------------------- the schedule


def tick(stores: Stores, instance: dg.DagsterInstance, when: str) -> dg.RunRequest | dg.SkipReason:
    moment = pd.Timestamp(when, tz="UTC").to_pydatetime()
    resources = {"stores": stores}
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=moment, resources=resources) as context:
        answer = daily_retrain_schedule(context)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that a schedule can open for itself, as in the daemon."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def retrained(instance: dg.DagsterInstance, when: str, status: str = "SUCCESS") -> None:
    """Record a run of daily_retrain that was asked for at `when`."""
    run = dg.DagsterRun(daily_retrain.name, status=dg.DagsterRunStatus(status))
    instance.run_storage.add_historical_run(run, pd.Timestamp(when, tz="UTC").to_pydatetime())


def lake_of(stores: Stores, **symbols: pd.DatetimeIndex) -> None:
    """Put bars that opened at those times, and came in time, into the lake."""
    frames = []
    for symbol, times in symbols.items():
        bars = year_of_bars().iloc[[0] * len(times)].assign(symbol=symbol, timeframe=stores.timeframe, time=times)
        frames.append(bars.assign(known_at=bars["time"], recorded_at=bars["time"]))
    revisions = closed_revisions(pd.concat(frames), stores.timeframe)
    for month, part in revisions.groupby(month_of(revisions["time"])):
        stores.lake.write(MARKET_DATA, str(month), pa.Table.from_pandas(part, CLOSED_BAR_SCHEMA, preserve_index=False))


def test_the_schedule_ticks_once_on_every_day_of_utc_through_all_clock_changes() -> None:
    # Twelve years of changes in New York and Europe, which lie weeks apart.
    start = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    ticks = schedule_execution_time_iterator(
        start, str(daily_retrain_schedule.cron_schedule), daily_retrain_schedule.execution_timezone
    )
    for day in pd.date_range("2024-01-01", "2035-12-31", freq="D", tz="UTC"):
        assert next(ticks) == day + pd.Timedelta(minutes=30)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("2024-03-02 00:30", ("2024-03", "2024-03")),
        ("2024-03-01 00:30", ("2024-02", "2024-03")),
        ("2025-01-01 00:30", ("2024-12", "2025-01")),
        ("2000-01-01 00:30", ("2000-01", "2000-01")),  # before the first month there is no partition
    ],
)
def test_the_schedule_covers_the_months_of_yesterday_and_today(
    settings: Settings, kept: dg.DagsterInstance, when: str, expected: tuple[str, str]
) -> None:
    request = tick(Stores(settings), kept, when)
    assert isinstance(request, dg.RunRequest)
    assert months([request]) == [expected]
    assert request.run_key == when[:10]


WEEK = pd.date_range("2024-06-03", "2024-06-07", freq="D", tz="UTC", unit="us")  # Monday to Friday


def test_a_tick_is_skipped_in_words_when_no_market_has_closed_a_bar_since_the_last_run(
    settings: Settings, kept: dg.DagsterInstance
) -> None:
    stores = Stores(settings)
    lake_of(stores, AAPL=WEEK, EURUSD=WEEK)
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.RunRequest)  # it has never run
    retrained(kept, "2024-06-08 00:30:05")
    for sunday_or_monday in ("2024-06-09 00:30", "2024-06-10 00:30"):
        skipped = tick(stores, kept, sunday_or_monday)
        assert isinstance(skipped, dg.SkipReason)
        assert skipped.skip_message and "no market has closed a D1 bar" in skipped.skip_message
        assert "2024-06-08 00:30 UTC" in skipped.skip_message
    assert isinstance(tick(stores, kept, "2024-06-11 00:30"), dg.RunRequest)


def test_holidays_are_those_of_the_symbols_at_hand(settings: Settings, kept: dg.DagsterInstance) -> None:
    stores = Stores(settings)
    lake_of(stores, AAPL=WEEK)
    retrained(kept, "2024-07-04 00:30:05")  # Independence Day is over at the next tick
    assert isinstance(tick(stores, kept, "2024-07-05 00:30"), dg.SkipReason)
    lake_of(stores, AAPL=WEEK, EURUSD=WEEK)
    assert isinstance(tick(stores, kept, "2024-07-05 00:30"), dg.RunRequest)
    retrained(kept, "2024-12-25 00:30:05")
    assert isinstance(tick(stores, kept, "2024-12-26 00:30"), dg.SkipReason)
    chosen = Stores(settings.model_copy(update={"calendars": {"AAPL": "24/7"}}))
    assert isinstance(tick(chosen, kept, "2024-12-26 00:30"), dg.RunRequest)


def test_what_never_closes_is_retrained_every_day_and_hours_from_sunday_on(
    settings: Settings, kept: dg.DagsterInstance
) -> None:
    stores = Stores(settings)
    lake_of(stores, BTCUSD=pd.date_range("2024-06-01", "2024-06-07", freq="D", tz="UTC", unit="us"))
    retrained(kept, "2024-06-08 00:30:05")
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.RunRequest)
    hourly = Stores(settings.model_copy(update={"timeframe": "H1"}))
    lake_of(hourly, EURUSD=pd.date_range("2024-06-03", "2024-06-07 20:00", freq="h", tz="UTC", unit="us"))
    assert isinstance(tick(hourly, kept, "2024-06-09 00:30"), dg.SkipReason)
    assert isinstance(tick(hourly, kept, "2024-06-10 00:30"), dg.RunRequest)
    weekly = Stores(settings.model_copy(update={"timeframe": "W1"}))
    lake_of(weekly, EURUSD=WEEK[:1])
    retrained(kept, "2024-06-12 00:30:05")
    assert isinstance(tick(weekly, kept, "2024-06-13 00:30"), dg.RunRequest)


@pytest.mark.parametrize(("ended", "answer"), [("2023-06", dg.RunRequest), ("2023-05", dg.SkipReason)])
def test_what_ended_more_than_a_year_ago_is_waited_for_no_more(
    settings: Settings, kept: dg.DagsterInstance, ended: str, answer: type
) -> None:
    stores = Stores(settings)
    lake_of(stores, AAPL=WEEK, BTCUSD=pd.date_range(ended, periods=14, freq="D", tz="UTC", unit="us"))
    retrained(kept, "2024-06-08 00:30:05")
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), answer)


def test_a_run_that_failed_or_a_bar_that_came_late_is_not_left_for_tuesday(
    settings: Settings, kept: dg.DagsterInstance
) -> None:
    stores = Stores(settings)
    lake_of(stores, AAPL=WEEK)
    retrained(kept, "2024-06-07 00:30:05")
    retrained(kept, "2024-06-08 00:30:05", "FAILURE")
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.RunRequest)
    retrained(kept, "2024-06-08 00:40:00")
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.SkipReason)
    rows = stores.lake.read(MARKET_DATA, ["2024-06"], CLOSED_BAR_SCHEMA).to_pandas()
    rows.loc[4, ["known_at", "recorded_at"]] = pd.Timestamp("2024-06-08 06:00", tz="UTC")
    stores.lake.write(MARKET_DATA, "2024-06", pa.Table.from_pandas(rows, CLOSED_BAR_SCHEMA, preserve_index=False))
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.RunRequest)


def test_a_day_in_new_york_time_ends_after_saturdays_tick_and_is_taken_on_sunday(
    settings: Settings, kept: dg.DagsterInstance
) -> None:
    stores = Stores(settings)
    lake_of(stores, AAPL=WEEK + pd.Timedelta(hours=4))
    rows = stores.lake.read(MARKET_DATA, ["2024-06"], CLOSED_BAR_SCHEMA).to_pandas().iloc[:4]  # Friday's is forming
    stores.lake.write(MARKET_DATA, "2024-06", pa.Table.from_pandas(rows, CLOSED_BAR_SCHEMA, preserve_index=False))
    retrained(kept, "2024-06-08 00:30:05")
    assert isinstance(tick(stores, kept, "2024-06-09 00:30"), dg.RunRequest)
    retrained(kept, "2024-06-09 00:30:05")
    assert isinstance(tick(stores, kept, "2024-06-10 00:30"), dg.SkipReason)


@pytest.mark.parametrize("symbol", ["AAPL", "EURUSD"])
def test_no_pause_of_the_schedule_makes_an_asset_late(settings: Settings, symbol: str) -> None:
    stores = Stores(settings)
    lake_of(stores, **{symbol: WEEK})
    runs = [pd.Timestamp("2024-06-08 00:30", tz="UTC")]
    for moment in pd.date_range("2024-06-09 00:30", "2025-06-10 00:30", freq="D", tz="UTC"):
        if has_news(stores.lake, "D1", {}, runs[-1] + pd.Timedelta(seconds=5), moment):
            runs.append(moment)
    pauses = pd.Series(runs).diff().dropna()
    assert 240 < len(runs) < 265
    a_run, late, failed = (
        pd.Timedelta(hours=1),
        *(getattr(FRESHNESS, name).to_timedelta() for name in ("warn_window", "fail_window")),
    )
    assert pauses.max() + a_run < failed
    # Days and weekends; the rest are holidays.
    usual = pauses[pauses.dt.days.isin([1, 3])]
    assert len(usual) > 0.93 * len(pauses) and usual.max() + a_run < late
    # A run that does not take place after a weekend is seen.
    assert late < pd.Timedelta(days=4)
