"""The proof that what was built bit by bit, by runs and backfills, is what a full rebuild makes."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import SecretStr

from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.files import make_folder, sha256, temporary_prefix
from mt5_crs_pipeline.adapters.lake import EXTRACT, MARKET_DATA, TECHNICAL_FEATURES, Lake
from mt5_crs_pipeline.core.backfill import months_between
from mt5_crs_pipeline.defs.assets.bars import market_data, market_data_parquet
from mt5_crs_pipeline.defs.assets.features import technical_features
from mt5_crs_pipeline.defs.partitions import range_tags
from mt5_crs_pipeline.defs.resources import Stores
from mt5_crs_pipeline.runner import stored_months
from mt5_crs_pipeline.settings import Settings

STAGES = (EXTRACT, MARKET_DATA, TECHNICAL_FEATURES)


@dataclass(frozen=True)
class Rebuild:
    """How many files of the lake equal a rebuild's byte for byte, and those that do not, as `<stage>/<month>`."""

    equal: int
    waiting: tuple[str, ...]
    """Made of bars that the table has other revisions of by now: their backfill is still to come."""
    different: tuple[str, ...]
    """Not what the bars beneath them give: a fault."""


def rebuild_check(settings: Settings) -> Rebuild:
    """Build all months anew from the table into a folder of their own, and compare every file; nothing is changed.

    Raises InputError when no bars are stored, and whatever a step raises.
    """
    place = make_folder(settings.lake.parent)
    with (
        Database(settings).url() as url,
        tempfile.TemporaryDirectory(prefix=temporary_prefix(), dir=place) as folder,
    ):
        months = stored_months(settings, url)
        # What is found in these bars was told when they came.
        stores = Stores(settings.model_copy(update={"alert_urls": SecretStr("")}))
        lake, stores.lake = stores.lake, Lake(Path(folder))
        with dg.DagsterInstance.ephemeral() as instance:
            dg.materialize(
                [market_data, market_data_parquet, technical_features],
                instance=instance,
                resources={"stores": stores},
                tags=range_tags(months[0], months[-1]),
            )
        files = [(stage, month) for month in months_between(months[0], months[-1]) for stage in STAGES]
        unequal = {file for file in files if _content(lake, *file) != _content(stores.lake, *file)}
        return Rebuild(
            equal=sum(lake.file(*file).exists() for file in set(files) - unequal),
            waiting=tuple(_names(unequal, behind=True)),
            different=tuple(_names(unequal, behind=False)),
        )


def _content(lake: Lake, stage: str, month: str) -> str | None:
    path = lake.file(stage, month)
    return sha256(path) if path.exists() else None


def _names(unequal: set[tuple[str, str]], behind: bool) -> Iterator[str]:
    """Yield the files that differ because the extract of their month, or of one before, is behind; or the others."""
    oldest = min((month for stage, month in unequal if stage == EXTRACT), default="9999")
    for stage, month in sorted(unequal, key=lambda file: (file[1], STAGES.index(file[0]))):
        if (month >= oldest) == behind:
            yield f"{stage}/{month}"
