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
    Instants may depend on those before, and rows of one on each other. Across symbols no interval is narrower than of
    unrelated ranks; over time none is narrower than that of twice as many independent rows.
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
    # Fieller, Hartley, Pearson 1957, Tests for rank correlation coefficients.
    half_width = Z_95 * math.sqrt(1.06 / max(_independent_rows(centred, rows) - 3, 1))
    return count, found, math.tanh(math.atanh(found) - half_width), math.tanh(math.atanh(found) + half_width)


def _independent_rows(centred: pd.DataFrame, rows: pd.DataFrame) -> float:
    """Return how many rows that know nothing of each other say as much; at most twice as many as there are.

    Where one side is moved along in time by some instants, only chance correlates it with the other: the variance of
    such correlations, over all moves, is Bartlett's, with all that times and symbols have in common (Bartlett 1935,
    Some aspects of the time-correlation problem in regard to tests of significance). To it comes how much more often
    than by chance both sides are far from their middle in one row. Each symbol's instants are taken as a circle.
    """
    standard = (centred / np.sqrt((centred**2).mean())).to_numpy()
    instants, _ = pd.factorize(rows[EVENT_TIMESTAMP])
    count = instants[-1] + 1
    spectrum = np.zeros(count // 2 + 1, dtype=np.complex128)
    pairs = 0
    for places in rows.groupby("symbol", observed=True).indices.values():
        both = np.zeros((count, 2))
        both[instants[places]] = standard[places]
        one, other = np.fft.rfft(both, axis=0).T
        spectrum += one * other.conj()
        pairs += len(places) ** 2
    sums = np.fft.irfft(spectrum, count)
    together = float((standard**2).prod(axis=1).mean())
    # A floor of 1 would lift the half of the estimates that fall below it by chance: intervals would be too wide.
    return len(rows) / max(0.5, float((sums**2).sum()) / pairs * together)


def _products(centred: pd.DataFrame) -> pd.DataFrame:
    first, second = centred["probability"], centred[FORWARD_RETURN]
    return pd.DataFrame({"both": first * second, "one": first**2, "other": second**2})


def _within(lower: float, upper: float) -> tuple[float, float]:
    return max(lower, -1.0), min(upper, 1.0)
