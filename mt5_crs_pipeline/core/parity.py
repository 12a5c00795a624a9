"""The proof that stored features are what any other way of computing them gives, to the last bit.

A stored row was computed in a batch of months. It is computed again from the `lookback` bars that end at it alone, as
they were when it was recorded, and by a stream that has seen the bars before it and is fed the last one; the 64 bits of
every value are compared.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mt5_crs_pipeline.core.features import FeatureConfig, FeatureStream, feature_frame, get_feature_names
from mt5_crs_pipeline.core.features.operations import INPUTS


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


def sample(rows: pd.DataFrame, older: int, seed: int) -> pd.DataFrame:
    """Return the newest row of every symbol, `older` random others, and as many versions that were superseded.

    The choice is the same for the same rows (symbol, time, recorded_at, ...) and seed.
    """
    ordered = rows.sort_values(["symbol", "time", "recorded_at"], kind="stable", ignore_index=True)
    newest = ~ordered["symbol"].duplicated(keep="last")
    superseded = ordered.duplicated(["symbol", "time"], keep="last")
    groups = [ordered[~newest & ~superseded], ordered[superseded]]
    chosen = [group.sample(min(older, len(group)), random_state=seed) for group in groups]
    return pd.concat([ordered[newest], *chosen]).sort_index()


def compare(stored: pd.DataFrame, revisions: pd.DataFrame, config: FeatureConfig) -> Parity:
    """Compute the `stored` rows (symbol, time, recorded_at, features) again, in two ways, and compare the bits.

    `revisions` (symbol, time, open, high, low, close, volume, known_at, recorded_at; prices as the features were
    computed on) has the history of every row, in any order. A row whose bar was not there counts as different.
    """
    names = get_feature_names(config)
    keys = list(stored[["symbol", "time", "recorded_at"]].itertuples(index=False, name=None))
    histories = list(_histories(revisions, keys, config.lookback))
    there = np.array([len(history) > 0 for history in histories], dtype=bool)
    found = [history for history in histories if len(history)]
    kept = stored[names].to_numpy(dtype=float)
    fresh = np.full((2, *kept.shape), np.nan)
    fresh[:, there] = _from_slices(found, config), _from_stream(found, config)
    unequal = _bits(fresh) != _bits(kept)
    different = unequal.any(axis=0) | ~there[:, None]
    first = None
    if different.any():
        row, column = np.argwhere(different)[0]
        symbol, time, _ = keys[row]
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


def _histories(revisions: pd.DataFrame, keys: Sequence[Any], lookback: int) -> Iterator[pd.DataFrame]:
    """Yield for each (symbol, time, recorded_at) the `lookback` bars that ended there then, none where no bar did.

    At a symbol's start they are fewer.
    """
    columns = ["symbol", "time", *INPUTS]
    ordered = revisions.sort_values(["time", "known_at", "recorded_at"], kind="stable")
    by_symbol = {str(symbol): own for symbol, own in ordered.groupby("symbol")}
    nothing = revisions.iloc[:0]
    for symbol, time, recorded_at in keys:
        own = by_symbol.get(symbol, nothing)
        end = int(own["time"].searchsorted(time, side="right"))
        rows = lookback
        while True:
            # Later versions come last, so those of the oldest bar that are cut off are not its latest.
            state = own.iloc[max(end - rows, 0) : end]
            state = state[state["recorded_at"] <= recorded_at].drop_duplicates("time", keep="last")
            if len(state) >= lookback or rows >= end:
                break
            rows *= 2
        ends_there = len(state) > 0 and state["time"].iloc[-1] == time
        yield state[columns].iloc[-lookback:] if ends_there else nothing[columns]


def _from_slices(histories: list[pd.DataFrame], config: FeatureConfig) -> npt.NDArray[np.float64]:
    if not histories:
        return np.zeros((0, len(config.features)))
    # Each slice is a symbol of its own: nothing but its bars can reach its values.
    slices = [history.assign(symbol=number) for number, history in enumerate(histories)]
    ends = np.cumsum([len(history) for history in histories]) - 1
    every: npt.NDArray[np.float64] = feature_frame(pd.concat(slices, ignore_index=True), config).to_numpy()
    last: npt.NDArray[np.float64] = every[ends]
    return last


def _from_stream(histories: list[pd.DataFrame], config: FeatureConfig) -> npt.NDArray[np.float64]:
    values = np.empty((len(histories), len(config.features)))
    for row, history in zip(values, histories, strict=True):
        stream = FeatureStream(config, history.iloc[:-1])
        symbol, time, *bar = history.iloc[-1].tolist()
        row[:] = stream.push(symbol, time, *bar).values
    return values


def _bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    # A NaN may come back from storage as another NaN.
    return np.ascontiguousarray(np.where(np.isnan(values), np.nan, values)).view(np.int64)
