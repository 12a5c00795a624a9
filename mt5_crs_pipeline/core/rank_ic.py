"""The rank information coefficient: does a higher probability go with a higher return, whatever its size?"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.intervals import Z_95, long_run_margin
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN

FEWEST_SYMBOLS: Final = 3
ACROSS_SYMBOLS: Final = "across symbols"
OVER_TIME: Final = "over time"
RANK_IC_COLUMNS: Final = ("group", "kind", "count", "rank_ic", "lower", "upper", "above_zero")

Array = npt.NDArray[np.float64]


def rank_ic_by_year(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return RANK_IC_COLUMNS: per year (UTC) of the bar's close, and over all, with a 95 % interval; 0 means nothing.

    `predictions` has symbol, event_timestamp, probability and forward_return. Where at least half of the instants have
    FEWEST_SYMBOLS, each of those gives a Spearman correlation across its symbols: their mean, `count` of them and the
    share above zero. Otherwise one Spearman correlation over the rows, `count` of them. Equal values share a mean rank;
    NaN where a correlation is not defined, and for the share above zero of rows. Empty without any forward_return.
    Instants may depend on those before, and rows of one on each other; each end is the wider one of that interval and
    of what unrelated ranks would have.
    """
    if FORWARD_RETURN not in predictions:
        return pd.DataFrame(columns=list(RANK_IC_COLUMNS))
    rows = predictions.dropna(subset=[FORWARD_RETURN]).sort_values(EVENT_TIMESTAMP, kind="stable", ignore_index=True)
    years = rows[EVENT_TIMESTAMP].dt.tz_convert("UTC").dt.year
    groups = [(str(year), part) for year, part in rows.groupby(years)]
    lines = [_line(name, part) for name, part in (*groups, ("all", rows)) if len(part)]
    return pd.DataFrame(lines, columns=list(RANK_IC_COLUMNS))


def _line(group: str, rows: pd.DataFrame) -> tuple[Any, ...]:
    symbols = rows.groupby(EVENT_TIMESTAMP)[FORWARD_RETURN].transform("size")
    wide = rows[symbols >= FEWEST_SYMBOLS]
    if 2 * wide[EVENT_TIMESTAMP].nunique() >= rows[EVENT_TIMESTAMP].nunique():
        return group, ACROSS_SYMBOLS, *_mean_of_instants(wide)
    return group, OVER_TIME, *_over_rows(rows), math.nan


def _mean_of_instants(rows: pd.DataFrame) -> tuple[Any, ...]:
    ranks = rows.groupby(EVENT_TIMESTAMP)[["probability", FORWARD_RETURN]].rank()
    centred = ranks - ranks.groupby(rows[EVENT_TIMESTAMP]).transform("mean")
    sums = _products(centred).groupby(rows[EVENT_TIMESTAMP]).sum()
    sums["variance"] = 1 / (rows.groupby(EVENT_TIMESTAMP).size() - 1)
    defined = sums[(sums["one"] > 0) & (sums["other"] > 0)]
    if defined.empty:
        return 0, math.nan, math.nan, math.nan, math.nan
    correlations: Array = (defined["both"] / np.sqrt(defined["one"] * defined["other"])).to_numpy()
    count, mean = len(correlations), float(correlations.mean())
    # Spearman's correlation of unrelated ranks of m symbols has the variance 1 / (m - 1).
    unrelated = Z_95 * math.sqrt(float(defined["variance"].mean()) / count)
    half_width = max(unrelated, long_run_margin(correlations - mean) / count)
    return count, mean, *_within(mean - half_width, mean + half_width), float(np.mean(correlations > 0))


def _over_rows(rows: pd.DataFrame) -> tuple[Any, ...]:
    ranks = rows[["probability", FORWARD_RETURN]].rank()
    centred = ranks - ranks.mean()
    products = _products(centred)
    both, one, other = products.sum()
    count = len(rows)
    if count < FEWEST_SYMBOLS or one == 0 or other == 0:
        return count, math.nan, math.nan, math.nan
    found = float(both / math.sqrt(one * other))
    if count == FEWEST_SYMBOLS or abs(found) > 1 - 1e-12:
        return count, found, -1.0, 1.0
    # What each row adds to the correlation.
    standard = _products(centred / np.sqrt((centred**2).mean()))
    added = (standard["both"] - found * (standard["one"] + standard["other"]) / 2).groupby(rows[EVENT_TIMESTAMP]).sum()
    margin = long_run_margin(added.to_numpy()) / count
    # Fieller, Hartley, Pearson 1957, Tests for rank correlation coefficients: of rows that know nothing of each other.
    centre, half_width = math.atanh(found), Z_95 * math.sqrt(1.06 / (count - 3))
    lower, upper = math.tanh(centre - half_width), math.tanh(centre + half_width)
    return count, found, *_within(min(found - margin, lower), max(found + margin, upper))


def _products(centred: pd.DataFrame) -> pd.DataFrame:
    first, second = centred["probability"], centred[FORWARD_RETURN]
    return pd.DataFrame({"both": first * second, "one": first**2, "other": second**2})


def _within(lower: float, upper: float) -> tuple[float, float]:
    return max(lower, -1.0), min(upper, 1.0)
