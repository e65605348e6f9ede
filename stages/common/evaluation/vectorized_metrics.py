"""Metrics as functions of means over rows, so that a bootstrap resample of the rows is a matrix product.

scikit-learn's metrics would be computed anew for each of ten thousand resamples.
"""

import numpy as np
from scipy.special import log_softmax

from stages.common.core.labels import LABELS
from stages.common.evaluation.calibration import NUM_BINS, confidence_bins

NUM_CLASSES = len(LABELS)
Metrics = dict[str, np.ndarray]  # by name, of any shape
TINY = np.finfo(float).tiny  # instead of 0 as a denominator
NUM_CELLS = NUM_CLASSES**2  # of the confusion matrix, actual class by predicted class


def per_example_statistics(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """The statistics (rows, 43) of each row whose means determine all metrics.

    9 confusion cells, then loss, Brier score and 15 calibration bins, each before and after temperature scaling.

    Args:
        logits: (rows, classes).
        labels: (rows,) class indices.
        temperature: see `fit_temperature`.
    """
    predictions = logits.argmax(1)
    columns = [np.eye(NUM_CELLS)[labels * NUM_CLASSES + predictions]]
    for scaled in (logits, logits / temperature):
        log_probabilities = log_softmax(scaled, axis=1)
        loss = -log_probabilities[np.arange(len(labels)), labels]
        brier = ((np.exp(log_probabilities) - np.eye(NUM_CLASSES)[labels]) ** 2).sum(1)
        confidence, bin_of_row = confidence_bins(scaled)
        gaps = np.eye(NUM_BINS)[bin_of_row] * (confidence - (predictions == labels))[:, None]
        columns += [loss[:, None], brier[:, None], gaps]
    return np.hstack(columns)


def confusion_metrics(cells: np.ndarray) -> Metrics:
    """Accuracy, and precision, recall and F1, macro and per class, from counts or means of confusion cells (..., 9).

    As in scikit-learn with `zero_division=0`, an empty class counts as 0.
    """
    matrix = cells.reshape(*cells.shape[:-1], NUM_CLASSES, NUM_CLASSES)
    correct, actual, predicted = np.einsum("...ii->...i", matrix), matrix.sum(-1), matrix.sum(-2)
    by_class = {
        "precision": correct / np.maximum(predicted, TINY),
        "recall": correct / np.maximum(actual, TINY),
        "f1": 2 * correct / np.maximum(actual + predicted, TINY),
    }
    return {
        **{f"macro_{name}": values.mean(-1) for name, values in by_class.items()},
        "accuracy": correct.sum(-1) / actual.sum(-1),
        **{f"per_class.{c}.{name}": v[..., i] for i, c in enumerate(LABELS) for name, v in by_class.items()},
    }


def compute_metrics(means: np.ndarray) -> Metrics:
    """All metrics (...) from means (..., 43) of `per_example_statistics`; the Brier score sums over classes, 0 to 2."""
    metrics = confusion_metrics(means[..., :NUM_CELLS])
    for prefix, part in zip(("", "scaled."), np.split(means[..., NUM_CELLS:], 2, axis=-1), strict=True):
        metrics |= {f"{prefix}loss": part[..., 0], f"{prefix}brier": part[..., 1]}
        metrics[f"{prefix}ece"] = np.abs(part[..., 2:]).sum(-1)
    return metrics
