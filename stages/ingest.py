"""Read JSON files and tables of reviews into one Arrow table with one row per review."""

import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.common.artifacts.arrow import make_schema, table_writer
from stages.common.artifacts.files import write_json
from stages.common.corpus.encoding import to_utf8
from stages.common.corpus.json_records import find_keys, parse_records
from stages.common.corpus.records import AIHUB, Columns, ReadError, ReadResult, Records
from stages.common.runtime.console import ProgressBar, warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import INGEST_METRICS, INGESTED, NO_FILE, PARAMS
from stages.common.runtime.prefetch import prefetch

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
SUFFIXES = {*JSON_SUFFIXES, *TABLE_SUFFIXES}
FIELDS = {  # Columns have AI Hub's names, whatever their names in the source are.
    "Index": pa.string(),
    "RawText": pa.string(),  # "" for a record without a text.
    "GeneralPolarity": pa.string(),  # Numbers as the json module writes them; null if the key is null or missing.
    "HasPolarity": pa.bool_(),  # Whether the record has the key of the label.
    "MainCategory": pa.string(),
    "file": pa.string(),  # Path relative to the source folder.
    "is_test": pa.bool_(),  # Whether the row is from data.test_source.
}
SCHEMA = make_schema(FIELDS)
BATCH_ROWS = 8192  # Rows per batch; it is fixed so that equal rows in any format give equal bytes.
MAX_ERRORS_LISTED = 20


@dataclass(frozen=True)
class FilePart:
    """Consecutive records of a file and the errors found among them."""

    path: Path
    file: str  # Value of the column `file`.
    records: Records
    errors: list[ReadError]
    outcome: str | None = None  # Key of IngestCounts.files in the last part of a file; None in the others.


@dataclass
class IngestCounts:
    """Numbers of files and records that were read or skipped, and the reasons."""

    files: Counter[str] = field(default_factory=lambda: Counter(read=0, partly_read=0, skipped=0))
    records: Counter[str] = field(default_factory=lambda: Counter(read=0, skipped=0))
    file_errors: Counter[str] = field(default_factory=Counter)  # By reason.
    record_errors: Counter[str] = field(default_factory=Counter)  # By reason.
    first_errors: list[tuple[str, ReadError]] = field(default_factory=list)  # With the name of the file.
    ids: set[int] = field(default_factory=set)  # Hashes of all ids, which take less memory than the ids.
    repeated_ids: dict[str, int] = field(default_factory=dict)  # Number of rows after the first one, by id.
    has_text: bool = False  # Whether any record has a text.
    has_label: bool = False  # Whether any record has the key of the label, even with the value null.
    last_path: Path | None = None  # Last file with a valid record.

    def add(self, part: FilePart) -> None:
        """Count the records and errors in a part of a file, and the file itself at its last part."""
        self.records["read"] += len(part.records)
        for error in part.errors:
            self.records["skipped"] += error.of_record
            (self.record_errors if error.of_record else self.file_errors)[error.reason] += 1
        self.first_errors += [(part.file, error) for error in part.errors]
        del self.first_errors[MAX_ERRORS_LISTED:]
        for row_id in filter(None, part.records.id):
            if (hashed := hash(row_id)) in self.ids:
                self.repeated_ids[row_id] = self.repeated_ids.get(row_id, 0) + 1
            self.ids.add(hashed)
        self.has_text = self.has_text or any(part.records.text)
        self.has_label = self.has_label or any(part.records.has_label)
        if len(part.records):
            self.last_path = part.path
        if part.outcome:
            self.files[part.outcome] += 1

    def count(self, parts: Iterable[FilePart]) -> Iterator[FilePart]:
        """Yield the parts again and count each of them."""
        for part in parts:
            self.add(part)
            yield part

    def to_metrics(self) -> dict[str, Any]:
        """Return the content of metrics/ingest.json."""
        return {
            "files": self.files,
            "records": self.records,
            "repeated_ids": sum(self.repeated_ids.values()),
            "file_errors": self.file_errors,
            "record_errors": self.record_errors,
            "first_errors": [{"file": file, **asdict(error)} for file, error in self.first_errors],
        }


def find_files(source: Path, key: str = "data.source", columns: Columns = AIHUB, encoding: str = "utf-8") -> list[Path]:
    """Find the files of a source, which is a single file or a folder that is searched recursively.

    Hidden files and .txt files that are not tables are left out. Broken links and links to folders are included so that
    they are reported; a link to a folder is not followed, because it could lead in circles.

    Args:
        key: Name of the parameter that holds the path, for messages.
        columns: Columns by which a .txt file is recognised as a table.

    Returns:
        Paths relative to `source`, sorted.

    Raises:
        UserError: No file was found.
    """
    if source.is_file():
        if source.suffix.lower() not in {*SUFFIXES, ".txt"}:
            raise UserError(f"{key}: {source}: its name must end in {', '.join(sorted(SUFFIXES))}, or .txt for a TSV")
        return [Path()]
    if not source.is_dir():
        raise UserError(f"{key}: {source} is not a folder or file; name a folder of AI Hub's JSON files or of tables")
    suffixes = {*SUFFIXES, ".txt"}
    found = (path for path in source.rglob("*") if path.suffix.lower() in suffixes or path.is_symlink())
    wanted = (path for path in found if (path.is_symlink() if path.is_dir() else path.suffix.lower() in suffixes))
    files = [path.relative_to(source) for path in wanted]
    # While Excel has a file open, a lock file ~$NAME.xlsx stands beside it.
    files = [path for path in files if not any(part.startswith((".", "~$")) for part in path.parts)]
    if texts := [path for path in files if path.suffix.lower() == ".txt"]:
        # Imported only where it is needed, because pandas takes half a second to import.
        from stages.common.corpus.table_records import is_text_table

        others = {path for path in texts if not is_text_table(source / path, columns, encoding)}
        files = [path for path in files if path not in others]
        if tables := [path for path in others if b"\t" in (source / path).open("rb").read(2**12)]:
            warn(
                f"{key}: {len(tables)} .txt files in {source} contain tabs but are not read, since none of their first "
                f"lines names the columns {columns.text!r} and {columns.label!r}, for example {min(tables)}"
            )
    if not files:
        raise UserError(f"{key}: no {', '.join(sorted(SUFFIXES))} file in {source}")
    return sorted(files, key=Path.as_posix)


def read_file(path: Path, columns: Columns, encoding: str, name: str) -> Iterator[ReadResult]:
    """Yield the records and errors of a file in any format: all at once for JSON, in chunks for a table.

    Args:
        encoding: Encoding to assume for a text file that is valid in none.
        name: Beginning of the ids of rows, for a table without a column of ids.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # A pipe or a device might never end.
            detail = "not a regular file, or a link to a folder"
            yield ReadResult(Records(), [ReadError("unreadable", "", detail, of_record=False)])
        elif path.suffix.lower() in JSON_SUFFIXES:
            yield parse_records(to_utf8(path.read_bytes(), encoding), columns)
        else:
            from stages.common.corpus.table_records import read_table_records

            yield from read_table_records(path, columns, encoding, name)
    except UnicodeDecodeError as error:
        yield ReadResult(Records(), [ReadError("not_unicode", f"byte {error.start}", str(error), of_record=False)])
    except OSError as error:
        yield ReadResult(Records(), [ReadError("unreadable", "", error.strerror or str(error), of_record=False)])


def read_files(
    source: Path,
    files: Iterable[Path],
    columns: Columns = AIHUB,
    on_error: str = "stop",
    encoding: str = "utf-8",
    id_prefix: str = "",
) -> Iterator[FilePart]:
    """Yield the parts of all files in order; the last part of a file is empty and has its outcome.

    Args:
        files: Paths relative to `source`, from `find_files`.
        on_error: "stop" or "skip", see `data.on_error`.
        encoding: Encoding to assume for a text file that is valid in none.
        id_prefix: Beginning of the ids of rows, for tables without a column of ids.

    Raises:
        UserError: A file has an error, and `on_error` is "stop".
    """
    for file in files:
        path = source / file
        # Arrow cannot store a file name that is not valid Unicode.
        name = (file.as_posix() if file.name else source.name).encode(errors="backslashreplace").decode()
        num_records = num_errors = 0
        for records, errors in read_file(path, columns, encoding, id_prefix + name):
            if errors and on_error == "stop":
                raise UserError(f"{path}: {errors[0]}")
            num_records, num_errors = num_records + len(records), num_errors + len(errors)
            yield FilePart(path, name, records, errors)
        outcome = "read" if not num_errors else "partly_read" if num_records else "skipped"
        yield FilePart(path, name, Records(), [], outcome)


def to_batches(parts: Iterable[FilePart], is_test: bool = False) -> Iterator[pa.RecordBatch]:
    """Yield the records of all parts in batches of BATCH_ROWS rows; the last batch may be shorter."""
    records, files = Records(), list[str]()
    for part in parts:
        records += part.records
        files += [part.file] * len(part.records)
        while len(records) >= BATCH_ROWS:
            yield _to_batch(records.pop(BATCH_ROWS), files[:BATCH_ROWS], is_test)
            del files[:BATCH_ROWS]
    if len(records):
        yield _to_batch(records, files, is_test)


def _to_batch(rows: Records, files: list[str], is_test: bool) -> pa.RecordBatch:
    values = [rows.id, rows.text, rows.label, rows.has_label, rows.category, files, [is_test] * len(rows)]
    return pa.RecordBatch.from_pydict(dict(zip(FIELDS, values, strict=True)), schema=SCHEMA)


def check_counts(counts: IngestCounts, key: str, source: Path, columns: Columns) -> None:
    """Check that a source has records with a text and a label; `key` is the parameter that holds its path.

    Raises:
        UserError: No record has the key of the text or of the label, or no record is valid.
    """
    if counts.last_path:
        for name, is_there in (("text", counts.has_text), ("label", counts.has_label)):
            if not is_there:
                keys = find_keys(counts.last_path.read_bytes())  # The file is JSON; a table would have been refused.
                has = f"; the last file has {', '.join(keys)}" if keys else ""
                key = f"data.{name}_column of {PARAMS}"
                raise UserError(f"{key}: no record of {source} has {columns.names()[name]!r}{has}")
    elif counts.first_errors:
        file, error = counts.first_errors[0]
        raise UserError(f"{key}: no valid record in {counts.files.total()} files of {source}; first {file}: {error}")


@report_user_errors
def main() -> None:
    params = load_params()
    columns = Columns(
        text=params.data.text_column,
        label=params.data.label_column,
        id=params.data.id_column,
        category=params.data.category_column,
        header=tuple(params.data.columns),
    )
    sources = {"data.source": Path(params.data.source), "data.test_source": Path(params.data.test_source)}
    encoding = params.data.encoding
    given = {key: source for key, source in sources.items() if source != NO_FILE}
    found = {key: find_files(source, key, columns, encoding) for key, source in given.items()}
    total = IngestCounts()
    with table_writer(INGESTED, SCHEMA) as table:
        for key, files in found.items():
            counts = IngestCounts()
            bar = ProgressBar(files, desc="ingest", unit="file")
            is_test = key == "data.test_source"
            # Training and test files may have the same names, but ids must differ.
            options = columns, params.data.on_error, encoding, "test:" if is_test else ""
            parts = prefetch(read_files(sources[key], bar, *options))
            for batch in to_batches(total.count(counts.count(parts)), is_test):
                table.write(batch)
            check_counts(counts, key, sources[key], columns)
    write_json(INGEST_METRICS, total.to_metrics())
    if repeated := total.repeated_ids:
        warn(
            f"{columns.id}: {sum(repeated.values()) + len(repeated)} rows share {len(repeated)} ids, for example "
            f"{next(iter(repeated))!r}; an id in data.exclude excludes all its rows"
        )
    if total.first_errors:
        skipped = f"records skipped: {total.records['skipped']}; files skipped: {total.files['skipped']}"
        partly = f"files read in part: {total.files['partly_read']}"
        warn(f"{skipped}; {partly}, because data.on_error of {PARAMS} is skip; see {INGEST_METRICS}")


if __name__ == "__main__":
    main()
