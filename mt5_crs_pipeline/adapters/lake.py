"""The lake: one sorted, checksummed Parquet file per stage and month, replaced whole or not at all."""

import io
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from mt5_crs_pipeline.adapters.files import commit_bytes, remove
from mt5_crs_pipeline.core.errors import DamagedFileError
from mt5_crs_pipeline.core.revisions import microseconds

# The stubs of the compute functions reject plain Python arguments.
pc: Any = pyarrow.compute

EXTRACT = "extract"
MARKET_DATA = "market_data"
TECHNICAL_FEATURES = "technical_features"


class Lake:
    """Stages of one timeframe below `folder`: `<stage>/<month>.parquet`; a month without rows has no file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage_folder(self, stage: str) -> Path:
        """Return where the month files of `stage` lie."""
        return self.folder / stage

    @property
    def training_set(self) -> Path:
        """Return the path of the one training set, which spans all months."""
        return self.folder / "training_set.parquet"

    def file(self, stage: str, month: str) -> Path:
        """Return the path of one month of `stage`."""
        return self.stage_folder(stage) / f"{month}.parquet"

    def months(self, stage: str) -> list[str]:
        """Return the months of `stage` that have rows, sorted."""
        return sorted(path.stem for path in self.stage_folder(stage).glob("[0-9]*.parquet"))

    def row_count(self, stage: str, month: str) -> int:
        """Return how many rows the file of a month says it has: 0 without a file, or with one that cannot be read."""
        try:
            return int(pq.read_metadata(self.file(stage, month)).num_rows)
        except (OSError, pa.ArrowException):
            return 0

    def continued(self, stage: str, months: Sequence[str]) -> list[str]:
        """Return the symbols of the last month of `stage`, if it is after `months`: their newest rows are not in these.

        A symbol that went on after `months` and ended before that last month is not among them. Raises DamagedFileError
        when the last month cannot be read.
        """
        last = self.months(stage)[-1:]
        if not last or last[0] <= max(months, default=""):
            return []
        symbols: list[str] = read_parquet(self.file(stage, last[0]), ["symbol"])["symbol"].unique().to_pylist()
        return symbols

    def greatest(self, stage: str, column: str) -> Any:
        """Return the greatest value of a column of `stage`, as its files say without being read; None without any.

        Raises DamagedFileError when one does not say it.
        """
        found = []
        for path in (self.file(stage, month) for month in self.months(stage)):
            try:
                file = pq.read_metadata(path)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(path, str(error)) from error
            at = file.schema.to_arrow_schema().get_field_index(column)
            for group in range(file.num_row_groups):
                said = file.row_group(group).column(at).statistics if at >= 0 else None
                if said is None or not said.has_min_max:
                    raise _damaged(path, f"it does not say the greatest {column}")
                found.append(said.max)
        return max(found, default=None)

    def write(self, stage: str, month: str, table: pa.Table) -> bool:
        """Make `table` the content of a month; True when the file changed. Equal content leaves the file alone."""
        path = self.file(stage, month)
        if not table.num_rows:
            return remove(path)
        return commit_bytes(path, parquet_bytes(table))

    def read(
        self, stage: str, months: Iterable[str], schema: pa.Schema, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return the rows of `months` in file order; months without a file count as empty.

        A column that is a dictionary in `schema` is read as one. Raises DamagedFileError when a file's checksums or
        columns are wrong.
        """
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        paths = [path for path in (self.file(stage, month) for month in months) if path.exists()]
        # A core each: the columns of one month are too small to share.
        with ThreadPoolExecutor(pa.cpu_count()) as pool:
            tables = pool.map(lambda path: _read_as(path, wanted, use_threads=len(paths) == 1), paths)
            return pa.concat_tables([wanted.empty_table(), *tables])

    def read_with_history(
        self,
        stage: str,
        months: Sequence[str],
        bars_before: int,
        schema: pa.Schema,
        symbols: Collection[str] | None = None,
    ) -> pd.DataFrame:
        """Return the rows of `months` and, of earlier months, whole files until every symbol has `bars_before` bars.

        The stage holds revisions of bars. A bar counts only when it was recorded before the first of the symbol's bars
        in `months` was: so there is enough history for every state since. With `symbols` only theirs.
        """

        def read(wanted: Sequence[str]) -> pd.DataFrame:
            rows = self.read(stage, wanted, schema)
            if symbols is not None:
                rows = rows.filter(pc.is_in(rows["symbol"], pa.array(symbols, pa.string())))
            frame: pd.DataFrame = rows.to_pandas()
            return frame

        frames = [read(months)]
        first = frames[0].groupby("symbol")["recorded_at"].min()
        since, missing = microseconds(first), np.full(len(first), bars_before)
        for month in reversed([month for month in self.months(stage) if month < min(months)]):
            if not (missing > 0).any():
                break
            earlier = read([month])
            frames.append(earlier)
            symbol, time = first.index.get_indexer(pd.Index(earlier["symbol"])), microseconds(earlier["time"])
            counted = (symbol >= 0) & (microseconds(earlier["recorded_at"]) <= since[symbol])
            symbol, time = symbol[counted], time[counted]
            order = np.lexsort((time, symbol))
            # A bar counts once, whatever its revisions.
            is_first = np.ones(len(order), dtype=bool)
            is_first[1:] = (np.diff(symbol[order]) != 0) | (np.diff(time[order]) != 0)
            missing -= np.bincount(symbol[order][is_first], minlength=len(missing))
        together: pd.DataFrame = pd.concat(frames[::-1], ignore_index=True)
        return together


def parquet_bytes(table: pa.Table) -> bytes:
    """Return `table` as Parquet: zstd, microseconds, page checksums; equal tables give equal bytes."""
    buffer = io.BytesIO()
    # Prices and features hardly repeat: a dictionary of them makes files larger, and writing three times as long.
    repeated = [field.name for field in table.schema if not pa.types.is_floating(field.type)]
    pq.write_table(
        table.combine_chunks(), buffer, compression="zstd", use_dictionary=repeated, write_page_checksum=True
    )
    return buffer.getvalue()


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, *, dictionaries: Sequence[str] = (), use_threads: bool = True
) -> pa.Table:
    """Return `columns` (default: all) of a file this package wrote, its page checksums and row counts verified.

    The columns in `dictionaries` are not decoded.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=list(dictionaries)) as file:
            absent = set(columns or ()) - set(file.schema_arrow.names)
            if absent:
                raise _damaged(path, f"it has no column {', '.join(sorted(absent))}")
            table = file.read(None if columns is None else list(columns), use_threads=use_threads)
            # The footer has no checksum of its own; a damaged count in it would drop rows without a word.
            if table.num_rows != file.metadata.num_rows:
                raise _damaged(path, f"{table.num_rows} rows instead of {file.metadata.num_rows}")
            return table
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error


def _read_as(path: Path, schema: pa.Schema, *, use_threads: bool) -> pa.Table:
    dictionaries = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    table = read_parquet(path, schema.names, dictionaries=dictionaries, use_threads=use_threads)
    if table.schema.equals(schema):
        return table
    if table.schema.types != schema.types:
        raise _damaged(path, "its columns have other types than were written")
    return table.cast(schema)


def _damaged(path: Path, cause: str) -> DamagedFileError:
    said = " ".join(cause.split())
    return DamagedFileError(f"{path} is damaged or of another version ({said}): delete it and materialize it again")
