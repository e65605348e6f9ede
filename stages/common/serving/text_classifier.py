"""Use a checkpoint: clean, tokenize and classify texts as in training, with the settings that it stores."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.common.artifacts.files import sha256
from stages.common.artifacts.training_metadata import BaseModelSource, TrainingMetadata, read_training_metadata
from stages.common.cleaning import clean
from stages.common.modeling.classifier import load_checkpoint
from stages.common.modeling.collator import Collator
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import get_device
from stages.common.modeling.inference import build_collator, predict_logits
from stages.common.modeling.types import Model
from stages.common.pretrained.tokenizer import Tokenizer, load_tokenizer
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.paths import BASE_MODEL

BATCH_SIZE = 64  # Number of texts per batch.


@dataclass(frozen=True)
class TextClassifier:
    """A classifier of raw texts."""

    model: Model
    tokenizer: Tokenizer
    metadata: TrainingMetadata

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.metadata.labels

    @cached_property
    def _collator(self) -> Collator:
        return build_collator(self.model.to(get_device()), packing=True)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """Compute the probabilities (texts, classes) of raw texts, in float64; NaN if cleaning leaves no text."""
        preprocessing = self.metadata.preprocessing
        cleaned = clean(pa.array(texts, pa.string()), preprocessing.clean).to_pylist()
        present = np.array(list(map(bool, cleaned)), dtype=bool)
        probabilities = np.full((len(cleaned), len(self.labels)), np.nan)
        if present.any():
            encoded = self.tokenizer.encode(list(filter(None, cleaned)), preprocessing.max_length)
            dataset = TokenizedDataset(encoded.input_ids, np.zeros(present.sum(), np.int64))
            logits = predict_logits(self.model, self._collator, dataset, BATCH_SIZE)
            probabilities[present] = logits.double().softmax(1).numpy()
        return probabilities


def load_text_classifier(folder: Path, base_model: Path | None = None) -> TextClassifier:
    """Load a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        base_model: Folder of the base model, if the checkpoint has adapters; by default `data/base_model`.

    Raises:
        UserError: A file is missing or damaged, or this is not the base model on which the adapters were trained.
    """
    metadata = read_training_metadata(folder)
    if (folder / "adapter_config.json").is_file():
        base_model = base_model or BASE_MODEL
        _check_base_model(base_model, metadata.base_model, folder)
    elif base_model:
        raise UserError(f"{folder}: this model has no adapter_config.json and needs no base model; omit --base-model")
    base_model = base_model or folder
    model = load_checkpoint(folder, metadata.labels, base_model)
    return TextClassifier(model, load_tokenizer(base_model), metadata)


def _check_base_model(folder: Path, trained_on: BaseModelSource, adapter: Path) -> None:
    name = trained_on.name
    if not folder.is_dir():
        raise UserError(
            f"{folder}: this folder does not exist, but {adapter} needs its base model {name}; run `dvc repro "
            "base_model` or name the folder with --base-model"
        )
    for file, expected in trained_on.sha256.items():
        if not (folder / file).is_file():
            raise UserError(
                f"{folder / file}: this file does not exist, so the folder is not {name}, the base model of {adapter}; "
                "name another folder with --base-model"
            )
        if sha256(folder / file) != expected:
            raise UserError(
                f"{folder / file}: this is not the file of {name}, the base model of {adapter}; name another folder "
                "with --base-model"
            )
