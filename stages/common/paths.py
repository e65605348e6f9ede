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
FULL = Path("data/models/full")
LORA = Path("data/models/lora")

FILTER_METRICS = Path("metrics/filter.json")
TOKEN_METRICS = Path("metrics/tokens.json")
SPLIT_METRICS = Path("metrics/split.json")
COMPARE_METRICS = Path("metrics/compare.json")
FULL_HISTORY = Path("plots/full.json")
LORA_HISTORY = Path("plots/lora.json")
FULL_CONFUSION = Path("plots/confusion_full.json")
LORA_CONFUSION = Path("plots/confusion_lora.json")
