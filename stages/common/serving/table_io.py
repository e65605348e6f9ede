"""Tables of any size, a chunk at a time: CSV, TSV, text, Excel, JSON lines or Parquet in, new columns added, and out.

An .xlsx that is written is held in memory as a whole.

Where the format stays, so does every value: JSON lines are extended, not written anew, and Parquet keeps its types;
only of an Excel file the values of the first sheet are taken, without formulas and formats. In CSV and TSV, and in
Parquet made from another format, every value is text, and objects and lists are JSON text.

pandas' `read_csv` is not used, since it takes `"a"x` for a cell, fills up a row that is too short, names the wrong line
after a cell of several lines, and drops an empty cell that is alone in its row.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
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
from openpyxl.utils.exceptions import IllegalCharacterError

from stages.common.core.console import ProgressBar
from stages.common.core.exceptions import UserError
from stages.common.core.files import atomic_write

CHUNK_ROWS = 4096
MAX_EXCEL_BYTES = 2**30  # unpacked; an .xlsx of some kilobytes can hold more
Row = TypeVar("Row")

csv.field_size_limit(2**24)  # characters; without a limit a quote that is never closed reads the whole file into a cell


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _to_cell(value: Any) -> str | None:
    if isinstance(value, bool | list | dict):
        return _to_json(value)
    return None if value is None or value != value else str(value)  # NaN, the only value that is not itself


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows: the lines of JSON lines, a batch of Parquet, or a frame of the cells of any other format."""

    rows: pd.DataFrame | list[str] | pa.RecordBatch
    texts: pd.Series  # the column to classify; "" for a null

    def to_frame(self) -> pd.DataFrame:
        """The rows as Python objects; None or NaN for what a row lacks."""
        if isinstance(self.rows, pd.DataFrame):
            return self.rows
        if isinstance(self.rows, list):
            names = None if self.rows else [self.texts.name]
            return pd.DataFrame(list(map(json.loads, self.rows)), columns=names, dtype=object)
        if binary := [field.name for field in self.rows.schema if "binary" in str(field.type)]:
            raise UserError(f"only .parquet can hold the bytes of column {binary[0]}")
        return pd.DataFrame(self.rows.to_pydict(), dtype=object)

    def to_text(self, columns: list[str]) -> pd.DataFrame:
        """The rows as text in the given columns; if these are not known yet, the chunk's own are appended to them."""
        frame = self.to_frame()
        columns += [] if columns else frame.columns.tolist()
        if unknown := [name for name in frame.columns if name not in columns]:
            raise UserError(f"key {unknown[0]} is not in the first {CHUNK_ROWS} lines: write .jsonl")
        return frame.reindex(columns=columns).map(_to_cell)


CheckColumns = Callable[[list[str]], None]
ComputedChunks = Iterator[tuple[Chunk, pd.DataFrame]]  # rows, and their new columns


class _Lines:
    """The lines of a file, and the number of the last one that was read."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.file, self.number, self._encoding = file, 0, encoding

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.number += 1
            try:
                text = line.decode(self._encoding)
            except UnicodeDecodeError as error:
                hint = ": if Excel wrote it in Korean, add --encoding cp949" if self._encoding == "utf-8" else ""
                raise ValueError(f"not {self._encoding.upper()}{hint}") from error
            yield text.removeprefix("\ufeff") if self.number == 1 else text


def _take_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    yield list(islice(rows, CHUNK_ROWS))  # the first one even if it is empty, since it has the columns
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _read_csv(lines: _Lines, text_column: str, check_columns: CheckColumns, delimiter: str = ",") -> Iterator[Chunk]:
    rows = filter(None, csv.reader(lines, strict=True, delimiter=delimiter))
    header = next(rows, [])
    check_columns(header)

    def checked_rows() -> Iterator[list[str]]:
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{len(row)} cells, but the first line has {len(header)}")
            yield row

    for chunk in _take_chunks(checked_rows()):
        frame = pd.DataFrame(chunk, columns=header, dtype=object)
        yield Chunk(frame, frame[text_column])


def _read_text(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk]:
    for chunk in _take_chunks(line.rstrip("\r\n") for line in lines):
        frame = pd.DataFrame({text_column: chunk}, dtype=object)
        yield Chunk(frame, frame[text_column])


def _trim(row: tuple[Any, ...]) -> list[Any]:
    """The cells of a row up to the last one that is not empty; whole numbers as such."""
    cells = [int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in row]
    while cells and cells[-1] in (None, ""):
        cells.pop()
    return cells


def _read_excel(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk]:
    try:
        if (size := sum(part.file_size for part in ZipFile(lines.file).infolist())) > MAX_EXCEL_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes, more than {MAX_EXCEL_BYTES:,}: write .csv")
        sheet = openpyxl.load_workbook(lines.file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # what the file says of them may be a billion cells
        rows = filter(None, map(_trim, sheet.iter_rows(values_only=True)))
        header = [_to_cell(value) or "" for value in next(rows, [])]
        check_columns(header)
        for chunk in _take_chunks(rows):
            cells = [row + [None] * (len(header) - len(row)) for row in chunk]
            frame = pd.DataFrame(cells, columns=header, dtype=object)  # raises where a row has more cells
            yield Chunk(frame, frame[text_column].map(_to_cell).fillna("").astype(object))
    except (BadZipFile, KeyError, SyntaxError) as error:  # XML's error is a SyntaxError
        raise ValueError(f"not an Excel file: {error}") from error


def _read_json_lines(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk]:
    def checked_rows() -> Iterator[tuple[str, str]]:
        for line in filter(None, map(str.strip, lines)):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            check_columns(list(row))
            if not isinstance(text := row[text_column], str | None):
                raise ValueError(f"the text is of type {type(text).__name__}")
            _to_json(row).encode()  # raises for half of a surrogate pair
            yield line, text or ""

    for chunk in _take_chunks(checked_rows()):
        yield Chunk([line for line, _ in chunk], pd.Series([text for _, text in chunk], name=text_column, dtype=object))


def _read_parquet(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk]:
    table = pq.ParquetFile(lines.file)
    schema = table.schema_arrow
    check_columns(schema.names)
    if not str(kind := schema.field(text_column).type).startswith(
        ("string", "large_string", "dictionary<values=string")
    ):
        raise ValueError(f"column {text_column} holds {kind}, not text")
    batches = table.iter_batches(CHUNK_ROWS)
    for batch in batches if table.metadata.num_rows else [pa.RecordBatch.from_pylist([], schema)]:
        yield Chunk(batch, batch[text_column].cast(pa.string()).fill_null("").to_pandas())


def _write_csv(path: Path, chunks: ComputedChunks, delimiter: str = ",") -> None:
    columns: list[str] = []
    with path.open("w", encoding="utf-8", newline="") as file:
        for chunk, new in chunks:
            is_first = not columns
            frame = pd.concat([chunk.to_text(columns), new], axis=1)
            # All cells are quoted: Python 3.11 would not quote one because of a lone \r.
            frame.to_csv(file, sep=delimiter, header=is_first, index=False, quoting=csv.QUOTE_ALL)


def _write_excel(path: Path, chunks: ComputedChunks) -> None:
    columns: list[str] = []
    frames = []  # a sheet has a million rows at most
    for chunk, new in chunks:
        frame = chunk.rows if isinstance(chunk.rows, pd.DataFrame) else chunk.to_text(columns)
        frames.append(pd.concat([frame, new], axis=1))
    try:
        with path.open("wb") as file, pd.ExcelWriter(file, engine="openpyxl") as writer:
            pd.concat(frames).to_excel(writer, index=False)
            for cell in chain.from_iterable(writer.book.active.rows):
                if cell.data_type == "f":  # a text that begins with = is no formula
                    cell.data_type = "s"
    except (ValueError, IllegalCharacterError) as error:
        raise UserError(f"Excel cannot hold this table: {str(error)!a}; write .csv or .parquet") from error


def _to_json_lines(frame: pd.DataFrame) -> list[str]:
    def finite(value: Any) -> Any:  # JSON knows neither NaN nor infinity: null stands for them
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = frame.astype(object).to_dict("records")
    return [_to_json({name: finite(value) for name, value in row.items()}) for row in rows]


def _write_json_lines(path: Path, chunks: ComputedChunks) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for chunk, new in chunks:
            rows = chunk.rows if isinstance(chunk.rows, list) else _to_json_lines(chunk.to_frame())
            for row, added in zip(rows, _to_json_lines(new), strict=True):
                file.write(f"{row.removesuffix('}').rstrip()}, {added[1:]}\n")


def _write_parquet(path: Path, chunks: ComputedChunks) -> None:
    columns: list[str] = []

    def to_arrow(chunk: Chunk, new: pd.DataFrame) -> pa.Table:
        if isinstance(chunk.rows, pa.RecordBatch):
            table = pa.Table.from_batches([chunk.rows])
        else:
            frame = chunk.to_text(columns)
            table = pa.table([pa.array(frame[name], pa.string()) for name in columns], columns)
        for name in new:
            table = table.append_column(name, pa.array(new[name], from_pandas=True))
        return table

    first = to_arrow(*next(chunks))
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in chain([first], (to_arrow(*chunk) for chunk in chunks)):
            writer.write_table(table)


READERS: dict[str, Callable[..., Iterator[Chunk]]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".txt": _read_text,
    ".xlsx": _read_excel,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
WRITERS: dict[str, Callable[..., None]] = {
    ".csv": _write_csv,
    ".tsv": partial(_write_csv, delimiter="\t"),
    ".xlsx": _write_excel,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def _read_chunks(
    path: Path, file: BinaryIO, encoding: str, text_column: str, new_columns: Sequence[str]
) -> Iterator[Chunk]:
    def check_columns(names: list[str]) -> None:
        if text_column not in names:
            hint = "; its cells stand between tabs: name it .tsv" if any("\t" in name for name in names) else ""
            raise ValueError(f"has no column {text_column}; it has {', '.join(names)}{hint}")
        if taken := [name for name in names if name in new_columns or names.count(name) > 1]:
            raise ValueError(f"has a column {taken[0]} already, or twice: rename it, or the new ones with --prefix")

    lines = _Lines(file, encoding)
    try:
        yield from READERS[path.suffix.lower()](lines, text_column, check_columns)
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path}: {f'line {lines.number}: ' if lines.number else ''}{error}") from error


def add_columns(
    source: Path,
    target: Path,
    text_column: str,
    names: Sequence[str],
    compute: Callable[[pd.Series], pd.DataFrame],
    encoding: str = "utf-8",
) -> None:
    """Write the rows of `source`, with new columns after their own, to `target`; memory holds a chunk, or an .xlsx.

    Args:
        target: its suffix names the format; without one it gets the format of `source`.
        text_column: the column of `source` from whose texts `compute` makes the columns `names`; of a .txt file, which
            has no columns, the name that the lines get.
        encoding: of `source`, where it consists of lines; `target` is UTF-8.

    Raises:
        UserError: a file is missing, damaged (names the line) or of another format, lacks `text_column` or has one of
            `names` already; `target` is as it was.
    """
    target_format = (target.suffix or source.suffix).lower()
    for path, suffix, formats in ((source, source.suffix.lower(), READERS), (target, target_format, WRITERS)):
        if suffix not in formats:
            raise UserError(f"{path}: its name must end in {', '.join(formats)}")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.is_dir():
        raise UserError(f"{target}: is a folder")

    def computed() -> ComputedChunks:
        with ProgressBar(total=source.stat().st_size, unit="B", unit_scale=True, desc="predict") as progress:
            for chunk in _read_chunks(source, file, encoding, text_column, names):
                yield chunk, compute(chunk.texts)
                progress.update(file.tell() - progress.n)

    with source.open("rb") as file, atomic_write(target) as temporary:
        WRITERS[target_format](temporary, computed())
