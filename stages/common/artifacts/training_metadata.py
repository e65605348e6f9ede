"""training.json of a checkpoint: how it was made, and what it takes to use it; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages.common.artifacts.files import read_json
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing


@dataclass(frozen=True)
class TrainingMetadata:
    """What `train_stage` stored with the weights."""

    preprocessing: Preprocessing
    labels: tuple[str, ...]  # names of the classes
    base_model: dict[str, Any]  # name, revision, and sha256 of each file by its name
    values: dict[str, Any]  # all of the file


def read_training_metadata(checkpoint: Path) -> TrainingMetadata:
    """Read the metadata of the checkpoint in a folder; a UserError says that it is missing or damaged."""
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such folder; `dvc repro` makes data/models/full and data/models/lora")
    values = read_json(checkpoint / "training.json")
    try:
        base_model = {key: values["base_model"][key] for key in ("name", "revision")}
        base_model["sha256"] = dict(values["base_model"]["sha256"])
        labels = tuple(values["labels"])
        if len(labels) < 2 or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels")
        return TrainingMetadata(Preprocessing.model_validate(values["preprocessing"]), labels, base_model, values)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(f"{checkpoint / 'training.json'}: lacks how the model was trained; train it again") from error
