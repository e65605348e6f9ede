"""Stratified, leak-free train, validation and test rows."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.common.artifacts.arrow import read_batches, read_table, table_writer
from stages.common.core.console import warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.labels import LABELS
from stages.common.core.params import SplitParams, load_params
from stages.common.core.paths import SPLIT_METRICS, TEST, TOKENIZED, TRAIN, VALIDATION
from stages.common.core.prefetch import prefetch


def allocate(counts: np.ndarray, total: int, reserved: int) -> np.ndarray:
    """`total` rows shared among classes in proportion to `counts` by largest remainder.

    Every class gets at least one row and leaves at least `reserved` to the other splits.
    """
    exact = counts * total / counts.sum()
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: total - shares.sum()]] += 1
    return np.clip(shares, 1, counts - reserved)


def draw(order: np.ndarray, sizes: np.ndarray, quota: int, reserved: int) -> np.ndarray:
    """The first groups of `order` that fit into `quota` rows, then single rows until it is full.

    Draws at least one group and leaves at least `reserved`, whatever their sizes.
    """
    taken = np.cumsum(sizes[order]) <= quota
    missing = quota - int(sizes[order[taken]].sum())
    taken[np.flatnonzero(~taken & (sizes[order] == 1))[:missing]] = True
    if not taken.any():
        taken[np.argmin(sizes[order])] = True
    return order[taken][: len(order) - reserved]


def split(labels: np.ndarray, groups: np.ndarray, params: SplitParams) -> dict[str, np.ndarray]:
    """Row numbers of each split, ascending.

    Rows of one group (one cleaned text) stay together, in the class of the group's first row. The test split has
    ceil(test_size x rows), as scikit-learn's, and validation ceil(validation_size x the others).

    Args:
        labels: (rows,) class indices.
        groups: (rows,) group numbers 0, 1, ... without gaps.

    Raises:
        UserError: a class has fewer distinct texts than there are splits.
    """
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    group_labels = labels[first]
    parts = 3 if params.validation_size else 2
    for label, name in enumerate(LABELS):
        if (found := int((group_labels == label).sum())) < parts:
            raise UserError(f"class {name} has {found} distinct texts after cleaning; the split needs at least {parts}")
    generator = np.random.default_rng(params.seed)
    order = generator.permutation(len(sizes))
    part_of_group = np.zeros(len(sizes), dtype=int)  # 0 train, 1 validation, 2 test
    n_test = math.ceil(params.test_size * len(labels))
    n_validation = math.ceil(params.validation_size * max(1, len(labels) - n_test))
    for part, total, reserved in ((2, n_test, parts - 1), (1, n_validation, 1)):
        if total:
            free = part_of_group == 0
            counts = np.bincount(group_labels[free], sizes[free], len(LABELS)).astype(int)
            for label, quota in enumerate(allocate(counts, total, reserved)):
                candidates = order[(free & (group_labels == label))[order]]
                part_of_group[draw(candidates, sizes, quota, reserved)] = part
    part_of_row = part_of_group[groups]
    rows = {name: np.flatnonzero(part_of_row == part) for part, name in enumerate(("train", "validation", "test"))}
    if not params.validation_size:
        rows["validation"] = rows["test"]
    return rows


def describe(labels: np.ndarray) -> dict[str, int]:
    """Rows in all and of each class."""
    counts = np.bincount(labels, minlength=len(LABELS)).tolist()
    return {"rows": len(labels), **dict(zip(LABELS, counts, strict=True))}


def labels_and_groups(batches: Iterable[pa.RecordBatch]) -> tuple[np.ndarray, np.ndarray]:
    """Class index and group number of each row, (rows,) each; equal texts are one group, numbered as they are met."""
    labels, digests = [], bytearray()
    for batch in batches:
        labels.append(batch["labels"].to_numpy().astype(np.int8))  # a copy: a view would keep the whole batch
        # 8 bytes a row in place of its text, so that memory does not grow with the texts. Two texts that share them, a
        # chance of one in millions, stay together for nothing; equal texts are never parted.
        digests += b"".join(blake2b(text.encode(), digest_size=8).digest() for text in batch["text"].to_pylist())
    _, first, groups = np.unique(np.frombuffer(digests, "<u8"), return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first))
    return np.concatenate(labels), number[groups]


def write_splits(batches: Iterable[pa.RecordBatch], rows: dict[Path, np.ndarray], schema: pa.Schema) -> None:
    """Write the rows with the given ascending numbers to each path, in one pass."""
    with ExitStack() as stack:
        writers = {path: stack.enter_context(table_writer(path, schema)) for path in rows}
        start = 0
        for batch in batches:
            for path, writer in writers.items():
                first, end = np.searchsorted(rows[path], (start, start + batch.num_rows))
                writer.write(batch.take(pa.array(rows[path][first:end] - start)))
            start += batch.num_rows


@report_user_errors
def main() -> None:
    params = load_params().split
    labels, groups = labels_and_groups(prefetch(read_batches(TOKENIZED, ("labels", "text"))))
    rows = split(labels, groups, params)
    if not params.validation_size:
        warn(
            "split.validation_size is 0: epochs are chosen on the test rows, so the figures of `compare` are optimistic"
        )
    paths = {TRAIN: rows["train"], VALIDATION: rows["validation"], TEST: rows["test"]}
    write_splits(prefetch(read_batches(TOKENIZED)), paths, read_table(TOKENIZED).schema)
    metrics = {name: describe(labels[part]) for name, part in rows.items()}
    duplicates = len(labels) - int(groups.max()) - 1
    write_json(SPLIT_METRICS, {**metrics, "duplicate_rows": duplicates})


if __name__ == "__main__":
    main()
