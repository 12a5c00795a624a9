"""Bars out of MetaTrader 5: terminal exports, saved copy_rates tables, plain OHLCV files and a live terminal."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from mt5_crs_pipeline.adapters.mt5_layouts import RATES, Layout, recognise
from mt5_crs_pipeline.adapters.mt5_table import Column, RawTable, check_type, join_texts, load_table, parse_numbers
from mt5_crs_pipeline.adapters.mt5_time import SERVER_ZONE, check_timezone, parse_times, place_in_time, to_server_time
from mt5_crs_pipeline.core.bars import (
    BAR_COLUMNS,
    TIMEFRAMES,
    VALUE_COLUMNS,
    check_symbol,
    check_timeframe,
)
from mt5_crs_pipeline.core.errors import ConfigurationError, InputError, TransientError

OFFSETS_IN_FILE: Final = "UTC (offsets in the file)"

_LONG_TIMEFRAMES: Final = {"DAILY": "D1", "WEEKLY": "W1", "MONTHLY": "MN1"}
_NAMED_BARS: Final = re.compile(
    rf"(?P<symbol>.+?)_(?P<timeframe>{'|'.join((*TIMEFRAMES, *_LONG_TIMEFRAMES))})(?=_|$)", re.IGNORECASE
)
_IDENTITY: Final[dict[str, tuple[Callable[[str], str], Callable[[str], str]]]] = {
    "symbol": (check_symbol, str),
    "timeframe": (check_timeframe, lambda text: _LONG_TIMEFRAMES.get(text.upper(), text.upper())),
}
# Codes from here down are failures of the link to the terminal, as opposed to answers of the terminal.
_FIRST_LINK_ERROR: Final = -10000


@dataclass(frozen=True)
class BarFile:
    """Bars of one symbol and timeframe, and the rows that could not be made into bars.

    `bars` has BAR_COLUMNS; `rejected` has BAR_COLUMNS as far as known, `reason` and `raw`, the row as it was written.
    `timezone` is the zone the times were read in, `layout` one of mt5_export, copy_rates and ohlcv.
    """

    bars: pd.DataFrame
    symbol: str
    timeframe: str
    timezone: str
    layout: str
    rejected: pd.DataFrame


class Terminal(Protocol):
    """The part of the MetaTrader5 module this package calls; it also has the TIMEFRAME_ constants."""

    def copy_rates_range(self, symbol: str, timeframe: int, start: datetime, end: datetime, /) -> Any:
        """Return bars as a structured array, None when there is no answer."""
        ...

    def last_error(self) -> tuple[int, str]:
        """Return the code and text of the last error."""
        ...


def read_bars(
    path: Path, *, symbol: str | None = None, timeframe: str | None = None, timezone: str | None = None
) -> BarFile:
    """Read a bar file of any known layout; rows in the file == bars + rejected, and no value is judged.

    A symbol or timeframe column wins over the file name (EURUSD_H1.csv), and so does an argument; an argument that
    contradicts a column is an error.
    `timezone` is an IANA name or `mt5-server`; offsets written in a plain file win over it.
    Raises InputError for a file that holds no bars, ConfigurationError for an option that is missing or makes no sense.
    """
    if symbol is not None:
        check_symbol(symbol)
    if timeframe is not None:
        check_timeframe(timeframe)
    if timezone is not None:
        check_timezone(timezone)
    table = load_table(path)
    if not table.row_count:
        header = " ".join(table.names)[:80]
        raise InputError(f"{table.origin}: the file has no rows, only a header {header!r}; export it again")
    name = _NAMED_BARS.match(path.stem)
    identity = {"symbol": (symbol, name and name["symbol"]), "timeframe": (timeframe, name and name["timeframe"])}
    return _convert(table, identity, timezone)


def read_terminal(terminal: Terminal, symbol: str, timeframe: str, start: datetime, end: datetime) -> BarFile:
    """Read the bars that open in [start, end), aware times, from a live terminal; no bars is an answer.

    Raises TransientError when the terminal does not answer, InputError when it refuses.
    """
    check_symbol(symbol)
    constant = getattr(terminal, f"TIMEFRAME_{check_timeframe(timeframe)}")
    # The terminal counts whole seconds of server time and includes both ends.
    last = end - timedelta(microseconds=1)
    rates = terminal.copy_rates_range(
        symbol, constant, to_server_time(start), to_server_time(last.replace(microsecond=0))
    )
    origin = f"terminal, {symbol} {timeframe}"
    if rates is None:
        code, text = terminal.last_error()
        kind = TransientError if code <= _FIRST_LINK_ERROR else InputError
        raise kind(f"{origin}: no answer, error {code} {text!r}; check that the terminal is online and has the symbol")
    names = tuple(rates.dtype.names)
    columns = tuple(pa.chunked_array([pa.array(np.ascontiguousarray(rates[name]))]) for name in names)
    table = RawTable(origin, names, columns)
    return _convert(table, {"symbol": (symbol, None), "timeframe": (timeframe, None)}, None)


def connect_terminal() -> Terminal:
    """Return the MetaTrader5 module, connected to the terminal of this computer.

    Raises ConfigurationError when the package is absent, TransientError when the terminal does not answer.
    """
    try:
        module = importlib.import_module("MetaTrader5")
    except ImportError as error:
        raise ConfigurationError(
            "the package MetaTrader5 is not installed: run pip install 'mt5-crs-pipeline[mt5]' on Windows"
        ) from error
    if not module.initialize():
        raise TransientError(f"the terminal did not answer: {module.last_error()}; start MetaTrader 5 and log in")
    return cast(Terminal, module)


def _convert(table: RawTable, identity: dict[str, tuple[str | None, str | None]], timezone: str | None) -> BarFile:
    """Turn the cells of any source into bars: the one path all layouts share.

    `identity` gives the argument and the file name's word for symbol and timeframe.
    """
    layout, columns = recognise(table)
    reasons = pd.Series(None, index=range(table.row_count - len(table.unsplit)), dtype=object)
    found = {}
    for option, (given, named) in identity.items():
        found[option], absent = _identify(table, option, columns.get(option), given, named)
        if absent.size:
            _note(reasons, absent, f"missing_{option}")
    time, time_reasons, zone = _times(table, layout, columns, timezone)
    reasons = reasons.where(reasons.notna(), time_reasons)
    cells: dict[str, object] = {**found, "time": time}
    for name in VALUE_COLUMNS:
        cells[name], unreadable = parse_numbers(table, name, columns.get(name), len(time))
        _note(reasons, unreadable, "unreadable_number")
    bars, rejected = _parted(table, pd.DataFrame(cells, columns=list(BAR_COLUMNS)), reasons, found)
    return BarFile(bars, found["symbol"], found["timeframe"], zone, layout.name, rejected)


def _parted(
    table: RawTable, frame: pd.DataFrame, reasons: pd.Series, identity: dict[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part the rows with a reason from the bars; lines that could not be split join the former, in file order."""
    if table.unsplit:
        rows, every_row = table.split_rows(), range(table.row_count)
        reasons = reasons.set_axis(rows).reindex(every_row, fill_value="unreadable_row")
        frame = frame.set_axis(rows).reindex(every_row).assign(**identity)
    is_rejected = reasons.notna().to_numpy()
    rejected = frame[is_rejected].assign(
        reason=reasons[is_rejected],
        raw=np.array(table.raw(np.flatnonzero(is_rejected).tolist()), dtype=object),
    )
    return frame[~is_rejected].reset_index(drop=True), rejected.reset_index(drop=True)


def _note(reasons: pd.Series, broken: np.ndarray, reason: str) -> None:
    """Give rows that have no reason yet this one."""
    if broken.any():
        reasons[broken & reasons.isna().to_numpy()] = reason


def _identify(
    table: RawTable, option: str, column: "Column | None", given: str | None, named: str | None
) -> tuple[str, np.ndarray]:
    """Return the symbol or timeframe of a table, and which rows leave the cell for it empty."""
    check, shorten = _IDENTITY[option]
    cells = np.full(0, "", dtype=object)
    if column is not None:
        check_type(table, option, column)
        cells = column.cast(pa.string()).to_pandas().fillna("").str.strip().map(shorten).to_numpy(dtype=object)
    written = [value for value in dict.fromkeys(cells) if value]
    if len(written) > 1:
        some = ", ".join(repr(value[:40]) for value in written[:3]) + (" and more" if len(written) > 3 else "")
        raise InputError(f"{table.origin}: holds more than one {option}: {some}; write one file for each")
    # A ticker such as EURUSD=X is no symbol here, so only an argument can name its bars.
    if written and given is not None and given != written[0] and _passes(check, written[0]):
        raise ConfigurationError(
            f"{table.origin}: the file says {option} {written[0]!r}, --{option} says {given!r}; drop one of them"
        )
    found = given or (written[0] if written else named and shorten(named))
    if found is None:
        raise ConfigurationError(f"{table.origin}: neither the file nor its name says the {option}; give --{option}")
    if not _passes(check, found):
        raise ConfigurationError(f"{table.origin}: {option} {found[:40]!r} is not usable; give another with --{option}")
    return found, cells == "" if written else np.zeros(len(cells), dtype=bool)


def _passes(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except ConfigurationError:
        return False
    return True


def _times(
    table: RawTable, layout: Layout, columns: dict[str, Column], timezone: str | None
) -> tuple[pd.Series, pd.Series, str]:
    """Return each row's UTC time, why it has none, and the zone the times were read in."""
    column = columns["time"]
    check_type(table, "time", column, pa.types.is_timestamp, pa.types.is_date)
    if "clock" in columns:
        column = join_texts(table, columns["time"], columns["clock"])
    wall, offset = parse_times(column)
    has_offset = offset.notna()
    only_utc = bool((offset[has_offset] == pd.Timedelta(0)).all())
    if layout is RATES and has_offset.any() and only_utc and timezone is None:
        raise ConfigurationError(
            f"{table.origin}: the times are marked UTC, but copy_rates counts server time; "
            f"give --timezone {SERVER_ZONE}, or --timezone UTC if they were converted"
        )
    if not has_offset.any() or (layout is RATES and only_utc):
        zone = timezone or layout.timezone
        return (*place_in_time(wall, zone), zone)
    reasons = pd.Series(None, index=wall.index, dtype=object)
    _note(reasons, wall.isna().to_numpy(), "unreadable_time")
    _note(reasons, ~has_offset.to_numpy(), "missing_offset")
    return (wall - offset).dt.tz_localize("UTC"), reasons, OFFSETS_IN_FILE
