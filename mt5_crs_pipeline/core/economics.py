"""What a simple rule would have earned on out-of-sample predictions: an illustration, not evidence."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE
from mt5_crs_pipeline.core.metrics import block_length, resampled
from mt5_crs_pipeline.core.model import VOLATILITY

Array = npt.NDArray[np.float64]

_YEAR: Final = pd.Timedelta(days=365.25)
_NORMAL: Final = NormalDist()
_EULER: Final = 0.5772156649015329
# The mean absolute value of a standard normal variable.
_TYPICAL_MOVE: Final = math.sqrt(2 / math.pi)


@dataclass(frozen=True, eq=False)
class Economics:
    """The wealth of the rule, and what is usually asked about it; a number that is not defined is NaN.

    `curve`: net, gross and held (the same symbols bought and kept at equal weights), wealth from a start of 1, indexed
    by the instant at which the period ended (UTC). `turnover`: units bought or sold per unit of wealth and year.
    `break_even`: the cost of a round trip, as a share of the price, that would have eaten the mean return before costs.
    `invested`: share of rows with a position. `costs_known`: share of rows whose cost is known; where it is not, it
    counts as zero. Return, volatility and Sharpe ratio are net of costs and per year; `sharpe_lower` and `sharpe_upper`
    bound its 95 % interval. `deflated_sharpe`: the probability that the true Sharpe ratio is above what the best of all
    tried recipes reaches without any skill.
    """

    curve: pd.DataFrame
    annual_return: float
    annual_volatility: float
    sharpe: float
    sharpe_lower: float
    sharpe_upper: float
    deflated_sharpe: float
    recipes: int
    max_drawdown: float
    turnover: float
    break_even: float
    invested: float
    costs_known: float


def economics(
    predictions: pd.DataFrame, recipes: int, horizon_bars: int = 1, trading_cost: float | None = None
) -> Economics:
    """Return what this rule earned: long where UP is likelier, short where DOWN is, flat where costs eat the edge.

    `predictions` has symbol, event_timestamp, label_time, forward_return, probability, and where known spread_share and
    realised_volatility_20 (all prices as fractions). Flat where the expected gain |2p - 1| times the typical absolute
    move over the horizon does not exceed a round trip's cost: nothing is tuned. Every symbol of an instant has the
    same weight, and a position is held for the horizon, so of overlapping labels every `horizon_bars`-th instant
    trades. A unit bought or sold pays half of `trading_cost` (a share of the price), or of the recorded spread where
    none is given; a position that stays pays nothing. Raises InputError without rows or with a return that is NaN.
    """
    if predictions.empty or predictions[FORWARD_RETURN].isna().any():
        raise InputError(f"{len(predictions)} predictions: what they earned needs rows, each with its forward_return")
    rows = predictions.sort_values([EVENT_TIMESTAMP, "symbol"], kind="stable", ignore_index=True)
    rows = rows[pd.factorize(rows[EVENT_TIMESTAMP])[0] % horizon_bars == 0]
    recorded = rows.get(SPREAD_SHARE, pd.Series(np.nan, index=rows.index))
    cost = recorded if trading_cost is None else pd.Series(trading_cost, index=rows.index)
    position = _positions(rows, cost.fillna(0.0), horizon_bars)
    traded = position.groupby(rows["symbol"]).diff().fillna(position).abs()
    gross = position * rows[FORWARD_RETURN]
    instants = pd.DataFrame(
        {
            "gross": gross,
            "net": gross - traded * cost.fillna(0.0) / 2,
            "held": rows[FORWARD_RETURN],
            "traded": traded,
            LABEL_TIME: rows[LABEL_TIME],
        }
    ).groupby(rows[EVENT_TIMESTAMP])
    earned = instants[["net", "gross", "held"]].mean()
    ends = instants[LABEL_TIME].max()
    years = (ends.max() - earned.index[0]) / _YEAR
    per_year = len(earned) / years
    net, bought = earned["net"].to_numpy(), float(instants["traded"].mean().mean())
    ratio, lower, upper, deflated = _sharpe(net, recipes)
    curve = (1 + earned).cumprod().set_axis(pd.DatetimeIndex(ends, name="ended_at"))
    wealth = np.concatenate([[1.0], curve["net"].to_numpy()])
    return Economics(
        curve=curve,
        annual_return=float(wealth[-1] ** (1 / years) - 1) if wealth.min() > 0 else math.nan,
        annual_volatility=float(net.std(ddof=1) * math.sqrt(per_year)) if len(net) > 1 else math.nan,
        sharpe=ratio * math.sqrt(per_year),
        sharpe_lower=lower * math.sqrt(per_year),
        sharpe_upper=upper * math.sqrt(per_year),
        deflated_sharpe=deflated,
        recipes=recipes,
        max_drawdown=float((1 - wealth / np.maximum.accumulate(wealth)).max()),
        turnover=float(instants["traded"].mean().sum() / years),
        break_even=2 * float(earned["gross"].mean() / bought) if bought else math.nan,
        invested=float((position != 0).mean()),
        costs_known=float(cost.notna().mean()),
    )


def _positions(rows: pd.DataFrame, cost: "pd.Series[float]", horizon_bars: int) -> "pd.Series[float]":
    """Return 1, -1 or 0 per row; where the volatility is not known the expected gain counts as enough."""
    lean = 2 * rows["probability"] - 1
    volatility = rows.get(VOLATILITY, pd.Series(np.nan, index=rows.index))
    gain = lean.abs() * volatility * _TYPICAL_MOVE * math.sqrt(horizon_bars)
    positions: pd.Series[float] = np.sign(lean).where(gain.isna() | (gain > cost), 0.0)
    return positions


def _sharpe(earned: Array, recipes: int) -> tuple[float, float, float, float]:
    """Return the Sharpe ratio per period, the ends of its 95 % interval, and the deflated Sharpe ratio.

    The interval is that of a circular block bootstrap. Deflated: Bailey, Lopez de Prado 2014, The deflated Sharpe
    ratio, equation 9, with the spread that trials of this length have without skill, 1 / (n - 1): how the ratios of the
    recipes that were tried differ is not kept. All are NaN for fewer than ten periods or without any spread.
    """
    count = len(earned)
    if count < 10 or earned.std() <= 1e-12 * np.abs(earned).max():
        return math.nan, math.nan, math.nan, math.nan
    ratio = float(earned.mean() / earned.std(ddof=1))
    sums = resampled(np.column_stack([earned, earned**2]), block_length(earned))
    mean = sums[:, 0] / count
    spread = np.sqrt(np.maximum(sums[:, 1] / count - mean**2, 0) * count / (count - 1))
    drawn = mean[spread > 0] / spread[spread > 0]
    lower, upper = np.percentile(drawn, [2.5, 97.5])
    standard = (earned - earned.mean()) / earned.std()
    skew, kurtosis = float((standard**3).mean()), float((standard**4).mean())
    deviation = math.sqrt(max(1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2, 0.0) / (count - 1))
    best = _best_without_skill(recipes) / math.sqrt(count - 1)
    deflated = _NORMAL.cdf((ratio - best) / deviation) if deviation else math.nan
    return ratio, float(min(lower, ratio)), float(max(upper, ratio)), deflated


def _best_without_skill(recipes: int) -> float:
    """Return the expected maximum of that many standard normal variables, as the paper approximates it."""
    if recipes < 2:
        return 0.0
    quantiles = _NORMAL.inv_cdf(1 - 1 / recipes), _NORMAL.inv_cdf(1 - 1 / (recipes * math.e))
    return (1 - _EULER) * quantiles[0] + _EULER * quantiles[1]


def to_numbers(result: Economics) -> dict[str, Any]:
    """Return everything but the curve by name, None for what is not defined."""
    numbers = {name: value for name, value in vars(result).items() if name != "curve"}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
