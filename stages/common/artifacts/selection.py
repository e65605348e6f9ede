"""The learning rate selected for each method by validation, and its runs: data/selection.json."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter, ValidationError

from stages.common.artifacts.files import read_json, write_json
from stages.common.artifacts.trained_run import TrainedRun
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.paths import SELECTION


@dataclass(frozen=True)
class Trial:
    """A learning rate that was tried, with the validation macro-F1 of each fold."""

    learning_rate: float
    macro_f1: list[float]


@dataclass(frozen=True)
class SelectedMethod:
    """The selected learning rate and runs of a method."""

    learning_rate: float
    best_run: str  # Name of the run with the best validation score.
    runs: dict[str, TrainedRun]  # Runs with the selected learning rate, by name, in the order of the folds.
    trials: list[Trial]  # In ascending order of the learning rates.

    @property
    def folds(self) -> list[int]:
        """Numbers of the folds that were run."""
        return [run.metadata.fold for run in self.runs.values()]

    def validation_scores(self) -> dict[str, float]:
        """Return the validation macro-F1 of each fold and its mean, which sweeps compare."""
        scores = {f"fold_{run.metadata.fold}": run.metadata.validation["macro_f1"] for run in self.runs.values()}
        return {"learning_rate": self.learning_rate, "val_f1": fmean(scores.values()), **scores}


Selection = dict[str, SelectedMethod]  # By name of the method.
_ADAPTER = TypeAdapter(Selection)


def write_selection(selection: Selection, path: Path = SELECTION) -> None:
    """Write the selection of both methods."""
    write_json(path, _ADAPTER.dump_python(selection))


def read_selection(path: Path = SELECTION) -> Selection:
    """Read the selection of both methods.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return _ADAPTER.validate_python(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: is damaged, or was written by another version; run `dvc repro` to make it") from error
