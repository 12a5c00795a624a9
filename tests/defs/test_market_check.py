"""The check on the market's time in real runs: a gap warns, an outage is an error, neither stops the run."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.core.market_time import Attendance, Calendar, Gap
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.checks import MARKET_CHECK, check_market_time
from mt5_crs_pipeline.defs.metadata import MOST_LISTED, listed
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.settings import Settings
from tests.defs.small_lake import FIRST, LAST, materialize, store, year_of_bars

ASSETS = [market_data, market_data_parquet]


def run(settings: Settings, first: str = FIRST, last: str = LAST) -> dg.AssetCheckEvaluation:
    result = materialize(Stores(settings), ASSETS, first, last)
    (check,) = [one for one in result.get_asset_check_evaluations() if one.check_name == MARKET_CHECK.name]
    return check


def told(check: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in check.metadata.items() if name != "symbols"}


def by_symbol(check: dg.AssetCheckEvaluation | dg.AssetCheckResult) -> dict[str, dict[str, Any]]:
    records = check.metadata["symbols"].records  # type: ignore[attr-defined]
    return {record.data["symbol"]: dict(record.data) for record in records}


def test_bars_of_long_ago_without_a_hole_pass_and_have_ended(settings: Settings) -> None:
    store(settings, year_of_bars())
    check = run(settings)
    assert check.passed
    assert told(check) == {
        "outages": 0,
        "without new bars": "none",
        "gaps": 0,
        "bars missing in gaps": 0,
        "bars missing for the broker's holidays": 0,
        "ended": "AAPL, IBM",
    }
    assert by_symbol(check)["IBM"] == {
        "symbol": "IBM",
        "calendar": "XNYS (guessed)",
        "state": "ended, last bar 2012-12-31 00:00",
        "gaps": 0,
        "bars missing": 0,
        "longest gap": 0,
        "first missing": "",
    }


def test_a_hole_warns_in_the_run_of_its_month_and_in_no_other_and_stops_nothing(settings: Settings) -> None:
    bars = year_of_bars()
    hole = (bars["symbol"] == "IBM") & bars["time"].isin(pd.to_datetime(["2012-05-15", "2012-05-16"], utc=True))
    store(settings, bars[~hole])
    check = run(settings)
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.WARN, False)
    assert (told(check)["gaps"], told(check)["bars missing in gaps"]) == (1, 2)
    ibm = by_symbol(check)["IBM"]
    assert (ibm["bars missing"], ibm["longest gap"], ibm["first missing"]) == (2, 2, "2012-05-15 13:30")
    assert by_symbol(check)["AAPL"]["gaps"] == 0
    assert not run(settings, "2012-05", "2012-05").passed
    assert run(settings, "2012-06", "2012-06").passed


def test_a_run_looks_at_the_symbols_of_the_year_before_its_months_and_after(settings: Settings) -> None:
    bars = demo_bars()
    year = bars["time"].dt.year
    ibm, aapl = (bars["symbol"] == "IBM") & year.between(2009, 2011), (bars["symbol"] == "AAPL") & (year == 2009)
    store(settings, bars[ibm | aapl])
    for first, last, symbols in (
        ("2009-01", "2011-12", ["AAPL", "IBM"]),
        ("2010-12", "2011-12", ["AAPL", "IBM"]),
        ("2011-01", "2011-01", ["IBM"]),
        ("2009-05", "2009-05", ["AAPL", "IBM"]),
    ):
        assert sorted(by_symbol(run(settings, first, last))) == symbols


def test_the_calendar_that_was_chosen_is_asked(settings: Settings) -> None:
    store(settings, year_of_bars())
    check = run(settings.model_copy(update={"calendars": {"IBM": "fx", "AAPL": "XNYS"}}))
    assert by_symbol(check)["AAPL"] | {"calendar": "XNYS", "gaps": 0} == by_symbol(check)["AAPL"]
    # Currencies trade on American holidays and in a hurricane.
    ibm = by_symbol(check)["IBM"]
    assert ibm["calendar"] == "fx" and ibm["first missing"].startswith("2012-01-15 22:00, 2012-02-19 22:00")
    assert 8 <= ibm["gaps"] <= 12


def test_bars_that_stopped_days_ago_are_an_error_and_those_that_go_on_are_none(settings: Settings) -> None:
    now = datetime.now(UTC)
    days = pd.date_range(now - timedelta(days=40), now - timedelta(days=1), freq="D").normalize().as_unit("us")
    bars = pd.concat(
        [
            year_of_bars().iloc[[0] * len(times)].assign(symbol=symbol, time=times)
            for symbol, times in (("BTC", days), ("ETH", days[:-5]))
        ],
        ignore_index=True,
    )
    from mt5_crs_pipeline.adapters.bar_store import ingest

    with Stores(settings).database.url() as url:
        ingest(url, bars, "D1", "test", now)
    check = run(settings, f"{days[0]:%Y-%m}", f"{now:%Y-%m}")
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, False)
    assert (told(check)["outages"], told(check)["without new bars"], told(check)["gaps"]) == (1, "ETH", 0)
    assert by_symbol(check)["BTC"]["state"].startswith("current")
    eth = by_symbol(check)["ETH"]
    assert eth["state"] == f"outage, last bar {days[-6]:%Y-%m-%d} 00:00"
    assert eth["first missing"] == f"{days[-5]:%Y-%m-%d} 00:00" and eth["bars missing"] in (4, 5)


@pytest.mark.parametrize("state", ["current", "outage"])
def test_without_a_gap_only_an_outage_fails(state: Any) -> None:
    day = pd.Timestamp("2024-05-15", tz="UTC")
    one = Attendance("A", Calendar("fx"), state, day, outage=Gap(day, day, 1) if state == "outage" else None)
    check = check_market_time([one], (datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=UTC)))
    assert check.passed == (state == "current")
    assert check_market_time([], (day.to_pydatetime(), day.to_pydatetime())).passed


def test_of_many_symbols_those_that_lack_something_are_listed_first() -> None:
    day = pd.Timestamp("2024-05-15", tz="UTC")
    many = [
        Attendance(f"S{number:03d}", Calendar("fx"), "current", day, gaps=(Gap(day, day, 1),) * (number == 300))
        for number in range(MOST_LISTED + 300)
    ]
    may = datetime(2024, 5, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
    assert [*by_symbol(check_market_time(many, may))] == [
        "S300",
        *(f"S{number:03d}" for number in range(MOST_LISTED - 1)),
    ]


def test_names_beyond_those_that_are_listed_are_counted() -> None:
    assert listed(["B", "A"]) == ["A", "B"]
    assert listed(str(number) for number in range(10_000, 10_000 + MOST_LISTED)) == [
        str(number) for number in range(10_000, 10_000 + MOST_LISTED)
    ]
    assert listed(str(number) for number in range(10_000, 20_000))[-2:] == [str(10_049), "and 9,950 more"]
