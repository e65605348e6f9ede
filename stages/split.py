"""Split the rows into stratified folds without leakage: one fold for each replicate of the comparison."""

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
# Fraction of the rows of a class above which a group of rows is large; large groups become validation rows last.
LARGE_GROUP = 0.01


@dataclass(frozen=True, eq=False)
class Corpus:
    """Properties of rows that decide to which part of a fold they belong; the arrays have the shape (rows,)."""

    labels: np.ndarray  # Class indices.
    groups: np.ndarray  # Group numbers 0, 1, ... without gaps; the rows of a group stay together.
    is_test: np.ndarray  # Whether a row is from data.test_source.
    num_texts: int  # Number of distinct texts.


def require_texts(labels: np.ndarray, class_names: Sequence[str], needed: int, where: str) -> None:
    """Check that each class has at least `needed` groups; `labels` (groups,) are the class indices of the groups.

    Raises:
        UserError: A class has fewer groups; the message says `where`.
    """
    for name, found in zip(class_names, np.bincount(labels, minlength=len(class_names)), strict=True):
        if found < needed:
            raise UserError(f"class {name!r} has {found} distinct texts {where}, but needs at least {needed}")


def deal_folds(labels: np.ndarray, sizes: np.ndarray, num_folds: int, generator: np.random.Generator) -> np.ndarray:
    """Distribute groups over test folds of equal size.

    The groups of a class are taken in random order, large ones first. Each goes to the fold with the fewest rows of its
    class so far and, among such folds, with the fewest rows of all classes.

    Args:
        labels: Class index of each group (groups,).
        sizes: Number of rows of each group (groups,).

    Returns:
        Number of the fold of each group (groups,).
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
    """Draw stratified training and validation groups.

    Each class must have two groups, or one group if there are no validation rows.

    Args:
        labels: Class index of each group (groups,).
        sizes: Number of rows of each group (groups,).

    Returns:
        Indices of the training groups and of the validation groups.
    """
    class_rows = np.bincount(labels, sizes)
    # The order is random within each class, but large groups come last: one could be most of the validation rows.
    order = generator.permutation(len(sizes))
    order = order[np.lexsort((np.maximum(sizes, LARGE_GROUP * class_rows[labels])[order], labels[order]))]
    labels, sizes = labels[order], sizes[order]
    first_of_class = np.searchsorted(labels, np.arange(len(class_rows)))
    rows_before = np.cumsum(sizes) - sizes
    rows_before -= rows_before[first_of_class][labels]

    def leading(fraction: float, start: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Mark, for each class, the first groups after row `start` that make up a fraction of `rows`."""
        offset = rows_before - start[labels]
        return (offset == 0) | (offset + sizes / 2 < (fraction * rows)[labels])

    validation = np.zeros(len(order), bool)
    if params.validation_size:
        validation = leading(params.validation_size, np.zeros_like(class_rows), class_rows)
        validation[np.append(first_of_class[1:], len(order)) - 1] = False  # Each class keeps a group for training.
    validation_rows = np.bincount(labels, sizes * validation)
    # Taking the first groups makes the training rows of a smaller fraction a subset of those of a larger one.
    train = ~validation & leading(params.train_fraction, validation_rows, class_rows - validation_rows)
    return order[train], order[validation]


def make_folds(corpus: Corpus, class_names: Sequence[str], params: SplitParams) -> Iterator[Fold]:
    """Yield `params.folds` folds; no text is in two parts of a fold.

    The test rows of different folds are disjoint and together are all rows. If the corpus has rows from
    data.test_source, these are the test rows of every fold instead, and other rows with their texts are left out. The
    validation rows of each fold are drawn from a separate random stream; if `params.validation_size` is 0, they are the
    test rows.

    Raises:
        UserError: A class has too few distinct texts.
    """
    sizes = np.bincount(corpus.groups)
    labels = np.empty(len(sizes), corpus.labels.dtype)
    labels[corpus.groups[::-1]] = corpus.labels[::-1]  # In reverse, so that the first row of a group decides.
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
    """Compute the keys by which near-duplicates are found.

    A key is the text in lower case without spaces and punctuation, with runs of one character shortened to one. The key
    of a text that consists only of these is the text itself.
    """
    letters = pc.replace_substring_regex(pc.utf8_lower(texts), pattern=r"[^\p{L}\p{N}]+", replacement="")
    keys = re.sub(r"(.)\1+", r"\1", "\n".join(letters.to_pylist())).split("\n")
    return [key or text for key, text in zip(keys, texts.to_pylist(), strict=False)]  # "" has one key.


def read_corpus(batches: Iterable[pa.RecordBatch], group_near_duplicates: bool) -> Corpus:
    """Read labels and groups from batches with the columns labels, text and is_test.

    Rows belong to one group if their texts are equal or, with `group_near_duplicates`, their `near_duplicate_keys`.
    Groups are numbered in the order of their first rows.
    """
    labels, is_test, text_digests, key_digests = [], [], bytearray(), bytearray()

    def digest(texts: list[str]) -> bytes:
        # Keeping eight bytes for each row instead of its text saves memory. With a chance of one in millions, two texts
        # of a corpus have the same digest and stay together needlessly; equal texts are never separated.
        return b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)

    for batch in batches:
        labels.append(batch["labels"].to_numpy().astype(np.int8))  # A view would keep the batch in memory.
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
    """Find the rows whose ids stand in a file, and warn about ids that belong to no row or to several rows.

    Returns:
        Whether each row is excluded, a boolean array (rows,).
    """
    if path == NO_FILE:
        return np.zeros(num_rows, bool)
    ids = read_excluded_ids(path)
    matches = pa.chunked_array([pc.index_in(batch[ID_COLUMN], ids) for batch in read_batches(TOKENIZED, (ID_COLUMN,))])
    rows_of_id = np.bincount(matches.drop_null().to_numpy(), minlength=len(ids))
    several = rows_of_id > 1
    all_rows = f"several rows, {rows_of_id[several].sum()} in all, which are all excluded"
    for is_odd, meaning in ((rows_of_id == 0, "no row"), (several, all_rows)):
        if count := int(is_odd.sum()):
            example = ids[int(is_odd.argmax())].as_py()
            warn(f"data.exclude: {count} of the {len(ids)} ids in {path} belong to {meaning}, for example '{example}'")
    return matches.is_valid().to_numpy()


def read_excluded_ids(path: Path) -> pa.Array:
    """Read the distinct ids in a file: one on each line, or the column `Index` of a .csv, .tsv or .xlsx file.

    Raises:
        UserError: The file cannot be read, or has no such column.
    """
    # Imported only where it is needed, because pandas takes half a second to import.
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
                    raise UserError(f"data.exclude: class {missing[0]!r} has no {part} row left in fold {number}")
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
