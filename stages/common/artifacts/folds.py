"""Folds: which rows of data/tokenized.arrow are the training, validation and test rows of a replicate.

A fold's file has one row for each row of data/tokenized.arrow and three boolean columns, so that K folds do not hold K
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
    """Row numbers of data/tokenized.arrow, each array ascending."""

    train: np.ndarray
    validation: np.ndarray  # the test rows themselves if split.validation_size is 0
    test: np.ndarray

    @property
    def selects_on_test_rows(self) -> bool:
        """Whether epochs and learning rates are selected on the test rows, which makes test scores optimistic."""
        return np.array_equal(self.validation, self.test)

    def exclude(self, excluded: np.ndarray) -> "Fold":
        """Return the fold without the excluded rows (rows,) among those of training and validation.

        They stay test rows, so that scores remain comparable and nobody can raise a score by excluding difficult rows.
        """
        validation = self.validation if self.selects_on_test_rows else self.validation[~excluded[self.validation]]
        return Fold(self.train[~excluded[self.train]], validation, self.test)


class PartCounts(BaseModel):
    """Rows of one part of a fold, in total and by class name."""

    rows: int
    classes: dict[str, int]


class FoldCounts(BaseModel):
    """Rows of each part of a fold."""

    train: PartCounts
    validation: PartCounts
    test: PartCounts

    @classmethod
    def of(cls, fold: Fold, labels: np.ndarray, class_names: Sequence[str]) -> "FoldCounts":
        """Count the rows of a fold; `labels` (rows,) are those of all rows."""
        counts = {part: np.bincount(labels[getattr(fold, part)], minlength=len(class_names)) for part in PARTS}
        return cls.model_validate(
            {
                part: {"rows": int(of_class.sum()), "classes": dict(zip(class_names, of_class.tolist(), strict=True))}
                for part, of_class in counts.items()
            }
        )


class SplitMetrics(BaseModel):
    """The content of metrics/split.json. DVC's tables show the numbers and leave the list of folds out."""

    rows: int
    duplicate_rows: int  # rows whose text an earlier row has
    near_duplicate_texts: int  # distinct texts that are kept together with another text
    duplicates_of_test_source: int  # rows that are left out because data.test_source has their text
    excluded_rows: int  # rows that data.exclude names
    fixed_test_rows: bool  # all folds have the test rows of data.test_source
    mean_rows: dict[str, int]  # by part: train, validation and test; over the folds
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
        UserError: The file is missing or damaged, holds no fold, or belongs to another table.
    """
    table = read_table(path)
    if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
        raise UserError(f"{path}: does not hold the columns {', '.join(PARTS)} of a fold; run `dvc repro` to make it")
    if table.num_rows != num_rows:
        raise UserError(
            f"{path}: is a fold of {table.num_rows} rows, but the tokenized table has {num_rows}; run `dvc repro`"
        )
    fold = Fold(*(np.flatnonzero(table[part].to_numpy()) for part in PARTS))
    evaluated = fold.test if fold.selects_on_test_rows else np.concatenate([fold.validation, fold.test])
    if np.bincount(np.concatenate([fold.train, evaluated]), minlength=1).max() > 1:
        raise UserError(f"{path}: a row is in two parts of the fold; run `dvc repro` to make it")
    return fold
