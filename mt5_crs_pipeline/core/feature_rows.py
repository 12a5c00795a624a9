"""Feature rows as they are stored: every version of every bar's row, stamped by when it was known and recorded."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.core.bars import TIMESTAMP, adjusted, close_time
from mt5_crs_pipeline.core.features import FeatureConfig, feature_frame, get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP, LABEL_TIME, TARGET
from mt5_crs_pipeline.core.panel import Rows
from mt5_crs_pipeline.core.revisions import Revisions, Stretch, microseconds, window_maximum

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
    """Return the Arrow schema of the training set: label columns, then the features, all present in every row."""
    return pa.schema(
        [
            pa.field("symbol", pa.string(), nullable=False),
            pa.field(EVENT_TIMESTAMP, TIMESTAMP, nullable=False),
            pa.field(LABEL_TIME, TIMESTAMP, nullable=False),
            pa.field(TARGET, pa.float64(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in get_feature_names(config)),
        ]
    )


def feature_rows(revisions: pd.DataFrame, timeframe: str, config: FeatureConfig = PIPELINE_FEATURES) -> pd.DataFrame:
    """Return every version of every bar's row: the columns of `feature_schema`, sorted by symbol, time, known_at.

    `revisions` has BAR_COLUMNS, known_at and recorded_at. A row has a version from the moment its bar was recorded, and
    another from every later one at which a bar among the `lookback` that end at it arrived late or was revised:
    recorded_at is that moment, the values are those of the bars as they then were, and known_at is when the last of
    them was known. So the versions recorded by some instant depend on nothing that was recorded after it.
    Prices are scaled by the adjusted close where there is one. Warm-up rows have NaN features and is_complete False.
    """
    history = Revisions(revisions, config.lookback)
    bars = history.frame.take(history.latest).reset_index(drop=True)
    disturbed = history.disturbed()
    rows = _rows(bars, history.starts, bars["recorded_at"], timeframe, config)
    if not disturbed.any():
        return rows
    parts = [rows[~disturbed]]
    for stretches in _batches(history.stretches(disturbed)):
        parts.append(_versions(history.frame, stretches, timeframe, config))
    together = pd.concat(parts, ignore_index=True)
    return together.sort_values(["symbol", "time", KNOWN_AT, RECORDED_AT], kind="stable", ignore_index=True)


def _versions(frame: pd.DataFrame, stretches: list[Stretch], timeframe: str, config: FeatureConfig) -> pd.DataFrame:
    """Return the versions that `stretches` of `frame` lead to."""
    starts = np.cumsum([0, *(len(stretch.rows) for stretch in stretches)])
    bars = frame.take(np.concatenate([stretch.rows for stretch in stretches])).reset_index(drop=True)
    recorded = np.repeat([stretch.recorded_at for stretch in stretches], np.diff(starts))
    rows = _rows(bars, starts, _times(recorded), timeframe, config)
    wanted = [np.add(stretch.wanted, start) for stretch, start in zip(stretches, starts[:-1], strict=True)]
    return rows.take(np.concatenate(wanted))


def _rows(
    bars: pd.DataFrame, starts: Rows, recorded_at: pd.Series, timeframe: str, config: FeatureConfig
) -> pd.DataFrame:
    """Return one row per bar; the windows of a segment of `bars`, which `starts` gives, reach into no other."""
    segments = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    features = feature_frame(adjusted(bars).assign(symbol=segments), config)
    known = window_maximum(microseconds(bars[KNOWN_AT]), starts, config.lookback)
    stamps = pd.DataFrame(
        {
            "symbol": bars["symbol"],
            "time": bars["time"],
            EVENT_TIMESTAMP: close_time(bars["time"], timeframe),
            KNOWN_AT: _times(known),
            RECORDED_AT: recorded_at,
            IS_COMPLETE: features.notna().all(axis=1),
        }
    )
    return stamps.join(features)


def _times(microseconds_utc: npt.NDArray[np.int64]) -> pd.Series:
    times: pd.Series = pd.Series(microseconds_utc.astype("datetime64[us]")).dt.tz_localize("UTC")
    return times


def _batches(stretches: Iterator[Stretch]) -> Iterator[list[Stretch]]:
    """Yield `stretches` in lists of about as many bars as are computed at once."""
    batch: list[Stretch] = []
    bars = 0
    for stretch in stretches:
        batch.append(stretch)
        bars += len(stretch.rows)
        if bars >= _BARS_AT_ONCE:
            yield batch
            batch, bars = [], 0
    if batch:
        yield batch
