"""How sure a difference between two classifiers is: bootstrap intervals, paired tests, and a verdict."""

from collections.abc import Mapping

import numpy as np
from scipy.stats import binomtest, permutation_test

from stages.common.core.console import ProgressBar
from stages.common.evaluation.vectorized_metrics import NUM_CELLS, Metrics, compute_metrics, confusion_metrics

MAX_ELEMENTS = 4_000_000  # of a temporary matrix of resamples, 32 MB


def bootstrap_replicates(statistics: Mapping[str, np.ndarray], num_samples: int, seed: int) -> dict[str, Metrics]:
    """Each metric (num_samples,) of each method, the mean over its runs, in resamples drawn with replacement.

    A resample takes the same rows for every method and, where there are several runs, the same runs.

    Args:
        statistics: by method, `per_example_statistics` of its runs, (rows, runs, 43); all methods have equally many
            runs, or one.
    """
    num_rows = len(next(iter(statistics.values())))
    num_runs = max(values.shape[1] for values in statistics.values())
    row_generator, run_generator = (np.random.default_rng([seed, stream]) for stream in range(2))
    run_weights = run_generator.multinomial(num_runs, np.full(num_runs, 1 / num_runs), num_samples) / num_runs
    means = {method: np.empty((num_samples, *values.shape[1:])) for method, values in statistics.items()}
    step = max(1, MAX_ELEMENTS // num_rows)
    for start in ProgressBar(range(0, num_samples, step), desc="bootstrap"):
        size = min(step, num_samples - start)
        drawn = row_generator.integers(0, num_rows, (size, num_rows)) + np.arange(size)[:, None] * num_rows
        row_weights = np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows) / num_rows
        for method, values in statistics.items():
            product = row_weights @ values.reshape(num_rows, -1)
            means[method][start : start + size] = product.reshape(size, *values.shape[1:])
    replicates = {}
    for method, of_method in means.items():
        weights = run_weights if of_method.shape[1] == num_runs else np.ones((num_samples, 1))
        metrics = compute_metrics(of_method)
        replicates[method] = {name: (values * weights).sum(1) for name, values in metrics.items()}
    return replicates


def confidence_interval(replicates: np.ndarray) -> list[float]:
    """Both ends of the 95% percentile interval (Efron and Tibshirani 1993)."""
    return [float(end) for end in np.percentile(replicates, (2.5, 97.5))]


def permutation_p_value(a: np.ndarray, b: np.ndarray, num_samples: int, seed: int) -> float:
    """Two-sided p-value of the difference in macro-F1, the mean over runs, if the methods are swapped row by row.

    Args:
        a, b: `per_example_statistics` of the two methods' runs, (rows, runs, 43).
    """
    cells_a, cells_b = a[..., :NUM_CELLS], b[..., :NUM_CELLS]
    discordant = (cells_a != cells_b).any((1, 2))
    if discordant.sum() < 2:
        return 1.0  # every permutation is as extreme
    counts_a, counts_b = cells_a.sum(0), cells_b.sum(0)  # (runs, 9)
    change = (cells_b - cells_a)[discordant].reshape(discordant.sum(), -1)  # of a's counts by swapping a row

    def difference(swapped: np.ndarray, _: np.ndarray, axis: int) -> np.ndarray:
        changes = (swapped @ change).reshape(*swapped.shape[:-1], *counts_a.shape)
        pair = (counts_a + changes, counts_b - changes)
        of_a, of_b = (confusion_metrics(counts)["macro_f1"].mean(-1) for counts in pair)
        return of_a - of_b

    # SciPy swaps the entries of the two arrays at random, so that the first array says which rows are swapped.
    pair = np.zeros(len(change)), np.ones(len(change))
    options = {"permutation_type": "samples", "vectorized": True, "axis": -1, "n_resamples": num_samples}
    options |= {"batch": max(1, MAX_ELEMENTS // (2 * len(change))), "rng": np.random.default_rng(seed)}
    return float(permutation_test(pair, difference, **options).pvalue)


def mcnemar_p_value(a_correct: np.ndarray, b_correct: np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test, from which rows (rows,) each method has right."""
    only_a, only_b = int((a_correct & ~b_correct).sum()), int((b_correct & ~a_correct).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def verdict_from_interval(interval: list[float], margin: float) -> str:
    """What the 95% interval of a difference says, given a margin that was named beforehand.

    Returns:
        "equivalent" if it lies within the margin, even if it excludes 0; else "better" if it lies above 0, "worse" if
        below 0, and "undecided" if it holds 0.
    """
    low, high = interval
    if -margin < low and high < margin:
        return "equivalent"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
