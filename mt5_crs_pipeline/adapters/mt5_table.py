"""Bytes of a bar file to named columns of cells: text in any encoding MetaTrader 5 or pandas writes, or Parquet."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq

from mt5_crs_pipeline.core.errors import InputError

Column: TypeAlias = "pa.ChunkedArray[Any]"

# The stubs of the compute functions reject plain Python arguments.
pc: Any = pyarrow.compute

_PARQUET_MAGIC: Final = b"PAR1"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_SEPARATORS: Final = ("\t", ";", ",")
_NUMBER: Final = r"(?i)^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)$"
_BLOCK_BYTES: Final = 1 << 24
_SAMPLE_BYTES: Final = 4096
_ACCEPTED: Final = "bars come as CSV text or as Parquet"


@dataclass(frozen=True)
class RawTable:
    """The cells of one source as found; `origin` names it in errors.

    `columns` hold the rows that could be split into cells; `unsplit` holds the others as text, by row number from 0.
    """

    origin: str
    names: tuple[str, ...]
    columns: tuple[Column, ...]
    unsplit: dict[int, str] = field(default_factory=dict)
    lines: list[str] | None = None

    @property
    def row_count(self) -> int:
        """Return how many rows the source has, split or not."""
        return (len(self.columns[0]) if self.columns else 0) + len(self.unsplit)

    def split_rows(self) -> np.ndarray:
        """Return the row number of each cell of `columns`."""
        return np.delete(np.arange(self.row_count), list(self.unsplit))

    def raw(self, rows: list[int]) -> list[str]:
        """Return rows as they were written; cells of a binary source are joined with commas."""
        if self.lines is not None:
            return [self.lines[row] for row in rows]
        cells = [column.take(pa.array(rows, pa.int64())).to_pylist() for column in self.columns]
        return [",".join("" if cell is None else str(cell) for cell in row) for row in zip(*cells, strict=True)]


def load_table(path: Path) -> RawTable:
    """Read a CSV or Parquet file by its content, whatever its extension; blank lines are skipped.

    Raises InputError when the file cannot be read, is empty, damaged or neither text nor Parquet.
    """
    origin = str(path) if str(path).isprintable() else ascii(str(path))
    content = _read_bytes(path, origin)
    if not content:
        raise InputError(f"{origin}: the file is empty; {_ACCEPTED}")
    if content.startswith(_PARQUET_MAGIC):
        return _load_parquet(content, origin)
    return _load_text(content, origin)


def _read_bytes(path: Path, origin: str) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{origin}: this is a folder; give one bar file")
        if path.exists() and not path.is_file():
            raise InputError(f"{origin}: this is no regular file; give one bar file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{origin}: there is no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{origin}: no permission to read the file; change its rights or its folder's") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{origin}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _load_parquet(content: bytes, origin: str) -> RawTable:
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        columns = tuple(_without_dictionary(column) for column in table.columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{origin}: the Parquet file is damaged or cut short; write or copy it again") from error
    return RawTable(origin, tuple(table.column_names), columns)


def _without_dictionary(column: Column) -> Column:
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _load_text(content: bytes, origin: str) -> RawTable:
    text = content.decode(_encoding(content), errors="replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").split("\n")
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise InputError(f"{origin}: the file is empty; {_ACCEPTED}")
    header = lines.pop(0)
    if "\ufffd" in header or not header.replace("\t", "").isprintable():
        remedy = "unpack it first" if content.startswith(_GZIP_MAGIC) else _ACCEPTED
        raise InputError(f"{origin}: this is a binary file, neither text nor Parquet; {remedy}")
    separator = max(_SEPARATORS, key=header.count)
    names = tuple(name.strip() for name in next(csv.reader([header], delimiter=separator)))
    columns, unsplit = _split_lines(lines, separator, len(names), origin)
    return RawTable(origin, names, columns, unsplit, lines)


def _encoding(content: bytes) -> str:
    """Return the encoding by byte order mark; without one, UTF-16 shows as a zero beside every ASCII byte."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    sample = np.frombuffer(content[:_SAMPLE_BYTES], dtype=np.uint8)
    for name, ascii_bytes, zeros in (
        ("utf-16-le", sample[0::2], sample[1::2]),
        ("utf-16-be", sample[1::2], sample[0::2]),
    ):
        if zeros.size and not zeros.any() and ascii_bytes.all():
            return name
    return "utf-8-sig"


def _split_lines(
    lines: list[str], separator: str, width: int, origin: str
) -> tuple[tuple[Column, ...], dict[int, str]]:
    """Return the lines' cells as `width` text columns, and the lines with another number of cells."""
    names = [str(position) for position in range(width)]
    body = "\n".join(lines)
    quoted = '"' in body
    # A quote left open would swallow the lines after it.
    unsplit = {row: line for row, line in enumerate(lines) if line.count('"') % 2} if quoted else {}
    kept = [row for row in range(len(lines)) if row not in unsplit] if unsplit else range(len(lines))
    if unsplit:
        body = "\n".join(lines[row] for row in kept)

    def set_aside(row: pa.csv.InvalidRow) -> Literal["error", "skip"]:
        position = kept[(row.number or 0) - 1]
        unsplit[position] = lines[position]
        return "skip"

    if not body:
        return tuple(pa.chunked_array([], pa.string()) for _ in names), unsplit
    try:
        table = pa.csv.read_csv(
            io.BytesIO(body.encode()),
            # Row numbers are only given to the handler when one thread reads.
            read_options=pa.csv.ReadOptions(column_names=names, use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, invalid_row_handler=set_aside
            ),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{origin}: the text cannot be split into rows; look for stray quotes or huge lines"
        ) from error
    if table.num_rows + len(unsplit) != len(lines):
        raise InputError(f"{origin}: {len(lines)} lines gave {table.num_rows} rows; look for stray quotes")
    return tuple(table.columns), unsplit


def join_texts(table: RawTable, date: Column, clock: Column) -> Column:
    """Return 'date clock' as text, for files that write the two apart."""
    check_type(table, "time of day", clock, pa.types.is_time)
    parts = [pc.fill_null(part.cast(pa.string()), "") for part in (date, clock)]
    joined: Column = pc.binary_join_element_wise(*parts, " ")
    return joined


def parse_numbers(table: RawTable, name: str, column: "Column | None", count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a column as float64, NaN where empty, and which cells are no number.

    Whole numbers from 2**53 up stay there: rounding to the nearest double never crosses a double.
    """
    if column is None:
        return np.full(count, np.nan), np.zeros(count, dtype=bool)
    check_type(table, name, column)
    cells: Any = column.combine_chunks()
    unreadable = np.zeros(count, dtype=bool)
    try:
        numbers = cells.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        text = pc.fill_null(pc.utf8_trim_whitespace(cells), "")
        is_number = pc.match_substring_regex(text, _NUMBER)
        unreadable = pc.invert(pc.or_(is_number, pc.equal(text, ""))).to_numpy(zero_copy_only=False)
        numbers = pc.if_else(is_number, text, None).cast(pa.float64())
    return numbers.to_numpy(zero_copy_only=False), unreadable


def check_type(table: RawTable, name: str, column: Column, *also: Callable[[pa.DataType], bool]) -> None:
    """Raise InputError unless a column holds numbers, text, nothing, or a type `also` accepts."""
    types = pa.types
    accepted = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    if not any(accepts(column.type) for accepts in (*accepted, types.is_string, types.is_large_string, *also)):
        raise InputError(f"{table.origin}: column {name} holds {column.type}, not numbers or text; convert it first")
