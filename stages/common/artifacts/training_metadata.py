"""How a checkpoint was trained, and what it takes to use it: its `training.json`. Reading it needs no torch."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.common.artifacts.files import read_json, write_json
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing

FILE_NAME = "training.json"
VERSION = 1  # of the file's format; raised when the meaning of a key changes
# What a checkpoint did that lacks the key, because the key is newer than the checkpoint.
NEUTRAL_VALUES: dict[str, dict[str, Any]] = {
    "": {"version": VERSION, "fold": 0},
    "preprocessing.clean": {"keep_jamo": False},
}


def _check_scores(scores: dict[str, int | float]) -> dict[str, int | float]:
    if missing := sorted({"macro_f1", "validation_loss"} - scores.keys()):
        raise ValueError(f"has no {', '.join(missing)}")
    return scores


class BaseModelSource(BaseModel):
    """Where the base model came from, and the files that it consists of."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str  # id on the Hugging Face hub, or path of a folder
    revision: str | None  # hash of the commit on the hub; None for a folder
    sha256: dict[str, str]  # hash of each file, by the file's name


class TrainingMetadata(BaseModel):
    """What a training run stores with the weights of its best epoch."""

    model_config = ConfigDict(strict=True, frozen=True)

    version: Annotated[int, Field(le=VERSION)] = VERSION
    base_model: BaseModelSource
    preprocessing: Preprocessing
    labels: Annotated[tuple[str, ...], Field(min_length=2, strict=False)]  # names of the classes; JSON has no tuples
    fold: int
    seed: int
    learning_rate: float
    best_epoch: int  # counted from 1
    validation: Annotated[dict[str, int | float], AfterValidator(_check_scores)]  # the best epoch's row of the history
    trainable_parameters: int
    total_parameters: int


def write_training_metadata(checkpoint: Path, metadata: TrainingMetadata) -> None:
    """Write the metadata into the folder of a checkpoint."""
    write_json(checkpoint / FILE_NAME, metadata.model_dump())


def _fill_in(values: Any) -> None:
    """Give the keys that an older checkpoint lacks the values that describe it."""
    for section, neutral in NEUTRAL_VALUES.items():
        found = values
        for key in filter(None, section.split(".")):
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found |= neutral | found


def read_training_metadata(checkpoint: Path) -> TrainingMetadata:
    """Read the metadata of the checkpoint in a folder.

    Raises:
        UserError: The folder or the file is missing, or the file is damaged or incomplete.
    """
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; `dvc repro` makes data/models/full and data/models/lora")
    path = checkpoint / FILE_NAME
    values = read_json(path)
    _fill_in(values)
    try:
        return TrainingMetadata.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: {key}: {first['msg']}; a newer version of this project may have written it: update, or run "
            "`dvc repro` to train the model again"
        ) from error
