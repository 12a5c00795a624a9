"""Labels: the only file that may look ahead."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.bars import close_time
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.panel import Array, Panel

EVENT_TIMESTAMP: Final = "event_timestamp"
LABEL_TIME: Final = "label_time"
TARGET: Final = "target"
FORWARD_RETURN: Final = "forward_return"
SPREAD_SHARE: Final = "spread_share"


@dataclass(frozen=True)
class LabelConfig:
    """What is predicted: the direction of the close over `horizon_bars`, beyond `cost_band` (a share of the price).

    Raises ConfigurationError unless the horizon is a whole number of at least 1 and the band lies in [0, 1).
    """

    horizon_bars: int = 1
    cost_band: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.horizon_bars, bool) or not isinstance(self.horizon_bars, int) or self.horizon_bars < 1:
            raise ConfigurationError(f"horizon_bars is {self.horizon_bars!r}: give a whole number of bars, at least 1")
        if isinstance(self.cost_band, bool) or not isinstance(self.cost_band, int | float):
            raise ConfigurationError(f"cost_band is {self.cost_band!r}: give a share of the price, such as 0.0005")
        if not 0 <= self.cost_band < 1:
            raise ConfigurationError(f"cost_band is {self.cost_band}: give a share of the price from 0 to below 1")
        # 0 and 0.0, or -0.0, are one label and make one model version.
        object.__setattr__(self, "cost_band", float(self.cost_band) or 0.0)

    @property
    def definition(self) -> str:
        """Say the label in one sentence, another for every other label: it travels with every model."""
        bars = f"{self.horizon_bars} bar{'s' if self.horizon_bars > 1 else ''} later"
        if not self.cost_band:
            return f"1 when the close {bars} is higher than this bar's close, else 0; missing until that bar closed"
        return (
            f"1 when the close {bars} is higher than this bar's close by more than {self.cost_band!r} of it, 0 when it"
            " is lower by more than that, none in between; missing until that bar closed"
        )


def direction_target(bars: pd.DataFrame, label: LabelConfig = LabelConfig()) -> pd.Series:
    """Return 1.0 where the close `label.horizon_bars` later is higher, else 0.0, in the frame's row order.

    Columns read: time (aware UTC), close, and symbol unless there is only one. NaN where that later bar is not there
    or a close is NaN: an open horizon is missing, never 0. NaN too where `forward_return` is inside the cost band.
    """
    panel = Panel(bars, ("close",))
    target = _direction(*_closes(panel, label.horizon_bars), label.cost_band)
    return pd.Series(panel.in_frame_order(target), index=bars.index, name=TARGET)


def forward_return(bars: pd.DataFrame, horizon_bars: int = 1) -> pd.Series:
    """Return close `horizon_bars` later / close - 1 (a fraction), NaN where either is missing, in row order.

    Columns read: as in `direction_target`; closes are positive. Its sign is that of the difference of the closes.
    """
    panel = Panel(bars, ("close",))
    return pd.Series(
        panel.in_frame_order(_return(*_closes(panel, horizon_bars))), index=bars.index, name=FORWARD_RETURN
    )


def labelled_bars(bars: pd.DataFrame, timeframe: str, label: LabelConfig = LabelConfig()) -> pd.DataFrame:
    """Return the bars whose horizon is closed, with what they came to.

    Columns: symbol, event_timestamp, label_time, target, forward_return, spread_share. `event_timestamp` is the bar's
    close, `label_time` the close of the bar that decides the label: before it, nobody knew the target. `spread_share`
    is as in `bars`, NaN where they have none. Bars whose close moved by no more than the cost band are there with a
    NaN target. Sorted by event_timestamp and symbol.
    """
    ordered = bars.sort_values(["symbol", "time"], kind="stable", ignore_index=True)
    closes = close_time(ordered["time"], timeframe)
    panel = Panel(ordered, ("close",))
    close, later = _closes(panel, label.horizon_bars)
    frame = pd.DataFrame(
        {
            "symbol": ordered["symbol"],
            EVENT_TIMESTAMP: closes,
            LABEL_TIME: closes.groupby(ordered["symbol"], sort=False).shift(-min(label.horizon_bars, len(ordered))),
            TARGET: _direction(close, later, label.cost_band),
            FORWARD_RETURN: _return(close, later),
            SPREAD_SHARE: ordered.get(SPREAD_SHARE, np.nan),
        }
    )
    closed = frame.dropna(subset=[LABEL_TIME, FORWARD_RETURN])
    return closed.sort_values([EVENT_TIMESTAMP, "symbol"], kind="stable", ignore_index=True)


def _direction(close: Array, later: Array, cost_band: float) -> Array:
    none = np.isnan(later) | np.isnan(close)
    if cost_band:
        none |= np.abs(_return(close, later)) <= cost_band
    return np.where(none, np.nan, (later > close).astype(float))


def _return(close: Array, later: Array) -> Array:
    return (later - close) / close


def _closes(panel: Panel, horizon_bars: int) -> tuple[Array, Array]:
    """Return every close and the one `horizon_bars` later of its symbol, NaN past its last bar, in panel order."""
    close = panel.in_panel_order("close")
    horizon = min(horizon_bars, len(close))
    later = np.full(len(close), np.nan)
    later[: len(close) - horizon] = close[horizon:]
    for end in panel.starts[1:]:
        later[max(end - horizon, 0) : end] = np.nan
    return close, later
