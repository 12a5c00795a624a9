"""Evidence that stays valid however often one looks: the wealth of a bettor who believes the model.

The bettor starts with one unit and bets on every outcome at the prices of a rival who knows the best constant rate,
and knows it in hindsight. If no model beats a constant rate, the wealth exceeds 1 / alpha at *any* of arbitrarily many
looks with probability at most alpha (Ville 1939, Etude critique de la notion de collectif): it is an e-process, here by
universal inference (Wasserman, Ramdas, Balakrishnan 2020, Universal inference), whose denominator is the maximised
likelihood of the null hypothesis. So a threshold needs no plan of when to stop, and tests of K recipes are paid for by
ln K (Bonferroni).

Symbols of one instant move together, so an instant is one bet: its log-likelihood ratio is the mean over its symbols.
The exponential of a mean of logarithms is at most the mean of the ratios, which under the null has expectation 1
whatever the dependence between the symbols; the price is that independent symbols count no more than one.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]

ALPHA: Final = 0.05
"""The error that is allowed: the chance that a model without an edge is ever promoted."""

SHRINKAGES: Final = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
"""How far the bettor believes the model: p becomes 1/2 + s (p - 1/2). Wealth is the mean over all of them, so that an
overconfident model is not ruined by its own confidence, nor a timid one held back; beliefs stay in [0.01, 0.99]."""

_BELIEF_LIMIT: Final = 0.01


@dataclass(frozen=True)
class Evidence:
    """A bettor's log-wealth after every instant, and the threshold it has to reach."""

    curve: "pd.Series[float]"
    """Nats, indexed by event_timestamp (UTC)."""
    threshold: float

    @property
    def log_wealth(self) -> float:
        """The wealth now."""
        return float(self.curve.iloc[-1]) if len(self.curve) else 0.0

    @property
    def best(self) -> float:
        """The most it ever was: what Ville's inequality bounds."""
        return float(self.curve.max()) if len(self.curve) else 0.0

    @property
    def shown(self) -> bool:
        """True when the wealth is above the threshold now."""
        return self.log_wealth > self.threshold

    @property
    def reached_at(self) -> "pd.Timestamp | None":
        """The first instant at which the threshold was passed, or None."""
        above = self.curve.index[self.curve > self.threshold]
        return above[0] if len(above) else None


def threshold(recipes: int) -> float:
    """Return the log-wealth that shows an edge when `recipes` were tried: ln(K / alpha)."""
    return float(np.log(max(recipes, 1) / ALPHA))


def against_chance(predictions: pd.DataFrame, recipes: int, horizon_bars: int = 1) -> Evidence:
    """Return the evidence against every constant rate, each symbol's own, that is the best in hindsight.

    `predictions` has symbol, event_timestamp, target (0/1, NaN inside the cost band) and probability, each made before
    its outcome; rows in any order. A bet is placed when the one before is settled: of labels that reach `horizon_bars`
    ahead, and so overlap, those of every `horizon_bars`-th instant count.
    """
    ordered = bets(predictions, horizon_bars)
    instants = _Instants(ordered)
    up = ordered["target"].to_numpy() == 1
    return instants.evidence(
        _log_beliefs(ordered["probability"].to_numpy(dtype=float), np.full(len(ordered), 0.5), up),
        _best_constant_rates(ordered["symbol"], up, instants.weight)[instants.last],
        threshold(recipes),
    )


def against_champion(
    predictions: pd.DataFrame, champion: pd.DataFrame, recipes: int, horizon_bars: int = 1
) -> Evidence:
    """Return the evidence that the champion's probabilities are not the right ones, and these are nearer.

    Both frames as for `against_chance`; only rows that both predicted count. The bettor's belief moves from the
    champion's probability to the model's, by every shrinkage.
    """
    key = ["symbol", "event_timestamp"]
    both = predictions.merge(champion[[*key, "probability"]], on=key, suffixes=("", "_champion"))
    ordered = bets(both, horizon_bars)
    instants = _Instants(ordered)
    up = ordered["target"].to_numpy() == 1
    rival = _limited(ordered["probability_champion"].to_numpy(dtype=float))
    return instants.evidence(
        _log_beliefs(ordered["probability"].to_numpy(dtype=float), rival, up),
        np.cumsum(_log_likelihood(rival, up) * instants.weight)[instants.last],
        threshold(recipes),
    )


def bets(predictions: pd.DataFrame, horizon_bars: int) -> pd.DataFrame:
    """Return the rows of every `horizon_bars`-th instant that have a target, sorted by time and symbol.

    A row inside the cost band takes its turn like any other: nobody knew that it would be, and to bet on the next one
    in its place would be to know.
    """
    ordered = predictions.sort_values(["event_timestamp", "symbol"], kind="stable", ignore_index=True)
    instant = pd.factorize(ordered["event_timestamp"])[0]
    turn = ordered.iloc[np.flatnonzero(instant % horizon_bars == 0)]
    return turn.dropna(subset=["target"]).reset_index(drop=True)


class _Instants:
    """Rows sorted by time, as one bet per instant."""

    def __init__(self, ordered: pd.DataFrame) -> None:
        times = ordered["event_timestamp"]
        first = np.flatnonzero((times != times.shift()).to_numpy())
        counts = np.diff(first, append=len(times))
        self.last = first + counts - 1
        self.weight = np.repeat(1.0 / counts, counts) if len(counts) else np.zeros(0)
        self._index = pd.DatetimeIndex(times.iloc[self.last])

    def evidence(self, beliefs: Array, rival: Array, threshold: float) -> Evidence:
        """Return log mean_s exp(sum of log beliefs) minus the rival's log-likelihood, after every instant."""
        wealth = np.cumsum(beliefs * self.weight[:, None], axis=0)[self.last]
        mixture = np.logaddexp.reduce(wealth, axis=1) - np.log(len(SHRINKAGES))
        return Evidence(pd.Series(mixture - rival, index=self._index, name="log_wealth"), threshold)


def _log_beliefs(probability: Array, centre: Array, up: npt.NDArray[np.bool_]) -> Array:
    """Return the log-likelihood of every row under every shrinkage of `probability` toward `centre`."""
    shrinkages = np.array(SHRINKAGES)
    beliefs = _limited(centre[:, None] + shrinkages * (probability - centre)[:, None])
    return _log_likelihood(beliefs, up[:, None])


def _log_likelihood(probability: Array, up: npt.NDArray[np.bool_]) -> Array:
    return np.log(np.where(up, probability, 1.0 - probability))


def _limited(probability: Array) -> Array:
    return np.clip(probability, _BELIEF_LIMIT, 1.0 - _BELIEF_LIMIT)


def _best_constant_rates(symbols: "pd.Series[str]", up: npt.NDArray[np.bool_], weight: Array) -> Array:
    """Return, after every row, the highest weighted log-likelihood that constant rates reach so far.

    Each symbol's best rate is its weighted share of ups; a step changes one symbol's term only.
    """
    codes = pd.factorize(symbols)[0]
    rows = pd.DataFrame({"symbol": codes, "all": weight, "ups": weight * up})
    sums = rows.groupby("symbol")[["all", "ups"]].cumsum()
    ups, every = sums["ups"].to_numpy(), sums["all"].to_numpy()
    likelihood = _entropy_sum(ups, every)
    before = pd.Series(likelihood).groupby(codes).shift(fill_value=0.0).to_numpy()
    return np.cumsum(likelihood - before)


def _entropy_sum(ups: Array, every: Array) -> Array:
    """Return ups ln(ups / every) + downs ln(downs / every), where 0 ln 0 is 0."""
    downs = np.maximum(every - ups, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(part > 0, part * np.log(part / every), 0.0) for part in (ups, downs)]
    return terms[0] + terms[1]
