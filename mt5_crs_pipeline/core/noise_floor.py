"""The noise floor: how the same recipe fares on data of which nothing can be known, and where the model lies in that.

Two kinds of such data, because either alone leaves a doubt. Permuted labels keep the features as they are, so that a
model is tempted by everything that is in them; random walks keep what a permutation breaks, the ties between a bar and
the one before. The floor describes the pipeline, leaks included: what it gains here it has not learnt from a market.
Promotion does not ask it.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.bars import PRICE_COLUMNS, close_time
from mt5_crs_pipeline.core.errors import InputError
from mt5_crs_pipeline.core.evidence import against_chance
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, TARGET, LabelConfig, labelled_bars
from mt5_crs_pipeline.core.metrics import base_rate, block_length
from mt5_crs_pipeline.core.model import out_of_sample_predictions
from mt5_crs_pipeline.core.recipe import Recipe
from mt5_crs_pipeline.core.splits import walk_forward

# A close that moved by less did not move: what adjusting prices leaves of equal closes is rounding.
_UNCHANGED: Final = 1e-10
# Runs side by side: one alone has too little to do for all processors, and each needs memory for rows of its own.
_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Run:
    """What out-of-sample predictions came to."""

    log_wealth: float
    """Against the best constant rates, in nats."""
    accuracy_gain: float
    """Accuracy less the base rate, as a fraction."""


@dataclass(frozen=True)
class NoiseFloor:
    """The runs on data of which nothing can be known, and of what they were made."""

    shape: str
    """As `shape` returns it: a floor of another shape says nothing about this model."""
    renewed_at: str
    rows: int
    first: str
    last: str
    """The first and last event_timestamp of the training rows it is shaped like; all times ISO 8601, UTC."""
    permuted: tuple[Run, ...]
    walks: tuple[Run, ...]
    refused: tuple[str, ...] = ()
    """Why runs were not possible, one sentence each."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of both kinds."""
        return (*self.permuted, *self.walks)

    def to_dict(self) -> dict[str, Any]:
        """Return the floor as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NoiseFloor":
        """Return the floor of what `to_dict` gave; raises KeyError or TypeError for anything else."""
        kinds = {kind: tuple(Run(**run) for run in values[kind]) for kind in ("permuted", "walks")}
        return cls(**{**values, **kinds, "refused": tuple(values["refused"])})


@dataclass(frozen=True)
class Place:
    """Where a model lies among the runs of a noise floor, on the rows up to the floor's last."""

    floor: NoiseFloor
    model: Run

    @property
    def above(self) -> int:
        """How many runs the model's log-wealth exceeds."""
        return sum(run.log_wealth < self.model.log_wealth for run in self.floor.runs)

    @property
    def above_in_accuracy(self) -> int:
        """How many runs the model's accuracy, less the base rate, exceeds."""
        return sum(run.accuracy_gain < self.model.accuracy_gain for run in self.floor.runs)

    @property
    def p_value(self) -> float:
        """(1 + runs that reach the model's log-wealth) / (1 + runs): Davison, Hinkley 1997, Bootstrap Methods, 4.2."""
        runs = len(self.floor.runs)
        return (1 + runs - self.above) / (1 + runs)

    @property
    def sentence(self) -> str:
        """Say where the model lies, or why that is not known."""
        runs = len(self.floor.runs)
        if not runs:
            return f"No run on data where nothing can be known was possible: {self.floor.refused[0]}."
        least = f", the smallest that {runs} runs can give" if self.above == runs else ""
        return (
            f"The model's log-wealth {self.model.log_wealth:.2f} lies above {self.above} of {runs} runs on data where"
            f" nothing can be known: p = {self.p_value:.2g}{least}."
        )


def permuted(rows: pd.DataFrame, seed: int, horizon_bars: int = 1) -> pd.DataFrame:
    """Return training rows whose outcomes, target and forward_return, have changed places in blocks of time.

    Nothing can be known in them: what a row's features say, they say of a bar whose outcome is now elsewhere. By chance
    one block in all stays where it was, which raises the floor if anything. Blocks are as long as the shares of ups
    depend on each other (`block_length`), at least `horizon_bars`, so that neighbouring outcomes stay as alike as they
    were. All symbols of one instant move together; where a symbol has no bar at the instant it should take from, it
    takes the next of its own outcomes that no other row took. So every symbol has the outcomes it had, and label_time,
    on which windows and purges rest, stays with its row.
    """
    instants, times = pd.factorize(rows[EVENT_TIMESTAMP], sort=True)
    source = _permuted_blocks(rows[TARGET].groupby(instants).mean(), horizon_bars, seed)
    turn = np.empty_like(source)
    turn[source] = np.arange(len(times))
    taken = np.empty(len(rows), dtype=np.intp)
    for positions in rows.groupby("symbol", sort=False).indices.values():
        own = np.asarray(positions)[np.argsort(instants[positions], kind="stable")]
        row_at = np.full(len(times), -1)
        row_at[instants[own]] = own
        found = row_at[source[instants[own]]]
        left = np.setdiff1d(own, found)
        found[found < 0] = left[np.argsort(turn[instants[left]], kind="stable")]
        taken[own] = found
    return rows.assign(**{name: rows[name].to_numpy()[taken] for name in (TARGET, FORWARD_RETURN)})


def _permuted_blocks(ups: "pd.Series[float]", shortest: int, seed: int) -> npt.NDArray[np.intp]:
    """Return for every instant the one whose outcomes it takes; `ups` is the share of ups by instant."""
    length = max(block_length(ups.fillna(ups.mean()).to_numpy()), shortest)
    block = np.arange(len(ups)) // length
    turn = pd.Series(range(int(block[-1]) + 1)).sample(frac=1, random_state=seed).to_numpy()
    return np.argsort(turn[block], kind="stable")


def random_walk(bars: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return bars of the same symbols, times and volumes whose every change is as large as it was, with a tossed sign.

    Nothing can be known in them: a coin, one for all symbols of an instant, says whether the close goes as it went or
    the other way, so that it rises with probability 1/2 whatever is known before. What is left of the data is all that
    is in sizes: volatility and its clusters, fat tails, gaps, volume, and how symbols move with each other.

    `bars`: symbol, time, open, high, low, close (positive, adjusted), volume, more; the result is sorted by symbol and
    time. On tails the whole bar is mirrored, in logarithms, about the close before it, the first one about its open.
    A close that did not change moves by the symbol's smallest change, for the coin to decide on it as well.
    """
    walk = bars.sort_values(["symbol", "time"], kind="stable", ignore_index=True)
    times, instant = np.unique(walk["time"].dt.tz_localize(None).to_numpy(), return_inverse=True)
    sign = pd.Series([-1.0, 1.0]).sample(len(times), replace=True, random_state=seed).to_numpy()[instant]
    logs = walk[list(PRICE_COLUMNS)].transform(np.log)
    before = logs["close"].groupby(walk["symbol"], sort=False).shift().fillna(logs["open"])
    opened, high, low, change = logs.sub(before, axis=0).to_numpy().T
    sizes = pd.Series(np.abs(change)).where(lambda size: size > _UNCHANGED)
    smallest = sizes.groupby(walk["symbol"], sort=False).transform("min").fillna(0.0).to_numpy()
    change = np.where(sizes.isna(), smallest, change) * sign
    start = logs["open"].groupby(walk["symbol"], sort=False).transform("first")
    close = start + pd.Series(change).groupby(walk["symbol"], sort=False).cumsum()
    before = close.groupby(walk["symbol"], sort=False).shift().fillna(start)
    made = pd.DataFrame(
        {
            "open": before + opened * sign,
            "high": before + np.where(sign > 0, high, -low),
            "low": before + np.where(sign > 0, low, -high),
            "close": close,
        }
    ).transform(np.exp)
    # By a last bit of rounding, and where an unchanged close was moved.
    made["high"], made["low"] = made[["high", "open", "close"]].max(axis=1), made[["low", "open", "close"]].min(axis=1)
    return walk.assign(**{name: made[name] for name in PRICE_COLUMNS}, adjusted_close=np.nan)


def walk_rows(
    rows: pd.DataFrame, bars: pd.DataFrame, timeframe: str, label: LabelConfig, config: FeatureConfig, seed: int
) -> pd.DataFrame:
    """Return the training rows of a random walk of `bars`, of the same symbols and times as `rows`."""
    walk = random_walk(bars, seed)
    features = feature_frame(walk, config)
    features.insert(0, EVENT_TIMESTAMP, close_time(walk["time"], timeframe))
    features.insert(0, "symbol", walk["symbol"])
    return rows[["symbol", EVENT_TIMESTAMP]].merge(labelled_bars(walk, timeframe, label)).merge(features)


def outcome(predictions: pd.DataFrame, horizon_bars: int) -> Run:
    """Return what out-of-sample predictions, as of `out_of_sample_predictions`, came to.

    Raises InputError when none of them has a target.
    """
    rows = predictions.dropna(subset=[TARGET])
    if rows.empty:
        raise InputError(f"none of {len(predictions):,} predictions has a target: every close stayed in the cost band")
    target = rows[TARGET].to_numpy()
    correct = (rows["probability"].to_numpy() >= 0.5) == (target == 1)
    wealth = against_chance(predictions, 1, horizon_bars).log_wealth
    return Run(wealth, float(correct.mean()) - base_rate(target))


def shape(rows: pd.DataFrame, timeframe: str, recipe: Recipe, config: FeatureConfig, runs: int) -> str:
    """Return the hash of what a noise floor depends on: it changes when the walk-forward gains a window, not daily."""
    windows = walk_forward(rows, recipe.training.first_train_times, recipe.training.window_growth)
    parts = [timeframe, repr(recipe), config.feature_set_hash, runs, sorted(rows["symbol"].unique())]
    parts += [len(windows), windows[0].test_start]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def noise_floor(
    rows: pd.DataFrame,
    bars: pd.DataFrame,
    timeframe: str,
    recipe: Recipe,
    config: FeatureConfig,
    runs: int,
    renewed_at: str,
    processors: int = 1,
) -> NoiseFloor:
    """Return what the walk-forward of `recipe` comes to on `runs` permutations of `rows` and as many random walks.

    `rows` are training rows, `bars` the adjusted bars they are made of. The runs share `processors`. A run that cannot
    be trained, such as one whose first window has one class only, is left out and said. Equal input gives equal runs,
    on any number of processors.
    """
    features, label = get_feature_names(config), recipe.label
    at_once = min(processors, _AT_ONCE)

    def permuted_rows(seed: int) -> pd.DataFrame:
        return permuted(rows, seed, label.horizon_bars)

    def rows_of_walk(seed: int) -> pd.DataFrame:
        return walk_rows(rows, bars, timeframe, label, config, seed)

    def outcome_of(make_rows: Callable[[int], pd.DataFrame], seed: int) -> Run | str:
        import xgboost

        try:
            with xgboost.config_context(nthread=processors // at_once):
                predictions = out_of_sample_predictions(make_rows(seed), features, recipe.training)
            return outcome(predictions, label.horizon_bars)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(at_once) as pool:
        made = [
            list(pool.map(partial(outcome_of, make_rows), range(1, runs + 1)))
            for make_rows in (permuted_rows, rows_of_walk)
        ]
    done = [tuple(run for run in kind if isinstance(run, Run)) for kind in made]
    times = rows[EVENT_TIMESTAMP]
    return NoiseFloor(
        shape=shape(rows, timeframe, recipe, config, runs),
        renewed_at=renewed_at,
        rows=len(rows),
        first=times.min().isoformat(),
        last=times.max().isoformat(),
        permuted=done[0],
        walks=done[1],
        refused=tuple(why for kind in made for why in kind if isinstance(why, str)),
    )


def place(floor: NoiseFloor, predictions: pd.DataFrame, horizon_bars: int) -> Place | None:
    """Return where a model's out-of-sample predictions lie among the runs; None where none of them has a target.

    Predictions of after the floor's last row do not count: the runs had no such rows.
    """
    known = predictions[predictions[EVENT_TIMESTAMP] <= pd.Timestamp(floor.last)]
    return Place(floor, outcome(known, horizon_bars)) if known[TARGET].notna().any() else None
