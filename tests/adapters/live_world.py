"""A lake whose newest bars close in the future, so that a prediction made now is made before their outcome."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.core.bars import CLOSED_BAR_SCHEMA, close_time, month_of
from mt5_crs_pipeline.core.feature_rows import feature_rows, feature_schema
from tests.adapters.small_model import real_bars

AHEAD = timedelta(days=30)
# One day for the whole session, which may pass midnight.
TODAY = pd.Timestamp(datetime.now(UTC)).normalize().as_unit("us")


def bars_until(bars_missing: int, ahead: timedelta = AHEAD) -> pd.DataFrame:
    """Real daily bars of two symbols, of which the last closes `ahead` of now, without each symbol's newest ones."""
    bars = real_bars(300)
    time = bars["time"] + (TODAY + ahead - (bars["time"].max() + timedelta(days=1)))
    moved = bars.assign(time=time, known_at=close_time(time, "D1"), recorded_at=close_time(time, "D1"))
    kept = moved.groupby("symbol").cumcount(ascending=False) >= bars_missing
    return moved[kept].reset_index(drop=True)


def fill(lake: Lake, bars: pd.DataFrame) -> None:
    """Make `bars` and their features the content of the lake."""
    exported = bars.assign(event_timestamp=close_time(bars["time"], "D1"))
    stages = (
        (MARKET_DATA, exported, CLOSED_BAR_SCHEMA),
        (TECHNICAL_FEATURES, feature_rows(bars, "D1"), feature_schema()),
    )
    for stage, rows, schema in stages:
        for month, part in rows.groupby(month_of(rows["time"])):
            lake.write(stage, str(month), pa.Table.from_pandas(part, schema=schema, preserve_index=False))
