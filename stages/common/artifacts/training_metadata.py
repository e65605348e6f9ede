"""The file `training.json` of a checkpoint: how it was trained and how texts are prepared for it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.common.artifacts.files import read_json, write_json
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing

FILE_NAME = "training.json"
VERSION = 1  # Version of the file's format, which increases when the meaning of a key changes.
# Values, by section and key, of keys that are newer than a checkpoint and describe what it did without them.
NEUTRAL_VALUES: dict[str, dict[str, Any]] = {
    "": {"version": VERSION, "fold": 0},
    "preprocessing.clean": {"keep_jamo": False},
}


def _check_scores(scores: dict[str, int | float]) -> dict[str, int | float]:
    if missing := sorted({"macro_f1", "validation_loss"} - scores.keys()):
        raise ValueError(f"has no {', '.join(missing)}")
    return scores


class BaseModelSource(BaseModel):
    """Origin and files of the base model."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str  # Id on the Hugging Face hub, or path of a folder.
    revision: str | None  # Hash of the commit on the hub; None for a folder.
    sha256: dict[str, str]  # Hash of each file, by the name of the file.


class TrainingMetadata(BaseModel):
    """Metadata that a training run stores with the weights of its best epoch."""

    model_config = ConfigDict(strict=True, frozen=True)

    version: Annotated[int, Field(le=VERSION)] = VERSION
    base_model: BaseModelSource
    preprocessing: Preprocessing
    labels: Annotated[tuple[str, ...], Field(min_length=2, strict=False)]  # Class names; JSON has no tuples.
    fold: int
    seed: int
    learning_rate: float
    best_epoch: int  # Counted from 1.
    validation: Annotated[dict[str, int | float], AfterValidator(_check_scores)]  # Scores of the best epoch.
    trainable_parameters: int
    total_parameters: int


def write_training_metadata(checkpoint: Path, metadata: TrainingMetadata) -> None:
    """Write the metadata into the folder of a checkpoint."""
    write_json(checkpoint / FILE_NAME, metadata.model_dump())


def _fill_in(values: Any) -> None:
    """Add the keys that an older checkpoint does not have, with the values that describe it."""
    for section, neutral in NEUTRAL_VALUES.items():
        found = values
        for key in filter(None, section.split(".")):
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found |= neutral | found


def read_training_metadata(checkpoint: Path) -> TrainingMetadata:
    """Read the metadata from the folder of a checkpoint.

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
            f"{path}: {key}: {first['msg']}; if a newer version of this project wrote the file, update the project, "
            "otherwise run `dvc repro` to train the model again"
        ) from error
