"""Alerts arrive at a real HTTP server: each once, without a secret, and none without an address."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pandas as pd
import psycopg2
import pytest

from mt5_crs_pipeline.adapters.alerts import alert
from mt5_crs_pipeline.adapters.bar_store import ingest
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.market_time import Attendance, Calendar, Gap
from mt5_crs_pipeline.defs.alerts import alert_failed_run, alert_outages, alert_promotion, run_failure_alerts
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import execute, materialize, year_of_bars
from tests.receiver import CANARY, Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def alerting(settings: Settings, receiver: Receiver) -> Settings:
    """Settings with a secret in the alert address and one in the database's URL, which this server does not ask for."""
    parts = settings.database_url.get_secret_value().split("@", 1)
    url = f"{parts[0]}:{CANARY}@{parts[1]}"
    return Settings(home=settings.home, database_url=url, alert_urls=receiver.url)


@pytest.fixture(autouse=True)
def no_secret_shows(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("INFO"):
        yield
    assert CANARY not in caplog.text and CANARY not in str(receiver.messages)


def age_alerts(settings: Settings, hours: int) -> None:
    """Make what was sent older, which only the database's owner can."""
    execute(settings, "alter table alert disable trigger user")
    execute(settings, "update alert set sent_at = sent_at - %s * interval '1 hour'", hours)


def test_an_alert_is_sent_once_in_a_day_for_each_key(alerting: Settings, receiver: Receiver) -> None:
    database, urls = Database(alerting), alerting.alert_urls.get_secret_value()
    assert alert(database, urls, "a", "first", "body")
    assert not alert(database, urls, "a", "again", "body")
    assert alert(database, urls, "b", "other", "body")
    assert [(one["title"], one["message"]) for one in receiver.messages] == [("first", "body"), ("other", "body")]
    age_alerts(alerting, 23)
    assert not alert(database, urls, "a", "still", "body")
    age_alerts(alerting, 2)
    assert alert(database, urls, "a", "next day", "body")
    assert receiver.titles() == ["first", "other", "next day"]


def test_processes_that_have_the_same_to_say_say_it_once(alerting: Settings, receiver: Receiver) -> None:
    urls = alerting.alert_urls.get_secret_value()
    threads = [threading.Thread(target=alert, args=(Database(alerting), urls, "a", "title", "body")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert receiver.titles() == ["title"]


def test_without_an_address_nothing_is_sent_or_noted(settings: Settings, receiver: Receiver) -> None:
    Stores(settings).alert("a", "title", "body")
    with Database(settings).connection():
        pass
    assert receiver.messages == [] and execute(settings, "select * from alert") == []


def test_what_was_sent_is_not_taken_back(alerting: Settings) -> None:
    Stores(alerting).alert("a", "title", "body")
    with pytest.raises(psycopg2.errors.RestrictViolation):
        execute(alerting, "delete from alert")


@pytest.mark.parametrize("wrong", [f"json://me:{CANARY}@127.0.0.1:1/{CANARY}", f"nothing://{CANARY}", CANARY])
def test_an_alert_that_cannot_be_sent_is_one_warning_without_the_address(
    alerting: Settings, receiver: Receiver, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    assert not alert(Database(alerting), wrong, "a", "title", "body")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "'title'" in warning and "MT5_CRS_ALERT_URLS" in warning
    # What nobody took comes again; what one took does not, though the other address is still wrong.
    for told in (True, False):
        assert alert(Database(alerting), f"{wrong}, {receiver.url}", "a", "title", "body") == told
    assert receiver.titles() == ["title"]


def test_a_database_that_does_not_answer_fails_nothing(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = Settings(database_url=f"postgresql://me:{CANARY}@127.0.0.1:1/bars", alert_urls=receiver.url)
    Stores(nowhere).alert("a", "title", "body")
    assert receiver.messages == [] and "did not answer" in caplog.text


@dg.op
def refuses() -> None:
    raise InputError("no training rows: ingest more")


@dg.op
def has_a_bug() -> None:
    raise ValueError(f"cannot connect to postgresql://me:{CANARY}@host")


@dg.op
def is_stopped() -> None:
    raise dg.DagsterExecutionInterruptedError


@dg.asset(check_specs=[dg.AssetCheckSpec("rows_are_valid", asset="rows", blocking=True)])
def rows() -> dg.MaterializeResult:
    return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=False, metadata={"invalid": 3})])


def job_of(op: dg.OpDefinition) -> dg.JobDefinition:
    @dg.job(name=f"job_that_{op.name}")
    def job() -> None:
        op()

    return job


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (job_of(refuses), "refuses: no training rows: ingest more"),
        (job_of(has_a_bug), "has_a_bug: a bug: ValueError"),
        (
            dg.Definitions([rows], jobs=[dg.define_asset_job("rows_job")]).resolve_job_def("rows_job"),
            "check rows_are_valid of rows failed: 3 invalid",
        ),
    ],
    ids=["refusal", "bug", "check"],
)
def test_a_failed_run_is_told_with_its_reason_once(
    alerting: Settings, receiver: Receiver, job: dg.JobDefinition, reason: str
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        runs = [job.execute_in_process(instance=instance, raise_on_error=False) for _ in range(2)]
        for run in runs:
            failure = next(event for event in run.all_events if event.is_job_failure)
            context = dg.build_run_status_sensor_context(
                sensor_name="run_failure_alerts",
                dagster_event=failure,
                dagster_instance=instance,
                dagster_run=run.dagster_run,
                resources={"stores": Stores(alerting)},
            ).for_run_failure()
            run_failure_alerts(context)
    (message,) = receiver.messages
    assert message["title"] == f"{job.name} failed"
    assert message["message"] == f"job {job.name}, run {runs[0].run_id}\n{reason}"


def test_a_run_that_somebody_stopped_is_told_to_nobody(alerting: Settings, receiver: Receiver) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        try:
            run = job_of(is_stopped).execute_in_process(instance=instance, raise_on_error=False)
        except dg.DagsterExecutionInterruptedError:
            (dagster_run,) = instance.get_runs()
            events = [
                one.event_log_entry.dagster_event for one in instance.get_records_for_run(dagster_run.run_id).records
            ]
            alert_failed_run(Stores(alerting), dagster_run, [event for event in events if event])
        else:
            alert_failed_run(Stores(alerting), run.dagster_run, run.all_events)
    assert receiver.messages == []


def test_symbols_without_new_bars_are_told_in_one_message_a_day(alerting: Settings, receiver: Receiver) -> None:
    day = pd.Timestamp("2024-05-15 21:00", tz="UTC")
    gap = Gap(day, day, 1)
    found = [
        Attendance("EURUSD", Calendar("fx"), "outage", day, outage=gap),
        Attendance("GBPUSD", Calendar("fx"), "outage", day, outage=gap),
        Attendance("USDJPY", Calendar("fx"), "current", day, gaps=(gap,)),
    ]
    alert_outages(Stores(alerting), found[2:], "run-0")
    for _ in range(2):
        alert_outages(Stores(alerting), found, "run-1")
    (message,) = receiver.messages
    assert message["title"] == "no new D1 bars of 2 symbols"
    assert message["message"] == "run run-1\nEURUSD since 2024-05-15 21:00 UTC\nGBPUSD since 2024-05-15 21:00 UTC"


def test_a_run_over_bars_that_stopped_tells_it(alerting: Settings, receiver: Receiver) -> None:
    now = datetime.now(UTC)
    days = pd.date_range(now - timedelta(days=30), now - timedelta(days=5), freq="D").normalize().as_unit("us")
    bars = year_of_bars().iloc[[0] * len(days)].assign(symbol="BTC", time=days).reset_index(drop=True)
    with Database(alerting).url() as url:
        ingest(url, bars, "D1", "test", now)
    for _ in range(2):
        materialize(Stores(alerting), [market_data, market_data_parquet], f"{days[0]:%Y-%m}", f"{now:%Y-%m}")
    (message,) = receiver.messages
    assert f"BTC since {days[-1] + timedelta(days=1):%Y-%m-%d} 00:00 UTC" in message["message"]


def test_a_promotion_is_told_with_its_reason(alerting: Settings, receiver: Receiver) -> None:
    for version in ("v1", "v1", "v2"):
        alert_promotion(Stores(alerting), version, "evidence above the line", "run-1")
    assert receiver.titles() == ["v1 is the champion", "v2 is the champion"]
    assert receiver.messages[0]["message"] == "run run-1\nv1 was promoted: evidence above the line"
