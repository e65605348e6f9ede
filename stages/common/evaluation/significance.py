"""How sure a difference between two classifiers is: bootstrap, confidence intervals, paired tests and a verdict."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, norm, permutation_test, t

from stages.common.evaluation.vectorized_metrics import Metrics, count_metrics, num_counts
from stages.common.runtime.console import ProgressBar

CONFIDENCE_LEVEL = 0.95
TOST_LEVEL = 0.90  # two one-sided tests at 5% each
POWER = 0.8
BOOTSTRAP_STREAM = 0  # of the random streams of `compare.seed`; calibration has 1 and 2
MAX_ELEMENTS = 4_000_000  # of a temporary matrix of resamples, 32 MB


def resampling_weights(groups: np.ndarray, num_samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw resamples with replacement; rows of one group are drawn together (Field and Welsh 2007).

    Args:
        groups: (rows,) group numbers 0, 1, ... without gaps.

    Yields:
        Blocks (samples, rows) of the weight of each row; the weights of a sample add up to 1.
    """
    generator = np.random.default_rng([seed, BOOTSTRAP_STREAM])
    num_groups = int(groups.max()) + 1
    block = max(1, MAX_ELEMENTS // len(groups))
    for start in ProgressBar(range(0, num_samples, block), desc="bootstrap"):
        size = min(block, num_samples - start)
        drawn = generator.integers(0, num_groups, (size, num_groups)) + np.arange(size)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=size * num_groups).reshape(size, num_groups)[:, groups]
        yield counts / counts.sum(1, keepdims=True)


def bootstrap_replicates(
    statistics: Mapping[str, np.ndarray],
    weights: Iterable[np.ndarray],
    metrics: Callable[[np.ndarray], Metrics],
) -> dict[str, dict[str, np.ndarray]]:
    """Each metric (samples,) of each method, the mean over its runs, in resamples that all methods share.

    Args:
        statistics: by method, `per_example_statistics` of its runs, (rows, runs, columns).
        weights: see `resampling_weights`.
        metrics: of means (samples, runs, columns) over rows.
    """
    blocks = [{method: np.tensordot(block, values, 1) for method, values in statistics.items()} for block in weights]
    means = {method: np.concatenate([block[method] for block in blocks]) for method in statistics}
    return {
        method: {name: values.mean(-1) for name, values in metrics(method_means).items()}
        for method, method_means in means.items()
    }


def confidence_interval(
    point_estimate: float, replicates: np.ndarray, runs: Sequence[np.ndarray] = (), level: float = CONFIDENCE_LEVEL
) -> list[float]:
    """Both ends of a confidence interval of a metric, or of a difference between two methods.

    With two or more runs a method: Welch's t interval. Its variance is that of the bootstrap over rows plus, for each
    method, the variance over its runs divided by their number; degrees of freedom by Welch-Satterthwaite. Otherwise the
    percentile interval of the bootstrap (Efron and Tibshirani 1993), which covers the choice of rows alone.

    Args:
        replicates: (samples,) of the bootstrap over rows.
        runs: the metric of each run (runs,), an array for each method that was trained.
    """
    if min(map(len, runs), default=1) < 2:
        return [float(end) for end in np.quantile(replicates, ((1 - level) / 2, (1 + level) / 2))]
    variances = [float(values.var(ddof=1)) / len(values) for values in runs]
    total = float(replicates.var(ddof=1)) + sum(variances)
    shares = sum(variance**2 / (len(values) - 1) for variance, values in zip(variances, runs, strict=True))
    quantile = t.ppf((1 + level) / 2, total**2 / shares) if shares else norm.ppf((1 + level) / 2)
    return [point_estimate - quantile * total**0.5, point_estimate + quantile * total**0.5]


def smallest_detectable_difference(standard_error: float) -> float:
    """The true difference that a two-sided test at 5% finds with a power of 80%."""
    return float((norm.ppf((1 + CONFIDENCE_LEVEL) / 2) + norm.ppf(POWER)) * standard_error)


def rows_for_equivalence(num_rows: int, row_variance: float, run_variance: float, margin: float) -> int | None:
    """Test rows with which equivalence would be shown with a power of 80% if the methods were equal.

    Args:
        row_variance: of the difference, from the choice of `num_rows` rows; falls with their number.
        run_variance: of the difference, from the choice of seeds; more rows do not change it.

    Returns:
        None if the seeds alone vary too much: it takes more seeds, not more rows.
    """
    quantiles = norm.ppf((1 + TOST_LEVEL) / 2) + norm.ppf((1 + POWER) / 2)
    row_variance_budget = (margin / quantiles) ** 2 - run_variance
    return int(np.ceil(num_rows * row_variance / row_variance_budget)) if row_variance_budget > 0 else None


def permutation_p_value(a: np.ndarray, b: np.ndarray, num_samples: int, seed: int) -> float:
    """Two-sided p-value of the difference in macro-F1 between two checkpoints that are swapped row by row.

    Args:
        a, b: `per_example_statistics` of the two checkpoints, (rows, columns).
    """
    a, b = a[:, : num_counts(a)], b[:, : num_counts(b)]
    discordant = (a != b).any(1)
    if discordant.sum() < 2:
        return 1.0  # every permutation is as extreme
    counts_a, counts_b, class_names = a.sum(0), b.sum(0), [str(index) for index in range(a.shape[1] // 3)]
    change = (b - a)[discordant]  # of a's counts by swapping a row

    def difference(swapped: np.ndarray, _: np.ndarray, axis: int) -> np.ndarray:
        pair = (counts_a + swapped @ change, counts_b - swapped @ change)
        f1_a, f1_b = (count_metrics(counts, class_names)["macro_f1"] for counts in pair)
        return f1_a - f1_b

    # SciPy swaps the entries of the two arrays at random, so that the first array says which rows are swapped.
    pair = np.zeros(len(change)), np.ones(len(change))
    options = {"permutation_type": "samples", "vectorized": True, "axis": -1, "n_resamples": num_samples}
    options |= {"batch": max(1, MAX_ELEMENTS // (2 * len(change))), "rng": np.random.default_rng(seed)}
    return float(permutation_test(pair, difference, **options).pvalue)


def mcnemar_p_value(a_correct: np.ndarray, b_correct: np.ndarray) -> float:
    """Two-sided p-value of McNemar's exact test of two checkpoints' accuracy, from the rows (rows,) each has right."""
    only_a, only_b = int((a_correct & ~b_correct).sum()), int((b_correct & ~a_correct).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def verdict(interval: Sequence[float], tost_interval: Sequence[float], margin: float) -> str:
    """What a difference says, given a margin that was named beforehand.

    Args:
        interval: 95% confidence interval of the difference.
        tost_interval: 90% interval: two one-sided tests at 5% (Schuirmann 1987) reject if it lies within the margin.

    Returns:
        "equivalent" by the two one-sided tests, even if the interval excludes 0; else "better" if it lies above 0,
        "worse" if below 0, and "undecided" if it holds 0.
    """
    if -margin < tost_interval[0] and tost_interval[1] < margin:
        return "equivalent"
    return "better" if interval[0] > 0 else "worse" if interval[1] < 0 else "undecided"
