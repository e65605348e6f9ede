"""AI Hub JSON files -> one Arrow table, a row a record."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa

from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.core.console import ProgressBar, warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.core.paths import INGEST_METRICS, INGESTED
from stages.common.core.prefetch import prefetch
from stages.common.corpus.aihub import Fault, Record, is_utf8, parse_records

SUFFIXES = {".json", ".jsonl", ".ndjson"}
SCHEMA = make_schema(
    Index=pa.string(),
    RawText=pa.string(),  # "" where the record has none
    GeneralPolarity=pa.string(),  # numbers as JSON writes them; null where it is null or missing
    HasPolarity=pa.bool_(),  # whether the record has the key at all
    MainCategory=pa.string(),
    file=pa.string(),  # relative to the source folder
)
MAX_ROWS = 10_000  # in a batch
CHUNK_BYTES = 2**22  # of files that are read together; a larger file is read alone
MAX_FAULTS_LISTED = 20


class IngestMetrics:
    """The content of metrics/ingest.json, added up over files."""

    def __init__(self) -> None:
        self.files = Counter(read=0, partly_read=0, skipped=0)
        self.records = Counter(read=0, skipped=0)
        self.file_faults: Counter[str] = Counter()  # by reason
        self.record_faults: Counter[str] = Counter()
        self.first_faults: list[dict[str, str]] = []

    def add(self, file: str, records: list[Record], faults: list[Fault]) -> None:
        """Count the records and the faults of one file."""
        self.files["read" if not faults else "partly_read" if records else "skipped"] += 1
        self.records["read"] += len(records)
        for fault in faults:
            self.records["skipped"] += fault.of_record
            (self.record_faults if fault.of_record else self.file_faults)[fault.reason] += 1
            if len(self.first_faults) < MAX_FAULTS_LISTED:
                place = {"file": file, "place": fault.place}
                self.first_faults.append({**place, "reason": fault.reason, "detail": fault.detail})


def find_files(source: Path) -> list[Path]:
    """JSON files below `source` without hidden ones, relative to it, in the order of their names.

    Broken links are included, so that they are reported.

    Raises:
        UserError: `source` is not a folder, or holds none.
    """
    if not source.is_dir():
        raise UserError(f"data.source: {source} is not a folder; it must hold AI Hub JSON files")
    files = [path.relative_to(source) for path in source.rglob("*") if path.suffix.lower() in SUFFIXES]
    files = [path for path in files if not (source / path).is_dir() and not any(p.startswith(".") for p in path.parts)]
    if not files:
        raise UserError(f"data.source: no .json, .jsonl or .ndjson file in {source}")
    return sorted(files, key=Path.as_posix)


def _read_files(source: Path, files: Iterable[Path]) -> Iterator[list[tuple[Path, bytes | Fault, bool]]]:
    """Yield chunks of files: the name, the content, and whether it is UTF-8."""
    chunk: list[tuple[Path, bytes | Fault, bool]] = []
    size = 0
    for file in files:
        try:
            data = (source / file).read_bytes()
            chunk.append((file, data, is_utf8(data)))
            size += len(data)
        except OSError as error:
            chunk.append((file, Fault("unreadable", "", error.strerror or str(error), of_record=False), False))
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _to_batch(records: list[Record], files: list[str]) -> pa.RecordBatch:
    polarities = [record.GeneralPolarity for record in records]
    columns = {
        "Index": [record.Index for record in records],
        "RawText": [record.RawText or "" for record in records],
        "GeneralPolarity": [None if polarity is msgspec.UNSET else polarity for polarity in polarities],
        "HasPolarity": [polarity is not msgspec.UNSET for polarity in polarities],
        "MainCategory": [record.MainCategory for record in records],
        "file": files,
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def ingest(
    source: Path, files: Iterable[Path], on_error: str = "stop", metrics: IngestMetrics | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows of all files, in their order.

    Args:
        on_error: `stop` at the first fault, or `skip` what is not valid.
        metrics: is added to.

    Raises:
        UserError: names the file and the place of the first fault; or there is no valid record at all.
    """
    metrics = metrics or IngestMetrics()
    for chunk in prefetch(_read_files(source, files)):
        rows: list[Record] = []
        names: list[str] = []
        for file, data, valid_utf8 in chunk:
            records, faults = ([], [data]) if isinstance(data, Fault) else parse_records(data, valid_utf8)
            if faults and on_error == "stop":
                raise UserError(f"{source / file}: {faults[0]}")
            name = file.as_posix().encode(errors="backslashreplace").decode()
            metrics.add(name, records, faults)
            rows += records
            names += [name] * len(records)
        for start in range(0, len(rows), MAX_ROWS):
            yield _to_batch(rows[start : start + MAX_ROWS], names[start : start + MAX_ROWS])
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
