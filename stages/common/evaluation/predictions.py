"""The test rows of the folds that were run, and the predictions for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.artifacts.folds import Fold, read_fold
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES
from stages.common.artifacts.selection import SelectedMethod, Selection
from stages.common.evaluation.calibration import fit_temperature
from stages.common.runtime import paths


@dataclass(frozen=True)
class TestedRows:
    """The test rows of the folds that were run, one fold after another."""

    table: pa.Table  # The test rows, with some columns of data/tokenized.arrow.
    folds: np.ndarray  # (rows,) Number of the fold that tested each row.
    by_fold: Mapping[int, Fold]
    all_labels: np.ndarray  # (rows of data/tokenized.arrow,) Class indices of all rows, tested or not.

    @property
    def rows(self) -> np.ndarray:
        """Row numbers of data/tokenized.arrow, (rows,)."""
        return np.concatenate([fold.test for fold in self.by_fold.values()])

    @property
    def labels(self) -> np.ndarray:
        """Class indices, (rows,)."""
        return self.table["labels"].to_numpy()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return get_class_names(self.table.schema)

    @property
    def fold_index(self) -> np.ndarray:
        """The position of each row's fold among the folds that were run, (rows,)."""
        return np.searchsorted(list(self.by_fold), self.folds)

    @property
    def groups(self) -> np.ndarray:
        """A number for each distinct text, (rows,)."""
        return np.unique(np.array(self.table["text"].to_pylist(), object), return_inverse=True)[1]

    @property
    def is_fixed(self) -> bool:
        """Whether all folds have the same test rows, as with `data.test_source`."""
        first, *others = self.by_fold.values()
        return any(np.array_equal(first.test, other.test) for other in others)

    @property
    def selects_on_test_rows(self) -> bool:
        """Whether epochs and learning rates were selected on the test rows."""
        return any(fold.selects_on_test_rows for fold in self.by_fold.values())


@dataclass(frozen=True)
class Predictions:
    """Predictions of a method or baseline for the tested rows, each by the model of the row's fold."""

    logits: np.ndarray  # (rows, classes)
    temperatures: np.ndarray  # (folds,) Each one is fitted on the validation rows of its fold.


def read_tested_rows(folds: Sequence[int]) -> TestedRows:
    """Read the test rows of some folds, in ascending order of the folds."""
    table = read_table(paths.TOKENIZED).select(["Index", "text", "MainCategory", "labels"])
    by_fold = {fold: read_fold(paths.fold_path(fold), len(table)) for fold in sorted(folds)}
    rows = np.concatenate([fold.test for fold in by_fold.values()])
    numbers = np.repeat(list(by_fold), [len(fold.test) for fold in by_fold.values()])
    return TestedRows(table.take(rows), numbers, by_fold, table["labels"].to_numpy())


def _collect(tested: TestedRows, files: Mapping[int, Path], prefix: str = "") -> Predictions:
    num_classes = len(tested.class_names)
    logits, temperatures = [], []
    for number, fold in tested.by_fold.items():
        test, validation = f"{prefix}test", f"{prefix}validation"
        values = read_logits(files[number], num_classes, [test, validation])
        logits.append(values[test])
        temperatures.append(fit_temperature(values[validation], tested.all_labels[fold.validation]))
    return Predictions(np.concatenate(logits), np.array(temperatures))


def run_files(method: str, selected: SelectedMethod) -> dict[int, Path]:
    """Return the file of logits of each selected run, by its fold."""
    return {run.metadata.fold: paths.RUNS / method / name / "logits.safetensors" for name, run in selected.runs.items()}


def read_method_predictions(tested: TestedRows, selection: Selection) -> dict[str, Predictions]:
    """Read the predictions of both methods for the tested rows."""
    return {method: _collect(tested, run_files(method, selected)) for method, selected in selection.items()}


def read_predictions(tested: TestedRows, selection: Selection) -> dict[str, Predictions]:
    """Read the predictions of both methods and of all baselines for the tested rows."""
    files = {fold: paths.baseline_path(fold) for fold in tested.by_fold}
    baselines = {name: _collect(tested, files, f"{name}/") for name in BASELINES}
    return read_method_predictions(tested, selection) | baselines
