"""Read tables of any size in chunks: CSV, TSV, lines of text, Excel, JSON lines or Parquet.

pandas' `read_csv` is not used, since it takes `"a"x` for a cell, fills up a row that is too short, names the wrong line
after a cell of several lines, and drops an empty cell that is alone in its row.
"""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from zipfile import BadZipFile, ZipFile

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.corpus.records import ReadError
from stages.common.runtime.exceptions import UserError

CHUNK_ROWS = 4096
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


@dataclass(frozen=True)
class ParquetChunk(Chunk):
    """Rows of Parquet."""

    batch: pa.RecordBatch

    def to_frame(self) -> pd.DataFrame:
        if binary := [field.name for field in self.batch.schema if "binary" in str(field.type)]:
            raise UserError(f"only .parquet can hold the bytes of column {binary[0]}")
        return pd.DataFrame(self.batch.to_pydict(), dtype=object)

    def cells(self, column: str) -> list[str | None]:
        # to_frame would convert all columns, and refuse a table with bytes in another one.
        return [to_cell(_whole(value)) for value in self.batch[column].to_pylist()]

    def to_arrow(self) -> pa.Table:
        return pa.Table.from_batches([self.batch])


CheckColumns = Callable[[list[str]], None]  # raises a ValueError if the names of a table's columns will not do


class _Lines:
    """The lines of a file, and the number of the last one that was read."""

    def __init__(self, file: BinaryIO, encoding: str, encoding_hint: str) -> None:
        self.file, self.number = file, 0
        self._encoding, self._hint = encoding, f": if Excel wrote it in Korean, {encoding_hint}"
        self._returned: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._returned:
            self.number, line = self._returned.pop()
            return line
        encoded = next(self.file)
        self.number += 1
        try:
            text = encoded.decode(self._encoding)
        except UnicodeDecodeError as error:
            hint = self._hint if self._encoding == "utf-8" else ""
            raise ValueError(f"not {self._encoding.upper()}{hint}") from error
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def put_back(self, first: int, lines: list[str]) -> None:
        """Read these lines, whose first one has the number `first`, once more."""
        self._returned += reversed(list(enumerate(lines, start=first)))


def _take_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    yield list(islice(rows, CHUNK_ROWS))  # the first one even if it is empty, since it has the columns
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


class _CsvRows:
    """Rows of CSV; after one that is broken, reading goes on with the line after its first one."""

    def __init__(self, lines: _Lines, delimiter: str) -> None:
        self._lines, self._delimiter = lines, delimiter
        self._read: list[str] = []  # the lines of the current row
        self._reader = self._new_reader()
        self.num_cells: int | None = None  # of every row, once the header is known
        self.errors: list[ReadError] = []

    def _new_reader(self) -> Iterator[list[str]]:
        def recorded() -> Iterator[str]:
            for line in self._lines:
                self._read.append(line)
                yield line

        return csv.reader(recorded(), strict=True, delimiter=self._delimiter)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._read, first, detail = [], self._lines.number + 1, ""
            try:
                row = next(self._reader)
                if row and self.num_cells not in (None, len(row)):
                    detail = f"{len(row)} cells, but the first line has {self.num_cells}"
            except (csv.Error, ValueError) as error:
                detail = str(error)
            if detail and self.num_cells is None:
                raise ValueError(detail)  # no row can be told from another without a header
            if detail:
                # A quote that is never closed makes one row of many lines, but only the first of these is broken.
                place, last = (first, self._lines.number) if self._read else (self._lines.number,) * 2
                self.errors.append(ReadError("not_a_row", f"line {place}", detail, of_record=True))
                if last > place:
                    self._lines.put_back(place + 1, self._read[1:])
                self._reader = self._new_reader()
            elif row:
                return row


def _read_csv(
    lines: _Lines, text_column: str, check_columns: CheckColumns, delimiter: str = ","
) -> Iterator[Chunk | ReadError]:
    rows = _CsvRows(lines, delimiter)
    header = next(rows, [])
    check_columns(header)
    rows.num_cells = len(header)
    for chunk in _take_chunks(rows):
        yield from rows.errors
        rows.errors.clear()
        frame = pd.DataFrame(chunk, columns=header, dtype=object)
        yield FrameChunk(frame[text_column], frame)
    yield from rows.errors


def _read_text(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk | ReadError]:
    for chunk in _take_chunks(line.rstrip("\r\n") for line in lines):
        frame = pd.DataFrame({text_column: chunk}, dtype=object)
        yield FrameChunk(frame[text_column], frame)


def _trim(row: tuple[Any, ...]) -> list[Any]:
    """The cells of a row up to the last one that is not empty; whole numbers as such."""
    cells = list(map(_whole, row))
    while cells and cells[-1] in (None, ""):
        cells.pop()
    return cells


def _read_excel(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk | ReadError]:
    signature = lines.file.read(len(OLE_SIGNATURE))
    lines.file.seek(0)
    if signature == OLE_SIGNATURE:
        raise ValueError("has a password, or is an .xls file: save it as .xlsx without a password")
    try:
        if (size := sum(part.file_size for part in ZipFile(lines.file).infolist())) > MAX_EXCEL_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes, more than {MAX_EXCEL_BYTES:,}: write .csv")
        sheet = openpyxl.load_workbook(lines.file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # what the file says of them may be a billion cells
        numbered = enumerate(map(_trim, sheet.iter_rows(values_only=True)), start=1)
        rows = ((number, row) for number, row in numbered if row)
        header = [to_cell(value) or "" for value in next(rows, (0, []))[1]]
        check_columns(header)
        for chunk in _take_chunks(rows):
            for number, row in chunk:
                if len(row) > len(header):
                    detail = f"{len(row)} cells, but the first row has {len(header)}"
                    yield ReadError("not_a_row", f"row {number}", detail, of_record=True)
            cells = [row + [None] * (len(header) - len(row)) for _, row in chunk if len(row) <= len(header)]
            frame = pd.DataFrame(cells, columns=header, dtype=object)
            yield FrameChunk(frame[text_column].map(to_cell).fillna("").astype(object), frame)
    except (BadZipFile, KeyError, SyntaxError) as error:  # XML's error is a SyntaxError
        raise ValueError(f"not an Excel file: {error}") from error


def _read_json_lines(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk | ReadError]:
    def checked_rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for line in filter(None, map(str.strip, lines)):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            check_columns(list(row))
            if not isinstance(text := row[text_column], str | None):
                raise ValueError(f"the text is of type {type(text).__name__}")
            to_json(row).encode()  # raises for half of a surrogate pair
            yield line, row

    columns: list[str] = []
    for chunk in _take_chunks(checked_rows()):
        rows = [row for _, row in chunk]
        columns = columns or list(dict.fromkeys(chain.from_iterable(rows))) or [text_column]
        texts = pd.Series([row[text_column] or "" for row in rows], name=text_column, dtype=object)
        yield JsonLinesChunk(texts, [line for line, _ in chunk], rows, columns)


def _read_parquet(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk | ReadError]:
    table = pq.ParquetFile(lines.file)
    schema = table.schema_arrow
    check_columns(schema.names)
    if not str(kind := schema.field(text_column).type).startswith(
        ("string", "large_string", "dictionary<values=string")
    ):
        raise ValueError(f"column {text_column} holds {kind}, not text")
    batches = table.iter_batches(CHUNK_ROWS)
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


def missing_column(name: str, names: list[str]) -> str:
    """Return the error message for a table that has no column `name`."""
    hint = "; its cells stand between tabs: name it .tsv" if any("\t" in other for other in names) else ""
    return f"has no column {name}; it has {', '.join(names) or 'none at all'}{hint}"


def read_chunks(
    path: Path,
    file: BinaryIO,
    text_column: str,
    check_columns: CheckColumns,
    encoding: str = "utf-8",
    encoding_hint: str = "add --encoding cp949",
    suffix: str = "",
) -> Iterator[Chunk | ReadError]:
    """Yield the rows of an open table, and the errors of single rows, in their order.

    Args:
        text_column: The column that holds the texts.
        encoding: The encoding of the file, if its format consists of lines.
        encoding_hint: What to do if the file is not UTF-8, for the error message.
        suffix: The suffix of the format, if `path` has another one.

    Raises:
        ValueError: The rest of the file cannot be read; the message names the line, if the format has lines.
    """
    lines = _Lines(file, encoding, encoding_hint)
    try:
        yield from READERS[suffix or path.suffix.lower()](lines, text_column, check_columns)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"{f'line {lines.number}: ' if lines.number else ''}{error}") from error
