"""The result of the comparison, which `compare` writes, and from which everything that people read is made."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.common.artifacts.files import read_json
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.paths import COMPARE_DETAILS

SliceKind = Literal["length", "category"]
Verdict = Literal["better", "worse", "equivalent", "undecided"]


class Result(BaseModel):
    """A part of metrics/compare_details.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Result):
    """A value with its 95% confidence interval; `low` and `high` are None for a value that has none."""

    value: float
    low: float | None = None
    high: float | None = None


class ClassScores(Result):
    """Metrics of one class."""

    precision: Estimate
    recall: Estimate
    f1: Estimate


class Scores(Result):
    """Metrics of a method or a baseline: means over the folds; the ECE alone is that of all rows together."""

    macro_f1: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    accuracy: Estimate
    loss: Estimate
    brier: Estimate
    ece: Estimate
    scaled_loss: Estimate
    scaled_brier: Estimate
    scaled_ece: Estimate
    classes: dict[str, ClassScores]  # By the name of the class.


class Difference(Result):
    """Macro-F1 of one method minus that of another classifier; the intervals are about new splits and seeds."""

    macro_f1: Estimate
    equivalence: Estimate  # The same value with its 90% interval, for two one-sided tests at 5%.
    verdict: Verdict
    by_fold: list[float]
    minimum_detectable_effect: float | None  # Found with a power of 80%; None if there are too few folds.
    rows_needed: int | None  # Tested rows that would show equivalence; None if more rows would not, or if unknown.


class TrainedModels(Result):
    """LoRA minus full fine-tuning for the models that were trained, on the rows that tested them and on no others."""

    macro_f1: Estimate  # Its interval is a bootstrap over rows.
    p_permutation: float  # p-value of the permutation test of macro-F1.
    p_mcnemar: float  # p-value of McNemar's exact test of accuracy, in which rows with the same text count once.


class Epochs(Result):
    """The best epochs of a run; a gap is validation loss minus training loss in that epoch."""

    best_epoch_by_f1: int
    best_epoch_by_loss: int
    gap_at_best_epoch_by_f1: float
    gap_at_best_epoch_by_loss: float


class Run(Result):
    """One trained model, at the selected learning rate, on the test rows of its fold."""

    fold: int
    macro_f1: float
    accuracy: float
    validation_macro_f1: float
    temperature: float  # Fitted on the validation rows of the fold.
    epochs: Epochs
    diverged: bool  # Whether its score is far from those of the other folds.


class Trial(Result):
    """Validation scores of a learning rate, one for each fold."""

    learning_rate: float
    macro_f1: list[float]


class Tuning(Result):
    """How a method was tuned, and what limits the result."""

    learning_rate: float  # The selected learning rate.
    trials: list[Trial]
    at_edge: bool  # Whether the selected learning rate is the lowest or the highest of three or more.
    unconverged: int  # Number of runs at that learning rate whose validation loss is lowest in the last epochs.

    @property
    def num_rates(self) -> int:
        """Number of learning rates that were tried."""
        return len(self.trials)

    @property
    def num_runs(self) -> int:
        """Number of models that were trained."""
        return sum(len(trial.macro_f1) for trial in self.trials)


class Against(Result):
    """A method compared with a baseline."""

    baseline: str
    difference: Difference


class MethodResult(Result):
    """The results of full fine-tuning, or of LoRA."""

    scores: Scores
    runs: list[Run]
    best_fold: int  # Fold of the run with the best validation score, which data/models/ holds.
    tuning: Tuning
    ece_if_calibrated: float  # ECE that exact probabilities would show by chance.
    scaled_ece_if_calibrated: float
    against: list[Against]
    trainable_parameters: int
    total_parameters: int
    checkpoint_bytes: int


class SliceScores(Result):
    """Metrics on a part of the tested rows."""

    accuracy: float
    macro_f1: float  # Mean over the classes that occur in the slice.


class Slice(Result):
    """A part of the tested rows. Its interval is descriptive: nothing corrects for the number of slices."""

    kind: SliceKind
    name: str
    rows: int
    full: SliceScores
    lora: SliceScores
    accuracy_difference: Estimate  # LoRA minus full fine-tuning, with a bootstrap interval over rows.


class Comparison(Result):
    """LoRA and full fine-tuning compared on the test rows of the folds that were run."""

    labels: list[str]
    rows: int  # Number of distinct rows that were tested.
    folds: list[int]  # Numbers of the folds that were run.
    num_folds: int  # Number of folds into which the corpus is split.
    fixed_test_rows: bool  # Whether data.test_source gave them; folds then differ in seed and validation rows alone.
    selected_on_test_rows: bool
    margin: float
    difference: Difference
    trained_models: TrainedModels
    class_differences: dict[str, Estimate]  # F1 of LoRA minus that of full fine-tuning, by class.
    full: MethodResult
    lora: MethodResult
    baselines: dict[str, Scores]
    slices: list[Slice]

    def scores(self, name: str) -> Scores:
        """Return the metrics of a method or a baseline."""
        return self.baselines[name] if name in self.baselines else self.method(name).scores

    def method(self, name: str) -> MethodResult:
        """Return the result of the method `full` or `lora`."""
        return {"full": self.full, "lora": self.lora}[name]


def read_comparison(path: Path = COMPARE_DETAILS) -> Comparison:
    """Read the result that `compare` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return Comparison.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: is damaged, or of another version; run `dvc repro` to make it again") from error
