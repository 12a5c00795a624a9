"""Real daily bars of five stocks, 2000 to 2013, shipped by the bokeh_sampledata package."""

import numpy as np
import pandas as pd

from mt5_crs_pipeline.core.bars import BAR_COLUMNS

SYMBOLS = ("AAPL", "FB", "GOOG", "IBM", "MSFT")
TIMEFRAME = "D1"
SOURCE = "bokeh_sampledata.stocks"


def demo_bars() -> pd.DataFrame:
    """Return BAR_COLUMNS of all SYMBOLS; the dates are taken as midnight UTC."""
    from bokeh_sampledata import stocks

    frames = []
    for symbol in SYMBOLS:
        columns = pd.DataFrame(getattr(stocks, symbol)).rename(columns={"adj_close": "adjusted_close"})
        time = pd.to_datetime(columns["date"], utc=True).dt.as_unit("us")
        frames.append(columns.assign(symbol=symbol, timeframe=TIMEFRAME, time=time, real_volume=np.nan, spread=np.nan))
    return pd.concat(frames, ignore_index=True)[list(BAR_COLUMNS)]
