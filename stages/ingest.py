"""AI Hub JSON files -> one Arrow table, one row per record."""

import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.core.console import ProgressBar, warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.core.paths import INGEST_METRICS, INGESTED
from stages.common.core.prefetch import prefetch
from stages.common.corpus.aihub import Fault, Record, parse_records

SUFFIXES = {".json", ".jsonl", ".ndjson"}
SCHEMA = make_schema(
    Index=pa.string(),
    RawText=pa.string(),  # "" where the record has none
    GeneralPolarity=pa.string(),  # numbers as Python's json module writes them; null where it is null or missing
    HasPolarity=pa.bool_(),  # whether the record has the key at all
    MainCategory=pa.string(),
    file=pa.string(),  # relative to the source folder
)
MAX_ROWS = 10_000  # in a batch
CHUNK_BYTES = 2**22  # of files whose records are in memory at a time; a larger file is alone
MAX_FAULTS_LISTED = 20


class IngestMetrics:
    """The content of metrics/ingest.json, added up over files."""

    def __init__(self) -> None:
        self.files = Counter(read=0, partly_read=0, skipped=0)
        self.records = Counter(read=0, skipped=0)
        self.file_faults: Counter[str] = Counter()  # by reason
        self.record_faults: Counter[str] = Counter()
        self.first_faults: list[dict[str, Any]] = []

    def add(self, file: str, records: list[Record], faults: list[Fault]) -> None:
        """Count the records and the faults of one file."""
        self.files["read" if not faults else "partly_read" if records else "skipped"] += 1
        self.records["read"] += len(records)
        for fault in faults:
            self.records["skipped"] += fault.of_record
            (self.record_faults if fault.of_record else self.file_faults)[fault.reason] += 1
        self.first_faults += [{"file": file, **asdict(fault)} for fault in faults]
        del self.first_faults[MAX_FAULTS_LISTED:]


def find_files(source: Path) -> list[Path]:
    """JSON files below `source` without hidden ones, relative to it, in the order of their names; UserError if none.

    Broken links and links to folders are included, so that they are reported: following these could go in circles.
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder; it must hold AI Hub JSON files")
    found = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES or path.is_symlink())
    wanted = (path for path in found if (path.is_symlink() if path.is_dir() else path.suffix.lower() in SUFFIXES))
    files = [path.relative_to(source) for path in wanted]
    files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    if not files:
        raise UserError(f"data.source: no .json, .jsonl or .ndjson file in {source}")
    return sorted(files, key=Path.as_posix)


def _read(path: Path) -> bytes | Fault:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device might never end
            return Fault("unreadable", "", "not a regular file, or a link to a folder", of_record=False)
        return path.read_bytes()
    except OSError as error:
        return Fault("unreadable", "", error.strerror or str(error), of_record=False)


def _to_batches(records: list[Record], files: list[str]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(records), MAX_ROWS):
        rows = records[start : start + MAX_ROWS]
        polarities = [record.GeneralPolarity for record in rows]
        columns = {
            "Index": [record.Index for record in rows],
            "RawText": [record.RawText or "" for record in rows],
            "GeneralPolarity": [None if polarity is msgspec.UNSET else polarity for polarity in polarities],
            "HasPolarity": [polarity is not msgspec.UNSET for polarity in polarities],
            "MainCategory": [record.MainCategory for record in rows],
            "file": files[start : start + MAX_ROWS],
        }
        yield pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def ingest(
    source: Path, files: Iterable[Path], on_error: str = "stop", metrics: IngestMetrics | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of all files, in their order; faults and counts are added to `metrics`.

    Raises:
        UserError: names the first fault where `on_error` is `stop`; where it is `skip`, no record is valid.
    """
    metrics = metrics or IngestMetrics()
    rows: list[Record] = []
    names: list[str] = []
    size = 0
    for file, data in prefetch((file, _read(source / file)) for file in files):
        records, faults = ([], [data]) if isinstance(data, Fault) else parse_records(data)
        if faults and on_error == "stop":
            raise UserError(f"{source / file}: {faults[0]}")
        name = file.as_posix().encode(errors="backslashreplace").decode()
        metrics.add(name, records, faults)
        rows += records
        names += [name] * len(records)
        size += 0 if isinstance(data, Fault) else len(data)
        if size >= CHUNK_BYTES:
            yield from _to_batches(rows, names)
            rows, names, size = [], [], 0
    yield from _to_batches(rows, names)
    if metrics.first_faults and not metrics.records["read"]:
        first = ": ".join(filter(None, (metrics.first_faults[0][key] for key in ("file", "place", "detail"))))
        raise UserError(f"data.source: no valid record in {metrics.files.total()} files of {source}, first {first}")


@report_user_errors
def main() -> None:
    params = load_params().data
    source, metrics = Path(params.source), IngestMetrics()
    files = ProgressBar(find_files(source), desc="ingest", unit="file")
    write_table(INGESTED, ingest(source, files, params.on_error, metrics), SCHEMA)
    write_json(INGEST_METRICS, vars(metrics))
    if metrics.first_faults:
        skipped = f"{metrics.files['skipped']} files and {metrics.records['skipped']} records were skipped"
        warn(f"{skipped}, {metrics.files['partly_read']} files were read in part: see {INGEST_METRICS}")


if __name__ == "__main__":
    main()
