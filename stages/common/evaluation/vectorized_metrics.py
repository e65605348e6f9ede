"""Metrics as functions of means over rows, so that a bootstrap resample of the rows is a matrix product.

scikit-learn's metrics would be computed anew for each of ten thousand resamples.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from stages.common.evaluation.calibration import NUM_BINS, confidence_bins

Metrics = dict[str, np.ndarray]  # by name, of any shape
TINY = np.finfo(float).tiny  # instead of 0 as a denominator
NUM_OTHERS = 2 * (2 + NUM_BINS)  # columns that do not depend on the number of classes


def num_counts(statistics: np.ndarray) -> int:
    """Of the last axis of `per_example_statistics`, how many columns count hits and errors: 3 a class."""
    return statistics.shape[-1] - NUM_OTHERS


def per_example_statistics(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """The statistics (rows, 3 x classes + 34) of each row whose means determine all metrics.

    For each class whether it is rightly predicted, actual, and predicted; then loss, Brier score and 15 calibration
    bins, each before and after temperature scaling.

    Args:
        logits: (rows, classes).
        labels: (rows,) class indices.
        temperature: see `fit_temperature`.
    """
    one_hot, predictions = np.eye(logits.shape[1]), logits.argmax(1)
    actual, predicted = one_hot[labels], one_hot[predictions]
    columns = [actual * predicted, actual, predicted]
    for scaled in (logits, logits / temperature):
        log_probabilities = log_softmax(scaled, axis=1)
        loss = -log_probabilities[np.arange(len(labels)), labels]
        brier = ((np.exp(log_probabilities) - actual) ** 2).sum(1)
        confidence, bin_of_row = confidence_bins(scaled)
        gaps = np.eye(NUM_BINS)[bin_of_row] * (confidence - (predictions == labels))[:, None]
        columns += [loss[:, None], brier[:, None], gaps]
    return np.hstack(columns)


def count_metrics(counts: np.ndarray, labels: Sequence[str]) -> Metrics:
    """Accuracy, and precision, recall and F1, macro and per class, from the counts or their means (..., 3 x classes).

    As in scikit-learn with `zero_division=0`, an empty class counts as 0.
    """
    correct, actual, predicted = np.split(counts, 3, axis=-1)
    by_class = {
        "precision": correct / np.maximum(predicted, TINY),
        "recall": correct / np.maximum(actual, TINY),
        "f1": 2 * correct / np.maximum(actual + predicted, TINY),
    }
    return {
        **{f"macro_{name}": values.mean(-1) for name, values in by_class.items()},
        "accuracy": correct.sum(-1) / actual.sum(-1),
        **{f"per_class.{c}.{name}": v[..., i] for i, c in enumerate(labels) for name, v in by_class.items()},
    }


def compute_metrics(means: np.ndarray, labels: Sequence[str]) -> Metrics:
    """All metrics (...) from means of `per_example_statistics`; the Brier score sums over classes, 0 to 2."""
    metrics = count_metrics(means[..., : num_counts(means)], labels)
    for prefix, part in zip(("", "scaled."), np.split(means[..., num_counts(means) :], 2, axis=-1), strict=True):
        metrics |= {f"{prefix}loss": part[..., 0], f"{prefix}brier": part[..., 1]}
        metrics[f"{prefix}ece"] = np.abs(part[..., 2:]).sum(-1)
    return metrics
