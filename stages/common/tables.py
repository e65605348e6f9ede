"""Tables of any size, a chunk at a time: CSV, JSON lines or Parquet in, the same rows with more columns out.

Every format reads into Arrow batches and writes from them, CSV cells as text. JSON lines that become JSON lines are
never taken apart: new keys are put before the closing brace, so that nothing else can change.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.common.errors import UserError
from stages.common.files import replacing

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS_A_CHUNK = 4096
Write = Callable[[pa.RecordBatch | list[str], pa.RecordBatch], None]

csv.field_size_limit(2**24)  # characters; a quote that is never closed would else read the whole file into one cell


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows."""

    texts: list[str]  # "" where there is none
    rows: pa.RecordBatch | list[str]  # a list: JSON lines as they were written, without line ends
    done: int  # `Source.unit`s of the file read so far


@dataclass(frozen=True)
class Source:
    """An open table."""

    schema: pa.Schema | None  # None: JSON lines that are not taken apart
    chunks: Iterator[Chunk]
    total: int
    unit: str  # of `total`


def check_suffix(path: Path) -> str:
    """The format of a file, one of `SUFFIXES`.

    Raises:
        UserError: it is none of them.
    """
    if (suffix := path.suffix.lower()) not in SUFFIXES:
        raise UserError(f"{path}: its name must end in {', '.join(SUFFIXES)}")
    return suffix


def open_source(path: Path, column: str, added: Sequence[str], keep_lines: bool) -> Source:
    """Open a table whose texts stand in `column` and which shall get the columns `added`.

    Args:
        keep_lines: leave JSON lines as they are.

    Raises:
        UserError: here or while reading: the file is missing or damaged, names the line; `column` is not there or holds
            no text; one of `added` is there.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    match check_suffix(path):
        case ".csv":
            return _open_csv(path, column, added)
        case ".jsonl":
            return _open_jsonl(path, column, added, keep_lines)
        case _:
            return _open_parquet(path, column, added)


class _Lines:
    """The lines of a UTF-8 file, with their number and the bytes read so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.number, self.bytes = path, 0, 0

    def __iter__(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for line in file:
                self.number += 1
                self.bytes += len(line)
                try:
                    yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{self.path}: line {self.number}: not UTF-8") from error


def _check_columns(place: Path | str, names: Sequence[str], column: str, added: Sequence[str]) -> None:
    if column not in names:
        raise UserError(f"{place}: has no column {column}; it has {', '.join(names)}")
    if taken := sorted({name for name in names if name in added or list(names).count(name) > 1}):
        raise UserError(f"{place}: has a column {taken[0]} already, or twice: rename it")


def _open_csv(path: Path, column: str, added: Sequence[str]) -> Source:
    lines = _Lines(path)
    rows = _csv_rows(path, lines)
    header = next(rows, [])
    _check_columns(path, header, column, added)
    schema = pa.schema([(name, pa.string()) for name in header])

    def chunks() -> Iterator[Chunk]:
        while some := list(islice(rows, ROWS_A_CHUNK)):
            batch = pa.RecordBatch.from_arrays(
                [pa.array(cells, pa.string()) for cells in zip(*some, strict=True)], schema=schema
            )
            yield Chunk(batch[column].to_pylist(), batch, lines.bytes)

    return Source(schema, chunks(), path.stat().st_size, "B")


def _csv_rows(path: Path, lines: _Lines) -> Iterator[list[str]]:
    reader = csv.reader(lines, strict=True)
    width = 0
    try:
        for row in filter(None, reader):
            width = width or len(row)
            if len(row) != width:
                raise UserError(f"{path}: line {lines.number}: {len(row)} cells, but the first line has {width}")
            yield row
    except csv.Error as error:
        raise UserError(f"{path}: line {lines.number}: {error}") from error


def _open_jsonl(path: Path, column: str, added: Sequence[str], keep_lines: bool) -> Source:
    lines = _Lines(path)
    rows = _json_rows(path, lines, column, added)

    def some() -> list[tuple[str, dict[str, Any]]]:
        return list(islice(rows, ROWS_A_CHUNK))

    first = some()
    schema = None if keep_lines else _schema_of(path, [row for _, row in first], column)

    def chunks() -> Iterator[Chunk]:
        chunk = first
        while chunk:
            texts = [row[column] or "" for _, row in chunk]
            kept = [line for line, _ in chunk] if schema is None else _batch_of(path, [row for _, row in chunk], schema)
            yield Chunk(texts, kept, lines.bytes)
            chunk = some()

    return Source(schema, chunks(), path.stat().st_size, "B")


def _json_rows(path: Path, lines: _Lines, column: str, added: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in map(str.strip, lines):
        if not line:
            continue
        place = f"{path}: line {lines.number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{place}: not an object")
        _check_columns(place, list(row), column, added)
        _check_text(place, row[column])
        yield line, row


def _check_text(place: str, text: Any) -> None:
    if not isinstance(text, str | None):
        raise UserError(f"{place}: the text is of type {type(text).__name__}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: half of a surrogate pair at character {error.start + 1}") from error


def _schema_of(path: Path, rows: Sequence[dict[str, Any]], column: str) -> pa.Schema:
    """Columns are the keys of the first chunk, their types its values'."""
    names = dict.fromkeys(name for row in rows for name in row) or [column]
    arrays = [_column_of(path, name, rows) for name in names]
    types = [pa.string() if pa.types.is_null(array.type) else array.type for array in arrays]
    return pa.schema(list(zip(names, types, strict=True)))


def _batch_of(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    if new := {name for row in rows for name in row} - set(schema.names):
        raise UserError(f"{path}: key {min(new)} is not in the first {ROWS_A_CHUNK} lines; write .jsonl")
    columns = [_column_of(path, field.name, rows, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column_of(path: Path, name: str, rows: Sequence[dict[str, Any]], kind: pa.DataType | None = None) -> pa.Array:
    """The values of a key as an array, of type `kind` if that changes none; objects and arrays as JSON text."""
    values = [row.get(name) for row in rows]
    try:
        array = pa.array([json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in values])
        if kind is None or array.type == kind:
            return array
        if pa.types.is_null(array.type) or (_is_number(array.type) and _is_number(kind)):
            return array.cast(kind)  # raises if a number would change
        raise ValueError(f"{array.type} where {kind} was")
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise UserError(f"{path}: the values of {name} fit into no column ({error}); write .jsonl") from error


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _open_parquet(path: Path, column: str, added: Sequence[str]) -> Source:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
    schema = file.schema_arrow
    _check_columns(path, schema.names, column, added)
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column {column} holds {kind}, not text")

    def chunks() -> Iterator[Chunk]:
        done = 0
        try:
            for batch in file.iter_batches(ROWS_A_CHUNK):
                done += batch.num_rows
                yield Chunk(batch[column].cast(pa.string()).fill_null("").to_pylist(), batch, done)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: after row {done}: {error}") from error

    return Source(schema, chunks(), file.metadata.num_rows, "row")


@contextmanager
def open_target(path: Path, schema: pa.Schema | None, added: pa.Schema) -> Iterator[Write]:
    """A function that writes rows with their `added` columns; the file takes its name when the block ends well."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    suffix = check_suffix(path)
    if suffix != ".parquet" and (binary := [field.name for field in schema or [] if "binary" in str(field.type)]):
        raise UserError(f"{path}: only .parquet can hold the bytes of column {binary[0]}")
    whole = pa.schema([*(schema or []), *added], metadata=schema and schema.metadata)
    with replacing(path) as temporary:
        if suffix == ".parquet":
            with pq.ParquetWriter(temporary, whole) as writer:
                yield lambda rows, more: writer.write_batch(_beside(rows, more, whole))
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            if suffix == ".jsonl":
                yield lambda rows, more: file.writelines(_json_lines(rows, more, whole))
                return
            cells = csv.writer(_UnixLines(file))
            cells.writerow(whole.names)
            yield lambda rows, more: cells.writerows(zip(*map(_cells, _beside(rows, more, whole)), strict=True))


class _UnixLines:
    r"""Ends lines with \n for csv.writer, which told to do so itself leaves a lone \r without quotes."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def _beside(rows: pa.RecordBatch, more: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([*rows.columns, *more.columns], schema=schema)


def _cells(column: pa.Array) -> list[str | None]:
    if pa.types.is_nested(column.type):
        return [
            value if value is None else json.dumps(value, ensure_ascii=False, default=str)
            for value in column.to_pylist()
        ]
    return column.cast(pa.string()).to_pylist()


def _json_lines(rows: pa.RecordBatch | list[str], more: pa.RecordBatch, schema: pa.Schema) -> Iterator[str]:
    if isinstance(rows, list):
        for line, values in zip(rows, more.to_pylist(), strict=True):
            yield f"{line[:-1].rstrip()}, {json.dumps(values, ensure_ascii=False)[1:]}\n"
        return
    columns = [_finite(column) for column in _beside(rows, more, schema)]
    for values in zip(*columns, strict=True):
        yield json.dumps(dict(zip(schema.names, values, strict=True)), ensure_ascii=False, default=str) + "\n"


def _finite(column: pa.Array) -> list[Any]:
    """Values for JSON, which knows no NaN: null stands for it."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    return column.to_pylist()
