"""Bootstrap over the tested rows; all methods share the same resamples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stages.common.evaluation.metrics import Metrics, RowStatistics
from stages.common.runtime.console import ProgressBar

BOOTSTRAP_STREAM = 0  # Number of this module's random stream; all streams derive from `compare.seed`.
MAX_ELEMENTS = 4_000_000  # Upper bound on the elements of one matrix of resamples (32 MB of float64).


@dataclass(frozen=True)
class BootstrappedMetrics:
    """Metrics of one classifier, observed and resampled."""

    by_fold: Metrics  # (folds,); metrics of single classes have the shape (folds, classes).
    pooled: Metrics  # Metrics of all rows together: numbers, and (classes,).
    replicates: Metrics  # Means over the folds in each resample, (samples,) and (samples, classes), without the ECE.

    def mean(self, name: str) -> np.ndarray:
        """Return the mean of a metric over the folds: a number, or (classes,)."""
        return vars(self.by_fold)[name].mean(0)


def resampling_weights(groups: np.ndarray, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples with replacement; rows of one group are drawn together (Field and Welsh 2007).

    Args:
        groups: Group numbers 0, 1, ... without gaps, (rows,).
        num_samples: Number of resamples in all blocks together.
        seed: Seed of the random draws.

    Yields:
        Counts of how often each row was drawn, in blocks (samples, rows).
    """
    generator = np.random.default_rng([seed, BOOTSTRAP_STREAM])
    num_groups = int(groups.max()) + 1
    block = max(1, MAX_ELEMENTS // len(groups))
    for start in ProgressBar(range(0, num_samples, block), desc="bootstrap"):
        size = min(block, num_samples - start)
        drawn = generator.integers(0, num_groups, (size, num_groups)) + np.arange(size)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups)
        yield counts[:, groups].astype(float)


def bootstrap(
    statistics: Mapping[str, RowStatistics], folds: np.ndarray, groups: np.ndarray, num_samples: int, seed: int
) -> dict[str, BootstrappedMetrics]:
    """Compute the metrics of each classifier on each fold, and the replicates of their means over the folds.

    Args:
        statistics: Statistics of the tested rows, with the leading axis (rows,), by the name of a classifier.
        folds: The fold of each row, (rows,).
        groups: See `resampling_weights`.
        num_samples: Number of resamples.
        seed: Seed of the random draws.
    """
    rows_of_folds = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    of_folds = {
        name: [values.map(lambda array, rows=rows: array[rows]) for rows in rows_of_folds]  # type: ignore[misc]
        for name, values in statistics.items()
    }
    blocks: dict[str, list[Metrics]] = {name: [] for name in statistics}
    for counts in resampling_weights(groups, num_samples, seed):
        # A resample can leave a fold of a dozen texts without a row; its metrics then count as 0.
        weights = [counts[:, rows] / np.maximum(counts[:, rows].sum(1, keepdims=True), 1) for rows in rows_of_folds]
        for name, parts in of_folds.items():
            drawn = [Metrics.from_means(part.without_gaps().means(w)) for part, w in zip(parts, weights, strict=True)]
            blocks[name].append(Metrics.combine(drawn, lambda arrays: np.mean(arrays, axis=0)))
    return {
        name: BootstrappedMetrics(
            Metrics.combine([Metrics.from_means(part.map(lambda a: a.mean(0))) for part in of_folds[name]], np.stack),
            Metrics.from_means(values.map(lambda array: array.mean(0))),
            Metrics.combine(blocks[name], np.concatenate),
        )
        for name, values in statistics.items()
    }
