"""Reading tables of any size in chunks: CSV, TSV, lines of text, Excel, JSON lines and Parquet.

pandas' `read_csv` is not used because it accepts `"a"x` as a cell, fills up a row that is too short, reports the wrong
line after a cell of several lines, and drops a row of a single empty cell.
"""

import csv
import itertools
import json
import math
import textwrap
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar
from zipfile import ZipFile

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.corpus.encoding import TextFormat, detect_format
from stages.common.corpus.json_records import key_paths, look_up
from stages.common.corpus.records import ReadError
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError

CHUNK_ROWS = 4096
MAX_HEADER_ROWS = 20  # Number of first rows in which the header is looked for.
DELIMITERS = ",\t;"
MAX_NAMES_CHARACTERS = 200  # Maximum length of the list of columns in a message, in characters.
STRING_TYPES = {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}
MAX_EXCEL_ROWS = 2**20  # Maximum number of rows that Excel allows in a sheet.
# The two limits in bytes stop small files that unpack to more than the memory: an .xlsx is a ZIP file, and Parquet can
# repeat a long string in every row.
MAX_PARQUET_BYTES = 2**30  # Maximum size of the strings in a chunk.
MAX_EXCEL_BYTES = 2**30  # Maximum size of an unpacked .xlsx file.
OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"  # First bytes of an .xls file and of an Excel file with a password.
Row = TypeVar("Row")


def to_json(value: Any) -> str:
    """Return a value as one line of JSON with Korean unescaped."""
    return json.dumps(value, ensure_ascii=False, default=str)


def to_cell(value: Any) -> str | None:
    """Return a value as text; None for null and NaN."""
    if isinstance(value, bool | list | dict):
        return to_json(value)
    return None if value is None or value != value else str(value)  # Only NaN is unequal to itself.


def _whole(value: Any) -> Any:
    """Convert a whole number to an int, because spreadsheets and columns with nulls store 1 as 1.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_json_lines(frame: pd.DataFrame) -> list[str]:
    """Return each row as a JSON object; NaN and infinity, which JSON does not have, become null."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = frame.astype(object).to_dict("records")
    return [to_json({name: finite(value) for name, value in row.items()}) for row in rows]


@dataclass(frozen=True)
class Chunk(ABC):
    """Consecutive rows of a table; a subclass stores them in a way that loses no value of its format."""

    texts: pd.Series  # The column of the texts; "" stands for null.

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return the rows as Python objects; missing values are None or NaN."""

    def to_text(self) -> pd.DataFrame:
        """Return the rows as text, with the columns of the first chunk; missing values are None or NaN."""
        return self.to_frame().map(to_cell)

    def cells(self, column: str) -> list[str | None]:
        """Return a column as text, with None for null and 1 for 1.0."""
        return [to_cell(_whole(value)) for value in self.to_frame()[column]]

    def to_excel(self) -> pd.DataFrame:
        """Return the rows as values that Excel can store."""
        return self.to_text()

    def to_json_lines(self) -> list[str]:
        """Return each row as one line of JSON."""
        return to_json_lines(self.to_frame())

    def to_arrow(self) -> pa.Table:
        """Return the rows with the types of a Parquet file, or as text for other formats."""
        frame = self.to_text()
        return pa.table([pa.array(frame[name], pa.string()) for name in frame], list(frame))


@dataclass(frozen=True)
class FrameChunk(Chunk):
    """Rows of a CSV, Excel or text file."""

    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.frame

    def to_excel(self) -> pd.DataFrame:
        return self.frame


@dataclass(frozen=True)
class JsonLinesChunk(Chunk):
    """Rows of JSON lines."""

    lines: list[str]
    rows: list[dict[str, Any]]  # The parsed lines.
    columns: list[str]  # The keys in the first chunk of the table.

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=None if self.rows else self.columns, dtype=object)

    def to_text(self) -> pd.DataFrame:
        frame = self.to_frame()
        if unknown := [name for name in frame if name not in self.columns]:
            raise UserError(f"key {unknown[0]!r} is not in the first {CHUNK_ROWS} lines: write .jsonl")
        return frame.reindex(columns=self.columns).map(to_cell)

    def to_json_lines(self) -> list[str]:
        return self.lines


def _holds_bytes(kind: pa.DataType) -> bool:
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return is_bytes or any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


@dataclass(frozen=True)
class ParquetChunk(Chunk):
    """Rows of Parquet."""

    batch: pa.RecordBatch

    def to_frame(self) -> pd.DataFrame:
        if binary := [field.name for field in self.batch.schema if _holds_bytes(field.type)]:
            raise UserError(f"column {binary[0]!r} holds bytes, which only .parquet can store: write .parquet")
        return pd.DataFrame({name: self._values(name) for name in self.batch.schema.names}, dtype=object)

    def cells(self, column: str) -> list[str | None]:
        # to_frame would convert all columns, and refuse a table that has bytes in another column.
        return [to_cell(_whole(value)) for value in self._values(column)]

    def _values(self, column: str) -> list[Any]:
        values = self.batch[column]
        try:
            return values.to_pylist()
        except (OverflowError, ValueError, pa.ArrowException) as error:  # Python has no times after the year 9999.
            if pa.types.is_nested(values.type):
                raise UserError(f"only .parquet can store the values of column {column!r}: {error}") from error
            if not pa.types.is_timestamp(values.type) and not pa.types.is_date(values.type):
                values = values.cast(pa.int64())  # Arrow cannot convert durations to text.
            return values.cast(pa.string()).to_pylist()

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_batches([self.batch])


class MissingColumnError(ValueError):
    """A required column is missing in a row, so that the row cannot be the header."""


@dataclass(frozen=True)
class Wanted:
    """Columns that a caller reads from a table.

    Args:
        text_column: Name of the column of the texts.
        check_columns: Function that is called with the cells of a possible header. It raises a MissingColumnError if
            they are not the header, and another ValueError if they are the header but not acceptable.
        columns: Names of all columns, for a table without a header.
    """

    text_column: str
    check_columns: Callable[[list[str]], None]
    columns: Sequence[str] = ()


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def match_column(name: str, names: Sequence[str]) -> str:
    """Find `name` among `names`, or else the one name that differs only in outer blanks or the Unicode form of Hangul.

    Raises:
        MissingColumnError: No name matches, or more than one.
    """
    if name in names:
        return name
    alike = [other for other in names if _comparable(other) == _comparable(name)]
    if len(alike) != 1:
        found = textwrap.shorten(", ".join(names).replace("\t", "\\t"), MAX_NAMES_CHARACTERS) or "none at all"
        raise MissingColumnError(f"has no column {name!r}; it has {found}")
    return alike[0]


def _find_header(rows: Iterable[list[str]], wanted: Wanted) -> int:
    """Return the index of the header, the first row that `wanted` accepts; titles may stand above it.

    Raises:
        ValueError: No row is accepted; the message is about a row that names the column of the texts, if there is one.
    """
    error: MissingColumnError | None = None
    for index, row in enumerate(rows):
        try:
            wanted.check_columns(row)
            return index
        except MissingColumnError as raised:
            if error is None or wanted.text_column in row:
                error = raised
    if error is None:
        wanted.check_columns([])
    raise error or MissingColumnError("is empty")


def _name_blanks(header: list[str]) -> list[str]:
    """Replace the blank cells of a header by distinct names if there are two or more."""
    if header.count("") < 2:
        return header
    unused = (name for number in itertools.count() if (name := f"Unnamed: {number}") not in header)
    return [name or next(unused) for name in header]


class _Lines:
    """The lines of a file, with the number of the line that was read last."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.file, self.number = file, 0
        self._encoding = encoding
        self._returned: list[tuple[int, str]] = []

    @cached_property
    def _format(self) -> TextFormat:
        return detect_format(self.file, self._encoding)

    @cached_property
    def _stream(self) -> TextIOWrapper:
        return TextIOWrapper(self.file, self._format.codec, self._format.errors, self._format.newline)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._returned:
            self.number, line = self._returned.pop()
            return line
        line = next(self._stream)
        self.number += 1
        if not self._format.is_valid:
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"not {self._encoding.upper()}") from error
        return line

    def put_back(self, first: int, lines: list[str]) -> None:
        """Make the next reads return `lines` again; `first` is the number of their first line."""
        self._returned += reversed(list(enumerate(lines, start=first)))

    def restart(self) -> TextIOWrapper:
        """Go back to the first line and return a stream that neither counts lines nor refuses wrong bytes."""
        self.number = 0
        self._stream.seek(0)
        return self._stream


@dataclass(frozen=True)
class _Layout:
    """Delimiter, header and quoting of a file."""

    delimiter: str
    header: list[str]
    num_lines: int  # Number of lines up to the header, the header included.
    is_raw: bool = False  # Whether quotes are ordinary characters.
    why_not_raw: str = ""  # Reason that is added to the message of an error in a row.


def _detect_layout(lines: _Lines, wanted: Wanted, own_delimiter: str) -> _Layout:
    """Find the header among the first rows, and the delimiter between its names."""
    first_lines = list(islice(lines.restart(), MAX_HEADER_ROWS))
    lines.number = min(1, len(first_lines))
    found: list[tuple[str, int, list[str]]] = []
    for delimiter in dict.fromkeys((own_delimiter, *DELIMITERS)):
        reader = csv.reader(first_lines, delimiter=delimiter)
        with suppress(csv.Error):  # The error is reported when the row is read.
            found += [(delimiter, reader.line_num, row) for row in reader if row]
    if wanted.columns:
        fitting = (delimiter for delimiter, _, row in found if len(row) == len(wanted.columns))
        # A header in spite of data.columns is not a review.
        num_lines = next((number for _, number, row in found if row == list(wanted.columns)), 0)
        layout = _Layout(next(fitting, own_delimiter), list(wanted.columns), num_lines)
        wanted.check_columns(layout.header)
    else:
        delimiter, num_lines, header = found[_find_header((row for *_, row in found), wanted)]
        layout = _Layout(delimiter, header, num_lines)
    return _detect_quoting(lines, layout) if layout.delimiter == "\t" and len(layout.header) > 1 else layout


def _detect_quoting(lines: _Lines, layout: _Layout) -> _Layout:
    """Decide whether the quotes of a TSV are ordinary characters.

    They are if every line has as many cells as the header but at least one line is not a row of valid CSV.
    """
    is_csv = True
    for number, line in enumerate(lines.restart(), start=1):
        if number <= layout.num_lines or not line.strip("\r\n"):
            continue
        if (cells := line.count("\t") + 1) != len(layout.header):
            return replace(layout, why_not_raw=f"; read as CSV, since line {number} has {cells} cells")
        if is_csv and '"' in line:
            try:
                is_csv = len(next(csv.reader([line], strict=True, delimiter="\t"))) == cells
            except csv.Error:
                is_csv = False
    return replace(layout, is_raw=not is_csv)


class _CsvRows:
    """The rows of a CSV below its header; after a broken row, reading goes on with the second line of that row."""

    def __init__(self, lines: _Lines, layout: _Layout) -> None:
        self._lines, self._layout = lines, layout
        self._read: list[str] = []  # The lines of the current row.
        self._reader = self._new_reader()
        self.errors: list[ReadError] = []

    def _new_reader(self) -> Iterator[list[str]]:
        def recorded() -> Iterator[str]:
            for line in self._lines:
                self._read.append(line)
                yield line

        if self._layout.is_raw:
            return csv.reader(recorded(), strict=True, delimiter=self._layout.delimiter, quoting=csv.QUOTE_NONE)
        return csv.reader(recorded(), strict=True, delimiter=self._layout.delimiter)

    def _holds_rows(self) -> bool:
        """Return whether each line of the current row looks like a row; its quote was probably meant as text."""
        tabs = [line.count("\t") for line in self._read]
        return self._layout.delimiter == "\t" and len(tabs) > 1 and set(tabs) == {len(self._layout.header) - 1}

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        num_cells = len(self._layout.header)
        while True:
            self._read, first, detail = [], self._lines.number + 1, ""
            try:
                row = next(self._reader)
                if row and len(row) != num_cells:
                    has_header = self._layout.num_lines > 0
                    wanted = f"the header has {num_cells}" if has_header else f"{num_cells} columns are named"
                    detail = f"{len(row)} cells, but {wanted}"
                elif self._holds_rows():
                    detail = f"a quote opens a cell that ends {len(self._read) - 1} lines later, after whole rows"
            except (csv.Error, ValueError) as error:
                detail = str(error).replace("\t", "\\t")
            if detail:
                detail += self._layout.why_not_raw
                # A quote that is never closed makes one row of many lines, of which only the first is broken.
                place, last = (first, self._lines.number) if self._read else (self._lines.number,) * 2
                self.errors.append(ReadError("not_a_row", f"line {place}", detail, of_record=True))
                if last > place:
                    self._lines.put_back(place + 1, self._read[1:])
                self._reader = self._new_reader()
            elif row:
                return row


def _take_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    yield list(islice(rows, CHUNK_ROWS))  # An empty table needs a chunk too, because the chunk has the columns.
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _read_csv(lines: _Lines, wanted: Wanted, delimiter: str = ",") -> Iterator[Chunk | ReadError]:
    layout = _detect_layout(lines, wanted, delimiter)
    lines.restart()
    for _ in range(layout.num_lines):
        next(lines)
    rows, text_column = _CsvRows(lines, layout), match_column(wanted.text_column, layout.header)
    for chunk in _take_chunks(rows):
        yield from rows.errors
        rows.errors.clear()
        frame = pd.DataFrame(chunk, columns=_name_blanks(layout.header), dtype=object)
        yield FrameChunk(frame[text_column], frame)
    yield from rows.errors


def _read_text(lines: _Lines, wanted: Wanted) -> Iterator[Chunk | ReadError]:
    for chunk in _take_chunks(line.rstrip("\r\n") for line in lines):
        frame = pd.DataFrame({wanted.text_column: chunk}, dtype=object)
        yield FrameChunk(frame[wanted.text_column], frame)


def _trim(row: Sequence[Any]) -> list[Any]:
    """Remove the empty cells at the end of a row, and convert whole numbers to int."""
    cells = list(map(_whole, row))
    while cells and cells[-1] in (None, ""):
        cells.pop()
    return cells


def _contains(file: IO[bytes], needle: bytes) -> bool:
    last = b""
    while block := file.read(2**20):
        if needle in last + block:
            return True
        last = block[-len(needle) :]
    return False


def _open_workbook(file: BinaryIO) -> tuple[Any, Any]:
    """Open an .xlsx file twice: with the values of its cells, and with its formulas, or None if it has no formula."""
    with ZipFile(file) as parts:
        if (size := sum(part.file_size for part in parts.infolist())) > MAX_EXCEL_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes, more than {MAX_EXCEL_BYTES:,}: save it as .csv")
        sheets = [part for part in parts.namelist() if part.startswith("xl/worksheets/") and part.endswith(".xml")]
        has_formulas = any(_contains(parts.open(part), b"</f>") for part in sheets)
    values = openpyxl.load_workbook(file, read_only=True, data_only=True)
    return values, openpyxl.load_workbook(file, read_only=True) if has_formulas else None


def _numbered_rows(sheet: Any, formulas: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number and the cells of each row of a sheet that is not empty.

    A formula without a value is read as text, because pandas writes a text that begins with = as a formula.
    """
    rows = []
    for each in (sheet, formulas[sheet.title]) if formulas else (sheet,):
        each.reset_dimensions()  # The dimensions that the file states may be a billion cells.
        # openpyxl fills up missing rows, so that a row with a very high number would keep it busy for ever.
        rows.append(each.iter_rows(values_only=True, max_row=MAX_EXCEL_ROWS + 1))
    for number, (values, *others) in enumerate(zip(*rows, strict=True), start=1):
        if number > MAX_EXCEL_ROWS:
            raise ValueError(f"has more than the {MAX_EXCEL_ROWS:,} rows that Excel allows")
        if others:
            pairs = zip(values, others[0], strict=True)
            values = [other if value is None and isinstance(other, str) else value for value, other in pairs]
        if cells := _trim(values):
            yield number, cells


def _read_excel(lines: _Lines, wanted: Wanted) -> Iterator[Chunk | ReadError]:
    signature = lines.file.read(len(OLE_SIGNATURE))
    lines.file.seek(0)
    if signature == OLE_SIGNATURE:
        raise ValueError("has a password, or is an .xls file: save it as .xlsx without a password")
    book, formulas = _open_workbook(lines.file)
    # The first sheet may be a cover sheet, and hidden sheets are not meant to be read.
    visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    found: list[tuple[Any, list[str], int]] = []
    errors: list[ValueError] = []
    for sheet in visible:
        first_rows = list(islice(_numbered_rows(sheet, formulas), MAX_HEADER_ROWS))
        names = [list(wanted.columns)] if wanted.columns else []
        names += [[to_cell(cell) or "" for cell in row] for _, row in first_rows]
        try:
            index = _find_header(names, wanted)
            found.append((sheet, names[index], 0 if wanted.columns else index + 1))
        except ValueError as error:
            errors.append(error)
    if not found:
        raise errors[0] if errors else ValueError("has no visible sheet of cells")
    if len(found) > 1:
        others = ", ".join(repr(sheet.title) for sheet, *_ in found[1:])
        warn(f"{lines.file.name}: only sheet {found[0][0].title!r} is read; save {others} in separate files")
    sheet, header, num_skipped = found[0]
    wanted.check_columns(header)
    text_column = match_column(wanted.text_column, header)
    for chunk in _take_chunks(islice(_numbered_rows(sheet, formulas), num_skipped, None)):
        for number, row in chunk:
            if len(row) > len(header):
                detail = f"{len(row)} cells, but the header has {len(header)}"
                yield ReadError("not_a_row", f"row {number}", detail, of_record=True)
        cells = [row + [None] * (len(header) - len(row)) for _, row in chunk if len(row) <= len(header)]
        frame = pd.DataFrame(cells, columns=_name_blanks(header), dtype=object)
        yield FrameChunk(frame[text_column].map(to_cell).fillna("").astype(object), frame)


def _read_json_lines(lines: _Lines, wanted: Wanted) -> Iterator[Chunk | ReadError]:
    def checked_rows() -> Iterator[tuple[str, dict[str, Any], str]]:
        for line in filter(None, map(str.strip, lines)):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            names = list(dict.fromkeys((*row, *key_paths(row))))
            wanted.check_columns(names)
            text = look_up(row, match_column(wanted.text_column, names))
            if not isinstance(text, str | None):
                raise ValueError(f"the text is of type {type(text).__name__}")
            to_json(row).encode()  # Raises an error for half of a surrogate pair.
            yield line, row, text or ""

    columns: list[str] = []
    for chunk in _take_chunks(checked_rows()):
        rows = [row for _, row, _ in chunk]
        columns = columns or list(dict.fromkeys(chain.from_iterable(rows))) or [wanted.text_column]
        texts = pd.Series([text for *_, text in chunk], name=wanted.text_column, dtype=object)
        yield JsonLinesChunk(texts, [line for line, *_ in chunk], rows, columns)


def _read_undecoded(file: BinaryIO, table: pq.ParquetFile) -> pq.ParquetFile:
    """Open a Parquet file so that a repeated string is in memory only once, in columns that could be too large."""
    metadata = table.metadata
    chunks = (
        metadata.row_group(group).column(column)
        for group, column in itertools.product(range(metadata.num_row_groups), range(metadata.num_columns))
    )
    large = {
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.total_uncompressed_size * CHUNK_ROWS > MAX_PARQUET_BYTES
    }
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=sorted(large & set(table.schema_arrow.names)))


def _decode(schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert the columns of a batch to the types of `schema`.

    Raises:
        ValueError: The strings of the batch are larger than MAX_PARQUET_BYTES.
    """
    size = sum(
        pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0
        for column in batch.columns
        if pa.types.is_dictionary(column.type) and column.type.value_type in STRING_TYPES
    )
    if size > MAX_PARQUET_BYTES:
        raise ValueError(f"{batch.num_rows} rows hold {size:,} bytes of text, more than {MAX_PARQUET_BYTES:,}")
    columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _read_parquet(lines: _Lines, wanted: Wanted) -> Iterator[Chunk | ReadError]:
    table = pq.ParquetFile(lines.file)
    schema = table.schema_arrow
    wanted.check_columns(schema.names)
    text_column = match_column(wanted.text_column, schema.names)
    if not str(kind := schema.field(text_column).type).startswith(
        ("string", "large_string", "dictionary<values=string")
    ):
        raise ValueError(f"column {text_column!r} holds {kind}, not text")
    batches = map(partial(_decode, schema), _read_undecoded(lines.file, table).iter_batches(CHUNK_ROWS))
    for batch in batches if table.metadata.num_rows else [pa.RecordBatch.from_pylist([], schema)]:
        yield ParquetChunk(batch[text_column].cast(pa.string()).fill_null("").to_pandas(), batch)


READERS: dict[str, Callable[..., Iterator[Chunk | ReadError]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".txt": _read_text,
    ".xlsx": _read_excel,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def read_chunks(
    path: Path, file: BinaryIO, wanted: Wanted, encoding: str = "utf-8", suffix: str = ""
) -> Iterator[Chunk | ReadError]:
    """Yield the chunks of an open table and the errors of single rows, in order.

    Args:
        encoding: Encoding to assume for a text file that is valid in none.
        suffix: Suffix of the format, if it is not the suffix of `path`.

    Raises:
        ValueError: The rest of the file cannot be read; for a format with lines the message names the line.
    """
    lines, suffix = _Lines(file, encoding), suffix or path.suffix.lower()
    try:
        yield from READERS[suffix](lines, wanted)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{f'line {lines.number}: ' if lines.number else ''}{error}") from error
    except UserError:
        raise
    except Exception as error:  # Damaged bytes make zipfile, zlib and openpyxl raise errors of any kind.
        raise ValueError(f"cannot be read as {suffix}: {type(error).__name__}: {error}") from error


def is_table(path: Path, wanted: Wanted, encoding: str) -> bool:
    """Return whether one of the first lines of a .txt file is the header of a table."""
    try:
        with path.open("rb") as file:
            _detect_layout(_Lines(file, encoding), wanted, "\t")
    except (OSError, ValueError):
        return False
    return True
