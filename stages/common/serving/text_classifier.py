"""A checkpoint as one uses it: it cleans and tokenizes as training did, from what was saved with it alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from stages.common.core.exceptions import UserError
from stages.common.core.files import read_json, sha256
from stages.common.core.labels import LABELS
from stages.common.core.params import Preprocessing
from stages.common.corpus.cleaning import clean
from stages.common.modeling.classifier import load_checkpoint
from stages.common.modeling.collator import Collator, Rows, predict_logits
from stages.common.modeling.distributed import device
from stages.common.modeling.packing import Model
from stages.common.pretrained.tokenizer import Tokenizer, load_tokenizer

BATCH_SIZE = 64  # reviews


@dataclass(frozen=True)
class Trained:
    """A whole classifier, from raw text on."""

    model: Model
    tokenizer: Tokenizer
    preprocessing: Preprocessing

    @cached_property
    def _collate(self) -> Collator:
        return Collator(self.model.to(device()), packing=True)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Of each class for each raw review, float64 (texts, 3); NaN where cleaning leaves no text.

        In batches of like length without padding, on the GPU if there is one.
        """
        cleaned = clean(pa.array(texts, pa.string()), self.preprocessing.clean).to_pylist()
        present = np.array([bool(text) for text in cleaned], dtype=bool)
        result = np.full((len(texts), len(LABELS)), np.nan)
        if present.any():
            kept = [text for text in cleaned if text]
            encoded = self.tokenizer.encode(kept, self.preprocessing.max_length)
            rows = Rows(encoded.rows(), np.zeros(len(kept), dtype=np.int64))
            logits = predict_logits(self.model, self._collate, rows, BATCH_SIZE)
            result[present] = logits.double().softmax(1).numpy()
        return result


def load_trained(folder: Path, base_model: Path | None = None) -> Trained:
    """The checkpoint in `folder`; adapters are put on `base_model`, or else on the folder that they name.

    Raises:
        UserError: a file is missing or damaged, or the base model is not the one that was trained on.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `dvc repro` makes data/models/full and data/models/lora")
    facts = read_json(folder / "training.json")
    try:
        preprocessing = Preprocessing.model_validate(facts["preprocessing"])
        hashes = dict(facts["base_model"]["sha256"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(
            f"{folder / 'training.json'}: does not tell how the model was trained; train it again"
        ) from error
    if (adapters := folder / "adapter_config.json").is_file():
        base_model = base_model or Path(read_json(adapters)["base_model_name_or_path"])
        _check_base_model(base_model, hashes, folder)
    elif base_model:
        raise UserError(f"{folder} holds a whole model, or no adapter_config.json: leave out --base-model")
    tokenizer = load_tokenizer(base_model or folder)
    return Trained(load_checkpoint(folder, base_model or folder), tokenizer, preprocessing)


def _check_base_model(folder: Path, hashes: dict[str, str], adapters: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{adapters} needs its base model, but {folder} is not a folder; name it with --base-model")
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, so it is not the base model of {adapters}; see --base-model")
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is not that of the base model of {adapters}; see --base-model")
