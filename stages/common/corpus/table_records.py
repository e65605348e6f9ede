"""Read the reviews of a table, one per row."""

from collections.abc import Iterator
from pathlib import Path

from stages.common.corpus.records import AIHUB, Columns, ReadError, ReadResult, Records
from stages.common.corpus.tables import missing_column, read_chunks


def _check_columns(found: list[str], columns: Columns) -> None:
    if not any(found):
        raise ValueError("is empty: its first row must name the columns")
    for field, name in vars(columns).items():
        if name not in found and (field in ("text", "label") or name != vars(AIHUB)[field]):
            raise ValueError(f"data.{field}_column: {missing_column(name, found)}")
        if found.count(name) > 1:
            raise ValueError(f"has two columns {name}")


def read_table_records(path: Path, columns: Columns, encoding: str) -> Iterator[ReadResult]:
    """Yield the records of a table, and its errors, a chunk at a time; .txt is read as .tsv.

    If a table has no column of ids, they are FILE:NUMBER.
    """
    suffix = ".tsv" if path.suffix.lower() == ".txt" else path.suffix.lower()
    names: list[str] = []
    num_rows = 0

    def check_columns(found: list[str]) -> None:
        _check_columns(found, columns)
        names.extend(found)

    try:
        with path.open("rb") as file:
            options = encoding, "set data.encoding to cp949", suffix
            for chunk in read_chunks(path, file, columns.text, check_columns, *options):
                if isinstance(chunk, ReadError):
                    yield ReadResult(Records(), [chunk])
                    continue
                size = len(chunk.texts)
                ids: list[str | None] = [f"{path.name}:{num_rows + number}" for number in range(1, size + 1)]
                num_rows += size
                if columns.id in names:
                    ids = [cell or None for cell in chunk.cells(columns.id)]
                categories: list[str | None] = [None] * size
                if columns.category in names:
                    categories = [cell or None for cell in chunk.cells(columns.category)]
                label = chunk.cells(columns.label)
                yield ReadResult(Records(chunk.texts.tolist(), label, [True] * size, ids, categories), [])
    except ValueError as error:
        yield ReadResult(Records(), [ReadError("unreadable", "", str(error), of_record=False)])
