"""What may be served: an online row is used whole, fresh and known, or refused with the reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from mt5_crs_pipeline.core.errors import (
    FeaturesExpiredError,
    FeaturesFromTheFutureError,
    FeaturesIncompleteError,
    FeaturesNotStoredError,
    InputError,
    PredictionRefusedError,
)

# Of every feature view, offline and online.
TIME_TO_LIVE: Final = timedelta(days=30)


@dataclass(frozen=True)
class StoredRow:
    """The online row of a symbol as it is stored: no event_timestamp (bar close, UTC) where there is none."""

    symbol: str
    event_timestamp: datetime | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class OnlineFeatures:
    """The features of a symbol by name, or why there are none: either `refusal` is None or `values` is empty."""

    symbol: str
    event_timestamp: datetime | None
    values: Mapping[str, float]
    refusal: PredictionRefusedError | None


def servable(row: StoredRow, names: Sequence[str], now: datetime) -> OnlineFeatures:
    """Return the `names` of `row` if they may be used at `now`, otherwise the refusal.

    A row is refused when nothing is stored, when it is of a bar that closes after `now`, when it is older than
    TIME_TO_LIVE (of exactly that age it still counts, as in Feast's joins), and when a value is missing or not finite.
    Raises InputError when `now` carries no time zone.
    """
    if now.utcoffset() is None:
        raise InputError(f"the time {now.isoformat()} has no time zone: pass an aware time, for example in UTC")
    refusal = _refusal(row, names, now)
    values = {} if refusal else {name: row.values[name] for name in names}
    return OnlineFeatures(row.symbol, row.event_timestamp, values, refusal)


def _refusal(row: StoredRow, names: Sequence[str], now: datetime) -> PredictionRefusedError | None:
    if row.event_timestamp is None:
        return FeaturesNotStoredError(f"no features of {row.symbol!r} are in the online store")
    of = f"the online features of {row.symbol!r} are of the bar that closes at {row.event_timestamp.isoformat()}"
    asked = now.astimezone(UTC).isoformat()
    if row.event_timestamp > now:
        return FeaturesFromTheFutureError(f"{of}, after the time asked for, {asked}")
    if now - row.event_timestamp > TIME_TO_LIVE:
        return FeaturesExpiredError(f"{of}, more than {TIME_TO_LIVE.days} days before the time asked for, {asked}")
    missing = [name for name in names if not math.isfinite(row.values.get(name, math.nan))]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        return FeaturesIncompleteError(f"{of} and lack {missing[0]}{more}")
    return None
