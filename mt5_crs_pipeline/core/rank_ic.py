"""The rank information coefficient: does a higher probability go with a higher return, whatever its size?"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN
from mt5_crs_pipeline.core.metrics import block_length, resampled

FEWEST_SYMBOLS: Final = 3
RANK_IC_COLUMNS: Final = ("group", "kind", "count", "rank_ic", "lower", "upper")
_Z_95: Final = 1.959963984540054

Array = npt.NDArray[np.float64]


def rank_ic_by_year(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return RANK_IC_COLUMNS: per year (UTC) of the bar's close, and over all, with a 95 % interval; 0 means nothing.

    `predictions` has symbol, event_timestamp, probability and forward_return. Where instants have three symbols or
    more, each gives a Spearman correlation across its symbols (kind "across symbols", count of instants): their mean,
    with a circular block bootstrap of the instants. Otherwise one Spearman correlation over the rows of the year (kind
    "over time", count of rows), with Fieller, Hartley, Pearson 1957's interval. Equal values share a mean rank; NaN
    where a correlation is not defined. Empty where there is no forward_return.
    """
    if FORWARD_RETURN not in predictions:
        return pd.DataFrame(columns=list(RANK_IC_COLUMNS))
    rows = predictions.dropna(subset=[FORWARD_RETURN]).sort_values(EVENT_TIMESTAMP, kind="stable", ignore_index=True)
    by_instant = _across_symbols(rows)
    if len(by_instant):
        values, times, line = by_instant, pd.DatetimeIndex(by_instant.index), _mean_of_instants
        lines = [line(str(year), part) for year, part in values.groupby(times.year)]
        return pd.DataFrame([*lines, line("all", values)], columns=list(RANK_IC_COLUMNS))
    lines = [_over_time(str(year), part) for year, part in rows.groupby(rows[EVENT_TIMESTAMP].dt.year)]
    return pd.DataFrame([*lines, _over_time("all", rows)], columns=list(RANK_IC_COLUMNS))


def _across_symbols(rows: pd.DataFrame) -> "pd.Series[float]":
    """Return Spearman's correlation of every instant with enough symbols, where it is defined."""
    size = rows.groupby(EVENT_TIMESTAMP)[FORWARD_RETURN].transform("size")
    rows = rows[size >= FEWEST_SYMBOLS]
    ranks = rows.groupby(EVENT_TIMESTAMP)[["probability", FORWARD_RETURN]].rank()
    centred = ranks - ranks.groupby(rows[EVENT_TIMESTAMP]).transform("mean")
    products = pd.DataFrame(
        {
            "both": centred["probability"] * centred[FORWARD_RETURN],
            "one": centred["probability"] ** 2,
            "other": centred[FORWARD_RETURN] ** 2,
        }
    )
    sums = products.groupby(rows[EVENT_TIMESTAMP]).sum()
    defined = sums[(sums["one"] > 0) & (sums["other"] > 0)]
    correlations: pd.Series[float] = defined["both"] / np.sqrt(defined["one"] * defined["other"])
    return correlations


def _mean_of_instants(group: str, values: "pd.Series[float]") -> tuple[Any, ...]:
    series = values.to_numpy()
    means = resampled(series[:, None], block_length(series))[:, 0] / len(series)
    lower, upper = np.percentile(means, [2.5, 97.5])
    if len(series) == 1:
        lower, upper = -1.0, 1.0
    return group, "across symbols", len(series), float(series.mean()), float(lower), float(upper)


def _over_time(group: str, rows: pd.DataFrame) -> tuple[Any, ...]:
    first, second = rows["probability"].rank().to_numpy(), rows[FORWARD_RETURN].rank().to_numpy()
    if len(rows) < FEWEST_SYMBOLS or first.std() == 0 or second.std() == 0:
        return group, "over time", len(rows), math.nan, math.nan, math.nan
    found = float(np.corrcoef(first, second)[0, 1])
    if len(rows) == FEWEST_SYMBOLS or abs(found) > 1 - 1e-12:
        return group, "over time", len(rows), found, -1.0, 1.0
    half_width = _Z_95 * math.sqrt(1.06 / (len(rows) - 3))
    centre = math.atanh(found)
    return group, "over time", len(rows), found, math.tanh(centre - half_width), math.tanh(centre + half_width)
