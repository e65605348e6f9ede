"""Paths of the inputs and outputs of the stages, relative to the top of the repository."""

from pathlib import Path

PARAMS = Path("params.yaml")
NO_FILE = Path("data/none")  # Value of a parameter that names no file, since DVC accepts no empty path.

INGESTED = Path("data/ingested.arrow")
FILTERED = Path("data/filtered.arrow")
BASE_MODEL = Path("data/base_model")
TOKENIZED = Path("data/tokenized.arrow")
FOLDS = Path("data/splits")  # FOLD.arrow tells which rows of TOKENIZED are training, validation and test rows.
RUN_PLAN = Path("data/run_plan.json")  # The runs that the parameters ask for.
RUNS = Path("data/runs")  # METHOD/RUN has checkpoint/, history.json and logits.safetensors.
SELECTION = Path("data/selection.json")  # Metadata and history of each run, and the best run of each method.
MODELS = Path("data/models")  # METHOD is the checkpoint of the best run.
BASELINES = Path("data/baselines")  # FOLD.safetensors has the logits of the baselines.

# Neither git nor DVC tracks these two folders.
CHECKPOINTS = Path("data/checkpoints")  # METHOD/RUN has the checkpoints from which an interrupted training resumes.
TIMINGS = Path("data/timings")  # Seconds and memory of each training on this machine.

INGEST_METRICS = Path("metrics/ingest.json")
FILTER_METRICS = Path("metrics/filter.json")
TOKEN_METRICS = Path("metrics/tokens.json")
SPLIT_METRICS = Path("metrics/split.json")
VALIDATION_METRICS = Path("metrics/validation.json")  # Validation scores of the selected runs.
COMPARE_METRICS = Path("metrics/compare.json")  # The numbers that people compare between experiments.
COMPARE_DETAILS = Path("metrics/compare_details.json")  # All metrics, intervals and runs.
COMPARE_TABLE = Path("metrics/compare.md")
PLOTS = Path("plots")
ERRORS = PLOTS / "errors.csv"
AUDIT_METRICS = Path("metrics/audit.json")
LABEL_ISSUES = PLOTS / "label_issues.csv"  # Rows whose label may be wrong.
LABEL_NOISE = Path("data/label_noise.json")  # Estimated rates of wrong labels for each pair of classes.


def fold_path(fold: int) -> Path:
    """Return the file of a fold, which is numbered from 0."""
    return FOLDS / f"{fold}.arrow"


def baseline_path(fold: int) -> Path:
    """Return the file with the logits of the baselines of a fold."""
    return BASELINES / f"{fold}.safetensors"


def run_name(fold: int, learning_rate: float) -> str:
    """Return the name of the folder of a run, such as `0-5e-05`, as DVC writes it from the cells of the matrix."""
    return f"{fold}-{learning_rate}"
