"""The learning rate that validation selected for each method, and the runs at that rate: data/selection.json."""

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
    """A learning rate that was tried, with a validation score for each fold."""

    learning_rate: float
    macro_f1: list[float]


@dataclass(frozen=True)
class SelectedMethod:
    """What was selected for a method."""

    learning_rate: float
    best_run: str  # name of the run with the best validation score
    runs: dict[str, TrainedRun]  # at the selected rate, by name, in the order of the folds
    trials: list[Trial]  # in the order of the rates

    @property
    def folds(self) -> list[int]:
        """The folds that were run."""
        return [run.metadata.fold for run in self.runs.values()]

    def validation_scores(self) -> dict[str, float]:
        """Macro-F1 on the validation rows of each fold, and its mean: the scores that sweeps compare."""
        scores = {f"fold_{run.metadata.fold}": run.metadata.validation["macro_f1"] for run in self.runs.values()}
        return {"learning_rate": self.learning_rate, "val_f1": fmean(scores.values()), **scores}


Selection = dict[str, SelectedMethod]  # by method
_ADAPTER = TypeAdapter(Selection)


def write_selection(selection: Selection, path: Path = SELECTION) -> None:
    """Write the selection of both methods."""
    write_json(path, _ADAPTER.dump_python(selection))


def read_selection(path: Path = SELECTION) -> Selection:
    """Read the selection of both methods; a UserError says that the file is missing or damaged."""
    try:
        return _ADAPTER.validate_python(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: is damaged, or of another version; run `dvc repro` to make it") from error
