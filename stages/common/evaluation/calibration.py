"""How well a classifier's probabilities agree with how often it is right."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

NUM_BINS = 15  # of equal width, for the expected calibration error
TEMPERATURE_STREAM, OUTCOME_STREAM = 1, 2  # random streams of `compare.seed`; the bootstrap of metrics has 0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05 to 20, that gives logits (rows, classes) the lowest cross-entropy (Guo et al. 2017)."""

    def cross_entropy(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log((0.05, 20)), method="bounded").x))


def temperature_interval(logits: np.ndarray, labels: np.ndarray, num_samples: int, seed: int) -> list[float]:
    """95% percentile interval of the temperature under a bootstrap of the validation rows."""
    drawn = np.random.default_rng([seed, TEMPERATURE_STREAM]).integers(0, len(labels), (num_samples, len(labels)))
    temperatures = [fit_temperature(logits[rows], labels[rows]) for rows in drawn]
    return [float(end) for end in np.quantile(temperatures, (0.025, 0.975))]


def expected_ece_if_calibrated(logits: np.ndarray, num_samples: int, seed: int) -> float:
    """The mean ECE that these confidences would show if they were exactly right, from simulated outcomes.

    The ECE is biased upwards: with few rows a bin's accuracy differs from its confidence by chance.
    """
    confidence, bin_of_row = confidence_bins(logits)
    outcomes = np.random.default_rng([seed, OUTCOME_STREAM]).random((num_samples, len(confidence))) < confidence
    gaps = (confidence - outcomes) @ np.eye(NUM_BINS)[bin_of_row] / len(confidence)
    return float(np.abs(gaps).sum(1).mean())


def confidence_bins(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability (rows,) of each row's predicted class, and the index (rows,) of its bin; bin 0 is (0, 1/15]."""
    confidence = np.exp(log_softmax(logits, axis=1)).max(1)
    return confidence, np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)


def reliability_bins(logits: np.ndarray, labels: np.ndarray, temperature: float) -> list[dict[str, Any]]:
    """Mean confidence and accuracy in each bin that is not empty, before and after temperature scaling."""
    bins = []
    correct = logits.argmax(1) == labels
    for scaled in (False, True):
        confidence, bin_of_row = confidence_bins(logits / temperature if scaled else logits)
        for index in np.unique(bin_of_row):
            inside = bin_of_row == index
            means = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
            bins.append({"scaled": scaled, **means, "rows": int(inside.sum())})
    return bins
