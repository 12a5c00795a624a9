"""Versions of feature rows: what a brute-force replay of history gives, and nothing of the future in any of them."""

import itertools
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.core.bars import adjusted, close_time, latest_revisions
from mt5_crs_pipeline.core.feature_rows import feature_rows
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame
from mt5_crs_pipeline.core.revisions import window_maximum
from tests.core.samples import bits, random_bars

# Windows of five bars, so that a handful of bars holds full ones, partial ones and ones that move.
CONFIG = FeatureConfig(("sma_5", "gap", "volume_change"))
WIDE = FeatureConfig(("sma_20", "rsi_14", "day_of_week"))
DAY = pd.Timedelta(days=1).as_unit("us")
DAYS = random_bars(("A", "B"), 14, seed=4)
KEY = ["symbol", "time", "recorded_at"]
FIRST = pd.Timestamp("2023-03-01", tz="UTC").as_unit("us")


def revisions_of(rows: list[tuple[str, int, int, int, float]]) -> pd.DataFrame:
    """Bars as (symbol, day, recorded, known, factor on the prices): hours after FIRST; known 0 is the close."""
    frames = []
    for symbol, day, recorded, known, factor in rows:
        bar = DAYS[(DAYS["symbol"] == symbol)].iloc[[day]].copy()
        bar[["open", "high", "low", "close"]] *= factor
        bar["known_at"] = FIRST + pd.Timedelta(hours=known) if known else bar["time"] + DAY
        bar["recorded_at"] = FIRST + pd.Timedelta(hours=recorded)
        frames.append(bar)
    frame = pd.concat(frames, ignore_index=True)
    for name in ("known_at", "recorded_at"):
        frame[name] = frame[name].dt.as_unit("us")
    # The same version cannot be there twice.
    return frame.drop_duplicates(["symbol", "time", "known_at"], ignore_index=True)


def replayed(revisions: pd.DataFrame, config: FeatureConfig) -> pd.DataFrame:
    """Recompute the whole state at every instant, and keep the rows in whose window something changed just then."""
    found = []
    for _, own in revisions.groupby("symbol"):
        before: dict[Any, Any] = {}
        for instant in sorted(own["recorded_at"].unique()):
            state = latest_revisions(own, instant)
            features = feature_frame(adjusted(state), config)
            versions = dict(zip(state["time"], state["known_at"], strict=True))
            changed = {bar for bar, known in versions.items() if before.get(bar) != known}
            before = versions
            for place in range(len(state)):
                window = state.iloc[max(place + 1 - config.lookback, 0) : place + 1]
                if changed & set(window["time"]):
                    values = features.iloc[place]
                    stamps = {
                        "symbol": state["symbol"][place],
                        "time": state["time"][place],
                        "event_timestamp": close_time(state["time"], "D1")[place],
                        "known_at": window["known_at"].max(),
                        "recorded_at": instant,
                        "is_complete": bool(values.notna().all()),
                    }
                    found.append({**stamps, **values})
    frame = pd.DataFrame(found)
    return frame.sort_values(["symbol", "time", "known_at", "recorded_at"], ignore_index=True)


def assert_same(left: pd.DataFrame, right: pd.DataFrame, config: FeatureConfig = CONFIG) -> None:
    stamps = ["symbol", "time", "event_timestamp", "known_at", "recorded_at", "is_complete"]
    assert left.columns.tolist() == [*stamps, *config.features]
    pd.testing.assert_frame_equal(left[stamps], right[stamps], check_dtype=False)
    names = list(config.features)
    assert (bits(left[names]) == bits(right[names])).all()


row = st.tuples(
    st.sampled_from("AB"),
    st.integers(0, 13),
    st.integers(1, 9),
    # Also versions that were superseded before they were recorded.
    st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8]),
    st.sampled_from([1.0, 1.01, 0.97]),
)
histories = st.lists(row, min_size=1, max_size=45).map(revisions_of)


@settings(max_examples=150, deadline=None)
@given(histories)
def test_versions_are_those_of_a_replay_of_history(revisions: pd.DataFrame) -> None:
    shuffled = revisions.sample(frac=1, random_state=len(revisions))
    before = shuffled.copy(deep=True)
    assert_same(feature_rows(shuffled, "D1", CONFIG), replayed(revisions, CONFIG))
    pd.testing.assert_frame_equal(shuffled, before)


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(0, 10))
def test_nothing_recorded_later_is_in_what_was_recorded_before(revisions: pd.DataFrame, hours: int) -> None:
    instant = FIRST + pd.Timedelta(hours=hours)
    then = feature_rows(revisions[revisions["recorded_at"] <= instant], "D1", CONFIG)
    now = feature_rows(revisions, "D1", CONFIG)
    assert_same(now[now["recorded_at"] <= instant].reset_index(drop=True), then)


@settings(max_examples=150, deadline=None)
@given(histories, st.integers(0, 14))
def test_rows_since_a_bar_are_those_of_all_rows(revisions: pd.DataFrame, days: int) -> None:
    since = DAYS["time"].min() + pd.Timedelta(days=days)
    rows = feature_rows(revisions, "D1", CONFIG)
    assert_same(feature_rows(revisions, "D1", CONFIG, since=since), rows[rows["time"] >= since].reset_index(drop=True))


def closed(bars: pd.DataFrame) -> pd.DataFrame:
    closes = bars["time"] + DAY
    return bars.assign(known_at=closes, recorded_at=closes)


def corrected(bars: pd.DataFrame, rows: list[int], days: int) -> pd.DataFrame:
    """Versions of some bars, with another close, that arrive `days` after the last bar."""
    arrival = bars["recorded_at"].max() + pd.Timedelta(days=days).as_unit("us")
    again = bars.loc[rows].assign(known_at=arrival, recorded_at=arrival)
    return again.assign(close=again["low"])


def test_a_correction_adds_versions_of_exactly_the_rows_it_reaches_and_keeps_the_old_ones() -> None:
    bars = closed(random_bars(("A", "B"), 60))
    old = feature_rows(bars, "D1", WIDE)
    revisions = pd.concat([bars, corrected(bars, [10], 3)], ignore_index=True)
    new = feature_rows(revisions, "D1", WIDE)
    kept = new.merge(old[KEY], on=KEY)
    assert_same(kept, old, WIDE)
    added = new[~new.set_index(KEY).index.isin(old.set_index(KEY).index)]
    assert added["symbol"].eq("A").all()
    assert added["time"].tolist() == bars["time"][10 : 10 + WIDE.lookback].tolist()
    assert added["known_at"].nunique() == added["recorded_at"].nunique() == 1
    since = bars["time"][15]
    later = new[new["time"] >= since].reset_index(drop=True)
    assert_same(feature_rows(revisions, "D1", WIDE, since=since), later, WIDE)


def test_a_late_bar_reaches_the_bars_after_it_and_is_known_at_its_close() -> None:
    bars = closed(random_bars(("A",), 60))
    late = bars.loc[[30]].assign(recorded_at=bars["recorded_at"].max() + DAY)
    new = feature_rows(pd.concat([bars.drop(index=30), late], ignore_index=True), "D1", WIDE)
    added = new[new["recorded_at"] == late["recorded_at"].iloc[0]]
    assert added["time"].tolist() == bars["time"][30 : 30 + WIDE.lookback].tolist()
    assert (added["known_at"] == added["event_timestamp"]).all()


def test_bars_before_all_others_reach_the_windows_that_were_short() -> None:
    bars = closed(random_bars(("A",), 60))
    older = bars[:40].assign(recorded_at=bars["recorded_at"].max() + DAY)
    rows = feature_rows(pd.concat([older, bars[40:]], ignore_index=True), "D1", WIDE)
    twice = rows[rows.duplicated(["symbol", "time"], keep=False)]
    assert twice["time"].drop_duplicates().tolist() == bars["time"][40 : 40 + WIDE.lookback - 1].tolist()
    assert rows["is_complete"].sum() == 60 - WIDE.lookback + 1


def test_a_version_that_was_superseded_when_it_was_recorded_changes_nothing() -> None:
    bars = closed(random_bars(("A",), 30))
    newest = bars["recorded_at"].max()
    newer = bars.loc[[10]].assign(known_at=newest + 2 * DAY, recorded_at=newest + DAY, volume=5.0)
    older = bars.loc[[10]].assign(known_at=newest + DAY, recorded_at=newest + 3 * DAY, volume=7.0)
    with_it = pd.concat([bars, newer, older], ignore_index=True)
    assert_same(feature_rows(with_it, "D1", CONFIG), feature_rows(with_it[:-1], "D1", CONFIG))


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 120])
def test_the_maximum_of_a_window_stays_in_its_segment(width: int) -> None:
    values = np.random.default_rng(2).integers(0, 1000, 60)
    starts = np.array([0, 7, 8, 60])
    expected = [
        max(values[max(place + 1 - width, start) : place + 1])
        for start, end in itertools.pairwise(starts)
        for place in range(start, end)
    ]
    assert window_maximum(values, starts, width).tolist() == expected


def test_a_feed_that_revises_every_bar_once_takes_seconds() -> None:
    bars = closed(random_bars(("A",), 20_000))
    again = bars.assign(close=bars["low"], known_at=bars["known_at"] + DAY / 3, recorded_at=bars["known_at"] + DAY / 3)
    started = time.monotonic()
    rows = feature_rows(pd.concat([bars, again], ignore_index=True), "D1", WIDE)
    assert len(rows) == 2 * len(bars)
    assert time.monotonic() - started < 20
