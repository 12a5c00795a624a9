"""Purged walk-forward windows on the time axis."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Row positions to learn from and to be judged on; every training label closed before `test_start`."""

    train: Rows
    test: Rows
    test_start: pd.Timestamp


def walk_forward(rows: pd.DataFrame, first_times: int, growth: float, max_train_times: int = 0) -> list[Split]:
    """Cut time into a first training part of `first_times` and test windows that follow each other to the end.

    `rows` has event_timestamp and label_time (aware). Windows are cut on the sorted unique times, so rows of one time
    are never on both sides. A fold trains on everything before its test window except rows whose label closes at or
    after the window's start: they are purged, because their label is made of the prices to be predicted from.
    A window is as long as `growth` times the history before it. So the cuts depend on the history before them alone:
    later rows add windows and lengthen the last, and what was predicted once is never predicted anew. The estimate is
    that of retraining once per window; it says nothing about trading costs.
    Raises InputError when there are too few times for a window and something to learn from.
    """
    times = np.sort(rows["event_timestamp"].unique())
    splits = []
    start = first_times
    while start < len(times):
        test_start = pd.Timestamp(times[start])
        end = start + max(int(start * growth), 1)
        in_test = rows["event_timestamp"] >= test_start
        if end < len(times):
            in_test &= rows["event_timestamp"] < times[end]
        since = times[max(start - max_train_times, 0)] if max_train_times else times[0]
        train = (rows["label_time"] < test_start) & (rows["event_timestamp"] >= since)
        splits.append(Split(np.flatnonzero(train.to_numpy()), np.flatnonzero(in_test.to_numpy()), test_start))
        start = end
    empty = next((split for split in splits if not len(split.train)), None)
    if empty and max_train_times:
        raise InputError(
            f"no label closed within the {max_train_times} bar times before {empty.test_start}: raise max_train_times"
        )
    if empty or not splits:
        raise InputError(
            f"{len(times)} bar times are too few: the first {first_times} are learnt from, later ones predicted;"
            " ingest more bars"
        )
    return splits


def latest_times(rows: pd.DataFrame, times: int) -> pd.DataFrame:
    """Return the rows of the latest `times` event_timestamps; all of them, as they are, where `times` is 0."""
    every = rows["event_timestamp"].unique()
    if not times or times >= len(every):
        return rows
    latest: pd.DataFrame = rows[rows["event_timestamp"] >= np.sort(every)[-times]]
    return latest


def hold_out_latest(rows: pd.DataFrame, share: float) -> Split:
    """Split off the latest `share` of the times, purged like a walk-forward window: the early-stopping slice."""
    times = np.sort(rows["event_timestamp"].unique())
    test_start = pd.Timestamp(times[min(int(len(times) * (1 - share)), len(times) - 1)])
    test = np.flatnonzero((rows["event_timestamp"] >= test_start).to_numpy())
    return Split(np.flatnonzero((rows["label_time"] < test_start).to_numpy()), test, test_start)
