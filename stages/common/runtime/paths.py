"""Paths of what the stages read and write, relative to the top of the repository."""

from pathlib import Path

PARAMS = Path("params.yaml")
NO_FILE = Path("data/none")  # stands for no file: DVC accepts no empty path, and warns about an empty file

INGESTED = Path("data/ingested.arrow")
FILTERED = Path("data/filtered.arrow")
BASE_MODEL = Path("data/base_model")
TOKENIZED = Path("data/tokenized.arrow")
FOLDS = Path("data/splits")  # FOLD.arrow: which rows of TOKENIZED are its training, validation and test rows
RUN_PLAN = Path("data/run_plan.json")  # the runs that the parameters ask for
RUNS = Path("data/runs")  # METHOD/RUN/{checkpoint/, history.json, logits.safetensors}
SELECTION = Path("data/selection.json")  # what is known of each run, and the best one of each method
MODELS = Path("data/models")  # METHOD, the best run's checkpoint
BASELINES = Path("data/baselines")  # FOLD.safetensors: logits of the baselines

# These two folders are not tracked by git or DVC.
CHECKPOINTS = Path("data/checkpoints")  # METHOD/RUN, from which an interrupted training resumes
TIMINGS = Path("data/timings")  # what depends on the machine and the hour

INGEST_METRICS = Path("metrics/ingest.json")
FILTER_METRICS = Path("metrics/filter.json")
TOKEN_METRICS = Path("metrics/tokens.json")
SPLIT_METRICS = Path("metrics/split.json")
VALIDATION_METRICS = Path("metrics/validation.json")  # of the selected runs
COMPARE_METRICS = Path("metrics/compare.json")  # the scalars that people compare
COMPARE_DETAILS = Path("metrics/compare_details.json")  # all metrics, intervals and runs
COMPARE_TABLE = Path("metrics/compare.md")
PLOTS = Path("plots")
ERRORS = PLOTS / "errors.csv"
AUDIT_METRICS = Path("metrics/audit.json")
LABEL_ISSUES = PLOTS / "label_issues.csv"  # rows whose label may be wrong
LABEL_NOISE = Path("data/label_noise.json")  # estimated rates of wrong labels, by pair of classes


def fold_path(fold: int) -> Path:
    """The file of a fold, numbered from 0."""
    return FOLDS / f"{fold}.arrow"


def baseline_path(fold: int) -> Path:
    """The logits of the baselines of a fold."""
    return BASELINES / f"{fold}.safetensors"


def run_name(fold: int, learning_rate: float) -> str:
    """The folder of a run, as DVC writes it from the cells of the matrix: `0-5e-05`."""
    return f"{fold}-{learning_rate}"
