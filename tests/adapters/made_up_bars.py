"""Bars made up for tests, and plain queries beside the code under test."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import psycopg2.extensions

from mt5_crs_pipeline.core.bars import BAR_COLUMNS

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def made_up_bars(
    rows: int = 5,
    symbol: str = "EURUSD",
    timeframe: str = "D1",
    first: str = "2024-01-30",
    seed: int = 1,
) -> pd.DataFrame:
    """Return valid bars, one after another, with prices that have many digits."""
    frequency = {"D1": "1D", "H1": "1h", "MN1": "MS"}[timeframe]
    time = pd.date_range(first, periods=rows, freq=frequency, tz="UTC").as_unit("us")
    random = np.random.default_rng(seed)
    close = 1.1 + random.normal(0, 0.01, rows).cumsum() * 0.1
    open_ = close + random.normal(0, 0.001, rows)
    frame = pd.DataFrame(
        {
            "symbol": symbol,
            "timeframe": timeframe,
            "time": time,
            "open": open_,
            "high": np.maximum(open_, close) + random.random(rows) / 100,
            "low": np.minimum(open_, close) - random.random(rows) / 100,
            "close": close,
            "adjusted_close": np.nan,
            "volume": random.integers(1, 10_000, rows).astype(float),
            "real_volume": np.nan,
            "spread": random.integers(0, 20, rows).astype(float),
        }
    )
    return frame[list(BAR_COLUMNS)]


@contextmanager
def plain_connection(url: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection as any other program would open it; commits at the end."""
    connection = psycopg2.connect(url)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def query(url: str, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with plain_connection(url) as connection, connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []
