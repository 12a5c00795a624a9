"""Labels look ahead exactly as far as they say, within one symbol, and are missing until then."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.core.errors import ConfigurationError, InputError
from mt5_crs_pipeline.core.labels import LabelConfig, direction_target, forward_return, labelled_bars
from tests.core.samples import random_bars, real_bars

COLUMNS = ["symbol", "event_timestamp", "label_time", "target", "forward_return", "spread_share"]
SHARE = "spread_share"


def by_loop(bars: pd.DataFrame, label: LabelConfig) -> list[tuple[int, int, float, float]]:
    """Of every bar with a bar `horizon_bars` later: both rows, the return and the label, by their meaning."""
    found = []
    for symbol in set(bars["symbol"]):
        rows = sorted((row.time, row.Index, row.close) for row in bars.itertuples() if row.symbol == symbol)
        for position, (_, index, close) in enumerate(rows):
            if position + label.horizon_bars >= len(rows):
                continue
            _, later_index, later = rows[position + label.horizon_bars]
            if math.isnan(later) or math.isnan(close):
                continue
            moved = (later - close) / close
            target = float(later > close)
            if label.cost_band and -label.cost_band <= moved <= label.cost_band:
                target = math.nan
            found.append((index, later_index, moved, target))
    return found


@st.composite
def bars_with_gaps(draw: st.DrawFn) -> pd.DataFrame:
    """Shuffled bars of symbols that each lack days of their own; closes that often stay, and some that are missing."""
    frames = []
    for symbol in ("A", "B", "C")[: draw(st.integers(1, 3))]:
        days = draw(st.lists(st.integers(0, 40), max_size=25, unique=True))
        closes = st.one_of(st.sampled_from([1.0, 1.001, 1.002, 2.0, math.nan]), st.floats(0.5, 2.0))
        frames.append(
            pd.DataFrame(
                {
                    "symbol": symbol,
                    "time": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(pd.Series(days, dtype=float), "D"),
                    "close": draw(st.lists(closes, min_size=len(days), max_size=len(days))),
                }
            )
        )
    bars = pd.concat(frames, ignore_index=True)
    bars["time"] = bars["time"].astype("datetime64[us, UTC]")
    bars = bars.assign(close=bars["close"].astype(float), spread_share=np.arange(len(bars)) / 1e6)
    return bars.sample(frac=1, random_state=draw(st.integers(0, 9)))


@settings(max_examples=200, deadline=None)
@given(
    bars=bars_with_gaps(),
    horizon=st.one_of(st.integers(1, 30), st.just(10**30)),
    band=st.sampled_from([0.0, 1e-9, 0.001, 0.25, 0.999]),
)
def test_labels_equal_a_loop_over_each_symbol(bars: pd.DataFrame, horizon: int, band: float) -> None:
    label, day = LabelConfig(horizon, band), pd.Timedelta(days=1)
    expected = by_loop(bars, label)
    returns, targets = pd.Series(np.nan, index=bars.index), pd.Series(np.nan, index=bars.index)
    for index, _, moved, target in expected:
        returns[index], targets[index] = moved, target
    np.testing.assert_array_equal(forward_return(bars, horizon), returns)
    np.testing.assert_array_equal(direction_target(bars, label), targets)

    result = labelled_bars(bars, "D1", label)
    rows = [
        (
            bars.at[a, "time"] + day,
            bars.at[a, "symbol"],
            bars.at[b, "time"] + day,
            target,
            moved,
            float(bars.at[a, SHARE]),
        )
        for a, b, moved, target in expected
    ]
    # NaN equals nothing: the text does.
    found = result[["event_timestamp", "symbol", "label_time", "target", "forward_return", SHARE]]
    assert [str(row) for row in found.itertuples(index=False, name=None)] == [str(row) for row in sorted(rows)]
    assert result.columns.tolist() == COLUMNS


def test_series_are_named_and_keep_the_index() -> None:
    bars = random_bars(length=9).sample(frac=1, random_state=3)
    for series, name in ((direction_target(bars), "target"), (forward_return(bars), "forward_return")):
        assert series.name == name and series.index.equals(bars.index)


@pytest.mark.parametrize("horizon", [0, -1, 1.5, 2.0, True, math.nan, math.inf, None, "2"])
def test_a_horizon_that_is_no_number_of_bars_is_refused(horizon: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^horizon_bars is {horizon!r}: give a whole number of bars"):
        LabelConfig(horizon)  # type: ignore[arg-type]


@pytest.mark.parametrize("band", [-0.001, 1, 1.0, 7, math.nan, math.inf, -math.inf, True, None, "0.1"])
def test_a_band_that_is_no_share_is_refused(band: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^cost_band is {band!r}: give a share of the price"):
        LabelConfig(1, band)  # type: ignore[arg-type]


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_no_band_is_the_same_label_however_it_is_written(zero: float) -> None:
    assert repr(LabelConfig(2, zero)) == repr(LabelConfig(2)) == "LabelConfig(horizon_bars=2, cost_band=0.0)"


def test_the_move_has_to_be_larger_than_the_band() -> None:
    bars = random_bars(("A",), 5).assign(close=[1.0, 1.25, 0.9375, 1.0, 0.5])
    # Moves of exactly a quarter up and down, then one inside and one outside.
    np.testing.assert_array_equal(direction_target(bars, LabelConfig(1, 0.25)), [np.nan] * 3 + [0.0, np.nan])
    np.testing.assert_array_equal(direction_target(bars, LabelConfig(1, 0.2499)), [1.0, 0.0, np.nan, 0.0, np.nan])


def test_an_unchanged_close_is_no_rise() -> None:
    bars = random_bars(("A",), 3).assign(close=[5.0, 5.0, 4.0])
    np.testing.assert_array_equal(direction_target(bars), [0.0, 0.0, np.nan])


@pytest.mark.parametrize("horizon", [1, 3])
def test_an_open_horizon_is_missing_never_zero(horizon: int) -> None:
    bars = real_bars(50)
    missing = direction_target(bars, LabelConfig(horizon)).isna()
    assert missing.groupby(bars["symbol"]).sum().eq(horizon).all()
    assert missing[bars.groupby("symbol").tail(horizon).index].all()


def test_a_missing_close_leaves_out_its_own_label_and_the_one_it_would_decide() -> None:
    bars = random_bars(("A",), 20)
    bars.loc[8, "close"] = np.nan
    assert np.flatnonzero(direction_target(bars, LabelConfig(3)).isna()).tolist() == [5, 8, 17, 18, 19]


def test_closed_labels_equal_a_loop_with_the_times_of_both_closes() -> None:
    bars = real_bars(60).sample(frac=1, random_state=2)
    expected, day = [], pd.Timedelta(days=1)
    for symbol, part in bars.groupby("symbol"):
        rows = part.sort_values("time").to_dict("records")
        for now, later in zip(rows, rows[2:], strict=False):
            rose = float(later["close"] > now["close"])
            expected.append((now["time"] + day, symbol, later["time"] + day, rose))
    result = labelled_bars(bars, "D1", LabelConfig(2))
    assert result.columns.tolist() == COLUMNS
    found = result[["event_timestamp", "symbol", "label_time", "target"]].itertuples(index=False, name=None)
    assert list(found) == sorted(expected)


def test_a_label_closes_with_the_next_bar_not_the_next_day() -> None:
    friday, monday = pd.Timestamp("2024-05-03", tz="UTC"), pd.Timestamp("2024-05-06", tz="UTC")
    bars = random_bars(("A",), 2).assign(time=[friday, monday])
    label = labelled_bars(bars, "D1").iloc[0]
    assert label["event_timestamp"] == pd.Timestamp("2024-05-04", tz="UTC")
    assert label["label_time"] == pd.Timestamp("2024-05-07", tz="UTC")


def test_new_bars_add_labels_and_change_none() -> None:
    bars = random_bars(length=50)
    known = bars[bars["time"] < bars["time"].iloc[40]]
    before, after = labelled_bars(known, "D1"), labelled_bars(bars, "D1")
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert len(before) == 3 * 39 and len(after) == 3 * 49


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_bars_have_no_labels(rows: int) -> None:
    result = labelled_bars(random_bars(("A", "B"), 3).groupby("symbol").head(rows), "D1")
    assert result.empty
    assert result.columns.tolist() == COLUMNS


def test_bars_are_left_as_they_were() -> None:
    bars = random_bars(length=10).sample(frac=1, random_state=1)
    before = bars.copy(deep=True)
    labelled_bars(bars, "D1")
    direction_target(bars)
    pd.testing.assert_frame_equal(bars, before)


def test_two_bars_of_one_time_have_no_label() -> None:
    bars = random_bars(("A",), 5)
    with pytest.raises(InputError, match="two rows for symbol 'A'"):
        labelled_bars(pd.concat([bars, bars.tail(1)], ignore_index=True), "D1")


def test_the_definition_says_the_label_in_words() -> None:
    assert LabelConfig().definition == (
        "1 when the close 1 bar later is higher than this bar's close, else 0; missing until that bar closed"
    )
    assert LabelConfig(5, 0.0005).definition == (
        "1 when the close 5 bars later is higher than this bar's close by more than 0.0005 of it, 0 when it is lower by"
        " more than that, none in between; missing until that bar closed"
    )


@given(st.lists(st.builds(LabelConfig, st.integers(1, 99), st.floats(0, 1, exclude_max=True)), min_size=2, max_size=2))
def test_two_labels_have_one_definition_only_if_they_are_one(pair: list[LabelConfig]) -> None:
    assert (pair[0].definition == pair[1].definition) == (pair[0] == pair[1])
    assert LabelConfig(3, 1e-7).definition != LabelConfig(3, 1.0000001e-7).definition
