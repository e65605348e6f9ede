"""Make datasets for the tiny model, and train it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stages.common.modeling.classifier import add_lora, build_classifier
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.types import Model
from stages.common.runtime.params import TrainParams
from stages.common.training.trainer import Trainer, TrainResult
from tests.support.corpus import LABELS, SHIPPED, records
from tests.support.project import encode


def train_params(**changed: object) -> TrainParams:
    """Return the shipped parameters with two epochs in fp32, without early stopping, and with these changes."""
    return SHIPPED.train.model_copy(update={"epochs": 2, "patience": 0, "precision": "fp32", **changed})


def build(base_model: Path, method: str) -> Model:
    """Build a classifier as the training stage of `method` does."""
    model = build_classifier(base_model, LABELS, dropout=0.1, seed=42)
    return add_lora(model, SHIPPED.lora, seed=42) if method == "lora" else model


def without_dropout(model: Model) -> Model:
    """Set the probability of every dropout layer to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def dataset_of_records(base_model: Path) -> TokenizedDataset:
    """Tokenize the 180 reviews of `records`."""
    rows = records()
    input_ids = encode(base_model, [row["RawText"] for row in rows])
    labels = np.array([int(row["GeneralPolarity"]) + 1 for row in rows])
    return TokenizedDataset(pa.array(input_ids), labels, LABELS)


def subset(dataset: TokenizedDataset, count: int) -> TokenizedDataset:
    """Take `count` examples at equal distances, so that all classes are among them."""
    indices = np.linspace(0, len(dataset) - 1, count).astype(int)
    return TokenizedDataset(dataset.input_ids.take(pa.array(indices)), dataset.labels[indices], dataset.class_names)


def fit(
    model: Model, dataset: TokenizedDataset, validation: TokenizedDataset, params: TrainParams, learning_rate: float
) -> TrainResult:
    """Train a model with seed 42 in one process, without checkpoints."""
    return Trainer(model, dataset, validation, params, learning_rate, seed=42).train()


def losses(result: TrainResult) -> np.ndarray:
    """Return training and validation losses, (epochs, 2)."""
    return np.array([[row["train_loss"], row["validation_loss"]] for row in result.history])
