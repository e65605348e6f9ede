"""Add columns to tables of any size.

Rows are read, computed and written in chunks. Only an .xlsx file that is written is in memory as a whole.

If input and output have the same format, no value changes: the new keys are appended to each JSON line, and Parquet
keeps its types. From an Excel file only the values of the first sheet are kept, without formulas and formats. In CSV
and TSV, and in Parquet that is converted from another format, every value is text, and objects and lists are JSON text.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.utils.exceptions import IllegalCharacterError

from stages.common.artifacts.files import atomic_write
from stages.common.corpus.records import ReadError
from stages.common.corpus.tables import READERS, Chunk, Wanted, match_column, read_chunks, to_json_lines
from stages.common.runtime.console import ProgressBar
from stages.common.runtime.exceptions import UserError

ComputedChunks = Iterator[tuple[Chunk, pd.DataFrame]]  # Rows, and their new columns.


def _write_csv(path: Path, chunks: ComputedChunks, delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, (chunk, new) in enumerate(chunks):
            frame = pd.concat([chunk.to_text(), new], axis=1)
            # Python 3.11 does not quote a cell that contains a lone \r, so all cells are quoted.
            frame.to_csv(file, sep=delimiter, header=number == 0, index=False, quoting=csv.QUOTE_ALL)


def _write_excel(path: Path, chunks: ComputedChunks) -> None:
    # All rows are in memory at once, since a sheet has a million rows at most.
    frame = pd.concat([pd.concat([chunk.to_excel(), new], axis=1) for chunk, new in chunks])
    try:
        with path.open("wb") as file, pd.ExcelWriter(file, engine="openpyxl") as writer:
            frame.to_excel(writer, index=False)
            for cell in chain.from_iterable(writer.book.active.rows):
                if cell.data_type == "f":  # A text that begins with = is no formula.
                    cell.data_type = "s"
    except (ValueError, IllegalCharacterError) as error:
        raise UserError(f"an Excel file cannot hold this table: {str(error)!a}; write .csv or .parquet") from error


def _write_json_lines(path: Path, chunks: ComputedChunks) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for chunk, new in chunks:
            for row, added in zip(chunk.to_json_lines(), to_json_lines(new), strict=True):
                file.write(f"{row.removesuffix('}').rstrip()}, {added[1:]}\n")


def _to_arrow(chunk: Chunk, new: pd.DataFrame) -> pa.Table:
    table = chunk.to_arrow()
    for name in new:
        table = table.append_column(name, pa.array(new[name], from_pandas=True))
    return table


def _write_parquet(path: Path, chunks: ComputedChunks) -> None:
    first = _to_arrow(*next(chunks))
    # Arrow cannot open a file whose name is not UTF-8.
    with path.open("wb") as file, pq.ParquetWriter(file, first.schema) as writer:
        for table in chain([first], itertools.starmap(_to_arrow, chunks)):
            writer.write_table(table)


WRITERS: dict[str, Callable[..., None]] = {
    ".csv": _write_csv,
    ".tsv": partial(_write_csv, delimiter="\t"),
    ".xlsx": _write_excel,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}


def add_columns(
    source: Path,
    target: Path,
    text_column: str | None,
    names: Sequence[str],
    compute: Callable[[pd.Series], pd.DataFrame],
    encoding: str = "utf-8",
    header: Sequence[str] = (),
) -> None:
    """Write the rows of `source` to `target`, with new columns after the old ones.

    Args:
        source: The table to read.
        target: The table to write. Its suffix names the format; without a suffix it has the format of `source`.
        text_column: Column of `source` that has the texts. None reads a .txt file that has one text per line, and
            writes them to a column `text`. With a name, a .txt file is read as .tsv.
        names: Names of the new columns.
        compute: Returns the new columns for the texts of a chunk.
        encoding: Encoding of `source` if it has lines with wrong bytes. `target` is UTF-8.
        header: Names of all columns of `source`, if none of its rows names them.

    Raises:
        UserError: `source` is missing, damaged or of an unknown format, has no `text_column`, or has one of `names`
            already. `target` has not changed.
    """
    target_format = (target.suffix or source.suffix).lower()
    for path, ending, formats in ((source, source.suffix.lower(), READERS), (target, target_format, WRITERS)):
        if ending not in formats:
            raise UserError(f"{path}: its name must end in {', '.join(formats)}")
    if not source.is_file():
        raise UserError(f"{source}: the file does not exist")
    if target.is_dir():
        raise UserError(f"{target}: this is a folder; name a file")

    def check_columns(found: list[str]) -> None:
        match_column(wanted.text_column, found)
        if taken := [name for name in found if name in names or (name and found.count(name) > 1)]:
            raise ValueError(
                f"the column {taken[0]!r} exists already, or twice; rename it, or give the new columns a --prefix"
            )

    wanted = Wanted(text_column or "text", check_columns, header)
    suffix = ".tsv" if text_column and source.suffix.lower() == ".txt" else source.suffix.lower()

    def chunks() -> Iterator[Chunk]:
        try:
            for chunk in read_chunks(source, file, wanted, encoding, suffix):
                if isinstance(chunk, ReadError):
                    raise ValueError(chunk)
                yield chunk
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error

    def computed() -> ComputedChunks:
        with ProgressBar(total=source.stat().st_size, unit="B", unit_scale=True, desc="predict") as progress:
            for chunk in chunks():
                yield chunk, compute(chunk.texts)
                progress.update(file.tell() - progress.n)

    with source.open("rb") as file, atomic_write(target) as temporary:
        WRITERS[target_format](temporary, computed())
