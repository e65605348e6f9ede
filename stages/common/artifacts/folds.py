"""Folds: the training, validation and test rows of one replicate of the comparison.

The file of a fold has one row for each row of data/tokenized.arrow and three boolean columns, so that folds are not
copies of the corpus. Its bytes change only if the rows of this fold change.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from stages.common.artifacts.arrow import make_schema, read_table, write_table
from stages.common.runtime.exceptions import UserError

PARTS = ("train", "validation", "test")
SCHEMA = make_schema(dict.fromkeys(PARTS, pa.bool_()))


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers of data/tokenized.arrow for each part of a fold, in ascending order."""

    train: np.ndarray
    validation: np.ndarray  # Equal to the test rows if split.validation_size is 0.
    test: np.ndarray

    @property
    def selects_on_test_rows(self) -> bool:
        """Whether epochs and learning rates are selected on the test rows, which makes test scores optimistic."""
        return np.array_equal(self.validation, self.test)

    def exclude(self, excluded: np.ndarray) -> "Fold":
        """Remove the rows marked in `excluded` (rows,), a boolean array, from training and validation.

        The test rows stay, so that scores remain comparable and excluding difficult rows cannot raise a score.
        """
        validation = self.validation if self.selects_on_test_rows else self.validation[~excluded[self.validation]]
        return Fold(self.train[~excluded[self.train]], validation, self.test)


class PartCounts(BaseModel):
    """Number of rows in one part of a fold: the total, and the number for each class name."""

    rows: int
    classes: dict[str, int]


class FoldCounts(BaseModel):
    """Number of rows in each part of a fold."""

    train: PartCounts
    validation: PartCounts
    test: PartCounts

    @classmethod
    def of(cls, fold: Fold, labels: np.ndarray, class_names: Sequence[str]) -> "FoldCounts":
        """Count the rows of a fold; `labels` (rows,) are the class indices of all rows of the table."""
        counts = {part: np.bincount(labels[getattr(fold, part)], minlength=len(class_names)) for part in PARTS}
        by_class = {part: dict(zip(class_names, rows.tolist(), strict=True)) for part, rows in counts.items()}
        return cls(**{part: PartCounts(rows=sum(rows.values()), classes=rows) for part, rows in by_class.items()})


class SplitMetrics(BaseModel):
    """Content of metrics/split.json. The tables of DVC show the numbers and omit the list of folds."""

    rows: int
    duplicate_rows: int  # Rows whose text also stands in an earlier row.
    near_duplicate_texts: int  # Distinct texts that stay in one part with an earlier text that is nearly equal.
    duplicates_of_test_source: int  # Rows that no part has, because their text stands in data.test_source.
    excluded_rows: int  # Rows whose id stands in data.exclude.
    fixed_test_rows: bool  # Whether the test rows of every fold are those of data.test_source.
    mean_rows: dict[str, int]  # Mean number of rows over the folds, for each part.
    folds: list[FoldCounts]


def write_fold(path: Path, fold: Fold, num_rows: int) -> None:
    """Write a fold of a table of `num_rows` rows."""
    masks = np.zeros((len(PARTS), num_rows), bool)
    for mask, part in zip(masks, PARTS, strict=True):
        mask[getattr(fold, part)] = True
    write_table(path, [pa.table([pa.array(mask) for mask in masks], schema=SCHEMA)], SCHEMA)


def read_fold(path: Path, num_rows: int) -> Fold:
    """Read a fold of a table of `num_rows` rows.

    Raises:
        UserError: The file is missing or damaged, is not a fold, or belongs to another table.
    """
    table = read_table(path)
    if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
        raise UserError(f"{path}: is not a fold with the columns {', '.join(PARTS)}; run `dvc repro` to make it")
    if table.num_rows != num_rows:
        raise UserError(
            f"{path}: has {table.num_rows} rows, but data/tokenized.arrow has {num_rows}; run `dvc repro` to make both"
        )
    fold = Fold(*(np.flatnonzero(table[part].to_numpy()) for part in PARTS))
    evaluated = fold.test if fold.selects_on_test_rows else np.concatenate([fold.validation, fold.test])
    if np.bincount(np.concatenate([fold.train, evaluated]), minlength=1).max() > 1:
        raise UserError(f"{path}: a row is in two parts of the fold; run `dvc repro` to make the file again")
    return fold
