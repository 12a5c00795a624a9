"""Bars as they were known at every instant, and every window of bars that ever was.

The state at an instant has, of every bar recorded by then, the revision that was the latest. A revision *arrives* when
it changes the state; one that is older than what is known already never does.
"""

from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.panel import Rows

Flags = npt.NDArray[np.bool_]


class States(NamedTuple):
    """Bars as they were, in segments of one symbol and one instant each, and those whose windows are asked for.

    `rows` are rows of `Revisions.frame`, in time order within a segment; `starts` is where each segment starts, and
    their count; `wanted` are places in `rows`, and `recorded_at` the instant of each, in microseconds.
    """

    rows: Rows
    starts: Rows
    wanted: Rows
    recorded_at: Rows


class _Stretch(NamedTuple):
    """Neighbouring bars at one instant; the first `history` are there for the windows of the others only."""

    rows: list[int]
    history: int
    recorded_at: int


class Revisions:
    """The revisions that ever arrived, sorted by symbol, time and arrival, and windows of `width` bars over them.

    `frame` has the columns given: symbol, time, known_at, recorded_at (aware), and others; `bar` is the number of each
    row's bar.
    """

    def __init__(self, revisions: pd.DataFrame, width: int) -> None:
        self.width = width
        self.frame = _arrived(revisions)
        self._recorded_at = microseconds(self.frame["recorded_at"])
        new_symbol = _differs(self.frame["symbol"])
        new_bar = new_symbol | _differs(self.frame["time"])
        self.bar: Rows = np.cumsum(new_bar) - 1
        # The first and the last row of every bar, and the bar at which each symbol starts.
        self._first: Rows = np.flatnonzero(new_bar)
        self._last: Rows = np.append(self._first[1:], len(new_bar))[: len(self._first)] - 1
        self._starts: Rows = np.append(np.flatnonzero(new_symbol[self._first]), len(self._first))

    def states(self, bars_at_once: int, since: datetime | None = None) -> Iterator[States]:
        """Yield all windows that ever were: for each bar that of its arrival, and one for each later change inside it.

        First, from the latest state, those in which nothing changed after their bar arrived: nearly all. Then the
        others, from about `bars_at_once` bars at a time. With `since` (aware) only the windows of bars from then on.
        """
        newest = window_maximum(self._recorded_at[self._last], self._starts, self.width)
        disturbed = newest > self._recorded_at[self._first]
        asked = np.ones(len(disturbed), dtype=np.bool_)
        if since is not None:
            asked = microseconds(self.frame["time"])[self._last] >= pd.Timestamp(since).value // 1_000
        calm, disturbed = np.flatnonzero(asked & ~disturbed), asked & disturbed
        yield States(self._last, self._starts, calm, self._recorded_at[self._last[calm]])
        stretches: list[_Stretch] = []
        bars = 0
        for stretch in self._stretches(disturbed):
            stretches.append(stretch)
            bars += len(stretch.rows)
            if bars >= bars_at_once:
                yield _together(stretches)
                stretches, bars = [], 0
        if stretches:
            yield _together(stretches)

    def _stretches(self, disturbed: Flags) -> Iterator[_Stretch]:
        """Yield where the windows of disturbed bars changed, instant by instant, run by run of such bars."""
        is_start = np.zeros(len(disturbed) + 1, dtype=np.bool_)
        is_start[self._starts] = True
        goes_on = np.append(disturbed[1:] & disturbed[:-1], False) & ~is_start[1:]
        begins = np.flatnonzero(disturbed & ~np.append(False, goes_on[:-1])).tolist()
        ends = (np.flatnonzero(disturbed & ~goes_on) + 1).tolist()
        for begin, end in zip(begins, ends, strict=True):
            yield from self._of_run(self._history_start(begin, end), begin, end)

    def _history_start(self, begin: int, end: int) -> int:
        """Return the first bar that any window of the bars [begin, end) has held since the earliest of them arrived."""
        symbol_start = int(self._starts[np.searchsorted(self._starts, begin, side="right") - 1])
        earliest = self._recorded_at[self._first[begin:end]].min()
        bars = self.width
        while True:
            start = max(begin - bars, symbol_start)
            there = self._recorded_at[self._first[start:begin]] <= earliest
            if there.sum() >= self.width - 1 or start == symbol_start:
                return start
            bars *= 2

    def _of_run(self, start: int, begin: int, end: int) -> Iterator[_Stretch]:
        """Go back through time from the latest state of the bars [start, end), taking away what arrived."""
        first, row = self._first[start:end].tolist(), self._last[start:end].tolist()
        count = end - start
        # Each bar's neighbours in the state, by its place from `start`; `count` stands for both ends.
        before, after = [count, *range(count)], [*range(1, count), count, 0]
        rows = slice(first[0], row[-1] + 1)
        arrivals = zip((-self._recorded_at[rows]).tolist(), (self.bar[rows] - start).tolist(), strict=True)
        for instant, arrived in groupby(sorted(arrivals), key=lambda arrival: arrival[0]):
            changed = [place for _, place in arrived]
            for reached in self._reached(changed, after, count):
                asked = reached[bisect_left(reached, begin - start) :]
                if asked:
                    history = self._history(asked[0], before, count)
                    yield _Stretch([row[place] for place in history + asked], len(history), -instant)
            for place in changed:
                if row[place] > first[place]:
                    row[place] -= 1
                else:
                    after[before[place]], before[after[place]] = after[place], before[place]

    def _reached(self, changed: list[int], after: list[int], count: int) -> Iterator[list[int]]:
        """Yield the runs of places whose windows hold one of `changed` (ascending)."""
        changes = set(changed)
        passed = -1
        for change in changed:
            if change <= passed:
                continue
            reached, place, left = [], change, self.width
            while left and place != count:
                left = self.width - 1 if place in changes else left - 1
                reached.append(place)
                place = after[place]
            passed = reached[-1]
            yield reached

    def _history(self, place: int, before: list[int], count: int) -> list[int]:
        """Return the places before `place` in its window."""
        found: list[int] = []
        for _ in range(self.width - 1):
            place = before[place]
            if place == count:
                break
            found.append(place)
        return found[::-1]


def window_maximum(values: Rows, starts: Rows, width: int) -> Rows:
    """Return the maximum of the `width` values that end at each one, of fewer at the start of its segment.

    `starts` is where each segment starts, and the count of values.
    """
    place = np.arange(len(values))
    segment = np.repeat(starts[:-1], np.diff(starts))
    maximum, covered = values, 1
    while covered < width:
        step = min(covered, width - covered)
        maximum = np.maximum(maximum, maximum[np.maximum(place - step, segment)])
        covered += step
    return maximum


def microseconds(times: pd.Series) -> Rows:
    """Return aware times as microseconds since 1970 in UTC."""
    return np.ascontiguousarray(times.dt.as_unit("us").array.view("i8"))


def _together(stretches: list[_Stretch]) -> States:
    lengths = np.array([len(stretch.rows) for stretch in stretches])
    starts = np.append(0, np.cumsum(lengths))
    history = np.array([stretch.history for stretch in stretches])
    asked = np.arange(starts[-1]) >= np.repeat(starts[:-1] + history, lengths)
    recorded_at = np.array([stretch.recorded_at for stretch in stretches])
    return States(
        rows=np.concatenate([stretch.rows for stretch in stretches]),
        starts=starts,
        wanted=np.flatnonzero(asked),
        recorded_at=np.repeat(recorded_at, lengths - history),
    )


def _arrived(revisions: pd.DataFrame) -> pd.DataFrame:
    """Return the revisions that changed the state when they were recorded, sorted by symbol, time and recorded_at."""
    order = ["symbol", "time", "recorded_at", "known_at"]
    ordered = revisions.sort_values(order, kind="stable", ignore_index=True)
    new_bar = _differs(ordered["symbol"]) | _differs(ordered["time"])
    if new_bar.all():
        return ordered
    known = pd.Series(microseconds(ordered["known_at"]))
    leads = (known == known.groupby(np.cumsum(new_bar)).cummax()).to_numpy()
    # A bar's first row always leads.
    ordered, new_bar = ordered[leads], new_bar[leads]
    # Of several versions in one transaction nobody ever saw but the last.
    last = np.append((new_bar | _differs(ordered["recorded_at"]))[1:], True)
    return ordered[last].reset_index(drop=True)


def _differs(column: pd.Series) -> Flags:
    """Return for each value whether it differs from the one before it; the first does."""
    values = column.to_numpy() if column.dtype == object else column.array
    differs = np.ones(len(column), dtype=np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs
