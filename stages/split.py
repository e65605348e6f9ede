"""Stratified, leak-free train, validation and test rows."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import map_table, read_batches, read_class_names, write_table
from stages.common.artifacts.files import write_json
from stages.common.corpus.records import ReadError
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import SplitParams, load_params
from stages.common.runtime.paths import NO_FILE, SPLIT_METRICS, SPLITS, TOKENIZED
from stages.common.runtime.prefetch import prefetch

UNUSED = -1  # in place of the number of a split
ID_COLUMN = "Index"


def stratified_sizes(counts: np.ndarray, total: int, reserved: int) -> np.ndarray:
    """Distribute `total` rows over classes in proportion to `counts` (classes,), by largest remainder.

    Each class gets at least one row and keeps at least `reserved` for the other splits.
    """
    exact = counts * total / counts.sum()
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]] += 1
    return np.clip(sizes, 1, counts - reserved)


def sample_groups(order: np.ndarray, sizes: np.ndarray, quota: int, reserved: int) -> np.ndarray:
    """The first groups of `order` that fit into `quota` rows, then groups of one row until it is full.

    Takes at least one group and leaves at least `reserved`, whatever their sizes.
    """
    taken = np.cumsum(sizes[order]) <= quota
    missing = quota - int(sizes[order[taken]].sum())
    taken[np.flatnonzero(~taken & (sizes[order] == 1))[:missing]] = True
    if not taken.any():
        taken[np.argmin(sizes[order])] = True
    return order[taken][: len(order) - reserved]


def split(
    labels: np.ndarray, groups: np.ndarray, class_names: Sequence[str], params: SplitParams, with_test: bool = True
) -> dict[str, np.ndarray]:
    """Row numbers of each split, ascending.

    Rows of one group stay together, in the class of the group's first row. The test split has
    ceil(test_size x rows), as scikit-learn's, and validation ceil(validation_size x the others), or somewhat less where
    groups of several rows do not fit.

    Args:
        labels: (rows,) class indices.
        groups: (rows,) group numbers 0, 1, ... without gaps.
        class_names: of all classes.
        with_test: otherwise no row becomes a test row.

    Raises:
        UserError: a class has fewer distinct texts than there are splits.
    """
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    group_labels = labels[first]
    num_splits = 1 + with_test + bool(params.validation_size)
    for name, found in zip(class_names, np.bincount(group_labels, minlength=len(class_names)), strict=True):
        if found < num_splits:
            raise UserError(f"class {name} has {found} distinct texts after cleaning; it needs at least {num_splits}")
    order = np.random.default_rng(params.seed).permutation(len(sizes))
    split_of_group = np.zeros(len(sizes), dtype=int)  # 0 train, 1 validation, 2 test
    n_test = math.ceil(params.test_size * len(labels)) if with_test else 0
    n_validation = math.ceil(params.validation_size * max(1, len(labels) - n_test))
    for number, total, reserved in ((2, n_test, num_splits - 1), (1, n_validation, 1)):
        if total:
            free = split_of_group == 0
            counts = np.bincount(group_labels[free], sizes[free], len(class_names)).astype(int)
            for label, quota in enumerate(stratified_sizes(counts, total, reserved)):
                candidates = order[(free & (group_labels == label))[order]]
                split_of_group[sample_groups(candidates, sizes, quota, reserved)] = number
    if params.train_fraction < 1:
        for label in range(len(class_names)):
            train = order[((split_of_group == 0) & (group_labels == label))[order]]
            cumulative = np.cumsum(sizes[train])
            quota = max(math.ceil(params.train_fraction * cumulative[-1]), cumulative[0])
            # What is kept begins the order, so that a smaller fraction's rows are a part of a larger one's.
            split_of_group[train[cumulative > quota]] = UNUSED
    rows = {name: np.flatnonzero(split_of_group[groups] == number) for number, name in enumerate(SPLITS)}
    if not params.validation_size:
        rows["validation"] = rows["test"]
    return rows


def split_with_fixed_test(
    labels: np.ndarray, groups: np.ndarray, is_test: np.ndarray, class_names: Sequence[str], params: SplitParams
) -> dict[str, np.ndarray]:
    """What `split` returns, where the rows (rows,) of `is_test` are the test rows; their groups leave the others.

    Raises:
        UserError: a class has too few texts, or no test row.
    """
    test = np.flatnonzero(is_test)
    for name, found in zip(class_names, np.bincount(labels[test], minlength=len(class_names)), strict=True):
        if not found:
            raise UserError(f"data.test_source: class {name} has no row")
    others = np.flatnonzero(~np.isin(groups, groups[test]))
    _, other_groups = np.unique(groups[others], return_inverse=True)
    rows = split(labels[others], other_groups, class_names, params, with_test=False)
    return {name: others[numbers] for name, numbers in rows.items() if len(numbers)} | (
        {"test": test} if params.validation_size else {"validation": test, "test": test}
    )


def near_duplicate_keys(texts: pa.StringArray) -> list[str]:
    """Texts without case, spaces, punctuation and runs of one character; a text with nothing else stays as it is."""
    letters = pc.replace_substring_regex(pc.utf8_lower(texts), pattern=r"[^\p{L}\p{N}]+", replacement="")
    keys = re.sub(r"(.)\1+", r"\1", "\n".join(letters.to_pylist())).split("\n")
    return [key or text for key, text in zip(keys, texts.to_pylist(), strict=False)]  # no text has one key


def labels_and_groups(
    batches: Iterable[pa.RecordBatch], group_near_duplicates: bool = False
) -> tuple[np.ndarray, np.ndarray, int]:
    """Class index and group number (rows,) of each row, and the number of distinct texts.

    Rows are one group if their texts are equal, or with `group_near_duplicates` their `near_duplicate_keys`. Groups are
    numbered by first appearance.
    """
    labels, text_digests, key_digests = [], bytearray(), bytearray()

    def digest(texts: list[str]) -> bytes:
        # 8 bytes a row in place of its text, so that memory does not grow with the texts. Two texts with the same
        # digest, a chance of one in millions, would stay together for nothing; equal texts are never separated.
        return b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)

    for batch in batches:
        labels.append(batch["labels"].to_numpy().astype(np.int8))  # a copy: a view would keep the whole batch
        text_digests += digest(batch["text"].to_pylist())
        if group_near_duplicates:
            key_digests += digest(near_duplicate_keys(batch["text"]))
    texts, groups = (
        pa.array(np.frombuffer(digests, "<u8")).dictionary_encode()
        for digests in (text_digests, key_digests or text_digests)
    )
    return np.concatenate(labels), groups.indices.to_numpy(), len(texts.dictionary)


def select_rows(batches: Iterable[pa.RecordBatch], rows: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows with the given ascending numbers."""
    start = 0
    for batch in batches:
        first, end = np.searchsorted(rows, (start, start + batch.num_rows))
        yield batch.take(pa.array(rows[first:end] - start))
        start += batch.num_rows


def exclude(rows: dict[str, np.ndarray], path: Path) -> int:
    """Remove the rows whose ids stand in a file from every split; returns how many these are."""
    if path == NO_FILE:
        return 0
    ids = read_excluded_ids(path)
    found = [batch[ID_COLUMN] for batch in read_batches(TOKENIZED, (ID_COLUMN,))]
    excluded = np.concatenate([pc.is_in(column, ids).to_numpy(False) for column in found])
    known = pa.chunked_array(found).filter(pa.array(excluded)).unique()
    if unknown := len(ids) - len(known):
        warn(f"data.exclude: {unknown} of the {len(ids)} ids in {path} are those of no row")
    if left_out := int(excluded[rows["test"]].sum()):
        warn(f"data.exclude: {left_out} test rows are left out, so that scores on the others are not comparable")
    for name in rows:
        rows[name] = rows[name][~excluded[rows[name]]]
    return int(excluded.sum())


def read_excluded_ids(path: Path) -> pa.Array:
    """The distinct ids in a file: one a line, or the column `Index` of a .csv, .tsv or .xlsx, as in label_issues.csv.

    Raises:
        UserError: it cannot be read, or has no such column.
    """
    # pandas takes half a second to import.
    from stages.common.corpus.tables import missing_column, read_chunks

    def check_columns(found: list[str]) -> None:
        if ID_COLUMN not in found:
            raise ValueError(missing_column(ID_COLUMN, found))

    suffix = path.suffix.lower()
    fault: Exception | ReadError | None = None
    for encoding in ("utf-8", "cp949"):  # Excel may have saved the table anew
        try:
            with path.open("rb") as file:
                options = encoding, "", suffix if suffix in (".csv", ".tsv", ".xlsx") else ".txt"
                chunks = list(read_chunks(path, file, ID_COLUMN, check_columns, *options))
        except (OSError, ValueError) as error:
            fault = fault or error
            continue
        if faults := [chunk for chunk in chunks if isinstance(chunk, ReadError)]:
            fault = fault or faults[0]
            continue
        cells = chain.from_iterable(chunk.cells(ID_COLUMN) for chunk in chunks if not isinstance(chunk, ReadError))
        return pa.array([cell.strip() for cell in cells if cell and cell.strip()], pa.string()).unique()
    raise UserError(f"data.exclude: {path}: {fault}")


@report_user_errors
def main() -> None:
    params = load_params()
    if not params.split.validation_size:
        warn("split.validation_size is 0: epochs are selected on the test rows, so the test metrics are optimistic")
    batches = prefetch(read_batches(TOKENIZED, ("labels", "text")))
    labels, groups, num_texts = labels_and_groups(batches, params.split.group_near_duplicates)
    class_names = read_class_names(TOKENIZED)
    is_test = np.concatenate([batch["is_test"].to_numpy(False) for batch in read_batches(TOKENIZED, ("is_test",))])
    if is_test.any():
        rows = split_with_fixed_test(labels, groups, is_test, class_names, params.split)
    else:
        rows = split(labels, groups, class_names, params.split)
    near_duplicates = num_texts - int(groups.max()) - 1  # texts that differ from another one, but share its key
    metrics = {"duplicate_rows": len(labels) - num_texts, "near_duplicate_texts": near_duplicates}
    metrics["duplicates_of_test_source"] = int((np.isin(groups, groups[is_test]) & ~is_test).sum())
    # After the split, so that the other rows stay where they were.
    metrics["excluded_rows"] = exclude(rows, Path(params.data.exclude))
    schema = map_table(TOKENIZED).schema
    schema = schema.remove(schema.get_field_index("is_test"))
    counts = {name: np.bincount(labels[numbers], minlength=len(class_names)).tolist() for name, numbers in rows.items()}
    for name, of_class in counts.items():
        if not all(of_class):
            raise UserError(f"data.exclude: leaves class {class_names[of_class.index(0)]} no {name} row")
    for name, path in SPLITS.items():
        selected = select_rows(prefetch(read_batches(TOKENIZED, schema.names)), rows[name])
        write_table(path, selected, schema)
    sizes = {name: {"rows": sum(each), **dict(zip(class_names, each, strict=True))} for name, each in counts.items()}
    write_json(SPLIT_METRICS, {**sizes, **metrics})


if __name__ == "__main__":
    main()
