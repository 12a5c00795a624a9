"""Walk-forward windows: what is learnt closed before what is judged, on any calendar."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.splits import hold_out_latest, latest_times, walk_forward


def training_rows(
    times: int, symbols: int = 3, horizon: int = 1, seed: int = 0, missing: float = 0.0, coarser: int = 1
) -> pd.DataFrame:
    """Shuffled rows of several symbols on an uneven calendar; labels close `horizon` of the symbol's own bars later.

    Every second symbol has bars of a timeframe that is `coarser` times as long.
    """
    rng = np.random.default_rng(seed)
    calendar = pd.Timestamp("2023-01-02", tz="UTC") + pd.to_timedelta(np.cumsum(rng.integers(1, 5, times)), unit="D")
    frames = []
    for symbol in range(symbols):
        timeframe = coarser if symbol % 2 else 1
        there = (rng.random(times) >= missing) & (np.arange(times) % timeframe == 0)
        own = calendar[there].to_series(index=None).reset_index(drop=True)
        frame = pd.DataFrame({"symbol": f"S{symbol}", "event_timestamp": own, "label_time": own.shift(-horizon)})
        frames.append(frame.dropna())
    return pd.concat(frames).sample(frac=1, random_state=seed).reset_index(drop=True)


@settings(max_examples=60, deadline=None)
@given(
    times=st.integers(30, 120),
    symbols=st.integers(1, 4),
    horizon=st.integers(1, 6),
    first=st.integers(2, 25),
    growth=st.sampled_from([0.01, 0.1, 0.25, 2.0]),
    missing=st.sampled_from([0.0, 0.3]),
    coarser=st.sampled_from([1, 4]),
    most=st.sampled_from([0, 25, 60]),
    seed=st.integers(0, 5),
)
def test_windows_are_purged_disjoint_and_together_everything_after_the_first_part(
    times: int,
    symbols: int,
    horizon: int,
    first: int,
    growth: float,
    missing: float,
    coarser: int,
    most: int,
    seed: int,
) -> None:
    rows = training_rows(times, symbols, horizon, seed, missing, coarser)
    events, labels = rows["event_timestamp"].tolist(), rows["label_time"].tolist()
    ordered = sorted(set(events))
    if first >= len(ordered) or min(labels) >= ordered[first]:
        with pytest.raises(InputError, match="too few"):
            walk_forward(rows, first, growth)
        return
    splits = walk_forward(rows, first, growth, most)
    for split in splits:
        test_times = {events[row] for row in split.test}
        assert min(test_times) == split.test_start
        # No label that is learnt from touches the window: its interval ends before the first row that is predicted.
        for row in split.train:
            assert events[row] < labels[row] < split.test_start
        # Nothing but the purge, and in a rolling window what is too old, is left out of what came before.
        since = [time for time in ordered if time < split.test_start][-most:][0]
        past = [row for row in range(len(rows)) if labels[row] < split.test_start and events[row] >= since]
        assert sorted(split.train.tolist()) == past
    tested = [row for split in splits for row in split.test.tolist()]
    assert sorted(tested) == [row for row in range(len(rows)) if events[row] >= ordered[first]]
    starts = [split.test_start for split in splits]
    assert starts == sorted(set(starts)) and starts[0] == ordered[first]


@settings(max_examples=30, deadline=None)
@given(kept=st.integers(12, 99), growth=st.sampled_from([0.05, 0.25, 1.0]))
def test_later_rows_move_no_window(kept: int, growth: float) -> None:
    rows = training_rows(100, symbols=2)
    times = sorted(rows["event_timestamp"].unique())
    earlier = rows[rows["event_timestamp"] < times[min(kept, len(times) - 1)]]
    whole, part = walk_forward(rows, 10, growth), walk_forward(earlier, 10, growth)
    assert len(part) <= len(whole)
    for early, late in zip(part, whole, strict=False):
        assert early.test_start == late.test_start
        assert set(earlier.index[early.train]) == set(rows.index[late.train])
    for early, late in zip(part[:-1], whole, strict=False):
        assert set(earlier.index[early.test]) == set(rows.index[late.test])


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_the_purge_takes_the_last_bars_of_every_symbol(horizon: int) -> None:
    rows = training_rows(100, symbols=3, horizon=horizon)
    for split in walk_forward(rows, 30, 0.5):
        before = rows["event_timestamp"] < split.test_start
        purged = np.setdiff1d(np.flatnonzero(before), split.train)
        assert len(purged) == 3 * horizon
        last = sorted(rows.loc[before, "event_timestamp"].unique())[-horizon:]
        assert set(rows["event_timestamp"].iloc[purged]) == set(last)


def test_a_window_is_as_long_as_its_share_of_the_history_before_it() -> None:
    rows = training_rows(101, symbols=1)
    lengths = [rows["event_timestamp"].iloc[split.test].nunique() for split in walk_forward(rows, 20, 0.5)]
    assert lengths == [10, 15, 22, 33]


def test_a_rolling_window_learns_from_as_many_times_as_the_final_fit() -> None:
    rows = training_rows(60, symbols=3)
    last = walk_forward(rows, 30, 0.5, max_train_times=20)[-1]
    before = rows[rows["event_timestamp"] < last.test_start]
    assert set(rows.index[last.train]) < set(latest_times(before, 20).index)
    assert latest_times(before, 20)["event_timestamp"].nunique() == 20
    assert latest_times(rows, 0) is rows and latest_times(rows, 10_000) is rows


def test_row_order_does_not_change_the_windows() -> None:
    rows = training_rows(60)
    ordered = rows.sort_values(["event_timestamp", "symbol"])
    for shuffled, sorted_ in zip(walk_forward(rows, 20, 0.4), walk_forward(ordered, 20, 0.4), strict=True):
        assert shuffled.test_start == sorted_.test_start
        assert set(rows.index[shuffled.train]) == set(ordered.index[sorted_.train])
        assert set(rows.index[shuffled.test]) == set(ordered.index[sorted_.test])


@pytest.mark.parametrize("times", [0, 1, 4, 10])
def test_too_few_times_are_refused_by_their_number(times: int) -> None:
    rows = training_rows(times + 1, symbols=1)
    assert len(rows) == times
    with pytest.raises(InputError, match=f"^{times} bar times are too few: the first 10 are learnt from"):
        walk_forward(rows, 10, 0.25)


def test_a_rolling_window_shorter_than_the_labels_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^no label closed within the 3 bar times before 2023-.*: raise max_train_times"
    ):
        walk_forward(training_rows(60, symbols=1, horizon=5), 20, 0.5, max_train_times=3)


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_latest_slice_is_held_out_and_purged(horizon: int, share: float) -> None:
    rows = training_rows(101, symbols=2, horizon=horizon)
    times = sorted(rows["event_timestamp"].unique())
    split = hold_out_latest(rows, share)
    held = sorted(rows["event_timestamp"].iloc[split.test].unique())
    assert held == times[len(times) - len(held) :]
    assert abs(len(held) - share * len(times)) <= 1
    assert split.test_start == held[0]
    assert rows["label_time"].iloc[split.train].max() < split.test_start
    assert len(split.train) == len(rows) - len(split.test) - 2 * horizon


def test_of_a_single_time_nothing_is_left_to_learn() -> None:
    split = hold_out_latest(training_rows(2, symbols=1), 0.2)
    assert (len(split.train), len(split.test)) == (0, 1)
