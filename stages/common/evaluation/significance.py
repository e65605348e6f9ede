"""How certain a difference between two methods is: interval over folds, verdict, and tests of the trained models."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, permutation_test, t

from stages.common.evaluation.bootstrap import MAX_ELEMENTS
from stages.common.evaluation.metrics import RowStatistics, f1_scores
from stages.common.evaluation.result import Verdict

CONFIDENCE_LEVEL = 0.95
TOST_LEVEL = 0.90  # Confidence level for two one-sided tests (TOST) at 5% each.
MIN_FOLDS = 3  # A verdict takes at least three folds: with two, the 95% interval covers the truth in about 90%.
DIVERGENCE_GAP, DIVERGENCE_ERRORS, DIVERGENCE_FACTOR = 0.1, 4, 3  # Limits that `divergent_runs` explains.
PERMUTATION_STREAM = 1  # Number of this module's random stream; all streams derive from `compare.seed`.
NORMAL_MAD = 1.4826  # Ratio of a normal variable's standard deviation to its median absolute deviation.


@dataclass(frozen=True)
class Interval:
    """A confidence interval over folds, with the quantities from which its statistical power is estimated."""

    low: float
    high: float
    standard_error: float  # sqrt(V), see `fold_variance`.
    degrees_of_freedom: float  # Those of the t quantile; infinite if the folds do not differ at all.
    num_folds: int


def fold_variance(differences: np.ndarray, row_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the variance V of a mean over folds, and its degrees of freedom.

    V is the bootstrap variance over rows plus the variance between folds, S^2/K, which reflects the choice of rows and
    of seeds. Rows count twice, on purpose: the estimate S^2 from few folds is uncertain, which the other part softens,
    and the training sets of different folds overlap, an error common to all folds that S^2 cannot show.

    Args:
        differences: A metric, or a difference of it between two methods, on each fold, (..., folds).
        row_variance: Bootstrap variance of its mean over the folds, (...).

    Returns:
        V and the degrees of freedom (K - 1) V / (S^2/K), two arrays (...); the latter is infinite where all folds are
        equal. With the square of the ratio, as in the formula of Welch and Satterthwaite, intervals from three folds
        cover too little: an S that is small by chance narrows them twice, by V and by the degrees of freedom.
    """
    num_folds = differences.shape[-1]
    between = differences.var(-1, ddof=1) / num_folds
    total = row_variance + between
    ratio = np.divide(total, between, out=np.full_like(total, np.inf), where=between > 0)
    return total, (num_folds - 1) * ratio


def fold_interval(by_fold: np.ndarray, replicates: np.ndarray, level: float = CONFIDENCE_LEVEL) -> Interval:
    """Compute the confidence interval of a mean over folds: mean +- t sqrt(V), see `fold_variance`.

    With one fold V is the variance of the rows alone: the interval is then about the trained models, not the methods.

    Args:
        by_fold: A metric, or a difference of it between two methods, on each fold, (folds,).
        replicates: Its mean over the folds in each resample of the bootstrap over rows, (samples,).
        level: Confidence level; 0.90 for two one-sided tests at 5%.
    """
    variance, degrees = np.array(replicates.var(ddof=1)), np.array(np.inf)
    if len(by_fold) > 1:
        variance, degrees = fold_variance(by_fold, variance)
    half_width = float(t.ppf((1 + level) / 2, degrees) * variance**0.5)
    mean = float(by_fold.mean())
    return Interval(mean - half_width, mean + half_width, float(variance**0.5), float(degrees), len(by_fold))


def verdict(interval: Interval, tost_interval: Interval, margin: float) -> Verdict:
    """Decide what a difference says about two methods, given a margin that was named beforehand.

    Args:
        interval: 95% confidence interval of the difference.
        tost_interval: 90% interval. Two one-sided tests at 5% (Schuirmann 1987) reject if it lies within the margin.
        margin: The largest difference that does not matter in practice.

    Returns:
        "undecided" with fewer than three folds; else "equivalent" by the two one-sided tests, even if the interval
        excludes 0; else "better" if it lies above 0, "worse" if it lies below 0, and "undecided" if it contains 0.
    """
    if interval.num_folds < MIN_FOLDS:
        return "undecided"
    if -margin < tost_interval.low and tost_interval.high < margin:
        return "equivalent"
    return "better" if interval.low > 0 else "worse" if interval.high < 0 else "undecided"


def divergent_runs(scores: np.ndarray, row_standard_error: float) -> list[int]:
    """Find the runs of one method whose score is far from the others', as after a training that diverged.

    A run is found if its distance from the median exceeds 0.1, and 4 standard errors due to its own rows, and 3 robust
    standard deviations of the runs. One of three runs can be found, and two of five.

    Args:
        scores: Macro-F1 of each run, (folds,).
        row_standard_error: Standard error of one score due to the choice of its fold's rows.

    Returns:
        The indices of these runs in ascending order; an empty list for fewer than three runs.
    """
    if len(scores) < MIN_FOLDS:
        return []
    distances = np.abs(scores - np.median(scores))
    spread = NORMAL_MAD * np.median(distances)
    limit = max(DIVERGENCE_GAP, DIVERGENCE_ERRORS * row_standard_error, DIVERGENCE_FACTOR * spread)
    return np.flatnonzero(distances > limit).tolist()


def _sum_by_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sum values (rows, classes) over the rows of each group; returns (groups, classes)."""
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums


def permutation_p_value(a: RowStatistics, b: RowStatistics, groups: np.ndarray, num_samples: int, seed: int) -> float:
    """Compute the two-sided p-value of a difference in macro-F1 by swapping the two models' predictions at random.

    Args:
        a: Statistics of the tested rows, with the leading axis (rows,).
        b: The same statistics of the other method.
        groups: Group numbers 0, 1, ... without gaps, (rows,); rows of one group are swapped together.
        num_samples: Number of permutations.
        seed: Seed of the random permutations.
    """
    # Swapping a group changes the counts of `a` by this much.
    hits_change = _sum_by_group(b.hits - a.hits, groups)
    predicted_change = _sum_by_group(b.predicted - a.predicted, groups)
    discordant = hits_change.any(1) | predicted_change.any(1)
    if discordant.sum() < 2:
        return 1.0  # Every permutation is as extreme as the observed one.
    hits_change, predicted_change, actual = hits_change[discordant], predicted_change[discordant], a.actual.sum(0)

    def difference(swapped: np.ndarray, _: np.ndarray, axis: int) -> np.ndarray:
        hits, predicted = swapped @ hits_change, swapped @ predicted_change
        f1_a = f1_scores(a.hits.sum(0) + hits, actual, a.predicted.sum(0) + predicted)
        f1_b = f1_scores(b.hits.sum(0) - hits, actual, b.predicted.sum(0) - predicted)
        return (f1_a - f1_b).mean(-1)

    # SciPy swaps entries of the two arrays at random; after that the first array tells which groups are swapped.
    pair = np.zeros(len(hits_change)), np.ones(len(hits_change))
    result = permutation_test(
        pair,
        difference,
        permutation_type="samples",
        vectorized=True,
        axis=-1,
        n_resamples=num_samples,
        batch=max(1, MAX_ELEMENTS // (2 * len(hits_change))),
        rng=np.random.default_rng([seed, PERMUTATION_STREAM]),
    )
    return float(result.pvalue)


def mcnemar_p_value(a: RowStatistics, b: RowStatistics, groups: np.ndarray) -> float:
    """Compute the two-sided p-value of McNemar's exact test of accuracy, see `permutation_p_value` for the arguments.

    A group of several rows counts once, for the model that has more of its rows right.
    """
    gained = _sum_by_group(b.hits - a.hits, groups).sum(1)
    only_a, only_b = int((gained < 0).sum()), int((gained > 0).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
