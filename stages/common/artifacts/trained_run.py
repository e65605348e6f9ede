"""A trained run: the content of the folder that a training stage writes, without weights and logits."""

from dataclasses import dataclass
from pathlib import Path

from stages.common.artifacts.files import read_json, sha256
from stages.common.artifacts.history import History
from stages.common.artifacts.training_metadata import TrainingMetadata, read_training_metadata
from stages.common.runtime.exceptions import UserError


@dataclass(frozen=True)
class TrainedRun:
    """Metadata and history of a run, which are read without loading its model."""

    metadata: TrainingMetadata
    checkpoint_bytes: int  # Size of the file with the weights.
    weights_sha256: str
    history: History


def read_trained_run(folder: Path) -> TrainedRun:
    """Read a run from its folder.

    Raises:
        UserError: A file of the run is missing, damaged or incomplete.
    """
    metadata = read_training_metadata(folder / "checkpoint")
    weights = next((folder / "checkpoint").glob("*.safetensors"), None)
    if weights is None:
        raise UserError(f"{folder / 'checkpoint'}: has no weights; run `dvc repro` to train the model again")
    return TrainedRun(metadata, weights.stat().st_size, sha256(weights), read_json(folder / "history.json"))
