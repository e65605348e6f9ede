"""Read tables of any size in chunks: CSV, TSV, lines of text, Excel, JSON lines or Parquet.

pandas' `read_csv` is not used, since it takes `"a"x` for a cell, fills up a row that is too short, names the wrong line
after a cell of several lines, and drops an empty cell that is alone in its row.
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
MAX_HEADER_ROWS = 20  # rows among which the header is looked for
DELIMITERS = ",\t;"
MAX_NAMES_CHARACTERS = 200  # of the names of a table's columns in a message
STRING_TYPES = {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}
MAX_EXCEL_ROWS = 2**20  # of a sheet; Excel allows no more
MAX_PARQUET_BYTES = 2**30  # of the strings of a chunk; a file of a kilobyte can repeat a long one in every row
MAX_EXCEL_BYTES = 2**30  # unpacked; an .xlsx of some kilobytes can hold more
OLE_SIGNATURE = b"\xd0\xcf\x11\xe0"  # of the container around an Excel file with a password, and of .xls
Row = TypeVar("Row")


def to_json(value: Any) -> str:
    """Write a value as one line of JSON, Korean as it is."""
    return json.dumps(value, ensure_ascii=False, default=str)


def to_cell(value: Any) -> str | None:
    """Return a value as text; None for null and NaN."""
    if isinstance(value, bool | list | dict):
        return to_json(value)
    return None if value is None or value != value else str(value)  # NaN, the only value that is not itself


def _whole(value: Any) -> Any:
    """Return a whole number as an int: spreadsheets, and columns with nulls, hold 1 as 1.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def to_json_lines(frame: pd.DataFrame) -> list[str]:
    """Write each row as one JSON object; null stands for NaN and infinity, which JSON does not have."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = frame.astype(object).to_dict("records")
    return [to_json({name: finite(value) for name, value in row.items()}) for row in rows]


@dataclass(frozen=True)
class Chunk(ABC):
    """Consecutive rows of a table. A subclass holds them as its format does, so that this format loses no value."""

    texts: pd.Series  # the column that holds the texts; "" for a null

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """Return the rows as Python objects; None or NaN for what a row lacks."""

    def to_text(self) -> pd.DataFrame:
        """Return the rows as text, in the columns of the table's first chunk; None or NaN for what a row lacks."""
        return self.to_frame().map(to_cell)

    def cells(self, column: str) -> list[str | None]:
        """Return a column as text, whole numbers without a fraction; None where it is null."""
        return [to_cell(_whole(value)) for value in self.to_frame()[column]]

    def to_excel(self) -> pd.DataFrame:
        """Return the rows as values that Excel can hold."""
        return self.to_text()

    def to_json_lines(self) -> list[str]:
        """Return each row as one line of JSON."""
        return to_json_lines(self.to_frame())

    def to_arrow(self) -> pa.Table:
        """Return the rows with the types of Parquet, or else as text."""
        frame = self.to_text()
        return pa.table([pa.array(frame[name], pa.string()) for name in frame], list(frame))


@dataclass(frozen=True)
class FrameChunk(Chunk):
    """Rows of CSV, of Excel or of a text file."""

    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        return self.frame

    def to_excel(self) -> pd.DataFrame:
        return self.frame


@dataclass(frozen=True)
class JsonLinesChunk(Chunk):
    """Rows of JSON lines."""

    lines: list[str]
    rows: list[dict[str, Any]]  # the parsed lines
    columns: list[str]  # the keys in the table's first chunk

    def to_frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=None if self.rows else self.columns, dtype=object)

    def to_text(self) -> pd.DataFrame:
        frame = self.to_frame()
        if unknown := [name for name in frame if name not in self.columns]:
            raise UserError(f"key {unknown[0]} is not in the first {CHUNK_ROWS} lines: write .jsonl")
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
            raise UserError(f"only .parquet can hold the bytes of column {binary[0]}")
        return pd.DataFrame({name: self._values(name) for name in self.batch.schema.names}, dtype=object)

    def cells(self, column: str) -> list[str | None]:
        # to_frame would convert all columns, and refuse a table with bytes in another one.
        return [to_cell(_whole(value)) for value in self._values(column)]

    def _values(self, column: str) -> list[Any]:
        values = self.batch[column]
        try:
            return values.to_pylist()
        except (OverflowError, ValueError, pa.ArrowException) as error:  # Python's times end with the year 9999
            if pa.types.is_nested(values.type):
                raise UserError(f"only .parquet can hold the values of column {column}: {error}") from error
            if not pa.types.is_timestamp(values.type) and not pa.types.is_date(values.type):
                values = values.cast(pa.int64())  # Arrow writes no durations
            return values.cast(pa.string()).to_pylist()

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_batches([self.batch])


class MissingColumnError(ValueError):
    """A row of a table does not name a column that is needed."""


@dataclass(frozen=True)
class Wanted:
    """What a caller wants of a table.

    Args:
        text_column: The column that holds the texts.
        check_columns: Raises a MissingColumnError if these are not the names of the columns, or another ValueError if
            they are, but will not do.
        columns: The names of the columns, for a table whose rows do not name them.
    """

    text_column: str
    check_columns: Callable[[list[str]], None]
    columns: Sequence[str] = ()


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def match_column(name: str, names: Sequence[str]) -> str:
    """Return the one of `names` that is `name`, or else is it but for blanks at its ends or the form of its Hangul.

    Raises:
        MissingColumnError: There is none, or more than one.
    """
    if name in names:
        return name
    alike = [other for other in names if _comparable(other) == _comparable(name)]
    if len(alike) != 1:
        found = textwrap.shorten(", ".join(names).replace("\t", "\\t"), MAX_NAMES_CHARACTERS) or "none at all"
        raise MissingColumnError(f"has no column {name}; it has {found}")
    return alike[0]


def _find_header(rows: Iterable[list[str]], wanted: Wanted) -> int:
    """Return the index of the first row that names the columns; titles may stand above it.

    Raises:
        ValueError: No row does; the message is about the row that has most of what is wanted.
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
    """Give each blank cell of a header a name of its own, unless there is one only."""
    if header.count("") < 2:
        return header
    unused = (name for number in itertools.count() if (name := f"Unnamed: {number}") not in header)
    return [name or next(unused) for name in header]


class _Lines:
    """The lines of a file, and the number of the last one that was read."""

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
        """Read these lines, whose first one has the number `first`, once more."""
        self._returned += reversed(list(enumerate(lines, start=first)))

    def restart(self) -> TextIOWrapper:
        """Begin with the first line again; the lines that are returned are not counted and may hold wrong bytes."""
        self.number = 0
        self._stream.seek(0)
        return self._stream


@dataclass(frozen=True)
class _Layout:
    """How the lines of a file become rows."""

    delimiter: str
    header: list[str]
    num_lines: int  # up to the header, which is the last of them
    is_raw: bool = False  # quotes are characters like any other
    why_not_raw: str = ""


def _detect_layout(lines: _Lines, wanted: Wanted, own_delimiter: str) -> _Layout:
    """Find the header among the first rows, with the delimiter by which it names the columns."""
    first_lines = list(islice(lines.restart(), MAX_HEADER_ROWS))
    lines.number = min(1, len(first_lines))
    found: list[tuple[str, int, list[str]]] = []
    for delimiter in dict.fromkeys((own_delimiter, *DELIMITERS)):
        reader = csv.reader(first_lines, delimiter=delimiter)
        with suppress(csv.Error):  # it is reported when the row is read
            found += [(delimiter, reader.line_num, row) for row in reader if row]
    if wanted.columns:
        fitting = (delimiter for delimiter, _, row in found if len(row) == len(wanted.columns))
        # A row that names them is no review.
        num_lines = next((number for _, number, row in found if row == list(wanted.columns)), 0)
        layout = _Layout(next(fitting, own_delimiter), list(wanted.columns), num_lines)
        wanted.check_columns(layout.header)
    else:
        delimiter, num_lines, header = found[_find_header((row for *_, row in found), wanted)]
        layout = _Layout(delimiter, header, num_lines)
    return _detect_quoting(lines, layout) if layout.delimiter == "\t" and len(layout.header) > 1 else layout


def _detect_quoting(lines: _Lines, layout: _Layout) -> _Layout:
    """Decide whether quotes of a TSV are raw: each line is a row by itself, but one of these is not a row of CSV."""
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
    """Rows of CSV below the header; after one that is broken, reading goes on with the line after its first one."""

    def __init__(self, lines: _Lines, layout: _Layout) -> None:
        self._lines, self._layout = lines, layout
        self._read: list[str] = []  # the lines of the current row
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
        """Whether the lines of the current row look like a row each, swallowed by a quote that was meant as text."""
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
                # A quote that is never closed makes one row of many lines, but only the first of these is broken.
                place, last = (first, self._lines.number) if self._read else (self._lines.number,) * 2
                self.errors.append(ReadError("not_a_row", f"line {place}", detail, of_record=True))
                if last > place:
                    self._lines.put_back(place + 1, self._read[1:])
                self._reader = self._new_reader()
            elif row:
                return row


def _take_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    yield list(islice(rows, CHUNK_ROWS))  # the first one even if it is empty, since it has the columns
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
    """The cells of a row up to the last one that is not empty; whole numbers as such."""
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
    """Open an .xlsx: the values of its cells; and its formulas, or None if it has none."""
    with ZipFile(file) as parts:
        if (size := sum(part.file_size for part in parts.infolist())) > MAX_EXCEL_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes, more than {MAX_EXCEL_BYTES:,}: write .csv")
        sheets = [part for part in parts.namelist() if part.startswith("xl/worksheets/") and part.endswith(".xml")]
        has_formulas = any(_contains(parts.open(part), b"</f>") for part in sheets)
    values = openpyxl.load_workbook(file, read_only=True, data_only=True)
    return values, openpyxl.load_workbook(file, read_only=True) if has_formulas else None


def _numbered_rows(sheet: Any, formulas: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows of a sheet that are not empty, with their numbers.

    A formula without a value stands for itself: pandas writes a text that begins with = as a formula.
    """
    rows = []
    for each in (sheet, formulas[sheet.title]) if formulas else (sheet,):
        each.reset_dimensions()  # what the file says of them may be a billion cells
        # openpyxl fills up rows that are left out, so that one of a high number would keep it busy for ever.
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
    # A cover sheet may stand first; what nobody sees is not meant.
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
        warn(f"{lines.file.name}: only sheet {found[0][0].title!r} is read; save {others} as files of their own")
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
            to_json(row).encode()  # raises for half of a surrogate pair
            yield line, row, text or ""

    columns: list[str] = []
    for chunk in _take_chunks(checked_rows()):
        rows = [row for _, row, _ in chunk]
        columns = columns or list(dict.fromkeys(chain.from_iterable(rows))) or [wanted.text_column]
        texts = pd.Series([text for *_, text in chunk], name=wanted.text_column, dtype=object)
        yield JsonLinesChunk(texts, [line for line, *_ in chunk], rows, columns)


def _read_undecoded(file: BinaryIO, table: pq.ParquetFile) -> pq.ParquetFile:
    """Open a Parquet file so that each string of a column which could be too large stands in memory once."""
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
    """Give the columns of a batch the types of `schema`; a ValueError says that they do not fit into memory."""
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
        raise ValueError(f"column {text_column} holds {kind}, not text")
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
    """Yield the rows of an open table, and the errors of single rows, in their order.

    Args:
        encoding: The encoding of a file of lines that holds wrong bytes; any other file is decoded by what it is.
        suffix: The suffix of the format, if `path` has another one.

    Raises:
        ValueError: The rest of the file cannot be read; the message names the line, if the format has lines.
    """
    lines, suffix = _Lines(file, encoding), suffix or path.suffix.lower()
    try:
        yield from READERS[suffix](lines, wanted)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{f'line {lines.number}: ' if lines.number else ''}{error}") from error
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and openpyxl raise whatever damaged bytes lead them to
        raise ValueError(f"cannot be read as {suffix}: {type(error).__name__}: {error}") from error


def is_table(path: Path, wanted: Wanted, encoding: str) -> bool:
    """Whether one of the first lines of a .txt file names the columns of a table."""
    try:
        with path.open("rb") as file:
            _detect_layout(_Lines(file, encoding), wanted, "\t")
    except (OSError, ValueError):
        return False
    return True
