"""Read the reviews of a table, one per row."""

from collections.abc import Iterator
from pathlib import Path

from stages.common.corpus.records import AIHUB, Columns, ReadError, ReadResult, Records
from stages.common.corpus.tables import MissingColumnError, Wanted, is_table, match_column, read_chunks


def _find_columns(found: list[str], columns: Columns) -> dict[str, str]:
    """Return the name that a table has for each field of `columns`; the columns of ids and categories may be missing.

    Raises:
        MissingColumnError: A column that was asked for is missing.
        ValueError: A column stands twice.
    """
    if not any(found):
        raise MissingColumnError("is empty: its first row must name the columns")
    names = {}
    for field, name in columns.names().items():
        try:
            names[field] = match_column(name, found)
        except MissingColumnError as error:
            if field in ("text", "label") or name != AIHUB.names()[field]:
                hint = "; if no row names the columns, list them in data.columns"
                raise MissingColumnError(f"data.{field}_column of params.yaml: {error}{hint}") from error
            continue
        if found.count(names[field]) > 1:
            raise ValueError(f"has two columns {name}")
    return names


def is_text_table(path: Path, columns: Columns, encoding: str) -> bool:
    """Whether one of the first lines of a .txt file names these columns."""

    def check_columns(found: list[str]) -> None:
        _find_columns(found, columns)

    return is_table(path, Wanted(columns.text, check_columns, columns.header), encoding)


def read_table_records(path: Path, columns: Columns, encoding: str, name: str) -> Iterator[ReadResult]:
    """Yield the records of a table, and its errors, a chunk at a time; .txt is read as .tsv.

    If a table has no column of ids, they are NAME:NUMBER.
    """
    suffix = ".tsv" if path.suffix.lower() == ".txt" else path.suffix.lower()
    names: dict[str, str] = {}
    num_rows = 0

    def check_columns(found: list[str]) -> None:
        names.update(_find_columns(found, columns))

    try:
        with path.open("rb") as file:
            for chunk in read_chunks(path, file, Wanted(columns.text, check_columns, columns.header), encoding, suffix):
                if isinstance(chunk, ReadError):
                    yield ReadResult(Records(), [chunk])
                    continue
                size = len(chunk.texts)
                ids: list[str | None] = [f"{name}:{num_rows + number}" for number in range(1, size + 1)]
                num_rows += size
                if "id" in names:
                    ids = [cell or None for cell in chunk.cells(names["id"])]
                categories: list[str | None] = [None] * size
                if "category" in names:
                    categories = [cell or None for cell in chunk.cells(names["category"])]
                label = chunk.cells(names["label"])
                yield ReadResult(Records(chunk.texts.tolist(), label, [True] * size, ids, categories), [])
    except ValueError as error:
        yield ReadResult(Records(), [ReadError("unreadable", "", str(error), of_record=False)])
