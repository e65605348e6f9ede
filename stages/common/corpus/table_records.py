"""Reading reviews from tables, one review per row."""

from collections.abc import Iterator
from pathlib import Path

from stages.common.corpus.records import AIHUB, Columns, ReadError, ReadResult, Records
from stages.common.corpus.tables import MissingColumnError, Wanted, is_table, match_column, read_chunks


def _find_columns(found: list[str], columns: Columns) -> dict[str, str]:
    """Return the name of the column for each field of `columns` that the table has.

    Raises:
        MissingColumnError: The column of the texts or labels is missing, or a column that the parameters name
            differently from AI Hub's.
        ValueError: Two columns have the same name.
    """
    if not any(found):
        raise MissingColumnError("is empty: its first row must name the columns")
    names = {}
    for field, name in columns.names().items():
        try:
            names[field] = match_column(name, found)
        except MissingColumnError as error:
            if field in ("text", "label") or name != AIHUB.names()[field]:
                hint = "; if the table has no header, list its columns in data.columns"
                raise MissingColumnError(f"data.{field}_column of params.yaml: {error}{hint}") from error
            continue
        if found.count(names[field]) > 1:
            raise ValueError(f"has two columns {name!r}: rename one of them")
    return names


def is_text_table(path: Path, columns: Columns, encoding: str) -> bool:
    """Return whether one of the first lines of a .txt file is a header with these columns."""

    def check_columns(found: list[str]) -> None:
        _find_columns(found, columns)

    return is_table(path, Wanted(columns.text, check_columns, columns.header), encoding)


def read_table_records(path: Path, columns: Columns, encoding: str, name: str) -> Iterator[ReadResult]:
    """Yield the records and errors of a table in chunks; .txt is read as .tsv.

    In a table without a column of ids, the id of a row is NAME:NUMBER.
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
