"""AI Hub JSON files -> one Arrow table, a row a record."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from tqdm import tqdm

from stages.common.artifacts.arrow import write_table
from stages.common.core.console import warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.core.paths import INGEST_METRICS, INGESTED
from stages.common.core.prefetch import prefetch
from stages.common.corpus.aihub import Fault, Record, is_utf8, read_records

SUFFIXES = {".json", ".jsonl", ".ndjson"}
SCHEMA = make_schema(
    {
        "Index": pa.string(),
        "RawText": pa.string(),  # "" where the record has none
        "GeneralPolarity": pa.string(),  # numbers as JSON writes them; null where it is null or not there
        "HasPolarity": pa.bool_(),  # whether the record has the key at all
        "MainCategory": pa.string(),
        "file": pa.string(),  # relative to the source folder
    }
)
ROWS_A_BATCH = 10_000
BYTES_AT_A_TIME = 2**22  # of files; a larger file goes alone
FAULTS_LISTED = 20


class Report:
    """What metrics/ingest.json says, added up over files."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter(read=0, partly_read=0, skipped=0)
        self.records: Counter[str] = Counter(read=0, skipped=0)
        self.faults: dict[str, Counter[str]] = {"file": Counter(), "record": Counter()}  # by reason
        self.first: list[tuple[str, Fault]] = []  # in which file

    def add(self, file: str, records: list[Record], faults: list[Fault]) -> None:
        """Count the records and the faults of one file."""
        self.files["read" if not faults else "partly_read" if records else "skipped"] += 1
        self.records["read"] += len(records)
        for fault in faults:
            self.records["skipped"] += fault.of_record
            self.faults["record" if fault.of_record else "file"][fault.reason] += 1
        self.first += [(file, fault) for fault in faults[: FAULTS_LISTED - len(self.first)]]

    def summary(self) -> dict[str, Any]:
        """Counts of files, records and faults by reason, and the first faults."""
        faults = {f"{kind}_faults": dict(sorted(counts.items())) for kind, counts in self.faults.items()}
        first = [{"file": file, "place": f.place, "reason": f.reason, "detail": f.detail} for file, f in self.first]
        return {"files": dict(self.files), "records": dict(self.records), **faults, "first_faults": first}


def find_files(source: Path) -> list[Path]:
    """JSON files below `source`, hidden ones apart, in an order that no file system decides.

    Links that lead nowhere are among them, since a file is missing there.

    Raises:
        UserError: `source` is not a folder, or holds none.
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder; it must hold AI Hub JSON files")
    relative = (path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    files = [path for path in visible if (source / path).is_file() or not (source / path).exists()]
    if not files:
        raise UserError(f"data.source: no .json, .jsonl or .ndjson file in {source}")
    return sorted(files, key=lambda path: path.as_posix())


def _contents(source: Path, files: Iterable[Path]) -> Iterator[list[tuple[Path, bytes | Fault, bool]]]:
    """Some files at a time: the name, what is in it, and whether that is UTF-8."""
    some: list[tuple[Path, bytes | Fault, bool]] = []
    size = 0
    for file in files:
        try:
            data = (source / file).read_bytes()
        except OSError as error:
            some.append((file, Fault("unreadable", "", error.strerror or str(error), of_record=False), False))
            continue
        some.append((file, data, is_utf8(data)))
        size += len(data)
        if size >= BYTES_AT_A_TIME:
            yield some
            some, size = [], 0
    yield some


def _rows(records: list[Record], files: list[str]) -> pa.RecordBatch:
    polarity = [record.GeneralPolarity for record in records]
    has_polarity = [value is not msgspec.UNSET for value in polarity]
    columns = [
        [record.Index for record in records],
        [record.RawText or "" for record in records],
        [value if has else None for value, has in zip(polarity, has_polarity, strict=True)],
        has_polarity,
        [record.MainCategory for record in records],
        files,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def ingest(
    source: Path, files: Iterable[Path], on_error: str = "stop", report: Report | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of all files, in their order; batches are the same wherever and whenever they are made.

    Args:
        on_error: `stop` at the first fault, or `skip` what is not valid.
        report: is added to.

    Raises:
        UserError: names the file and the place of the first fault; or nothing was left.
    """
    report = report or Report()
    for some in prefetch(_contents(source, files)):
        rows: list[Record] = []
        names: list[str] = []
        for file, data, valid_utf8 in some:
            records, faults = ([], [data]) if isinstance(data, Fault) else read_records(data, valid_utf8)
            if faults and on_error == "stop":
                raise UserError(f"{source / file}: {faults[0]}")
            name = file.as_posix().encode(errors="backslashreplace").decode()
            report.add(name, records, faults)
            rows += records
            names += [name] * len(records)
        for start in range(0, len(rows), ROWS_A_BATCH):
            yield _rows(rows[start : start + ROWS_A_BATCH], names[start : start + ROWS_A_BATCH])
    if report.first and not report.records["read"]:
        first, fault = report.first[0]
        files_read = sum(report.files.values())
        raise UserError(f"data.source: no valid record in {files_read} files of {source}, first {first}: {fault}")


@report_user_errors
def main() -> None:
    params = load_params().data
    source, report = Path(params.source), Report()
    files = tqdm(find_files(source), desc="ingest", unit="file", disable=None)
    write_table(INGESTED, ingest(source, files, params.on_error, report), SCHEMA)
    write_json(INGEST_METRICS, report.summary())
    if report.first:
        counts = f"{report.files['skipped']} files and {report.records['skipped']} records were skipped, "
        warn(f"{counts}{report.files['partly_read']} files were read in part: see {INGEST_METRICS}")


if __name__ == "__main__":
    main()
