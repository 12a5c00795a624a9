"""Labels: the only file that may look ahead."""

from typing import Final

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.bars import close_time
from mt5_crs_pipeline.core.panel import Array, Panel

EVENT_TIMESTAMP: Final = "event_timestamp"
LABEL_TIME: Final = "label_time"
TARGET: Final = "target"
HORIZON_BARS: Final = 1
LABEL_DEFINITION: Final = (
    f"1 when the close {HORIZON_BARS} bar later is higher than this bar's close, else 0; missing until that bar closed"
)


def direction_target(bars: pd.DataFrame, horizon_bars: int = HORIZON_BARS) -> pd.Series:
    """Return 1.0 where the close `horizon_bars` later is higher, else 0.0, in the frame's row order.

    Columns read: time (aware UTC), close, and symbol unless there is only one. NaN where that later bar is not there
    or a close is NaN: an open horizon is missing, never 0.
    """
    panel = Panel(bars, ("close",))
    close = panel.in_panel_order("close")
    later = _ahead(panel, close, horizon_bars)
    target = np.where(np.isnan(later) | np.isnan(close), np.nan, (later > close).astype(float))
    return pd.Series(panel.in_frame_order(target), index=bars.index, name=TARGET)


def labelled_bars(bars: pd.DataFrame, timeframe: str, horizon_bars: int = HORIZON_BARS) -> pd.DataFrame:
    """Return the bars whose label is closed: symbol, event_timestamp (the bar's close), label_time, target.

    `label_time` is the close of the bar that decides the label: before it, nobody knew the target. Sorted by
    event_timestamp and symbol.
    """
    ordered = bars.sort_values(["symbol", "time"], kind="stable", ignore_index=True)
    closes = close_time(ordered["time"], timeframe)
    frame = pd.DataFrame(
        {
            "symbol": ordered["symbol"],
            EVENT_TIMESTAMP: closes,
            LABEL_TIME: closes.groupby(ordered["symbol"], sort=False).shift(-horizon_bars),
            TARGET: direction_target(ordered, horizon_bars),
        }
    )
    closed = frame.dropna(subset=[LABEL_TIME, TARGET])
    return closed.sort_values([EVENT_TIMESTAMP, "symbol"], kind="stable", ignore_index=True)


def _ahead(panel: Panel, values: Array, horizon_bars: int) -> Array:
    """Return the values `horizon_bars` later within each symbol, NaN past its last bar."""
    later = np.full(len(values), np.nan)
    later[:-horizon_bars] = values[horizon_bars:]
    for end in panel.starts[1:]:
        later[max(end - horizon_bars, 0) : end] = np.nan
    return later
