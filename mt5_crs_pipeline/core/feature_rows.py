"""Feature rows as they are stored: every version of every bar's row, stamped by when it was known and recorded."""

from datetime import datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.core.bars import TIMESTAMP, adjusted, close_time
from mt5_crs_pipeline.core.features import FeatureConfig, get_feature_names
from mt5_crs_pipeline.core.features.frames import unfilled, write_features
from mt5_crs_pipeline.core.features.operations import INPUTS
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, FORWARD_RETURN, LABEL_TIME, SPREAD_SHARE, TARGET
from mt5_crs_pipeline.core.panel import Rows
from mt5_crs_pipeline.core.revisions import Revisions, States, microseconds, window_maximum

# The one place that says which features the pipeline computes, stores, trains and predicts on.
PIPELINE_FEATURES: Final = FeatureConfig.scale_free()
KNOWN_AT: Final = "known_at"
RECORDED_AT: Final = "recorded_at"
IS_COMPLETE: Final = "is_complete"
# Bars that are computed at once where history was disturbed: enough for every core, and little memory.
_BARS_AT_ONCE: Final = 262_144


def feature_schema(config: FeatureConfig = PIPELINE_FEATURES) -> pa.Schema:
    """Return the Arrow schema of `feature_rows`."""
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            pa.field("time", TIMESTAMP, nullable=False),
            pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
            pa.field(KNOWN_AT, TIMESTAMP, nullable=False),
            pa.field(RECORDED_AT, TIMESTAMP, nullable=False),
            pa.field(IS_COMPLETE, pa.bool_(), nullable=False),
            *(pa.field(name, pa.float64()) for name in get_feature_names(config)),
        ]
    )


def training_schema(config: FeatureConfig = PIPELINE_FEATURES) -> pa.Schema:
    """Return the Arrow schema of the training set: label columns, then the features, all present in every row.

    The target is null inside the cost band, the spread where none was recorded.
    """
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
            pa.field(LABEL_TIME, TIMESTAMP, nullable=False),
            pa.field(TARGET, pa.float64()),
            pa.field(FORWARD_RETURN, pa.float64(), nullable=False),
            pa.field(SPREAD_SHARE, pa.float64()),
            *(pa.field(name, pa.float64(), nullable=False) for name in get_feature_names(config)),
        ]
    )


def feature_rows(
    revisions: pd.DataFrame,
    timeframe: str,
    config: FeatureConfig = PIPELINE_FEATURES,
    *,
    since: datetime | None = None,
) -> pd.DataFrame:
    """Return every version of every bar's row: the columns of `feature_schema`, sorted by symbol, time, known_at.

    `revisions` has BAR_COLUMNS, known_at and recorded_at. A row has a version from the moment its bar was recorded, and
    another from every later one at which a bar among the `lookback` that end at it arrived late or was revised:
    recorded_at is that moment, the values are those of the bars as they then were, and known_at is when the last of
    them was known. So the versions recorded by some instant depend on nothing that was recorded after it.
    Prices are scaled by the adjusted close where there is one. Warm-up rows have NaN features and is_complete False.
    Bars that open before `since` (aware) are history alone and have no row.
    """
    history = Revisions(revisions, config.lookback)
    frame, known_at = history.frame, microseconds(history.frame[KNOWN_AT])
    states = list(history.states(_BARS_AT_ONCE, since))
    row = np.concatenate([state.rows[state.wanted] for state in states])
    recorded = np.concatenate([state.recorded_at for state in states])
    known = np.concatenate(
        [window_maximum(known_at[state.rows], state.starts, config.lookback)[state.wanted] for state in states]
    )
    order = np.lexsort((recorded, known, history.bar[row])) if len(states) > 1 else np.arange(len(row))
    rows = _features(frame, states, order, config)
    time = frame["time"].take(row[order]).reset_index(drop=True)
    stamps = {
        "symbol": frame["symbol"].take(row[order]).reset_index(drop=True),
        "time": time,
        EVENT_TIMESTAMP: close_time(time, timeframe),
        KNOWN_AT: _times(known[order]),
        RECORDED_AT: _times(recorded[order]),
        IS_COMPLETE: rows.notna().all(axis=1),
    }
    # A join would copy every feature.
    for at, (name, column) in enumerate(stamps.items()):
        rows.insert(at, name, column)
    return rows


def known_at_close(rows: pd.DataFrame, as_of: datetime) -> pd.DataFrame:
    """Return the version of each row that was known at the bar's close, of those recorded by `as_of`.

    `rows` has symbol, time, event_timestamp, known_at and recorded_at; so has the result, one row per symbol and time.
    History that is loaded after a correction inside its windows has no such version: point-in-time reads at those
    closes give the features of an earlier bar.
    """
    there = rows[(rows[KNOWN_AT] <= rows[EVENT_TIMESTAMP]) & (rows[RECORDED_AT] <= as_of)]
    newest = there.sort_values([KNOWN_AT, RECORDED_AT], kind="stable").drop_duplicates(["symbol", "time"], keep="last")
    return newest.sort_index()


def _features(frame: pd.DataFrame, states: list[States], order: Rows, config: FeatureConfig) -> pd.DataFrame:
    """Return the features of all windows of `states` over rows of `frame`, in `order`."""
    values = unfilled(len(config.features), len(order))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # Only what is computed on is taken along.
    bars = adjusted(frame)[["time", *INPUTS]]
    windows = 0
    for state in states:
        destination = np.full(len(state.rows), -1)
        destination[state.wanted] = place[windows : windows + len(state.wanted)]
        windows += len(state.wanted)
        segments = np.repeat(np.arange(len(state.starts) - 1), np.diff(state.starts))
        write_features(bars.take(state.rows).assign(symbol=segments), config, values, destination)
    return pd.DataFrame(values.T, columns=get_feature_names(config), copy=False)


def _times(microseconds_utc: npt.NDArray[np.int64]) -> pd.Series:
    times: pd.Series = pd.Series(microseconds_utc.astype("datetime64[us]")).dt.tz_localize("UTC")
    return times


def row_changes(before: pd.DataFrame, after: pd.DataFrame, key: list[str]) -> dict[str, int]:
    """Return how many rows `after` has added to `before`, how many have other values, and how many are gone.

    A row is told by `key`, of which neither frame has one twice. The values are compared by a hash; NaN equals NaN.
    """
    old, new = (
        frame[key].assign(content=pd.util.hash_pandas_object(frame, index=False).to_numpy())
        for frame in (before, after)
    )
    both = old.merge(new, on=key, how="outer", suffixes=("", "_after"), indicator="where")
    where = both["where"].value_counts()
    changed = (both["where"] == "both") & (both["content"] != both["content_after"])
    return {
        "rows_added": int(where["right_only"]),
        "rows_changed": int(changed.sum()),
        "rows_gone": int(where["left_only"]),
    }


def revised_since(said: pd.DataFrame, versions: pd.DataFrame, at: str) -> pd.Series:
    """Say of every row of `said` (symbol, event_timestamp, `at`) whether a version of it was recorded after `at`.

    `versions` has symbol, event_timestamp and recorded_at of every version of every row.
    """
    newest = versions.groupby(["symbol", EVENT_TIMESTAMP])[RECORDED_AT].max().rename("newest")
    revised: pd.Series = said.join(newest, on=["symbol", EVENT_TIMESTAMP])["newest"] > said[at]
    return revised
