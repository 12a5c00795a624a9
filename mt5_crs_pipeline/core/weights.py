"""Sample weights: labels that overlap tell the same thing several times, and count accordingly less."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, LABEL_TIME

WEIGHT: Final = "weight"
"""The optional column of training rows that says how much each counts beside the others."""


def weighed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return labelled training rows with the column `weight`, or as they are, uncopied, where all count alike."""
    weight = average_uniqueness(rows)
    return rows if (weight == 1.0).all() else rows.assign(**{WEIGHT: weight})


def average_uniqueness(rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return each label's average uniqueness, scaled to a mean of 1; 1.0 throughout where no labels overlap.

    `rows` has symbol, event_timestamp and label_time (aware), in any order. A label is alive at the bars that close
    after its event_timestamp and up to its label_time; its uniqueness at one of them is 1 / the number of the symbol's
    labels alive there, and its weight the mean over them (López de Prado 2018, Advances in Financial Machine Learning,
    ch. 4.3 and 4.4). The bars of a symbol are the times at which a label of `rows` begins or ends; symbols do not
    dilute each other.
    """
    unique = np.empty(len(rows))
    # Not the rows' own index, which may repeat.
    for positions in rows.groupby("symbol", sort=False).indices.values():
        own = rows.iloc[positions]
        begins, ends = (own[name].dt.tz_localize(None).to_numpy() for name in (EVENT_TIMESTAMP, LABEL_TIME))
        bars = np.unique(np.concatenate([begins, ends]))
        # Alive at the bars of [first, last).
        first, last = np.searchsorted(bars, begins, "right"), np.searchsorted(bars, ends, "right")
        changes = np.zeros(len(bars) + 1)
        np.add.at(changes, first, 1.0)
        np.add.at(changes, last, -1.0)
        alive = np.maximum(np.cumsum(changes)[:-1], 1.0)
        so_far = np.concatenate([[0.0], np.cumsum(1.0 / alive)])
        unique[positions] = (so_far[last] - so_far[first]) / (last - first)
    return unique / unique.mean() if len(unique) else unique
