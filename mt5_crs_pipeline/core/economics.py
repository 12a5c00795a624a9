"""What a simple rule would have earned on out-of-sample predictions: an illustration, not evidence."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.intervals import long_run_margin
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE
from mt5_crs_pipeline.core.model import VOLATILITY

Array = npt.NDArray[np.float64]

LEAST_PERIODS: Final = 10
"""Nothing is told per year from fewer periods, nor a Sharpe ratio if less than so many earned or lost anything."""

_YEAR: Final = pd.Timedelta(days=365.25)
_NORMAL: Final = NormalDist()
_EULER: Final = 0.5772156649015329
# The mean absolute value of a standard normal variable.
_TYPICAL_MOVE: Final = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Performance:
    """What a series of returns came to, as fractions; a number that is not defined is NaN.

    `annual_return`: NaN below one year, which must not be scaled up (GIPS Standards). `annual_volatility`
    and `sharpe`: from the returns per period, times the root of the periods per year. The largest drawdown fell from
    `peak` to `trough` (UTC), both None where wealth never fell. After ruin wealth stays 0, and there is no ratio.
    """

    total_return: float
    annual_return: float
    annual_volatility: float
    sharpe: float
    max_drawdown: float
    peak: pd.Timestamp | None
    trough: pd.Timestamp | None


@dataclass(frozen=True, eq=False)
class Economics:
    """The wealth of the rule, and what is usually asked about it; a number that is not defined is NaN.

    `curve`: net, gross and held, the wealth at the first row's time, 1, and at each instant at which positions ended
    (UTC); `held` keeps the same symbols at the same weights. `sharpe_lower`, `sharpe_upper`: 95 % interval of the net
    Sharpe ratio. `deflated_sharpe`: what the function of that name says; `recipes`: the number of trials it allows for.
    `turnover`: units bought or sold per unit of wealth and year. `break_even`: the cost of a round trip, as a share of
    the price, that would have eaten the mean return before costs. `invested`: share of rows with a position.
    `trading_cost`: as configured, None where the recorded spread counts. `mean_cost`: of a round trip over all rows
    whose cost is known. `costs_known`: their share; a cost that is not known counts as zero.
    """

    curve: pd.DataFrame
    net: Performance
    gross: Performance
    held: Performance
    sharpe_lower: float
    sharpe_upper: float
    deflated_sharpe: float
    recipes: int
    turnover: float
    break_even: float
    invested: float
    trading_cost: float | None
    mean_cost: float
    costs_known: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curve as JSON values, None for what is not defined."""
        return {
            name: {part: _json(number) for part, number in vars(value).items()}
            if isinstance(value, Performance)
            else _json(value)
            for name, value in vars(self).items()
            if name != "curve"
        }


def economics(
    predictions: pd.DataFrame, recipes: int, horizon_bars: int = 1, trading_cost: float | None = None
) -> Economics:
    """Return what this rule earned: long where UP is likelier, short where DOWN is, flat where costs eat the edge.

    `predictions` has symbol, event_timestamp, label_time, forward_return, probability, and where known spread_share and
    realised_volatility_20 (all prices as fractions). Flat where the expected gain |2p - 1| times the typical absolute
    move over `horizon_bars`, sqrt(2 h / pi) volatility, does not exceed a round trip's cost: nothing is tuned.

    A symbol's position is taken at the close that the prediction is made from, and held until its label_time, and only
    then follows the next: of overlapping labels every `horizon_bars`-th trades. It has weight 1 / n, n symbols being
    held at its start, and earns when it ends. A unit bought or sold, the last one too, pays half of `trading_cost` (a
    share of the price), or of the recorded spread where none is given; a position that stays pays nothing, and neither
    does keeping weights while prices drift.
    Raises InputError naming the column and the first offending row, counted from 0.
    """
    _check(predictions)
    rows = _settled_one_by_one(predictions)
    recorded = rows.get(SPREAD_SHARE, pd.Series(np.nan, index=rows.index))
    known = recorded if trading_cost is None else pd.Series(trading_cost, index=rows.index)
    cost = known.fillna(0.0)
    position = _positions(rows, cost, horizon_bars)
    weight = 1 / _held_together(rows)
    traded = _traded(rows, position * weight)
    parts = pd.DataFrame(
        {
            "net": position * weight * rows[FORWARD_RETURN] - traded * cost / 2,
            "gross": position * weight * rows[FORWARD_RETURN],
            "held": weight * rows[FORWARD_RETURN],
        }
    )
    earned = parts.groupby(rows[LABEL_TIME]).sum()
    curve = _wealth(earned, rows[EVENT_TIMESTAMP].min())
    made = {str(name): np.asarray(earned[name], dtype=np.float64) for name in earned}
    performance = {name: _performance(returns, curve[name]) for name, returns in made.items()}
    net, years, bought = made["net"], (curve.index[-1] - curve.index[0]) / _YEAR, float(traded.sum())
    lower = upper = deflated = math.nan
    if not math.isnan(performance["net"].sharpe):
        lower, upper = _sharpe_interval(net)
        deflated = deflated_sharpe(_sharpe(net), len(net), *_shape(net), recipes, 1 / (len(net) - 1))
    return Economics(
        curve=curve,
        **performance,
        sharpe_lower=lower * math.sqrt(len(net) / years),
        sharpe_upper=upper * math.sqrt(len(net) / years),
        deflated_sharpe=deflated,
        recipes=recipes,
        turnover=bought / years if len(net) >= LEAST_PERIODS else math.nan,
        break_even=2 * float(made["gross"].sum()) / bought if bought else math.nan,
        invested=float((position != 0).mean()),
        trading_cost=trading_cost,
        mean_cost=float(known.mean()),
        costs_known=float(known.notna().mean()),
    )


def deflated_sharpe(
    ratio: float, periods: int, skew: float, kurtosis: float, recipes: int, variance_of_trials: float
) -> float:
    """Return the probability that the true Sharpe ratio is above what the best of `recipes` reaches without any skill.

    Bailey, Lopez de Prado 2014, The deflated Sharpe ratio, equations 1 and 2. `ratio` and `variance_of_trials`, the
    variance of the ratios of all that was tried, are per period, `kurtosis` is 3 for a normal distribution. For one
    recipe it is the probabilistic Sharpe ratio against 0. How tried recipes differ is not kept here, so callers give
    1 / (periods - 1): the variance that the estimate of a ratio of zero has by itself. NaN where it has no variance.
    """
    best = 0.0
    if recipes > 1:
        quantiles = _NORMAL.inv_cdf(1 - 1 / recipes), _NORMAL.inv_cdf(1 - 1 / (recipes * math.e))
        best = math.sqrt(variance_of_trials) * ((1 - _EULER) * quantiles[0] + _EULER * quantiles[1])
    variance = (1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2) / (periods - 1)
    return _NORMAL.cdf((ratio - best) / math.sqrt(variance)) if variance > 0 else math.nan


def _check(predictions: pd.DataFrame) -> None:
    if predictions.empty:
        raise InputError("predictions hold no rows: there is nothing that a rule could have earned")
    spread = predictions.get(SPREAD_SHARE, pd.Series(0.0, index=predictions.index)).fillna(0.0)
    later = predictions[LABEL_TIME] > predictions[EVENT_TIMESTAMP]
    holds = {
        "probability": (predictions["probability"].between(0, 1), "a number from 0 to 1"),
        FORWARD_RETURN: (predictions[FORWARD_RETURN].between(-1, math.inf, inclusive="neither"), "a return above -1"),
        LABEL_TIME: (later, f"after {EVENT_TIMESTAMP}"),
        SPREAD_SHARE: (spread.between(0, math.inf, inclusive="left"), "a share of the price, or missing"),
        EVENT_TIMESTAMP: (~predictions.duplicated(["symbol", EVENT_TIMESTAMP]), "the only one of its symbol"),
    }
    for name, (held, wanted) in holds.items():
        if not held.all():
            row = int(np.flatnonzero(~held)[0])
            raise InputError(
                f"column {name}, row {row} (counted from 0): {predictions[name].iloc[row]!r} is not {wanted}"
            )


def _settled_one_by_one(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that trade, sorted by symbol and time: a symbol's first, and each first one after it settled."""
    ordered = predictions.sort_values(["symbol", EVENT_TIMESTAMP], kind="stable", ignore_index=True)
    begins, ends = (_microseconds(ordered[name]).tolist() for name in (EVENT_TIMESTAMP, LABEL_TIME))
    starts_anew = (ordered["symbol"] != ordered["symbol"].shift()).tolist()
    kept, free = [], 0
    for row, (anew, begin, end) in enumerate(zip(starts_anew, begins, ends, strict=True)):
        if anew or begin >= free:
            kept.append(row)
            free = end
    return ordered.iloc[kept].reset_index(drop=True)


def _positions(rows: pd.DataFrame, cost: "pd.Series[float]", horizon_bars: int) -> "pd.Series[float]":
    """Return 1, -1 or 0 per row; where the volatility is not known the expected gain counts as enough."""
    lean = 2 * rows["probability"] - 1
    volatility = rows.get(VOLATILITY, pd.Series(np.nan, index=rows.index))
    gain = lean.abs() * volatility * _TYPICAL_MOVE * math.sqrt(horizon_bars)
    positions: pd.Series[float] = np.sign(lean).where(gain.isna() | (gain > cost), 0.0)
    return positions


def _held_together(rows: pd.DataFrame) -> Array:
    """Return for each row how many symbols have begun and not ended when it begins, itself among them."""
    begins, ends = _microseconds(rows[EVENT_TIMESTAMP]), _microseconds(rows[LABEL_TIME])
    begun, ended = (np.searchsorted(np.sort(times), begins, side="right") for times in (begins, ends))
    together: Array = (begun - ended).astype(float)
    return together


def _traded(rows: pd.DataFrame, exposure: "pd.Series[float]") -> "pd.Series[float]":
    """Return what each row buys or sells: the change from the row before where that has just ended, and its own end."""
    symbols = rows["symbol"]
    goes_on = rows[LABEL_TIME] == rows.groupby(symbols, sort=False)[EVENT_TIMESTAMP].shift(-1)
    before = exposure.where(goes_on, 0.0).groupby(symbols, sort=False).shift(fill_value=0.0)
    return (exposure - before).abs() + exposure.abs().where(~goes_on, 0.0)


def _wealth(earned: pd.DataFrame, start: pd.Timestamp) -> pd.DataFrame:
    # Who has nothing left cannot trade: a loss of more than everything is one of everything, and it stays so.
    wealth = (1 + earned).clip(lower=0.0).cumprod()
    ended_at = wealth.index.insert(0, start).rename("ended_at")
    return pd.concat([pd.DataFrame(1.0, ended_at[:1], wealth.columns), wealth]).set_axis(ended_at)


def _performance(earned: Array, curve: "pd.Series[float]") -> Performance:
    wealth, times = np.asarray(curve, dtype=np.float64), curve.index
    fallen = 1 - wealth / np.maximum.accumulate(wealth)
    trough = int(np.argmax(fallen))
    years, alive = (times[-1] - times[0]) / _YEAR, wealth[-1] > 0
    scale = math.sqrt(len(earned) / years)
    return Performance(
        total_return=float(wealth[-1] - 1),
        annual_return=float(wealth[-1] ** (1 / years) - 1) if years >= 1 else math.nan,
        annual_volatility=float(earned.std(ddof=1) * scale) if len(earned) >= LEAST_PERIODS and alive else math.nan,
        sharpe=_sharpe(earned) * scale if alive else math.nan,
        max_drawdown=float(fallen[trough]),
        peak=times[int(np.argmax(wealth[: trough + 1]))] if fallen[trough] else None,
        trough=times[trough] if fallen[trough] else None,
    )


def _sharpe(earned: Array) -> float:
    """Return mean over standard deviation per period; NaN with fewer than LEAST_PERIODS, or where all are equal."""
    # Equal numbers have a deviation of a few roundings.
    if np.count_nonzero(earned) < LEAST_PERIODS or earned.std() <= 1e-12 * np.abs(earned).max():
        return math.nan
    return float(earned.mean() / earned.std(ddof=1))


def _sharpe_interval(earned: Array) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the ratio per period, where periods may depend on those before.

    From what each period adds to it, by `long_run_margin`.
    """
    ratio, count = _sharpe(earned), len(earned)
    standard = (earned - earned.mean()) / earned.std(ddof=1)
    margin = long_run_margin(standard - ratio * (standard**2 - 1) / 2) / count
    return ratio - margin, ratio + margin


def _shape(earned: Array) -> tuple[float, float]:
    """Return skewness and kurtosis (3 for a normal distribution)."""
    standard = (earned - earned.mean()) / earned.std()
    return float((standard**3).mean()), float((standard**4).mean())


def _microseconds(times: pd.Series) -> npt.NDArray[np.int64]:
    since_1970: npt.NDArray[np.int64] = times.dt.as_unit("us").astype("int64").to_numpy()
    return since_1970


def _json(value: Any) -> Any:
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value if value is None or math.isfinite(value) else None
