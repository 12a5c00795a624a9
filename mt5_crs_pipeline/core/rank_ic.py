"""The rank information coefficient: does a higher probability go with a higher return, whatever its size?"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN
from mt5_crs_pipeline.core.metrics import block_length, resampled

FEWEST_SYMBOLS: Final = 3
ACROSS_SYMBOLS: Final = "across symbols"
OVER_TIME: Final = "over time"
RANK_IC_COLUMNS: Final = ("group", "kind", "count", "rank_ic", "lower", "upper", "above_zero")
_Z_95: Final = 1.959963984540054

Array = npt.NDArray[np.float64]


def rank_ic_by_year(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return RANK_IC_COLUMNS: per year (UTC) of the bar's close, and over all, with a 95 % interval; 0 means nothing.

    `predictions` has symbol, event_timestamp, probability and forward_return. Where at least half of the instants have
    FEWEST_SYMBOLS, each of those gives a Spearman correlation across its symbols: their mean, `count` of them and the
    share above zero. Otherwise one Spearman correlation over the rows, `count` of them. Equal values share a mean rank;
    NaN where a correlation is not defined, and for the share above zero of rows. Empty without any forward_return.
    Intervals are circular block bootstraps of the instants, which are narrow for a few of them: each end is the wider
    one of it and of what unrelated ranks would have.
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
    again = resampled(correlations[:, None], block_length(correlations))[:, 0] / count
    # Spearman's correlation of unrelated ranks of m symbols has the variance 1 / (m - 1); one alone shows no spread.
    half_width = _Z_95 * math.sqrt(float(defined["variance"].mean()) / count) if count > 1 else math.inf
    return count, mean, *_wider(again, mean - half_width, mean + half_width), float(np.mean(correlations > 0))


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
    sums = products.assign(rows=1.0, first=centred["probability"], second=centred[FORWARD_RETURN])
    by_time = sums.groupby(rows[EVENT_TIMESTAMP]).sum()
    length = block_length(by_time["both"].to_numpy())
    drawn = pd.DataFrame(resampled(by_time.to_numpy(), length), columns=by_time.columns)
    means = drawn.div(drawn["rows"], axis=0)
    spread = (means["one"] - means["first"] ** 2) * (means["other"] - means["second"] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        again = ((means["both"] - means["first"] * means["second"]) / np.sqrt(spread)).to_numpy()
    # Fieller, Hartley, Pearson 1957, Tests for rank correlation coefficients: of rows that know nothing of each other.
    centre, half_width = math.atanh(found), _Z_95 * math.sqrt(1.06 / (count - 3))
    return count, found, *_wider(again, math.tanh(centre - half_width), math.tanh(centre + half_width))


def _products(centred: pd.DataFrame) -> pd.DataFrame:
    first, second = centred["probability"], centred[FORWARD_RETURN]
    return pd.DataFrame({"both": first * second, "one": first**2, "other": second**2})


def _wider(again: Array, lower: float, upper: float) -> tuple[float, float]:
    low, high = np.percentile(again[np.isfinite(again)], [2.5, 97.5])
    return max(min(float(low), lower), -1.0), min(max(float(high), upper), 1.0)
