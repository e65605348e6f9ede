"""Stratified, leak-free folds: training, validation and test rows of each replicate of the comparison."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heapreplace
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import read_batches, read_class_names
from stages.common.artifacts.files import atomic_write, write_json
from stages.common.artifacts.folds import PARTS, Fold, FoldCounts, SplitMetrics, write_fold
from stages.common.corpus.records import ReadError
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import SplitParams, load_params
from stages.common.runtime.paths import FOLDS, NO_FILE, SPLIT_METRICS, TOKENIZED, fold_path
from stages.common.runtime.prefetch import prefetch

ID_COLUMN = "Index"
LARGE_GROUP = 0.01  # fraction of the rows of its class; larger groups are the last to become validation rows


@dataclass(frozen=True, eq=False)
class Corpus:
    """What decides to which part of a fold a row belongs; the arrays have the shape (rows,)."""

    labels: np.ndarray  # class indices
    groups: np.ndarray  # group numbers 0, 1, ... without gaps; rows of one group stay together
    is_test: np.ndarray  # rows of data.test_source
    num_texts: int  # distinct texts


def require_texts(labels: np.ndarray, class_names: Sequence[str], needed: int, where: str) -> None:
    """Raise a UserError that names a class with fewer than `needed` groups; `labels` (groups,) are their classes."""
    for name, found in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True):
        if found < needed:
            raise UserError(f"class {name} has {found} distinct texts {where}, but needs at least {needed}")


def deal_folds(labels: np.ndarray, sizes: np.ndarray, num_folds: int, generator: np.random.Generator) -> np.ndarray:
    """Deal groups with these classes and numbers of rows to test folds of equal size; return the fold of each group.

    The groups of a class come in random order, large ones first. Each goes to the fold with the fewest rows of its
    class so far and, among these, with the fewest rows of all classes.
    """
    folds = np.empty(len(sizes), np.int16)
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    heap = [(0, 0, fold) for fold in range(num_folds)]
    for label in np.unique(labels):
        members = order[labels[order] == label]
        heap, dealt = sorted((0, rows, fold) for _, rows, fold in heap), []
        for size in sizes[members].tolist():
            class_rows, rows, fold = heap[0]
            heapreplace(heap, (class_rows + size, rows + size, fold))
            dealt.append(fold)
        folds[members] = dealt
    return folds


def divide(
    labels: np.ndarray, sizes: np.ndarray, params: SplitParams, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw stratified training and validation groups from groups with these classes and numbers of rows.

    Each class needs two groups, or one without validation.

    Returns:
        Numbers of the training groups, and of the validation groups.
    """
    class_rows = np.bincount(labels, sizes)
    # Random within each class; large groups come last, since one of them could make up most of the validation rows.
    order = generator.permutation(len(sizes))
    order = order[np.lexsort((np.maximum(sizes, LARGE_GROUP * class_rows[labels])[order], labels[order]))]
    labels, sizes = labels[order], sizes[order]
    first_of_class = np.searchsorted(labels, np.arange(len(class_rows)))
    rows_before = np.cumsum(sizes) - sizes
    rows_before -= rows_before[first_of_class][labels]

    def leading(fraction: float, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether a group is among those that make up a fraction of the `rows` (classes,) that follow on `start`."""
        offset = rows_before - start[labels]
        return (offset == 0) | (offset + sizes / 2 < (fraction * rows)[labels])

    validation = np.zeros(len(order), bool)
    if params.validation_size:
        validation = leading(params.validation_size, np.zeros_like(class_rows), class_rows)
        validation[np.append(first_of_class[1:], len(order)) - 1] = False  # the last of each class is for training
    validation_rows = np.bincount(labels, sizes * validation)
    # The first groups are kept, so that the rows of a smaller fraction are among those of a larger one.
    train = ~validation & leading(params.train_fraction, validation_rows, class_rows - validation_rows)
    return order[train], order[validation]


def make_folds(corpus: Corpus, class_names: Sequence[str], params: SplitParams) -> Iterator[Fold]:
    """Yield `params.folds` folds, which have no text in common between their parts.

    The test folds are disjoint and together hold all rows. If `corpus.is_test` marks rows, these are the test rows of
    every fold, and other rows with their texts are left out. Each fold draws its validation rows from a random stream
    of its own; if `params.validation_size` is 0, they are the test rows.

    Raises:
        UserError: A class has too few distinct texts.
    """
    sizes = np.bincount(corpus.groups)
    labels = np.empty(len(sizes), corpus.labels.dtype)
    labels[corpus.groups[::-1]] = corpus.labels[::-1]  # the last assignment counts: that of a group's first row
    generator = np.random.default_rng(params.seed)
    if has_test_source := bool(corpus.is_test.any()):
        require_texts(corpus.labels[corpus.is_test], class_names, 1, "in data.test_source")
        held_out = [np.isin(np.arange(len(sizes)), corpus.groups[corpus.is_test])] * params.folds
    else:
        require_texts(labels, class_names, params.folds, f"for split.folds: {params.folds}")
        test_folds = deal_folds(labels, sizes, params.folds, generator)
        held_out = [test_folds == number for number in range(params.folds)]
    for is_held_out, stream in zip(held_out, generator.spawn(params.folds), strict=True):
        others = np.flatnonzero(~is_held_out)
        require_texts(labels[others], class_names, 1 + bool(params.validation_size), "outside the test rows")
        chosen = divide(labels[others], sizes[others], params, stream)
        train, validation = (np.flatnonzero(np.isin(corpus.groups, others[groups])) for groups in chosen)
        test = np.flatnonzero(corpus.is_test if has_test_source else is_held_out[corpus.groups])
        yield Fold(train, validation if params.validation_size else test, test)


def near_duplicate_keys(texts: pa.StringArray) -> list[str]:
    """Texts without case, spaces, punctuation and runs of one character; a text with nothing else stays as it is."""
    letters = pc.replace_substring_regex(pc.utf8_lower(texts), pattern=r"[^\p{L}\p{N}]+", replacement="")
    keys = re.sub(r"(.)\1+", r"\1", "\n".join(letters.to_pylist())).split("\n")
    return [key or text for key, text in zip(keys, texts.to_pylist(), strict=False)]  # no text has one key


def read_corpus(batches: Iterable[pa.RecordBatch], group_near_duplicates: bool) -> Corpus:
    """Read labels and groups from batches with the columns labels, text and is_test.

    Rows are one group if their texts are equal, or with `group_near_duplicates` their `near_duplicate_keys`. Groups are
    numbered by first appearance.
    """
    labels, is_test, text_digests, key_digests = [], [], bytearray(), bytearray()

    def digest(texts: list[str]) -> bytes:
        # 8 bytes a row in place of its text, so that memory does not grow with the texts. Two texts with the same
        # digest, a chance of one in millions, would stay together for nothing; equal texts are never separated.
        return b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)

    for batch in batches:
        labels.append(batch["labels"].to_numpy().astype(np.int8))  # a copy: a view would keep the whole batch
        is_test.append(batch["is_test"].to_numpy(False))
        text_digests += digest(batch["text"].to_pylist())
        if group_near_duplicates:
            key_digests += digest(near_duplicate_keys(batch["text"]))
    texts, groups = (
        pa.array(np.frombuffer(digests, "<u8")).dictionary_encode()
        for digests in (text_digests, key_digests or text_digests)
    )
    return Corpus(np.concatenate(labels), groups.indices.to_numpy(), np.concatenate(is_test), len(texts.dictionary))


def find_excluded(path: Path, num_rows: int) -> np.ndarray:
    """Mark the rows (rows,) whose ids stand in a file, and warn about ids of no row and of several rows."""
    if path == NO_FILE:
        return np.zeros(num_rows, bool)
    ids = read_excluded_ids(path)
    matches = pa.chunked_array([pc.index_in(batch[ID_COLUMN], ids) for batch in read_batches(TOKENIZED, (ID_COLUMN,))])
    rows_of_id = np.bincount(matches.drop_null().to_numpy(), minlength=len(ids))
    several = rows_of_id > 1
    all_rows = f"{rows_of_id[several].sum()} rows, which are all excluded"
    for is_odd, meaning in ((rows_of_id == 0, "no row"), (several, all_rows)):
        if count := int(is_odd.sum()):
            example = ids[int(is_odd.argmax())].as_py()
            warn(f"data.exclude: {count} of the {len(ids)} ids in {path} belong to {meaning}, for example '{example}'")
    return matches.is_valid().to_numpy()


def read_excluded_ids(path: Path) -> pa.Array:
    """The distinct ids in a file: one a line, or the column `Index` of a .csv, .tsv or .xlsx, as in label_issues.csv.

    Raises:
        UserError: it cannot be read, or has no such column.
    """
    # pandas takes half a second to import.
    from stages.common.corpus.tables import Wanted, match_column, read_chunks

    def check_columns(found: list[str]) -> None:
        match_column(ID_COLUMN, found)

    suffix = path.suffix.lower() if path.suffix.lower() in (".csv", ".tsv", ".xlsx") else ".txt"
    ids: list[str] = []
    try:
        with path.open("rb") as file:
            for chunk in read_chunks(path, file, Wanted(ID_COLUMN, check_columns), suffix=suffix):
                if isinstance(chunk, ReadError):
                    raise ValueError(chunk)
                column = match_column(ID_COLUMN, list(chunk.to_frame()))
                ids += [cell.strip() for cell in chunk.cells(column) if cell and cell.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"data.exclude: {path}: {error}") from error
    return pa.array(ids, pa.string()).unique()


@report_user_errors
def main() -> None:
    params = load_params()
    if not params.split.validation_size:
        warn("split.validation_size is 0: epochs are selected on the test rows, so the test metrics are optimistic")
    class_names = read_class_names(TOKENIZED)
    batches = prefetch(read_batches(TOKENIZED, ("labels", "text", "is_test")))
    corpus = read_corpus(batches, params.split.group_near_duplicates)
    excluded = find_excluded(Path(params.data.exclude), len(corpus.labels))
    counts = []
    with atomic_write(FOLDS) as folder:
        for number, fold in enumerate(make_folds(corpus, class_names, params.split)):
            remaining = fold.exclude(excluded)
            counts.append(FoldCounts.of(remaining, corpus.labels, class_names))
            for part, of_part in counts[-1]:
                if missing := [name for name, rows in of_part.classes.items() if not rows]:
                    raise UserError(f"data.exclude: leaves class {missing[0]} no {part} row in fold {number}")
            write_fold(folder / fold_path(number).name, remaining, len(excluded))
    metrics = SplitMetrics(
        rows=len(corpus.labels),
        duplicate_rows=len(corpus.labels) - corpus.num_texts,
        near_duplicate_texts=corpus.num_texts - int(corpus.groups.max()) - 1,
        duplicates_of_test_source=int((np.isin(corpus.groups, corpus.groups[corpus.is_test]) & ~corpus.is_test).sum()),
        excluded_rows=int(excluded.sum()),
        fixed_test_rows=bool(corpus.is_test.any()),
        mean_rows={part: round(fmean(getattr(fold, part).rows for fold in counts)) for part in PARTS},
        folds=counts,
    )
    write_json(SPLIT_METRICS, metrics.model_dump())


if __name__ == "__main__":
    main()
