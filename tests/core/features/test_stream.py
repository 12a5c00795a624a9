"""Features one bar at a time: what the stream gives, what it remembers, and what it refuses."""

import io
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.features import FeatureConfig, FeatureRow, FeatureStream, feature_frame
from tests.core.features.comparing import ALL, DEFAULT, SCALE_FREE, Comparison, from_stream
from tests.core.samples import INPUTS, bits, random_bars, real_bars

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
GOOD = {"open_": 1.1, "high": 1.3, "low": 1.0, "close": 1.2, "volume": 100.0}
# One bar is enough for each of them.
OF_ONE_BAR = FeatureConfig(("price_range", "sma_1", "volume_sma_1", "hour_of_day", "day_of_month"))


def interleaved(length: int = 200, symbols: int = 7) -> pd.DataFrame:
    """Bars of several symbols in an order that keeps time rising within each symbol only."""
    bars = random_bars(tuple(f"S{number}" for number in range(symbols)), length, seed=3)
    rng = np.random.default_rng(4)
    odd = pd.to_timedelta(rng.integers(0, 86_399_999_999, len(bars)), unit="us")
    bars = bars.assign(time=bars["time"] + odd)[["symbol", "time", *INPUTS]]
    turns = bars["symbol"].sample(frac=1, random_state=5).to_numpy()
    rows = {symbol: iter(np.flatnonzero(bars["symbol"] == symbol)) for symbol in bars["symbol"].unique()}
    return bars.take([next(rows[symbol]) for symbol in turns]).reset_index(drop=True)


def feed(stream: FeatureStream, bars: pd.DataFrame) -> np.ndarray:
    """Push every row in the order of the frame."""
    rows = [
        stream.push(symbol, time.to_pydatetime(), *values)
        for symbol, time, *values in bars[["symbol", "time", *INPUTS]].itertuples(index=False)
    ]
    return np.array([row.values for row in rows]).reshape(len(rows), len(stream.config.features))


def through_parquet(bars: pd.DataFrame, **options: Any) -> pd.DataFrame:
    file = io.BytesIO()
    bars.to_parquet(file)
    file.seek(0)
    return pd.read_parquet(file, **options)


def same_bits(actual: np.ndarray, expected: pd.DataFrame, config: FeatureConfig) -> None:
    Comparison().same(actual, expected.to_numpy(), config)


# What it gives.


def test_symbols_in_turns_have_the_bits_of_the_whole_frame() -> None:
    bars = interleaved()
    assert (bars["symbol"] != bars["symbol"].shift()).mean() > 0.8
    same_bits(feed(FeatureStream(ALL), bars), feature_frame(bars, ALL), ALL)


@pytest.mark.parametrize(
    "config", [FeatureConfig(("price_range", "sma_1")), FeatureConfig(("momentum_1",)), DEFAULT, ALL]
)
def test_a_long_stream_rolls_its_buffer_over_without_a_trace(config: FeatureConfig) -> None:
    bars = real_bars()
    bars = bars[bars["symbol"].isin(["AAPL", "GOOG"])]
    assert bars["symbol"].value_counts().min() > 3 * (config.lookback + 256)
    stream = FeatureStream(config)
    same_bits(from_stream(bars, config, stream), feature_frame(bars, config), config)
    kept = stream.bars()
    assert kept["symbol"].value_counts().to_dict() == {"AAPL": config.lookback, "GOOG": config.lookback}
    for symbol, own in kept.groupby("symbol"):
        last = bars[bars["symbol"] == symbol].tail(config.lookback)
        assert own["time"].tolist() == last["time"].tolist()
        assert (bits(own[INPUTS]) == bits(last[INPUTS])).all()


def test_a_row_says_whose_features_it_has_and_whether_all_are_there() -> None:
    config = FeatureConfig(("price_range", "momentum_2"))
    bars = random_bars(("A",), 3)
    stream = FeatureStream(config)
    rows = [
        stream.push(symbol, time.to_pydatetime(), *values)
        for symbol, time, *values in bars[["symbol", "time", *INPUTS]].itertuples(index=False)
    ]
    assert [row.is_complete for row in rows] == [False, False, True]
    assert [row.symbol for row in rows] == ["A"] * 3
    assert [row.time for row in rows] == bars["time"].tolist()
    ranges = (bars["high"] - bars["low"]).tolist()
    assert [row.to_dict()["price_range"] for row in rows] == ranges
    assert all(np.isnan(row.to_dict()["momentum_2"]) for row in rows[:2])
    last = rows[2].to_dict()
    assert last == {"price_range": ranges[2], "momentum_2": bars["close"].iloc[2] - bars["close"].iloc[0]}
    assert {type(value) for value in last.values()} == {float}
    assert rows[2].names == tuple(last) == config.features


def test_a_missing_value_is_taken_and_missing_in_the_features() -> None:
    bars = random_bars(("A", "B"), 120)
    bars.loc[[3, 50, 51, 180], "close"] = np.nan
    bars.loc[[90, 200], "volume"] = np.nan
    expected = feature_frame(bars, ALL)
    assert expected.isna().any(axis=1).sum() > 150
    stream = FeatureStream(DEFAULT)
    same_bits(from_stream(bars, ALL), expected, ALL)
    rows = [
        stream.push(symbol, time.to_pydatetime(), *values)
        for symbol, time, *values in bars[["symbol", "time", *INPUTS]].itertuples(index=False)
    ]
    assert [row.is_complete for row in rows] == feature_frame(bars, DEFAULT).notna().all(axis=1).tolist()


def test_numbers_of_any_kind_are_doubles() -> None:
    values: dict[str, Any] = {
        "open_": np.float32(1.1),
        "high": 3,
        "low": np.int8(1),
        "close": np.float64(1.2),
        "volume": 2**53 - 1,
    }
    row = FeatureStream(OF_ONE_BAR).push("A", NOON, **values).to_dict()
    assert (row["price_range"], row["sma_1"], row["volume_sma_1"]) == (2.0, 1.2, 2.0**53 - 1)


@pytest.mark.parametrize(
    "zone", [ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata"), timezone(timedelta(hours=-3))]
)
def test_a_time_in_another_zone_is_the_same_time(zone: tzinfo) -> None:
    bars = interleaved(90, 2)
    local = bars.assign(time=bars["time"].dt.tz_convert(zone))
    stream = FeatureStream(SCALE_FREE)
    same_bits(feed(stream, local), feature_frame(bars, SCALE_FREE), SCALE_FREE)
    assert stream.bars()["time"].sort_values().tolist() == bars["time"].sort_values().tolist()


@pytest.mark.parametrize("year", [1, 1600, 1969, 2300, 9999])
def test_a_bar_of_any_year_is_taken(year: int) -> None:
    # Nanoseconds since 1970 end in 2262.
    stream = FeatureStream(OF_ONE_BAR)
    row = stream.push("A", datetime(year, 12, 31, 6, 30, tzinfo=UTC), **GOOD)
    assert (row.to_dict()["hour_of_day"], row.to_dict()["day_of_month"]) == (6.5, 31.0)
    assert stream.bars()["time"].dt.year.tolist() == [year]


# What it remembers.


@pytest.mark.parametrize("config", [DEFAULT, SCALE_FREE])
@pytest.mark.parametrize("before", [0, 1, 9, 45, 119, 120, 400])
def test_a_stream_goes_on_where_another_was_saved(config: FeatureConfig, before: int) -> None:
    bars = interleaved(500, 3)
    expected = feature_frame(bars, config)
    cut = 3 * before
    stream = FeatureStream(config)
    same_bits(feed(stream, bars[:cut]), expected[:cut], config)
    saved = through_parquet(stream.bars())
    restored = FeatureStream(config, saved)
    pd.testing.assert_frame_equal(restored.bars(), saved)
    same_bits(feed(restored, bars[cut : cut + 300]), expected[cut : cut + 300], config)
    as_arrow = FeatureStream(config, through_parquet(stream.bars(), dtype_backend="pyarrow"))
    same_bits(feed(as_arrow, bars[cut : cut + 30]), expected[cut : cut + 30], config)
    # The first was not touched by the second.
    same_bits(feed(stream, bars[cut : cut + 30]), expected[cut : cut + 30], config)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_stream_is_restored_from_more_bars_than_it_needs_in_any_order_and_time_unit(unit: str) -> None:
    bars = interleaved(400, 3)
    bars = bars.assign(time=bars["time"].dt.floor("s"))
    expected = feature_frame(bars, SCALE_FREE)
    seen = bars[:900].sample(frac=1, random_state=6)
    stream = FeatureStream(SCALE_FREE, seen.assign(time=seen["time"].dt.as_unit(unit), note="unknown"))
    same_bits(feed(stream, bars[900:]), expected[900:], SCALE_FREE)
    for symbol, own in (
        FeatureStream(SCALE_FREE, seen.assign(time=seen["time"].dt.as_unit(unit))).bars().groupby("symbol")
    ):
        last = bars[:900][bars["symbol"][:900] == symbol].tail(SCALE_FREE.lookback)
        assert own["time"].tolist() == last["time"].tolist()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_restored_stream_refuses_the_bar_it_has(unit: str) -> None:
    times = pd.date_range("2024-05-01 12:00", periods=300, freq="4017123457us", tz="UTC").floor(unit).as_unit(unit)
    bars = random_bars(("A",), 300).assign(time=times)
    for last in range(250, 300):
        stream = FeatureStream(DEFAULT, bars[:last])
        with pytest.raises(InputError, match="is not after the last one"):
            stream.push("A", times[last - 1].to_pydatetime(), **GOOD)


@pytest.mark.parametrize("dtype", ["category", "string", "string[pyarrow]"])
def test_a_stream_is_restored_from_symbols_of_any_string_type(dtype: str) -> None:
    bars = interleaved(60, 3)
    stream = FeatureStream(DEFAULT, bars[:150].astype({"symbol": dtype}))
    same_bits(feed(stream, bars[150:]), feature_frame(bars, DEFAULT)[150:], DEFAULT)


def test_a_stream_cannot_be_restored_from_bars_of_nobody() -> None:
    bars = random_bars(("A",), 60).drop(columns="symbol")
    with pytest.raises(InputError, match="column 'symbol' is missing"):
        FeatureStream(DEFAULT, bars)


def test_a_stream_is_restored_from_every_other_row() -> None:
    bars = random_bars(("A",), 200)
    some = bars.iloc[::2]
    expected = feature_frame(some.copy(), DEFAULT)
    stream = FeatureStream(DEFAULT, some.iloc[:60])
    same_bits(feed(stream, some.iloc[60:]), expected.iloc[60:], DEFAULT)


def test_a_stream_without_bars_remembers_none_in_the_same_columns() -> None:
    empty, one = FeatureStream(), FeatureStream()
    one.push("A", NOON, **GOOD)
    assert len(empty.bars()) == 0
    assert empty.bars().dtypes.to_dict() == one.bars().dtypes.to_dict()
    assert empty.bars().columns.tolist() == ["symbol", "time", *INPUTS]
    assert str(empty.bars()["time"].dtype) == "datetime64[us, UTC]"
    again = FeatureStream(bars=through_parquet(empty.bars()))
    assert len(again.bars()) == 0
    assert one.bars().iloc[0].tolist() == ["A", pd.Timestamp(NOON), 1.1, 1.3, 1.0, 1.2, 100.0]


def test_what_it_returns_is_not_what_it_remembers() -> None:
    bars = interleaved(60, 1)
    stream = FeatureStream(DEFAULT)
    feed(stream, bars[:50])
    kept = stream.bars()
    kept[INPUTS] = -1.0
    row = stream.push("S0", bars["time"].iloc[50].to_pydatetime(), *bars[INPUTS].iloc[50])
    row.values[:] = 0.0
    assert (bits(stream.bars()[INPUTS]) == bits(bars[INPUTS][51 - DEFAULT.lookback : 51])).all()


# What it refuses.


class WithoutOffset(tzinfo):
    """A zone that does not know its offset: Python calls its times naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"


REFUSED_TIMES = [
    pytest.param(datetime(2024, 5, 1, 14), "is not an aware datetime", id="naive"),
    pytest.param(pd.Timestamp("2024-05-01 14:00"), "is not an aware datetime", id="naive timestamp"),
    pytest.param(datetime(2024, 5, 1, 14, tzinfo=WithoutOffset()), "is not an aware datetime", id="without offset"),
    pytest.param(pd.Timestamp("2024-05-01 14:00:00.000000001Z"), "is finer than a microsecond", id="nanosecond"),
    pytest.param(pd.NaT, "NaT is not an aware datetime", id="NaT"),
    pytest.param(None, "None is not an aware datetime", id="None"),
    pytest.param("2024-05-01T14:00:00Z", "'2024-05-01T14:00:00Z' is not an aware datetime", id="text"),
    pytest.param(1_714_572_000, "1714572000 is not an aware datetime", id="number"),
    pytest.param(np.datetime64("2024-05-01T14:00"), "is not an aware datetime", id="datetime64"),
    pytest.param(NOON, "is not after the last one, 2024-05-01 12:00:00", id="equal"),
    pytest.param(NOON - timedelta(microseconds=1), "is not after the last one, 2024-05-01 12:00:00", id="earlier"),
    pytest.param(
        datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))), "is not after the last one", id="equal abroad"
    ),
]
REFUSED_VALUES = ["1.2", None, pd.NA, Decimal("1.2"), True, np.bool_(False), 1j, [1.2], np.array([1.2]), np.array(1.2)]
TOO_LARGE = [2**53, -(2**53), 10**30, np.int64(2**53), np.uint64(2**64 - 1)]


def assert_refused_and_unchanged(message: str, time: Any, values: dict[str, Any]) -> None:
    """A stream that knows symbol A refuses the bar, of A and of a new symbol, and is then as it was."""
    stream, undisturbed = FeatureStream(DEFAULT), FeatureStream(DEFAULT)
    for one in (stream, undisturbed):
        for age in range(60, -1, -1):
            one.push("A", NOON - timedelta(hours=age), **{name: value + age for name, value in GOOD.items()})
    before = stream.bars()
    for symbol in ("A",) if "last one" in message else ("A", "NEW"):
        with pytest.raises(InputError) as caught:
            stream.push(symbol, time, **values)
        assert message in str(caught.value) and str(caught.value).startswith(f"{symbol}: ")
        assert "\n" not in str(caught.value)
    pd.testing.assert_frame_equal(stream.bars(), before)
    after = [one.push("A", NOON + timedelta(hours=1), **GOOD).values for one in (stream, undisturbed)]
    assert np.isfinite(after[0]).all()
    assert (bits(after[0]) == bits(after[1])).all()


@pytest.mark.parametrize(("time", "message"), REFUSED_TIMES)
def test_a_time_that_is_no_time_or_not_after_the_last_is_refused(time: Any, message: str) -> None:
    assert_refused_and_unchanged(message, time, GOOD)


@pytest.mark.parametrize("value", REFUSED_VALUES, ids=repr)
@pytest.mark.parametrize("name", list(GOOD))
def test_a_value_that_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    message = f"{name.rstrip('_')} of the bar at 2024-05-01 13:00:00+00:00 is {value!r}, not a number"
    assert_refused_and_unchanged(message, NOON + timedelta(hours=1), {**GOOD, name: value})


@pytest.mark.parametrize("value", TOO_LARGE, ids=repr)
def test_an_integer_that_a_double_cannot_hold_is_refused_by_value(value: Any) -> None:
    message = f"volume of the bar at 2024-05-01 13:00:00+00:00 is {int(value)}: a double cannot hold"
    assert_refused_and_unchanged(message, NOON + timedelta(hours=1), {**GOOD, "volume": value})


def test_the_first_bar_of_a_symbol_may_be_earlier_than_those_of_others() -> None:
    stream = FeatureStream(OF_ONE_BAR)
    stream.push("A", NOON, **GOOD)
    row: FeatureRow = stream.push("B", NOON - timedelta(days=400), **GOOD)
    assert row.is_complete
    assert stream.bars()["symbol"].tolist() == ["A", "B"]
