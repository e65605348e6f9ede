"""Metrics as functions of means over rows, so that all bootstrap resamples together are one matrix product.

With scikit-learn each metric would be computed anew for each of ten thousand resamples. The tests compare both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import log_softmax

from stages.common.evaluation.calibration import NUM_BINS, confidence_bins

TINY = np.finfo(float).tiny  # Replaces a denominator of 0, so that the metric of an empty class is 0.


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of each row, whose means over rows determine all metrics.

    All arrays share their leading axes: (rows,), or those of means over rows.
    """

    hits: np.ndarray  # (..., classes) 1 for the class of the row if it is predicted
    actual: np.ndarray  # (..., classes) 1 for the class of the row
    predicted: np.ndarray  # (..., classes) 1 for the predicted class
    loss: np.ndarray  # (...) cross-entropy
    brier: np.ndarray  # (...) squared distance of the probabilities from the class, 0 to 2
    gaps: np.ndarray  # (..., bins) confidence minus hit, in the bin of the row's confidence
    scaled_loss: np.ndarray  # These three are the same after temperature scaling.
    scaled_brier: np.ndarray
    scaled_gaps: np.ndarray

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray, temperatures: np.ndarray) -> Self:
        """Compute the statistics of each row.

        Args:
            logits: (rows, classes).
            labels: Class indices, (rows,).
            temperatures: Temperature of the model that each row was tested with, (rows,).
        """
        one_hot, predictions, rows = np.eye(logits.shape[1]), logits.argmax(1), np.arange(len(labels))
        actual, predicted = one_hot[labels], one_hot[predictions]
        by_probabilities = []
        for scaled in (logits, logits / temperatures[:, None]):
            log_probabilities = log_softmax(scaled, axis=1)
            confidence, bin_of_row = confidence_bins(scaled)
            by_probabilities += [
                -log_probabilities[rows, labels],
                ((np.exp(log_probabilities) - actual) ** 2).sum(1),
                np.eye(NUM_BINS)[bin_of_row] * (confidence - (predictions == labels))[:, None],
            ]
        return cls(actual * predicted, actual, predicted, *by_probabilities)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Apply a function to every array."""
        return type(self)(**{name: function(values) for name, values in vars(self).items()})

    def without_gaps(self) -> Self:
        """Leave out the gaps, which are most of the columns and which only the ECE needs."""
        return replace(self, gaps=self.gaps[..., :0], scaled_gaps=self.scaled_gaps[..., :0])

    def means(self, weights: np.ndarray) -> Self:
        """Compute weighted means over rows.

        Args:
            weights: Weights (samples, rows); those of each sample add up to 1.

        Returns:
            Statistics with the leading axis (samples,).
        """
        return self.map(lambda values: weights @ values)


def f1_scores(hits: np.ndarray, actual: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute the F1 of each class, (..., classes), from counts or their means, three arrays of that shape."""
    return 2 * hits / np.maximum(actual + predicted, TINY)


@dataclass(frozen=True)
class Metrics:
    """All metrics, each with the leading axes of the means from which it was computed.

    Each field, except for the metrics of single classes, is also a field of `result.Scores`; `comparison.scores_of`
    matches them by name.
    """

    macro_f1: np.ndarray
    macro_precision: np.ndarray
    macro_recall: np.ndarray
    accuracy: np.ndarray
    loss: np.ndarray
    brier: np.ndarray
    ece: np.ndarray
    scaled_loss: np.ndarray
    scaled_brier: np.ndarray
    scaled_ece: np.ndarray
    precision: np.ndarray  # (..., classes)
    recall: np.ndarray  # (..., classes)
    f1: np.ndarray  # (..., classes)

    @classmethod
    def from_means(cls, means: RowStatistics) -> Self:
        """Compute the metrics from means over rows. Those of an empty class are 0, as in scikit-learn."""
        precision = means.hits / np.maximum(means.predicted, TINY)
        recall = means.hits / np.maximum(means.actual, TINY)
        f1 = f1_scores(means.hits, means.actual, means.predicted)
        return cls(
            macro_f1=f1.mean(-1),
            macro_precision=precision.mean(-1),
            macro_recall=recall.mean(-1),
            accuracy=means.hits.sum(-1),
            loss=means.loss,
            brier=means.brier,
            ece=np.abs(means.gaps).sum(-1),
            scaled_loss=means.scaled_loss,
            scaled_brier=means.scaled_brier,
            scaled_ece=np.abs(means.scaled_gaps).sum(-1),
            precision=precision,
            recall=recall,
            f1=f1,
        )

    @classmethod
    def combine(cls, parts: Sequence[Self], function: Callable[[list[np.ndarray]], np.ndarray]) -> Self:
        """Combine the arrays of each metric, one from every part, into one array."""
        return cls(**{name: function([vars(part)[name] for part in parts]) for name in vars(parts[0])})
