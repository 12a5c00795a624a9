"""Which of the known layouts a table has, and which of its columns hold what."""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from mt5_crs_pipeline.adapters.mt5_table import Column, RawTable
from mt5_crs_pipeline.adapters.mt5_time import SERVER_ZONE
from mt5_crs_pipeline.core.bars import REQUIRED_COLUMNS
from mt5_crs_pipeline.core.errors import InputError

_PRICES: Final = {name: name for name in ("open", "high", "low", "close")}
_IDENTITY: Final = {"symbol": "symbol", "ticker": "symbol", "timeframe": "timeframe"}


@dataclass(frozen=True)
class Layout:
    """How one kind of file names its columns (lower case), and what its times mean unless said otherwise."""

    name: str
    timezone: str
    columns: dict[str, str]
    header: str


EXPORT: Final = Layout(
    "mt5_export",
    SERVER_ZONE,
    {"<date>": "time", "<time>": "clock", "<tickvol>": "volume", "<vol>": "real_volume", "<spread>": "spread"}
    | {f"<{name}>": name for name in _PRICES},
    "MetaTrader 5 export (<DATE> <TIME> <OPEN> <HIGH> <LOW> <CLOSE> <TICKVOL> <VOL> <SPREAD>)",
)
RATES: Final = Layout(
    "copy_rates",
    SERVER_ZONE,
    {"time": "time", "tick_volume": "volume", "real_volume": "real_volume", "spread": "spread"} | _PRICES | _IDENTITY,
    "copy_rates table (time, open, high, low, close, tick_volume, spread, real_volume)",
)
PLAIN: Final = Layout(
    "ohlcv",
    "UTC",
    {"date": "time", "datetime": "time", "timestamp": "time", "time": "clock", "volume": "volume"}
    | dict.fromkeys(("adj close", "adjclose", "adj_close", "adjusted close", "adjusted_close"), "adjusted_close")
    | {"real_volume": "real_volume", "spread": "spread"}
    | _PRICES
    | _IDENTITY,
    "plain OHLCV (Date, Open, High, Low, Close, Volume)",
)


def recognise(table: RawTable) -> tuple[Layout, dict[str, Column]]:
    """Return the layout and its columns under this package's names; other columns are ignored."""
    keys = [" ".join(name.lower().split()) for name in table.names]
    layout = PLAIN
    if any(key.startswith("<") for key in keys):
        layout = EXPORT
    elif "tick_volume" in keys and "volume" not in keys:
        layout = RATES
    found: dict[str, int] = {}
    for position, key in enumerate(keys):
        name = layout.columns.get(key)
        if name in found:
            both = f"{table.names[found[name]]!r} and {table.names[position]!r}"
            raise InputError(f"{table.origin}: columns {both} both give the {name}; keep one of them")
        if name is not None:
            found[name] = position
    if "time" not in found and "clock" in found:
        found["time"] = found.pop("clock")
    if "time" not in found and "__index_level_0__" in keys:
        position = keys.index("__index_level_0__")
        if pa.types.is_timestamp(table.columns[position].type):
            found["time"] = position
    _check_complete(table, layout, found)
    return layout, {name: table.columns[position] for name, position in found.items()}


def _check_complete(table: RawTable, layout: Layout, found: dict[str, int]) -> None:
    missing = [name for name in ("time", *REQUIRED_COLUMNS) if name not in found]
    if not missing:
        return
    written = {name: key for key, name in reversed(layout.columns.items())}
    wanted = ", ".join(written[name].upper() if layout is EXPORT else written[name] for name in missing)
    has = ", ".join(repr(name[:40]) for name in table.names[:12])
    raise InputError(
        f"{table.origin}: missing column {wanted} (the file has {has}); accepted are a {EXPORT.header}, "
        f"a {RATES.header} or {PLAIN.header}"
    )
