"""Market time on real calendars of exchanges and real bars."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mt5_crs_pipeline.adapters.calendars import months_since_a_year_before, sessions
from mt5_crs_pipeline.adapters.demo_bars import demo_bars
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, Lake
from mt5_crs_pipeline.adapters.mt5 import read_bars
from mt5_crs_pipeline.core.market_time import FX, Attendance, Calendar, attendance, expected_bars, guess_calendar
from mt5_crs_pipeline.core.revisions import microseconds


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def examined(bars: pd.DataFrame, timeframe: str, now: datetime, **chosen: str) -> dict[str, Attendance]:
    opened = {str(symbol): np.unique(microseconds(times)) for symbol, times in bars.groupby("symbol")["time"]}
    calendars = {s: Calendar(chosen[s]) if s in chosen else guess_calendar(s, o) for s, o in opened.items()}
    return {one.symbol: one for one in attendance(opened, calendars, sessions, timeframe, now)}


def test_new_york_is_open_from_9_30_to_16_00_shorter_before_holidays_and_not_on_them() -> None:
    days = sessions("XNYS", at(2024, 11, 27), at(2024, 12, 1))
    assert days.to_numpy().tolist() == [
        [pd.Timestamp("2024-11-27 14:30", tz="UTC"), pd.Timestamp("2024-11-27 21:00", tz="UTC")],
        [pd.Timestamp("2024-11-29 14:30", tz="UTC"), pd.Timestamp("2024-11-29 18:00", tz="UTC")],
    ]
    assert days.dtypes.astype(str).tolist() == ["datetime64[us, UTC]"] * 2
    # Daylight saving: the same hours in New York are others in UTC.
    assert sessions("XNYS", at(2024, 7, 1), at(2024, 7, 2))["open"].tolist() == [
        pd.Timestamp("2024-07-01 13:30", tz="UTC")
    ]


@pytest.mark.parametrize(
    ("month", "first"),
    [("2012-03", "2011-03"), ("2000-06", "2000-01"), ("2013-03", "2012-03"), ("2026-11", "2012-03")],
)
def test_a_run_looks_at_a_year_before_its_months_and_at_all_after(tmp_path: Path, month: str, first: str) -> None:
    lake = Lake(tmp_path)
    assert months_since_a_year_before(month, lake) == []
    every = [f"{year}-{number:02d}" for year in range(2000, 2014) for number in range(1, 13)][:-9]
    for one in every:
        lake.write(MARKET_DATA, one, pa.table({"time": [one]}))
    assert months_since_a_year_before(month, lake) == every[every.index(first) :]


@pytest.mark.parametrize("name", ["XKRX", "XTKS", "XHKG", "XSHG"])
def test_a_window_without_a_session_or_outside_of_what_is_known_has_none(name: str) -> None:
    saturday = sessions(name, at(2024, 6, 8), at(2024, 6, 9))
    assert saturday.empty and saturday.dtypes.astype(str).tolist() == ["datetime64[us, UTC]"] * 2
    old, recent = sessions(name, at(1850, 1, 1), at(1850, 12, 31)), sessions(name, at(1995, 1, 1), at(2024, 6, 8))
    assert old.empty and len(recent) > 5_000
    for days in (recent, sessions(name, at(2024, 1, 1), at(2100, 1, 1))):
        assert (days["open"] < days["close"]).all() and (days["close"] <= days["open"].shift(-1)).iloc[:-1].all()


def test_an_hour_of_tokyo_is_owed_before_and_after_the_change_of_its_closing_time() -> None:
    counts = [
        len(
            expected_bars(
                sessions("XTKS", at(2024, month, 11), at(2024, month, 12)),
                "H1",
                at(2024, month, 11),
                at(2024, month, 12),
            )
        )
        for month in (10, 12)
    ]
    assert counts == [6, 7]  # 9:00 to 15:00; to 15:30 since November 2024


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (at(2013, 3, 2, 0, 30), "current"),
        (at(2013, 3, 4, 23), "current"),
        (at(2013, 3, 6, 0, 30), "outage"),
        (at(2026, 1, 1), "ended"),
    ],
)
def test_thirteen_years_of_stocks_lack_no_day_that_new_york_was_open(now: datetime, state: str) -> None:
    found = examined(demo_bars(), "D1", now)
    assert len(found) == 5
    for one in found.values():
        assert one.calendar == Calendar("XNYS") and (one.gaps, one.holiday_bars, one.state) == ((), 0, state)


def test_a_day_that_is_taken_out_is_a_gap_and_one_that_all_lack_a_holiday() -> None:
    bars = demo_bars()
    day = bars["time"] == pd.Timestamp("2012-05-15", tz="UTC")
    alone = examined(bars[~(day & (bars["symbol"] == "IBM"))], "D1", at(2013, 3, 2, 0, 30))
    assert {s: [f"{gap.first:%Y-%m-%d}" for gap in one.gaps] for s, one in alone.items() if one.gaps} == {
        "IBM": ["2012-05-15"]
    }
    together = examined(bars[~day], "D1", at(2013, 3, 2, 0, 30))
    assert not any(one.gaps for one in together.values())
    # Facebook was not listed yet.
    assert {s: one.holiday_bars for s, one in together.items()} == {"AAPL": 1, "FB": 0, "GOOG": 1, "IBM": 1, "MSFT": 1}


def test_half_a_year_of_hours_of_two_currencies_from_a_terminal_has_no_gap(samples: Path) -> None:
    bars = pd.concat([read_bars(samples / f"{name}_H1.csv").bars for name in ("EURUSD", "GBPUSD")])
    newest = bars["time"].max()
    for one in examined(bars, "H1", (newest + pd.Timedelta(hours=5)).to_pydatetime()).values():
        assert (one.calendar, one.state, one.gaps) == (Calendar(FX), "current", ())
        assert one.holiday_bars == 3  # the last hour of Christmas Eve, of New Year's Eve, and one more
    for one in examined(bars, "H1", (newest + pd.Timedelta(hours=26)).to_pydatetime()).values():
        assert one.state == "outage" and one.outage and one.outage.first == newest + pd.Timedelta(hours=1)


def test_silver_has_a_break_every_day_and_gaps_on_american_holidays_only(samples: Path) -> None:
    bars = read_bars(samples / "SILVER_H1.csv").bars
    now = (bars["time"].max() + pd.Timedelta(hours=1)).to_pydatetime()
    (silver,) = examined(bars, "H1", now).values()
    assert silver.calendar == Calendar(FX)
    assert {f"{gap.first:%m-%d}" for gap in silver.gaps} >= {"07-04", "09-01", "11-27", "12-24"}
    assert sum(gap.bars for gap in silver.gaps) < 30 < len(bars) / 100


def test_the_days_of_a_file_in_utc_are_those_of_the_fx_week(samples: Path) -> None:
    bars = read_bars(samples / "EURUSD_D1_ohlcv.csv", symbol="EURUSD", timeframe="D1").bars
    (found,) = examined(bars, "D1", at(2025, 12, 31)).values()
    assert found.calendar == Calendar(FX) and found.state == "current"
    # The file's first years lack Fridays; since 2009 not one day is missing.
    assert found.gaps and found.gaps[-1].last < at(2009, 1, 1)
