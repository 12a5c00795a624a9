"""Bars from files, tables and terminals into the database, with a report per source."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from mt5_crs_pipeline.adapters.bar_store import IngestCounts
from mt5_crs_pipeline.adapters.bar_store import ingest as store
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.foreign_table import map_columns, read_bars_from_table
from mt5_crs_pipeline.adapters.mt5 import BarFile, connect_terminal, read_bars, read_terminal
from mt5_crs_pipeline.adapters.postgres import connected, libpq_url
from mt5_crs_pipeline.core.bars import BAR_COLUMNS, TIMEFRAMES, check_symbol, check_timeframe, reject_reasons
from mt5_crs_pipeline.settings import Settings

Report = dict[str, Any]


def ingest_files(
    settings: Settings, files: list[Path], symbol: str | None, timeframe: str | None, timezone: str | None
) -> Iterator[Report]:
    """Read every file before storing any, then yield a report per file; a bad file leaves the database as it was."""
    read = [read_bars(file, symbol=symbol, timeframe=timeframe, timezone=timezone) for file in files]
    with Database(settings).url() as url:
        for path, content in zip(files, read, strict=True):
            yield _store_file(url, path.name, content)


def ingest_terminal(settings: Settings, symbol: str, timeframe: str, start: datetime) -> Iterator[Report]:
    """Read bars of [start, now) from a running MetaTrader 5 terminal and yield one report."""
    content = read_terminal(connect_terminal(), symbol, timeframe, start, datetime.now(UTC))
    with Database(settings).url() as url:
        yield _store_file(url, "MetaTrader 5 terminal", content)


def ingest_table(
    settings: Settings,
    table: str,
    columns: dict[str, str],
    *,
    source_url: str | None,
    symbol: str | None,
    timeframe: str | None,
    timezone: str | None,
) -> Iterator[Report]:
    """Take bars over from `table` in chunks, each in one transaction, and yield one report for all of them.

    The table is in our own database, or in that of `source_url`. Killed midway, the command is simply run again.
    """
    constants = {"symbol": check_symbol(symbol)} if symbol else {}
    constants |= {"timeframe": check_timeframe(timeframe)} if timeframe else {}
    zone = timezone or "UTC"
    counts, summary = IngestCounts(), _Summary()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(Database(settings).url())
        source = stack.enter_context(connected(libpq_url(source_url) if source_url else url))
        mapping = map_columns(source, table, columns, set(constants))
        for chunk_timeframe, bars in read_bars_from_table(source, table, mapping, constants, zone):
            now = datetime.now(UTC)
            counts += store(url, bars, chunk_timeframe, f"table {table}", now)
            summary.add(bars, chunk_timeframe, now)
    yield summary.report(f"table {table}", zone, counts)


def _store_file(url: str, source: str, content: BarFile) -> Report:
    now = datetime.now(UTC)
    rows = pd.concat(
        [content.bars.assign(reason=None, raw=None), content.rejected] if len(content.rejected) else [content.bars],
        ignore_index=True,
    )
    counts = store(url, rows, content.timeframe, source, now)
    summary = _Summary()
    summary.add(rows, content.timeframe, now)
    return summary.report(source, content.timezone, counts)


class _Summary:
    """What was seen of the rows of one source."""

    def __init__(self) -> None:
        self._symbols: set[str] = set()
        self._timeframes: set[str] = set()
        self._times: list[pd.Timestamp] = []
        self._reasons: dict[str, int] = {}

    def add(self, rows: pd.DataFrame, timeframe: str, now: datetime) -> None:
        reasons = reject_reasons(rows[list(BAR_COLUMNS)], timeframe, now)
        if "reason" in rows:
            reasons = rows["reason"].where(rows["reason"].notna(), reasons)
        valid = rows[reasons.isna()]
        self._symbols |= set(valid["symbol"])
        self._timeframes |= set(rows["timeframe"]) & set(TIMEFRAMES)
        self._times += [valid["time"].min(), valid["time"].max()] if len(valid) else []
        for reason, number in reasons.dropna().value_counts().items():
            self._reasons[str(reason)] = self._reasons.get(str(reason), 0) + int(number)

    def report(self, source: str, timezone: str, counts: IngestCounts) -> Report:
        moments = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in (min(self._times), max(self._times))] if self._times else []
        return {
            "source": source,
            "symbols": ", ".join(sorted(self._symbols)) or "no valid bars",
            "timeframe": ", ".join(sorted(self._timeframes)),
            "timezone": "mt5-server (New York + 7 h)" if timezone == "mt5-server" else timezone,
            "counts": counts.to_dict(),
            "first": moments[0] if moments else None,
            "last": moments[1] if moments else None,
            "reasons": self._reasons,
        }
