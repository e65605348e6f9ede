"""Where the stages meet: every artifact of the DAG, relative to the repository."""

from pathlib import Path

PARAMS = Path("params.yaml")

INGESTED = Path("data/ingested.arrow")
FILTERED = Path("data/filtered.arrow")
BASE_MODEL_SOURCE = Path("data/base_model_source")
BASE_MODEL = Path("data/base_model")
TOKENIZED = Path("data/tokenized.arrow")
TRAIN = Path("data/splits/train.arrow")
VALIDATION = Path("data/splits/validation.arrow")
TEST = Path("data/splits/test.arrow")
RUNS = Path("data/runs")  # METHOD/SEED, a checkpoint with its history.json
EVALUATED = Path("data/evaluated")  # logits.safetensors and runs.json
BASELINES = Path("data/baselines.safetensors")
MODELS = Path("data/models")  # METHOD, the run with the best validation macro-F1
SCRATCH = Path("data/scratch")  # METHOD/SEED, saved points of a run under way
TIMES = Path("data/times")  # what depends on the machine and the hour, beside the DAG
METHODS = ("full", "lora")

FILTER_METRICS = Path("metrics/filter.json")
TOKEN_METRICS = Path("metrics/tokens.json")
SPLIT_METRICS = Path("metrics/split.json")
COMPARE_METRICS = Path("metrics/compare.json")
COMPARE_TABLE = Path("metrics/compare.md")
GROUPS = Path("metrics/groups.json")
TIMINGS = Path("metrics/timings.json")
PLOTS = Path("plots")
REPORT_TEMPLATE = Path(__file__).parent / "report.html"
