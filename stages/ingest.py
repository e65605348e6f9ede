"""JSON files and tables of reviews -> one Arrow table, one row per review."""

import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.artifacts.files import write_json
from stages.common.corpus.json_records import find_keys, parse_records
from stages.common.corpus.records import AIHUB, Columns, Fault, Records
from stages.common.runtime.console import ProgressBar, warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import INGEST_METRICS, INGESTED, NO_FILE
from stages.common.runtime.prefetch import prefetch

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
SUFFIXES = {*JSON_SUFFIXES, *TABLE_SUFFIXES}
FIELDS = {  # the names are AI Hub's, whatever the source has for them
    "Index": pa.string(),
    "RawText": pa.string(),  # "" where the record has none
    "GeneralPolarity": pa.string(),  # numbers as Python's json module writes them; null where it is null or missing
    "HasPolarity": pa.bool_(),  # whether the record has the key at all
    "MainCategory": pa.string(),
    "file": pa.string(),  # relative to the source folder
    "is_test": pa.bool_(),  # from data.test_source
}
SCHEMA = make_schema(FIELDS)
BATCH_ROWS = 8192  # whatever the files, so that equal rows of any format give equal bytes
MAX_FAULTS_LISTED = 20
Part = tuple[Records, list[Fault]]  # of a file


class IngestMetrics:
    """The content of metrics/ingest.json, added up over files."""

    def __init__(self) -> None:
        self.files = Counter(read=0, partly_read=0, skipped=0)
        self.records = Counter(read=0, skipped=0)
        self.file_faults: Counter[str] = Counter()  # by reason
        self.record_faults: Counter[str] = Counter()
        self.first_faults: list[dict[str, Any]] = []

    def add_file(self, num_records: int, num_faults: int) -> None:
        """Count a file of which all parts have been added."""
        self.files["read" if not num_faults else "partly_read" if num_records else "skipped"] += 1

    def add(self, file: str, num_records: int, faults: list[Fault]) -> None:
        """Count the records and the faults of a part of a file."""
        self.records["read"] += num_records
        for fault in faults:
            self.records["skipped"] += fault.of_record
            (self.record_faults if fault.of_record else self.file_faults)[fault.reason] += 1
        self.first_faults += [{"file": file, **asdict(fault)} for fault in faults]
        del self.first_faults[MAX_FAULTS_LISTED:]


def find_files(source: Path, key: str = "data.source") -> list[Path]:
    """`source`, or the files below it without hidden ones, relative to it, in the order of their names.

    Broken links and links to folders are included, so that they are reported: following these could go in circles.

    Raises:
        UserError: there is none; names `key`, the parameter.
    """
    if source.is_file():
        if source.suffix.lower() not in {*SUFFIXES, ".txt"}:
            raise UserError(f"{key}: {source}: its name must end in {', '.join(sorted(SUFFIXES))}, or .txt for a TSV")
        return [Path()]
    if not source.is_dir():
        raise UserError(f"{key}: {source} is no folder or file; it must hold AI Hub's JSON files, or tables")
    found = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES or path.is_symlink())
    wanted = (path for path in found if (path.is_symlink() if path.is_dir() else path.suffix.lower() in SUFFIXES))
    files = [path.relative_to(source) for path in wanted]
    # Excel's lock files are called ~$NAME.xlsx.
    files = [path for path in files if not any(part.startswith((".", "~$")) for part in path.parts)]
    if not files:
        raise UserError(f"{key}: no {', '.join(sorted(SUFFIXES))} file in {source}")
    return sorted(files, key=Path.as_posix)


def read_file(path: Path, columns: Columns, encoding: str) -> Iterator[Part]:
    """Yield the records of a file of any format, and its faults."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device might never end
            fault = Fault("unreadable", "", "not a regular file, or a link to a folder", of_record=False)
            yield Records(), [fault]
        elif path.suffix.lower() in JSON_SUFFIXES:
            yield parse_records(_to_utf8(path.read_bytes(), encoding), columns)
        else:
            # pandas takes half a second to import, which AI Hub's files can do without.
            from stages.common.corpus.table_records import read_table_records

            yield from read_table_records(path, columns, encoding)
    except OSError as error:
        yield Records(), [Fault("unreadable", "", error.strerror or str(error), of_record=False)]


def _to_utf8(data: bytes, encoding: str) -> bytes:
    # Wrong bytes stay what they are, and so wrong in UTF-8.
    return data if encoding == "utf-8" else data.decode(encoding, "surrogateescape").encode(errors="surrogateescape")


def ingest(
    source: Path,
    files: Iterable[Path],
    columns: Columns = AIHUB,
    on_error: str = "stop",
    encoding: str = "utf-8",
    metrics: IngestMetrics | None = None,
    is_test: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows of all files, in their order; faults and counts are added to `metrics`.

    Raises:
        UserError: names the first fault where `on_error` is `stop`; where it is `skip`, no record is valid.
    """
    metrics = metrics or IngestMetrics()
    records, num_read = Records(), 0
    names: list[str] = []  # of the file of each record

    def parts() -> Iterator[tuple[Path, Part | None]]:
        for file in files:
            for part in read_file(source / file, columns, encoding):
                yield file, part
            yield file, None  # its end

    def to_batch(count: int) -> pa.RecordBatch:
        rows, batch_names = records.pop(count), names[:count]
        del names[:count]
        values = [rows.id, rows.text, rows.label, rows.has_label, rows.category, batch_names, [is_test] * len(rows)]
        return pa.RecordBatch.from_pydict(dict(zip(FIELDS, values, strict=True)), schema=SCHEMA)

    has_text = has_label = False
    num_records = num_faults = 0  # of the current file
    for file, part in prefetch(parts()):
        if part is None:
            metrics.add_file(num_records, num_faults)
            num_records = num_faults = 0
            continue
        of_part, faults = part
        if faults and on_error == "stop":
            raise UserError(f"{source / file}: {faults[0]}")
        name = (file.as_posix() if file.name else source.name).encode(errors="backslashreplace").decode()
        num_records, num_faults = num_records + len(of_part), num_faults + len(faults)
        metrics.add(name, len(of_part), faults)
        num_read += len(of_part)
        has_text, has_label = has_text or any(of_part.text), has_label or any(of_part.has_label)
        names += [name] * len(of_part)
        records += of_part
        while len(records) >= BATCH_ROWS:
            yield to_batch(BATCH_ROWS)
    if len(records):
        yield to_batch(len(records))
    for field, is_there in (("text", has_text), ("label", has_label)):
        if num_read and not is_there:
            keys = find_keys((source / file).read_bytes())  # a table without such a column has been refused
            has = f"; the last file has {', '.join(keys)}" if keys else ""
            raise UserError(f"data.{field}_column: no record of {source} has {vars(columns)[field]}{has}")
    if metrics.first_faults and not num_read:
        first = ": ".join(filter(None, (metrics.first_faults[0][key] for key in ("file", "place", "detail"))))
        key = "data.test_source" if is_test else "data.source"
        raise UserError(f"{key}: no valid record in {metrics.files.total()} files of {source}, first {first}")


@report_user_errors
def main() -> None:
    params, metrics = load_params(), IngestMetrics()
    columns = Columns(
        text=params.data.text_column,
        label=params.data.label_column,
        id=params.data.id_column,
        category=params.data.category_column,
    )
    sources = {"data.source": Path(params.data.source), "data.test_source": Path(params.data.test_source)}
    found = {key: find_files(source, key) for key, source in sources.items() if source != NO_FILE}

    def batches() -> Iterator[pa.RecordBatch]:
        for key, files in found.items():
            bar = ProgressBar(files, desc="ingest", unit="file")
            options = columns, params.data.on_error, params.data.encoding, metrics
            yield from ingest(sources[key], bar, *options, is_test=key == "data.test_source")

    write_table(INGESTED, batches(), SCHEMA)
    write_json(INGEST_METRICS, vars(metrics))
    if metrics.first_faults:
        skipped = f"{metrics.files['skipped']} files and {metrics.records['skipped']} records were skipped"
        warn(f"{skipped}, {metrics.files['partly_read']} files were read in part: see {INGEST_METRICS}")


if __name__ == "__main__":
    main()
