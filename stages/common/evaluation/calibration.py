"""Calibration: how well a classifier's probabilities agree with how often it is right."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

NUM_BINS = 15  # Bins of equal width for the expected calibration error (ECE).
OUTCOME_STREAM = 2  # Number of this module's random stream; all streams derive from `compare.seed`.


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature, between 0.05 and 20, that minimises the cross-entropy of the logits (Guo et al. 2017).

    Args:
        logits: (rows, classes).
        labels: Class indices, (rows,).
    """

    def cross_entropy(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log((0.05, 20)), method="bounded").x))


def expected_ece_if_calibrated(logits: np.ndarray, num_samples: int, seed: int) -> float:
    """Simulate the mean ECE that these confidences would show if they were exactly right.

    The ECE is biased upwards, because the accuracy of a bin with few rows differs from its confidence by chance.
    """
    confidence, bin_of_row = confidence_bins(logits)
    outcomes = np.random.default_rng([seed, OUTCOME_STREAM]).random((num_samples, len(confidence))) < confidence
    gaps = (confidence - outcomes) @ np.eye(NUM_BINS)[bin_of_row] / len(confidence)
    return float(np.abs(gaps).sum(1).mean())


def confidence_bins(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's highest probability and the index of its bin, both (rows,). Bin 0 is (0, 1/15]."""
    confidence = np.exp(log_softmax(logits, axis=1)).max(1)
    return confidence, np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def reliability_bins(logits: np.ndarray, labels: np.ndarray, temperatures: np.ndarray) -> list[dict[str, Any]]:
    """Compute the mean confidence and the accuracy in each non-empty bin, before and after temperature scaling.

    Args:
        logits: (rows, classes).
        labels: Class indices, (rows,).
        temperatures: Temperature of the model that each row was tested with, (rows,).
    """
    bins = []
    correct = logits.argmax(1) == labels
    for scaled in (False, True):
        confidence, bin_of_row = confidence_bins(logits / temperatures[:, None] if scaled else logits)
        for index in np.unique(bin_of_row):
            inside = bin_of_row == index
            means = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
            bins.append({"scaled": scaled, **means, "rows": int(inside.sum())})
    return bins
