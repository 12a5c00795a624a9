"""Months: the one partitioning of everything that is stored by time."""

import warnings
from collections.abc import Callable, Container, Iterable
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from mt5_crs_pipeline.core.backfill import next_month
from mt5_crs_pipeline.settings import load_settings

MONTH_FORMAT = "%Y-%m"
# The current month counts as a partition while it runs.
MONTHS = dg.MonthlyPartitionsDefinition(start_date=load_settings().start, fmt=MONTH_FORMAT, end_offset=1)

_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_CHANGED = "mt5_crs/months_with_changed_bars"


def monthly_asset(**arguments: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Declare an asset with one partition per month, many of which one run computes together."""

    def declare(compute: Callable[..., Any]) -> dg.AssetsDefinition:
        with warnings.catch_warnings():
            # Single-run backfills are in beta for years, and the only way to compute a window at once.
            warnings.simplefilter("ignore", dg.BetaWarning)
            policy = dg.BackfillPolicy.single_run()
            asset: dg.AssetsDefinition = dg.asset(**arguments, partitions_def=MONTHS, backfill_policy=policy)(compute)
            return asset

    return declare


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the run tags that make one run cover the months from `first` to `last`, both included."""
    return {_RANGE_START: first, _RANGE_END: last}


def changed_tag(months: Iterable[str]) -> dict[str, str]:
    """Return the run tag that says in which of the run's months bars have changed; in none of the others did any."""
    return {_CHANGED: ",".join(months)}


def changed_months(context: dg.AssetExecutionContext) -> list[str] | None:
    """Return in which of the run's months bars have changed; None for a run that was not asked for by changes."""
    changed = context.run.tags.get(_CHANGED)
    return None if changed is None else changed.split(",")


def months_to_read(context: dg.AssetExecutionContext, stored: Container[str]) -> list[str]:
    """Return the months of the run whose bars have to be read: all, or those that changed or are not `stored`."""
    changed, months = changed_months(context), list(context.partition_keys)
    return months if changed is None else [one for one in months if one in changed or one not in stored]


def window(months: Iterable[str]) -> tuple[datetime, datetime]:
    """Return the half-open UTC window that `months` span together."""
    ordered = sorted(months)
    return month_start(ordered[0]), month_start(next_month(ordered[-1]))


def month_start(month: str) -> datetime:
    """Return the first instant of a month such as '2024-05'."""
    return datetime.strptime(month, MONTH_FORMAT).replace(tzinfo=UTC)
