"""Tables of any size, a chunk at a time: CSV, JSON lines or Parquet in, the same rows with new columns out.

Where the format stays, so does every value: JSON lines are extended, not written anew, and Parquet keeps its types. In
CSV, and in Parquet made from another format, every value is text, and objects and lists are JSON text.

pandas' `read_csv` is not used, since it takes `"a"x` for a cell, fills up a row that is too short, names the wrong line
after a cell of several lines, and drops an empty cell that is alone in its row.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.common.core.console import ProgressBar
from stages.common.core.exceptions import UserError
from stages.common.core.files import atomic_write

CHUNK_ROWS = 4096
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
    """Consecutive rows: a frame of CSV's cells, the lines of JSON lines, or a batch of Parquet."""

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
    """The lines of a UTF-8 file, and the number of the last one that was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.number = file, 0

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.number += 1
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError("not UTF-8") from error


def _take_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    yield list(islice(rows, CHUNK_ROWS))  # the first one even if it is empty, since it has the columns
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _read_csv(lines: _Lines, text_column: str, check_columns: CheckColumns) -> Iterator[Chunk]:
    rows = filter(None, csv.reader(lines, strict=True))
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


def _write_csv(path: Path, chunks: ComputedChunks) -> None:
    columns: list[str] = []
    with path.open("w", encoding="utf-8", newline="") as file:
        for chunk, new in chunks:
            is_first = not columns
            frame = pd.concat([chunk.to_text(columns), new], axis=1)
            # All cells are quoted: Python 3.11 would not quote one because of a lone \r.
            frame.to_csv(file, header=is_first, index=False, quoting=csv.QUOTE_ALL)


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


READERS = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
WRITERS = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}


def _read_chunks(path: Path, file: BinaryIO, text_column: str, new_columns: Sequence[str]) -> Iterator[Chunk]:
    def check_columns(names: list[str]) -> None:
        if text_column not in names:
            raise ValueError(f"has no column {text_column}; it has {', '.join(names)}")
        if taken := [name for name in names if name in new_columns or names.count(name) > 1]:
            raise ValueError(f"has a column {taken[0]} already, or twice: rename it")

    lines = _Lines(file)
    try:
        yield from READERS[path.suffix.lower()](lines, text_column, check_columns)
    except (ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{path}: {f'line {lines.number}: ' if lines.number else ''}{error}") from error


def add_columns(
    source: Path, target: Path, text_column: str, names: Sequence[str], compute: Callable[[pd.Series], pd.DataFrame]
) -> None:
    """Write the rows of `source`, with new columns after their own, to `target`; memory holds a chunk.

    Args:
        target: its suffix names the format; without one it gets the format of `source`.
        text_column: the column of `source` from whose texts `compute` makes the columns `names`.

    Raises:
        UserError: a file is missing, damaged (names the line) or of another format, lacks `text_column` or has one of
            `names` already; `target` is as it was.
    """
    for path in (source, target):
        if path.suffix.lower() not in READERS and (path.suffix or path is source):
            raise UserError(f"{path}: its name must end in {', '.join(READERS)}")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.is_dir():
        raise UserError(f"{target}: is a folder")

    def computed() -> ComputedChunks:
        with ProgressBar(total=source.stat().st_size, unit="B", unit_scale=True, desc="predict") as progress:
            for chunk in _read_chunks(source, file, text_column, names):
                yield chunk, compute(chunk.texts)
                progress.update(file.tell() - progress.n)

    with source.open("rb") as file, atomic_write(target) as temporary:
        WRITERS[(target.suffix or source.suffix).lower()](temporary, computed())
