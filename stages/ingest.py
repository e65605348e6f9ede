"""AI Hub JSON files -> one Arrow table, a row a record."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from stages.common.errors import UserError, one_line
from stages.common.params import load_params
from stages.common.paths import INGESTED
from stages.common.records import schema, write_table

SUFFIXES = {".json", ".jsonl", ".ndjson"}
SCHEMA = schema(
    {
        "Index": pa.string(),
        "RawText": pa.string(),  # "" where the record has none
        "GeneralPolarity": pa.string(),  # numbers as JSON writes them; null where it is null or not there
        "HasPolarity": pa.bool_(),  # whether the record has the key at all
        "MainCategory": pa.string(),
        "file": pa.string(),  # relative to the source folder
    }
)
FILES_A_BATCH = 100


def find_files(source: Path) -> list[Path]:
    """JSON files below `source`, hidden ones apart, in an order that no file system decides.

    Raises:
        UserError: `source` is not a folder, or holds none.
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder; it must hold AI Hub JSON files")
    relative = (path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    files = sorted((path for path in visible if (source / path).is_file()), key=lambda path: path.as_posix())
    if not files:
        raise UserError(f"data.source: no .json, .jsonl or .ndjson file in {source}")
    return files


def _parse(text: str) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and the record, from a JSON array or from NDJSON."""
    if text.lstrip(" \t\r\n").startswith("{"):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} column {error.colno}: {error.msg}") from error
        return
    records = json.loads(text)
    if not isinstance(records, list):
        raise ValueError(f"line 1 column 1: holds one {type(records).__name__}, not an array of objects")
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def _text(record: dict[str, Any], key: str) -> str | None:
    value = record.get(key)
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if text is not None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"{key} holds half of a surrogate pair at character {error.start + 1}") from error
    return text


def _row(record: Any, file: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"is of type {type(record).__name__}, not an object")
    if not isinstance(record.get("RawText", ""), str | None):
        raise ValueError(f"RawText is of type {type(record['RawText']).__name__}, not a string")
    return {
        "Index": _text(record, "Index"),
        "RawText": _text(record, "RawText") or "",
        "GeneralPolarity": _text(record, "GeneralPolarity"),
        "HasPolarity": "GeneralPolarity" in record,
        "MainCategory": _text(record, "MainCategory"),
        "file": file,
    }


def read_file(source: Path, file: Path) -> list[dict[str, Any]]:
    """The rows of one file, UTF-8 with or without a byte order mark.

    Raises:
        UserError: names the file and the place of the first fault.
    """
    place = ""
    rows = []
    try:
        for where, record in _parse((source / file).read_bytes().decode("utf-8-sig")):
            place = f"{where} "
            rows.append(_row(record, file.as_posix()))
            place = ""
    except UnicodeDecodeError as error:
        raise UserError(f"{source / file}: byte {error.start}: not UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{source / file}: line {error.lineno} column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source / file}: {place}{error}") from error
    return rows


def ingest(source: Path, files: Iterable[Path]) -> Iterator[pa.RecordBatch]:
    """Rows of all files, in their order, as record batches of a fixed number of files."""
    rows: list[dict[str, Any]] = []
    for number, file in enumerate(files, start=1):
        rows += read_file(source, file)
        if number % FILES_A_BATCH == 0:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@one_line
def main() -> None:
    source = Path(load_params().data.source)
    files = find_files(source)
    write_table(INGESTED, ingest(source, tqdm(files, desc="ingest", unit="file", disable=None)), SCHEMA)


if __name__ == "__main__":
    main()
