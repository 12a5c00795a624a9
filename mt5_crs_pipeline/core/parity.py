"""The proof that stored features are what any other way of computing them gives, to the last bit.

A stored row was computed in a batch of months. It is computed again from the `lookback` bars that end at it alone, as
they were when it was recorded, and by a stream that has seen the bars before it and is fed the last one; the 64 bits of
every value are compared.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.features import FeatureConfig, FeatureStream, feature_frame, get_feature_names
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.revisions import microseconds


@dataclass(frozen=True)
class Parity:
    """How many rows and values were compared, how many differ, and the first that does."""

    rows: int
    values: int
    different: int
    first_difference: str | None

    @property
    def holds(self) -> bool:
        """True when something was compared and all of it is equal."""
        return self.rows > 0 and self.different == 0


NOTHING_COMPARED: Final = Parity(rows=0, values=0, different=0, first_difference=None)


def sample(rows: pd.DataFrame, older: int, seed: int, continued: Collection[str] = ()) -> npt.NDArray[np.intp]:
    """Return where the newest row of every symbol is, `older` random others, and as many that were revised.

    Of those any version may be drawn, what was superseded and what replaced it. Of a symbol that is `continued`
    elsewhere no row is the newest. In the order of the key, which is symbol, time and recorded_at; the same for the
    same keys and seed.
    """
    keys = rows[["symbol", "time", "recorded_at"]].reset_index(drop=True)
    keys = keys.sort_values(["symbol", "time", "recorded_at"], kind="stable")
    newest = ~(keys["symbol"].duplicated(keep="last") | keys["symbol"].isin(continued)).to_numpy()
    revised = keys.duplicated(["symbol", "time"], keep=False).to_numpy()
    places = pd.Series(np.arange(len(keys)))
    groups = [places[~newest & ~revised], places[~newest & revised]]
    chosen = [group.sample(min(older, len(group)), random_state=seed) for group in groups]
    found: npt.NDArray[np.intp] = keys.index.to_numpy()[pd.concat([places[newest], *chosen]).sort_values()]
    return found


def compare(stored: pd.DataFrame, revisions: pd.DataFrame, config: FeatureConfig) -> Parity:
    """Compute the `stored` rows (symbol, time, recorded_at, features) again, in two ways, and compare the bits.

    `revisions` (symbol, time, open, high, low, close, volume, known_at, recorded_at; prices as the features were
    computed on) has the history of every row, in any order. A row whose bar was not there counts as different.
    """
    names = get_feature_names(config)
    histories = _histories(revisions, stored, config.lookback)
    there = np.zeros(len(stored), dtype=bool)
    there[histories["symbol"].unique()] = True
    kept = stored[names].to_numpy(dtype=float)
    fresh = np.full((2, *kept.shape), np.nan)
    fresh[:, there] = _from_slices(histories, config), _from_stream(histories, config)
    unequal = _bits(fresh) != _bits(kept)
    different = unequal.any(axis=0) | ~there[:, None]
    first = None
    if different.any():
        row, column = np.argwhere(different)[0]
        symbol, time = stored[["symbol", "time"]].iloc[row]
        first = f"{names[column]} of {symbol} at {time} is stored as {float(kept[row, column])!r}"
        way = int(unequal[:, row, column].argmax())
        first += f", computed it is {float(fresh[way, row, column])!r}" if there[row] else ", where no bar was"
    return Parity(len(stored), 2 * different.size, int(different.sum()), first)


def certificate(parity: Parity, config: FeatureConfig, library_versions: dict[str, str]) -> dict[str, Any]:
    """Return what was proved, about which features, with which libraries, and a SHA-256 over all of it."""
    content = {
        "feature_set_hash": config.feature_set_hash,
        "library_versions": library_versions,
        "rows": parity.rows,
        "values_compared": parity.values,
        "values_different": parity.different,
        "holds": parity.holds,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "certificate": digest}


def _histories(revisions: pd.DataFrame, rows: pd.DataFrame, lookback: int) -> pd.DataFrame:
    """Return for each of `rows` the `lookback` bars that ended at it when it was recorded, none where no bar did.

    The column symbol has the row's place: each history is a symbol of its own, and nothing but its bars can reach its
    values. At a symbol's start they are fewer.
    """
    ordered = revisions.sort_values(["symbol", "time", "known_at", "recorded_at"], kind="stable", ignore_index=True)
    times, recorded = microseconds(ordered["time"]), microseconds(ordered["recorded_at"])
    bounds = {symbol: (at[0], at[-1] + 1) for symbol, at in ordered.groupby("symbol", sort=False).indices.items()}
    found = []
    keys = zip(rows["symbol"], microseconds(rows["time"]), microseconds(rows["recorded_at"]), strict=True)
    for symbol, time, recorded_at in keys:
        begin, end = bounds.get(symbol, (0, 0))
        end = begin + int(np.searchsorted(times[begin:end], time, side="right"))
        read = lookback
        while True:
            # Later versions come last, so those of the oldest bar that are cut off are not its latest.
            start = max(end - read, begin)
            state = start + np.flatnonzero(recorded[start:end] <= recorded_at)
            is_latest = np.ones(len(state), dtype=np.bool_)
            np.not_equal(times[state[1:]], times[state[:-1]], out=is_latest[:-1])
            state = state[is_latest][-lookback:]
            if len(state) == lookback or start == begin:
                break
            read *= 2
        found.append(state if len(state) and times[state[-1]] == time else state[:0])
    lengths = [len(state) for state in found]
    bars = ordered[["time", *INPUTS]].iloc[np.concatenate([*found, np.empty(0, dtype=np.intp)])]
    return bars.assign(symbol=np.repeat(np.arange(len(found)), lengths)).reset_index(drop=True)


def _from_slices(histories: pd.DataFrame, config: FeatureConfig) -> npt.NDArray[np.float64]:
    every: npt.NDArray[np.float64] = feature_frame(histories, config).to_numpy()
    last: npt.NDArray[np.float64] = every[_lasts(histories)]
    return last


def _from_stream(histories: pd.DataFrame, config: FeatureConfig) -> npt.NDArray[np.float64]:
    lasts = _lasts(histories)
    stream = FeatureStream(config, histories[~lasts])
    bars = histories.loc[lasts, ["symbol", "time", *INPUTS]].itertuples(index=False, name=None)
    values = [stream.push(str(row), *bar).values for row, *bar in bars]
    return np.array(values).reshape(len(values), len(config.features))


def _lasts(histories: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return ~histories["symbol"].duplicated(keep="last").to_numpy()


def _bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    # A NaN may come back from storage as another NaN.
    return np.ascontiguousarray(np.where(np.isnan(values), np.nan, values)).view(np.int64)
