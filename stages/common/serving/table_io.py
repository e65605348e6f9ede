"""Tables of any size, a chunk at a time: CSV, JSON lines or Parquet in, the same rows with more columns out.

Every format reads into Arrow batches and writes from them, CSV cells as text. JSON lines that become JSON lines are
never taken apart: a line is one cell, and new keys are put before its closing brace, so that nothing else can change.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter

from stages.common.core.exceptions import UserError
from stages.common.core.files import atomic_write

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS_A_CHUNK = 4096
AS_WRITTEN = pa.schema([("line", pa.string())])  # of JSON lines that are not taken apart

csv.field_size_limit(2**24)  # characters; a quote that is never closed would else read the whole file into one cell


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows."""

    rows: pa.RecordBatch
    texts: list[str]  # "" where there is none
    done: int  # bytes of the file read so far


Row = TypeVar("Row")
Chunks = Iterator[Chunk]


def check_suffix(path: Path) -> str:
    """The format of a file, one of `SUFFIXES`.

    Raises:
        UserError: it is none of them.
    """
    if (suffix := path.suffix.lower()) not in SUFFIXES:
        raise UserError(f"{path}: its name must end in {', '.join(SUFFIXES)}")
    return suffix


def open_source(path: Path, column: str, added: Sequence[str], keep_lines: bool) -> tuple[pa.Schema, Chunks]:
    """Open a table whose texts stand in `column` and which shall get the columns `added`.

    Args:
        keep_lines: leave JSON lines as they are; their schema is `AS_WRITTEN` itself.

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
                    raise self.fault("not UTF-8") from error

    def fault(self, text: object) -> UserError:
        """What is wrong with the line that was read last."""
        return UserError(f"{self.path}: line {self.number}: {text}")

    def chunks(self, rows: Iterator[Row], read: Callable[[list[Row]], tuple[pa.RecordBatch, list[str]]]) -> Chunks:
        """What `read` makes of some rows at a time, which stand in these lines."""
        while some := list(islice(rows, ROWS_A_CHUNK)):
            yield Chunk(*read(some), self.bytes)


def _check_columns(place: object, names: Sequence[str], column: str, added: Sequence[str]) -> None:
    if column not in names:
        raise UserError(f"{place}: has no column {column}; it has {', '.join(names)}")
    if taken := sorted({name for name in names if name in added or list(names).count(name) > 1}):
        raise UserError(f"{place}: has a column {taken[0]} already, or twice: rename it")


def _open_csv(path: Path, column: str, added: Sequence[str]) -> tuple[pa.Schema, Chunks]:
    lines = _Lines(path)
    rows = _csv_rows(lines)
    header = next(rows, [])
    _check_columns(path, header, column, added)
    schema = pa.schema([(name, pa.string()) for name in header])

    def read(some: list[list[str]]) -> tuple[pa.RecordBatch, list[str]]:
        batch = pa.record_batch([pa.array(cells) for cells in zip(*some, strict=True)], schema)
        return batch, batch[column].to_pylist()

    return schema, lines.chunks(rows, read)


def _csv_rows(lines: _Lines) -> Iterator[list[str]]:
    width = 0
    try:
        for row in filter(None, csv.reader(lines, strict=True)):
            width = width or len(row)
            if len(row) != width:
                raise lines.fault(f"{len(row)} cells, but the first line has {width}")
            yield row
    except csv.Error as error:
        raise lines.fault(error) from error


def _open_jsonl(path: Path, column: str, added: Sequence[str], keep_lines: bool) -> tuple[pa.Schema, Chunks]:
    lines = _Lines(path)
    rows = _json_rows(lines, column, added)
    first = list(islice(rows, ROWS_A_CHUNK))
    schema = AS_WRITTEN if keep_lines else _batch_of(path, [row for _, row in first] or [{column: None}]).schema

    def read(some: list[tuple[str, dict[str, Any]]]) -> tuple[pa.RecordBatch, list[str]]:
        written, values = zip(*some, strict=True)
        batch = pa.record_batch([pa.array(written)], schema) if keep_lines else _batch_of(path, values, schema)
        return batch, [row[column] or "" for row in values]

    return schema, lines.chunks(chain(first, rows), read)


def _json_rows(lines: _Lines, column: str, added: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as it was written, without white space around it, and what it says."""
    for line in map(str.strip, lines):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise lines.fault(error) from error
        if not isinstance(row, dict):
            raise lines.fault("not an object")
        _check_columns(f"{lines.path}: line {lines.number}", list(row), column, added)
        if not isinstance(text := row[column], str | None):
            raise lines.fault(f"the text is of type {type(text).__name__}")
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise lines.fault(f"half of a surrogate pair at character {error.start + 1}") from error
        yield line, row


def _batch_of(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> pa.RecordBatch:
    """A column a key, of the types of `schema` if that changes no value; objects and arrays become JSON text."""
    keys = dict.fromkeys(name for row in rows for name in row)
    names = schema.names if schema else list(keys)
    if new := keys.keys() - names:
        raise UserError(f"{path}: key {min(new)} is not in the first {ROWS_A_CHUNK} lines; write .jsonl")
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            array = pa.array([json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in values])
            found = pa.string() if pa.types.is_null(array.type) else array.type
            kind = schema.field(name).type if schema else found
            if not (found == kind or array.null_count == len(array) or (_is_number(found) and _is_number(kind))):
                raise ValueError(f"{found} where {kind} was")
            columns.append(array.cast(kind))  # raises if a number would change
        except (pa.ArrowException, OverflowError, ValueError) as error:
            raise UserError(f"{path}: the values of {name} fit into no column ({error}); write .jsonl") from error
    return pa.RecordBatch.from_arrays(columns, names)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _open_parquet(path: Path, column: str, added: Sequence[str]) -> tuple[pa.Schema, Chunks]:
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

    def chunks() -> Chunks:
        rows, size = 0, path.stat().st_size
        try:
            for batch in file.iter_batches(ROWS_A_CHUNK):
                rows += batch.num_rows
                texts = batch[column].cast(pa.string()).fill_null("").to_pylist()
                yield Chunk(batch, texts, size * rows // file.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: after row {rows}: {error}") from error

    return schema, chunks()


@contextmanager
def open_target(path: Path, schema: pa.Schema, added: pa.Schema) -> Iterator[Callable[[list[pa.Array]], None]]:
    """A function that writes the columns of some rows, the `added` ones last; if the block fails, nothing is written.

    Raises:
        UserError: `path` is a folder, or cannot hold one of the columns.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder")
    suffix = check_suffix(path)
    if suffix != ".parquet" and (binary := [field.name for field in schema if "binary" in str(field.type)]):
        raise UserError(f"{path}: only .parquet can hold the bytes of column {binary[0]}")
    whole = pa.schema([*schema, *added], schema.metadata)
    with atomic_write(path) as temporary:
        match suffix:
            case ".parquet":
                with pq.ParquetWriter(temporary, whole) as writer:
                    yield lambda columns: writer.write_batch(pa.record_batch(columns, whole))
            case ".csv":
                cells = pa.schema([(name, pa.string()) for name in whole.names])
                with CSVWriter(temporary, cells) as writer:
                    yield lambda columns: writer.write_batch(pa.record_batch(list(map(_cells, columns)), cells))
            case _:
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    yield lambda columns: file.writelines(_json_lines(columns, whole, schema is AS_WRITTEN))


def _cells(column: pa.Array) -> pa.Array:
    if not pa.types.is_nested(column.type):
        return column.cast(pa.string())
    values = (None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in column.to_pylist())
    return pa.array(values, pa.string())


def _json_lines(columns: list[pa.Array], schema: pa.Schema, as_written: bool) -> Iterator[str]:
    # JSON knows no NaN: null stands for it.
    finite = [pc.if_else(pc.is_finite(c), c, None) if pa.types.is_floating(c.type) else c for c in columns]
    for row in pa.record_batch(finite, schema).to_pylist():
        before = row.pop(AS_WRITTEN.names[0]).removesuffix("}").rstrip() + ", " if as_written else "{"
        yield f"{before}{json.dumps(row, ensure_ascii=False, default=str)[1:]}\n"
