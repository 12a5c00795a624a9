"""What is read from a bar's own time, for every day of many centuries, against the calendars of Python and pandas."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from tests.core.samples import INPUTS

CONFIG = FeatureConfig(("hour_of_day", "day_of_week", "day_of_month", "month_of_year"))


def calendar_of(time: pd.Series) -> pd.DataFrame:
    return feature_frame(pd.DataFrame(dict.fromkeys(INPUTS, 1.0), index=time.index).assign(time=time), CONFIG)


def in_unit(seconds: np.ndarray, unit: str) -> pd.Series:
    return pd.Series(seconds.astype("datetime64[s]").astype(f"datetime64[{unit}]")).dt.tz_localize("UTC")


def days_of(first: date, last: date) -> np.ndarray:
    return np.arange(first.toordinal(), last.toordinal() + 1) - date(1970, 1, 1).toordinal()


@pytest.mark.parametrize(("unit", "second_of_day"), [("s", 0), ("us", 86_399), ("ms", 12 * 3600)])
def test_every_day_of_two_thousand_years_is_that_of_pythons_calendar(unit: str, second_of_day: int) -> None:
    first, last = date(1000, 1, 1), date(3000, 12, 31)
    days = days_of(first, last)
    found = calendar_of(in_unit(days * 86_400 + second_of_day, unit))
    dates = [date.fromordinal(ordinal) for ordinal in range(first.toordinal(), last.toordinal() + 1)]
    assert len(dates) == len(found) == 730_850
    assert found["day_of_month"].tolist() == [day.day for day in dates]
    assert found["month_of_year"].tolist() == [day.month for day in dates]
    assert found["day_of_week"].tolist() == [day.weekday() for day in dates]
    assert found["hour_of_day"].eq(second_of_day / 3600).all()


def test_every_day_that_nanoseconds_can_tell_is_that_of_pandas() -> None:
    time = pd.Series(pd.date_range("1677-09-22", "2262-04-11", freq="D", tz="UTC", unit="ns"))
    # A last nanosecond before midnight, so that days that round up would show.
    time.iloc[:-1] += pd.Timedelta(days=1) - pd.Timedelta(1, unit="ns")
    assert time.dt.unit == "ns" and len(time) > 210_000
    found = calendar_of(time)
    assert found["day_of_month"].tolist() == time.dt.day.tolist()
    assert found["month_of_year"].tolist() == time.dt.month.tolist()
    assert found["day_of_week"].tolist() == time.dt.dayofweek.tolist()
    assert found["hour_of_day"].iloc[:-1].between(24 - 1e-12, 24, inclusive="left").all()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_minutes_are_fractions_of_the_hour_in_every_unit_before_1970_too(unit: str) -> None:
    # A prime number of minutes apart: every minute of the day comes up, on both sides of 1970.
    minutes = np.arange(-60_000, 60_000) * 1_009
    time = in_unit(minutes * 60, unit)
    assert time.dt.unit == unit and time.dt.year.min() < 1860 and time.dt.year.max() > 2080
    expected = [minute // 60 % 24 + minute % 60 / 60 for minute in minutes.tolist()]
    assert len(set(expected)) == 24 * 60
    assert calendar_of(time)["hour_of_day"].tolist() == expected


def test_seconds_and_smaller_are_fractions_of_the_hour() -> None:
    rng = np.random.default_rng(7)
    microseconds = np.sort(rng.integers(-(4 * 10**15), 4 * 10**15, 20_000))
    time = pd.Series(microseconds.astype("datetime64[us]")).dt.tz_localize("UTC")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    expected = []
    for number in microseconds.tolist():
        moment = epoch + timedelta(microseconds=number)
        expected.append(moment.hour + (moment.minute * 60 + moment.second + moment.microsecond / 1e6) / 3600)
    np.testing.assert_allclose(calendar_of(time)["hour_of_day"], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("moment", "values"),
    [
        ("1970-01-01T00:00:00", [0.0, 3.0, 1.0, 1.0]),
        ("1969-12-31T23:45:00", [23.75, 2.0, 31.0, 12.0]),
        ("2000-02-29T06:30:00", [6.5, 1.0, 29.0, 2.0]),
        ("1900-02-28T23:00:00", [23.0, 2.0, 28.0, 2.0]),
        ("1900-03-01T00:00:00", [0.0, 3.0, 1.0, 3.0]),
        ("2100-03-01T00:00:00", [0.0, 0.0, 1.0, 3.0]),
        ("2024-02-29T12:00:36", [12.01, 3.0, 29.0, 2.0]),
        ("2024-12-31T00:00:00", [0.0, 1.0, 31.0, 12.0]),
    ],
)
def test_a_known_moment_has_its_hour_weekday_day_and_month(moment: str, values: list[float]) -> None:
    time = pd.Series([pd.Timestamp(moment, tz="UTC")])
    assert calendar_of(time).iloc[0].tolist() == values


def test_the_month_is_the_bars_own_whatever_symbol_and_month_came_before() -> None:
    """The kernel keeps a month while bars stay in it; here the next bar is of another, and symbols start over."""
    days = np.random.default_rng(8).permutation(days_of(date(1500, 1, 1), date(2500, 1, 1))[::29])
    time = in_unit(days * 86_400, "s")
    bars = pd.DataFrame(dict.fromkeys(INPUTS, 1.0), index=time.index)
    found = feature_frame(bars.assign(time=time, symbol=[f"S{day % 7}" for day in days]), CONFIG)
    assert len(found) > 12_000
    assert found["day_of_month"].tolist() == time.dt.day.tolist()
    assert found["month_of_year"].tolist() == time.dt.month.tolist()
