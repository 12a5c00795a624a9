"""Which bars a market owes, and what it means when one is missing: on calendars made by hand."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.market_time import (
    ALLOWANCE,
    ALWAYS_OPEN,
    ENDED_AFTER_SESSIONS,
    FX,
    Attendance,
    Calendar,
    are_there,
    attendance,
    closing_times,
    expected_bars,
    guess_calendar,
    own_sessions,
    parse_calendars,
)
from mt5_crs_pipeline.core.revisions import microseconds


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def stamps(*texts: str) -> pd.Series:
    return pd.Series(pd.to_datetime(list(texts), utc=True)).dt.as_unit("us")


def every(start: str, end: str, freq: str) -> pd.Series:
    return pd.Series(pd.date_range(start, end, freq=freq, tz="UTC", inclusive="left", unit="us"))


def without(times: pd.Series, *texts: str) -> pd.Series:
    kept = times[~times.isin(stamps(*texts))].reset_index(drop=True)
    assert len(kept) == len(times) - len(texts)
    return kept


def office_hours(name: str, start: datetime, end: datetime) -> pd.DataFrame:
    """An exchange that is open from 9:00 to 12:30 UTC on weekdays, but not on 1 May."""
    days = pd.bdate_range(pd.Timestamp(start).date(), pd.Timestamp(end).date(), tz="UTC", unit="us")
    days = days[days.strftime("%m-%d") != "05-01"]
    return pd.DataFrame({"open": days + pd.Timedelta(hours=9), "close": days + pd.Timedelta(hours=12.5)})


def examined(
    times: dict[str, pd.Series], now: str, timeframe: str = "D1", calendar: str = "office"
) -> dict[str, Attendance]:
    sessions = office_hours if calendar == "office" else own_sessions
    calendars = dict.fromkeys(times, Calendar(calendar))
    bars = {symbol: microseconds(opened) for symbol, opened in times.items()}
    return {one.symbol: one for one in attendance(bars, calendars, sessions, timeframe, at(now))}


# ---------------------------------------------------------------- sessions and what they owe


def test_the_fx_week_runs_from_sunday_to_friday_17_00_in_new_york_through_both_clock_changes() -> None:
    winter = own_sessions(FX, at("2024-02-26"), at("2024-03-03"))
    assert winter["open"].tolist() == stamps(*(f"2024-02-{day} 22:00" for day in (25, 26, 27, 28, 29))).tolist()
    assert winter["close"].iloc[-1] == pd.Timestamp("2024-03-01 22:00", tz="UTC")
    # New York changes on 10 March, Europe three weeks later, which is nothing to this market.
    spring = own_sessions(FX, at("2024-03-09"), at("2024-03-11 22:00"))
    assert spring["open"].tolist() == stamps("2024-03-10 21:00", "2024-03-11 21:00").tolist()
    autumn = own_sessions(FX, at("2024-11-01 12:00"), at("2024-11-04"))
    assert autumn["close"].tolist() == stamps("2024-11-01 21:00", "2024-11-04 22:00").tolist()


def test_fx_is_closed_on_christmas_and_new_year_and_crypto_never() -> None:
    closes = own_sessions(FX, at("2024-12-23"), at("2025-01-04"))["close"].dt.strftime("%m-%d").tolist()
    assert closes == ["12-23", "12-24", "12-26", "12-27", "12-30", "12-31", "01-02", "01-03"]
    days = own_sessions(ALWAYS_OPEN, at("2024-12-23"), at("2025-01-04"))
    assert days["open"].tolist() == every("2024-12-23", "2025-01-04", "D").tolist()
    assert (days["close"] - days["open"]).unique().tolist() == [pd.Timedelta(days=1)]


@pytest.mark.parametrize(
    ("timeframe", "opens", "closes"),
    [
        ("H1", ["09:00", "10:00", "11:00", "12:00"], ["10:00", "11:00", "12:00", "12:30"]),
        ("H2", ["09:00", "11:00"], ["11:00", "12:30"]),
        ("H4", ["09:00"], ["12:30"]),
        ("D1", ["09:00"], ["12:30"]),
        ("W1", [], []),
        ("MN1", [], []),
    ],
)
def test_a_session_owes_bars_from_its_open_to_its_close(timeframe: str, opens: list[str], closes: list[str]) -> None:
    sessions = office_hours("", at("2024-04-30"), at("2024-05-02"))
    bars = expected_bars(sessions, timeframe, at("2024-04-30"), at("2024-05-03"))
    days = ("2024-04-30", "2024-05-02")
    assert bars["open"].tolist() == stamps(*(f"{day} {time}" for day in days for time in opens)).tolist()
    assert bars["close"].tolist() == stamps(*(f"{day} {time}" for day in days for time in closes)).tolist()
    assert bars["session"].tolist() == [0] * len(opens) + [1] * len(opens)
    assert bars["slot"].tolist() == [*range(len(opens))] * 2


def test_bars_are_expected_where_they_open_inside_the_window() -> None:
    sessions = office_hours("", at("2024-04-29"), at("2024-05-03"))
    opens = expected_bars(sessions, "H1", at("2024-04-29 10:00"), at("2024-04-30 09:00"))["open"]
    assert opens.tolist() == stamps("2024-04-29 10:00", "2024-04-29 11:00", "2024-04-29 12:00").tolist()


@pytest.mark.parametrize(
    "stamp",
    ["00:00 of the day", "midnight of the broker", "midnight in New York", "the open of the session"],
)
def test_a_daily_bar_is_its_sessions_wherever_the_day_is_said_to_begin(stamp: str) -> None:
    sessions = own_sessions(FX, at("2024-01-02"), at("2025-01-01"))
    days = sessions["close"].dt.tz_convert("America/New_York").dt.tz_localize(None).dt.normalize()
    bars = {
        "00:00 of the day": days.dt.tz_localize("UTC"),
        "midnight of the broker": sessions["open"],
        "midnight in New York": days.dt.tz_localize("America/New_York").dt.tz_convert("UTC"),
        "the open of the session": sessions["open"],
    }[stamp].dt.as_unit("us")
    expected = expected_bars(sessions, "D1", at("2024-01-01"), at("2025-01-01"))
    assert are_there(expected, microseconds(bars), "D1").all()
    missing = np.arange(len(bars)) % 7 == 3
    assert (are_there(expected, microseconds(bars[~missing]), "D1") == ~missing).all()


def test_the_two_hours_of_sunday_in_a_file_of_utc_days_are_not_mondays_bar() -> None:
    expected = expected_bars(
        own_sessions(FX, at("2024-06-07"), at("2024-06-12")), "D1", at("2024-06-06"), at("2024-06-12")
    )
    # Friday, Sunday, Tuesday.
    there = are_there(expected, microseconds(stamps("2024-06-07", "2024-06-09", "2024-06-11")), "D1")
    assert there.tolist()[:3] == [True, False, True]


@pytest.mark.parametrize("first", ["21:00", "20:00"], ids=["the server's grid", "the grid of UTC"])
def test_four_hour_bars_are_found_on_either_grid(first: str) -> None:
    sessions = own_sessions(FX, at("2024-06-09"), at("2024-06-14 21:00"))
    expected = expected_bars(sessions, "H4", at("2024-06-09"), at("2024-06-15"))
    bars = every(f"2024-06-09 {first}", "2024-06-14 21:00", "4h")
    assert len(expected) == 30 and are_there(expected, microseconds(bars), "H4").all()
    assert (~are_there(expected, microseconds(bars.drop(7)), "H4")).sum() == 1


def test_a_bar_closes_when_it_ends_as_it_is_stamped_if_that_is_later_than_the_market() -> None:
    sessions = office_hours("", at("2024-04-29"), at("2024-05-02"))
    expected = expected_bars(sessions, "D1", at("2024-04-29"), at("2024-05-02"))
    by_midnight = closing_times(expected, microseconds(stamps("2024-04-29 00:00")), "D1")
    assert by_midnight["market"].tolist() == stamps("2024-04-29 12:30", "2024-04-30 12:30").tolist()
    assert by_midnight["bar"].tolist() == stamps("2024-04-30 00:00", "2024-05-01 00:00").tolist()
    new_york = closing_times(expected, microseconds(stamps("2024-04-29 04:00")), "D1")
    assert new_york["bar"].tolist() == stamps("2024-04-30 04:00", "2024-05-01 04:00").tolist()
    hours = expected_bars(sessions, "H1", at("2024-04-29"), at("2024-04-30"))
    assert closing_times(hours, microseconds(stamps("2024-04-29 09:00")), "H1")["bar"].iloc[-1] == at(
        "2024-04-29 13:00"
    )


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_bar_of_summer_says_when_those_of_winter_end_to_an_hour(zone: str) -> None:
    sessions = own_sessions(FX, at("2024-10-01"), at("2025-07-01"))
    days = sessions["close"].dt.tz_convert("America/New_York").dt.tz_localize(None).dt.normalize()
    ends = (days + pd.Timedelta(days=1)).dt.tz_localize(zone).dt.tz_convert("UTC")
    expected = expected_bars(sessions, "D1", at("2024-09-01"), at("2025-07-01"))
    for known in (sessions.index[:5], sessions.index[:100]):  # to October, to February
        stamps = days[known].dt.tz_localize(zone).dt.tz_convert("UTC").dt.as_unit("us")
        early = ends - closing_times(expected, microseconds(stamps), "D1")["bar"]
        assert early.iloc[: len(known)].iloc[-1] == pd.Timedelta(0)
        assert early.between(pd.Timedelta(0), pd.Timedelta(hours=1)).all()


# ---------------------------------------------------------------- gaps, holidays, outages


def weekdays(start: str, end: str) -> pd.Series:
    days = every(start, end, "D")
    return days[days.dt.dayofweek < 5].reset_index(drop=True)


def test_what_the_calendar_does_not_owe_is_not_missing() -> None:
    bars = without(weekdays("2024-04-01", "2024-05-11"), "2024-05-01")
    found = examined({"A": bars}, "2024-05-11 00:30")["A"]
    assert (found.state, found.gaps, found.outage, found.holiday_bars) == ("current", (), None, 0)


def test_missing_bars_that_follow_each_other_are_one_gap_over_holidays_too() -> None:
    bars = without(
        weekdays("2024-04-01", "2024-05-11"), "2024-04-09", "2024-04-30", "2024-05-01", "2024-05-02", "2024-05-03"
    )
    found = examined({"A": bars}, "2024-05-11 00:30")["A"]
    gaps = [(f"{gap.first:%m-%d}", f"{gap.last:%m-%d}", gap.bars) for gap in found.gaps]
    assert gaps == [("04-09", "04-09", 1), ("04-30", "05-03", 3)]
    assert [gap.bars for gap in found.within(at("2024-04-10"), at("2024-05-01")).gaps] == [3]
    assert found.within(at("2024-04-09 09:00"), at("2024-04-30 09:00")).gaps == found.gaps[:1]


def test_nothing_is_missing_before_the_first_bar() -> None:
    assert examined({"A": stamps("2024-04-09", "2024-04-10")}, "2024-04-11 00:30")["A"].gaps == ()


def test_what_most_others_lack_too_is_the_brokers_holiday() -> None:
    full = without(weekdays("2024-04-01", "2024-04-13"))
    closed = without(full, "2024-04-04", "2024-04-05")
    found = examined({"A": closed, "B": closed, "C": closed, "D": full}, "2024-04-13 00:30")
    assert [(one.gaps, one.holiday_bars) for one in found.values()] == [((), 2)] * 3 + [((), 0)]
    # Half of the others are not most of them.
    found = examined({"A": closed, "B": closed, "C": full}, "2024-04-13 00:30")
    assert [len(one.gaps) for one in found.values()] == [1, 1, 0]
    # Who had no bars yet, or none any more, lacks nothing.
    young = full[full > at("2024-04-08")].reset_index(drop=True)
    found = examined({"A": closed, "B": young, "C": full}, "2024-04-13 00:30")
    assert [len(one.gaps) for one in found.values()] == [1, 0, 0]


def test_what_lasts_longer_than_holidays_do_is_a_gap_however_many_lack_it() -> None:
    full = weekdays("2024-04-01", "2024-04-27")
    lost = full[(full < at("2024-04-08")) | (full > at("2024-04-13"))].reset_index(drop=True)
    found = examined({"A": lost, "B": lost, "C": lost}, "2024-04-27 00:30")
    assert [([gap.bars for gap in one.gaps], one.holiday_bars) for one in found.values()] == [([5], 0)] * 3


def test_an_outage_begins_a_day_after_the_first_missing_bar_has_closed() -> None:
    bars = weekdays("2024-04-01", "2024-04-13")  # to Friday; Monday's bar ends at midnight
    for now, state in [
        ("2024-04-14 12:00", "current"),
        ("2024-04-16 00:30", "current"),
        ("2024-04-16 23:59", "current"),
        ("2024-04-17 00:00", "outage"),
    ]:
        assert examined({"A": bars}, now)["A"].state == state, now
    outage = examined({"A": bars}, "2024-04-18 00:30")["A"].outage
    assert outage and (outage.first, outage.bars) == (at("2024-04-15 09:00"), 2)
    assert timedelta(days=1) == ALLOWANCE


def test_what_has_not_come_for_many_sessions_has_ended_and_alarms_no_more() -> None:
    bars = weekdays("2024-05-01", "2024-05-11")
    sessions = weekdays("2024-05-13", "2024-06-30")
    last_alarm, ended = sessions[ENDED_AFTER_SESSIONS - 1], sessions[ENDED_AFTER_SESSIONS]
    assert examined({"A": bars}, f"{last_alarm:%Y-%m-%d} 23:00")["A"].state == "outage"
    found = examined({"A": bars}, f"{ended:%Y-%m-%d} 23:00")["A"]
    assert (found.state, found.outage, found.last) == ("ended", None, bars.iloc[-1])


def test_an_outage_of_hours_begins_after_the_same_day_and_weekends_count_for_nothing() -> None:
    week = every("2024-06-09 21:00", "2024-06-14 21:00", "h")
    assert examined({"E": week}, "2024-06-16 20:00", "H1", FX)["E"].state == "current"
    assert examined({"E": week}, "2024-06-17 21:59", "H1", FX)["E"].state == "current"
    found = examined({"E": week}, "2024-06-17 23:30", "H1", FX)["E"]
    assert found.outage and (found.outage.first, found.outage.bars) == (at("2024-06-16 21:00"), 2)


def test_a_daily_break_of_the_symbol_is_no_gap_and_a_hole_beside_it_is_one() -> None:
    hours = every("2024-06-09 21:00", "2024-06-14 21:00", "h")
    open_hours = hours[hours.dt.hour != 21].reset_index(drop=True)
    metal = without(open_hours, "2024-06-12 20:00", "2024-06-12 22:00")
    found = examined({"XAUUSD": metal}, "2024-06-15", "H1", FX)["XAUUSD"]
    assert [(f"{gap.first:%d %H}", gap.bars) for gap in found.gaps] == [("12 20", 1), ("12 22", 1)]
    assert found.state == "current"


def test_a_symbol_with_few_daily_bars_has_gaps_not_a_break() -> None:
    found = examined({"A": stamps("2024-01-02", "2024-06-28")}, "2024-06-29 00:30")["A"]
    assert [gap.bars for gap in found.gaps] == [126]


@pytest.mark.parametrize("timeframe", ["W1", "MN1"])
def test_of_weeks_and_months_nothing_is_said(timeframe: str) -> None:
    found = examined({"A": stamps("2020-01-01", "2024-01-01")}, "2026-01-01", timeframe)["A"]
    assert (found.state, found.gaps) == ("current", ())


def test_bars_that_no_session_owes_are_no_fault() -> None:
    found = examined({"A": stamps("2024-05-04", "2024-05-05")}, "2024-05-06")["A"]  # a weekend
    assert (found.state, found.gaps, found.last) == ("current", (), at("2024-05-05"))


@pytest.mark.parametrize(("now", "state"), [("2024-05-20", "current"), ("2024-05-22", "ended")])
def test_a_symbol_without_a_bar_that_was_owed_has_ended_too_when_nobody_waits_for_it(now: str, state: str) -> None:
    found = examined({"A": stamps("2024-05-04"), "B": weekdays("2024-05-02", now)}, now)
    assert (found["A"].state, found["B"].state) == (state, "current")


def test_each_symbol_is_held_against_its_own_calendar() -> None:
    weekdays_only = weekdays("2024-06-03", "2024-06-15")
    found = attendance(
        dict.fromkeys("BA", microseconds(weekdays_only)),
        {"A": Calendar(FX), "B": Calendar(ALWAYS_OPEN, is_guess=False)},
        own_sessions,
        "D1",
        at("2024-06-15 00:30"),
    )
    assert [(one.symbol, one.calendar.name, [gap.bars for gap in one.gaps]) for one in found] == [
        ("A", "fx", []),
        ("B", "24/7", [2]),
    ]


def test_symbols_with_the_same_bars_keep_what_is_known_of_their_calendars() -> None:
    calendars = {"A": Calendar(FX, is_guess=True), "B": Calendar(FX, is_guess=False)}
    bars = dict.fromkeys(calendars, microseconds(every("2024-06-03", "2024-06-08", "1D")))
    found = attendance(bars, calendars, own_sessions, "D1", at("2024-06-15 00:30"))
    assert {one.symbol: one.calendar for one in found} == calendars


# ---------------------------------------------------------------- the guess and the choice


WEEKDAYS = weekdays("2024-01-01", "2024-06-01")
HOURS = every("2024-01-07 22:00", "2024-01-12 22:00", "h")
EVERY_DAY = every("2024-01-01", "2024-06-01", "D")
SUNDAYS_TOO = pd.concat([WEEKDAYS, stamps("2024-01-07", "2024-01-14")]).sort_values(ignore_index=True)


@pytest.mark.parametrize(
    ("symbol", "times", "name"),
    [
        ("EURUSD", WEEKDAYS, FX),
        ("EURUSD", EVERY_DAY, FX),
        ("eurusd.m", WEEKDAYS, FX),
        ("XAUUSD", WEEKDAYS, FX),
        ("XAGEUR", WEEKDAYS[:0], FX),
        ("BTCUSD", EVERY_DAY, ALWAYS_OPEN),
        ("ETH", EVERY_DAY, ALWAYS_OPEN),
        ("AAPL", WEEKDAYS, "XNYS"),
        ("#AAPL", WEEKDAYS, "XNYS"),
        ("BRK.B", SUNDAYS_TOO, "XNYS"),
        ("F", WEEKDAYS[:0], "XNYS"),
        ("SILVER", HOURS, FX),
        ("US500", HOURS, FX),
        ("GOLD", HOURS, FX),
        ("US30.cash", WEEKDAYS, FX),
        ("EURUSX", WEEKDAYS, FX),
        ("TBILLS", WEEKDAYS, FX),
        ("TA35", EVERY_DAY[EVERY_DAY.dt.dayofweek.isin([6, 0, 1, 2, 3])], FX),  # from Sunday to Thursday
    ],
)
def test_a_calendar_is_guessed_from_the_name_and_the_days(symbol: str, times: pd.Series, name: str) -> None:
    assert guess_calendar(symbol, microseconds(times)) == Calendar(name, is_guess=True)


def test_choices_are_pairs_of_symbol_and_calendar() -> None:
    assert parse_calendars("") == parse_calendars(" , ") == {}
    assert parse_calendars("BTC=24/7, SAP=XETR ,") == {"BTC": "24/7", "SAP": "XETR"}
    for wrong in ("BTC", "BTC=", "=fx", "A=fx,A=fx"):
        with pytest.raises(ConfigurationError):
            parse_calendars(wrong)
