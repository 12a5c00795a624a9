"""Purged walk-forward windows on the time axis."""

from dataclasses import dataclass
from itertools import pairwise

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


def walk_forward(rows: pd.DataFrame, folds: int, first_train_share: float) -> list[Split]:
    """Cut time into a first training part and `folds` test windows that follow each other.

    `rows` has event_timestamp and label_time (aware). Windows are cut on the sorted unique times, so rows of one time
    are never on both sides. A fold trains on everything before its test window except rows whose label closes at or
    after the window's start: they are purged, because their label is made of the prices to be predicted from.
    The estimate is that of retraining once per window; it says nothing about trading costs.
    Raises InputError when there are too few times for every window to have one and something to learn from.
    """
    times = np.sort(rows["event_timestamp"].unique())
    first = int(len(times) * first_train_share)
    edges = np.linspace(first, len(times), folds + 1).astype(int)
    too_few = f"{len(times)} bar times are too few for {folds} walk-forward windows: ingest more bars"
    if first < 2 or (np.diff(edges) < 1).any():
        raise InputError(too_few)
    splits = []
    for start, end in pairwise(edges):
        test_start = pd.Timestamp(times[start])
        in_test = (rows["event_timestamp"] >= test_start) & (rows["event_timestamp"] <= times[end - 1])
        splits.append(Split(_closed_before(rows, test_start), np.flatnonzero(in_test.to_numpy()), test_start))
    if not len(splits[0].train):
        raise InputError(too_few)
    return splits


def hold_out_latest(rows: pd.DataFrame, share: float) -> Split:
    """Split off the latest `share` of the times, purged like a walk-forward window: the early-stopping slice."""
    times = np.sort(rows["event_timestamp"].unique())
    test_start = pd.Timestamp(times[min(int(len(times) * (1 - share)), len(times) - 1)])
    test = np.flatnonzero((rows["event_timestamp"] >= test_start).to_numpy())
    return Split(_closed_before(rows, test_start), test, test_start)


def _closed_before(rows: pd.DataFrame, instant: pd.Timestamp) -> Rows:
    return np.flatnonzero((rows["label_time"] < instant).to_numpy())
