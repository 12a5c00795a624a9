"""Bars as they were known at every instant: where late and corrected bars change what a window of bars holds.

The state at an instant has, of every bar recorded by then, the revision that was the latest. A revision *arrives* when
it changes the state; one that is older than what is known already never does.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.panel import Rows

Flags = npt.NDArray[np.bool_]


class Stretch(NamedTuple):
    """Neighbouring bars of one symbol in the state at `recorded_at` (microseconds), which changed some of them.

    `rows` are rows of `Revisions.frame` in time order, `wanted` the places among them whose window the change reached;
    before the first of them the whole window is there, as far as it was recorded.
    """

    recorded_at: int
    rows: list[int]
    wanted: list[int]


class Revisions:
    """The revisions that ever arrived, sorted by symbol, time and arrival, with a window of `width` bars over them.

    `frame` has the columns given (symbol, time, known_at, recorded_at, ...); `latest` is the row of every bar's latest
    revision, `starts` the bar at which each symbol starts, and the bar count.
    """

    def __init__(self, revisions: pd.DataFrame, width: int) -> None:
        self.width = width
        self.frame = _arrived(revisions)
        self.recorded_at = microseconds(self.frame["recorded_at"])
        new_symbol = _differs(self.frame["symbol"])
        new_bar = new_symbol | _differs(self.frame["time"])
        self._first: Rows = np.flatnonzero(new_bar)
        self.latest: Rows = np.append(self._first[1:], len(self.frame))[: len(self._first)] - 1
        self.starts: Rows = np.append(np.flatnonzero(new_symbol[self._first]), len(self._first))

    def disturbed(self) -> Flags:
        """Return for each bar whether anything in its window arrived after the bar itself did."""
        newest = window_maximum(self.recorded_at[self.latest], self.starts, self.width)
        return newest > self.recorded_at[self._first]

    def stretches(self, bars: Flags) -> Iterator[Stretch]:
        """Yield, for every instant at which something in the window of one of `bars` arrived, where it did."""
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            if bars[start:end].any():
                yield from self._of_symbol(start, end, bars[start:end].tolist())

    def _of_symbol(self, start: int, end: int, bars: list[bool]) -> Iterator[Stretch]:
        """Go back through time from the latest state, taking away what arrived."""
        first, row = self._first[start:end].tolist(), self.latest[start:end].tolist()
        # Neighbours in the state, by the bar's number in its symbol; `count` stands for both ends.
        count = end - start
        before, after = [count, *range(count)], [*range(1, count), count, 0]
        rows = np.arange(first[0], row[-1] + 1)
        arrivals = zip(self.recorded_at[rows].tolist(), self._numbers(start, end).tolist(), strict=True)
        for recorded_at, arrived in groupby(sorted(arrivals, key=lambda a: (-a[0], a[1])), key=lambda a: a[0]):
            changed = [number for _, number in arrived]
            for run in self._reached(changed, after, count):
                places = [place for place, number in enumerate(run) if bars[number]]
                if places:
                    history = self._history(run[places[0]], before, count)
                    shown = history + run[places[0] : places[-1] + 1]
                    wanted = [len(history) + place - places[0] for place in places]
                    yield Stretch(recorded_at, [row[number] for number in shown], wanted)
            for number in changed:
                if row[number] > first[number]:
                    row[number] -= 1
                else:
                    after[before[number]], before[after[number]] = after[number], before[number]

    def _numbers(self, start: int, end: int) -> Rows:
        """Return the bar of each row of a symbol, counted from the symbol's first."""
        return np.repeat(np.arange(end - start), self.latest[start:end] - self._first[start:end] + 1)

    def _reached(self, changed: list[int], after: list[int], count: int) -> Iterator[list[int]]:
        """Yield the runs of bars that have one of `changed` (ascending) in their window."""
        changes = set(changed)
        passed = -1
        for number in changed:
            if number <= passed:
                continue
            run, left = [], self.width
            while left and number != count:
                left = self.width - 1 if number in changes else left - 1
                run.append(number)
                number = after[number]
            passed = run[-1]
            yield run

    def _history(self, number: int, before: list[int], count: int) -> list[int]:
        """Return the bars before `number` that its window holds, oldest first."""
        found: list[int] = []
        while len(found) < self.width - 1 and before[number] != count:
            number = before[number]
            found.append(number)
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
