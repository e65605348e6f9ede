"""Statistical power of a comparison over folds: predicted before training, and estimated afterwards from its interval.

The estimated variance between folds, S^2/K, is itself random, so each power is a mean over equally likely values of S.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, norm, t

from stages.common.evaluation.significance import CONFIDENCE_LEVEL, MIN_FOLDS, TOST_LEVEL, Interval

POWER = 0.8
MOST_ROWS = 1e12  # A number of rows that no corpus has.
DISAGREEMENT = 0.15  # Share of rows that one method alone has right, as `describe_power` assumes it.
RUN_SD = 0.01  # Standard deviation of macro-F1 from run to run, as `describe_power` assumes it.


def _relative_errors(degrees_of_freedom: int) -> np.ndarray:
    """Return equally likely values (200,) of an estimated standard error divided by the true one."""
    return (chi2.ppf((np.arange(200) + 0.5) / 200, degrees_of_freedom) / degrees_of_freedom) ** 0.5


def minimum_detectable_effect(interval: Interval) -> float | None:
    """Estimate the true difference that another experiment of this kind would find with a power of 80%.

    That is t sqrt(V), with the quantile and the degrees of freedom of the interval, which the estimate has to exceed,
    plus a multiple of S / sqrt(K), by which the estimate itself varies. The multiple is larger than a quantile of t,
    since S is uncertain: it is chosen such that, if the true difference is what one experiment printed, the next
    experiment finds it with a power of 80%, on average over what is printed. With the quantile of t that power would be
    60% for three folds.

    Args:
        interval: The 95% confidence interval of the experiment.

    Returns:
        The difference in units of the metric; more than 1 means that no difference can be detected. None with fewer
        than three folds, which never give a verdict.
    """
    if interval.num_folds < MIN_FOLDS:
        return None
    level, folds_minus_1 = (1 + CONFIDENCE_LEVEL) / 2, interval.num_folds - 1
    between = folds_minus_1 / interval.degrees_of_freedom  # share of S^2/K in V
    quantile, errors = t.ppf(level, folds_minus_1), _relative_errors(folds_minus_1)

    def excess_power(multiple: float) -> float:
        return float(norm.cdf((quantile + multiple) * errors[:, None] - quantile * errors).mean()) - POWER

    multiple = brentq(excess_power, 0, 100)
    return float((t.ppf(level, interval.degrees_of_freedom) + multiple * between**0.5) * interval.standard_error)


def _half_widths(row_variance: float, run_variance: float, num_folds: int, level: float) -> np.ndarray:
    """Return equally likely half-widths (200,) of an interval, given the variances of the mean difference."""
    between = (row_variance + run_variance) * _relative_errors(num_folds - 1) ** 2
    total = row_variance + between
    return t.ppf((1 + level) / 2, (num_folds - 1) * total / between) * total**0.5


def rows_for_equivalence(
    num_rows: int, row_variance: float, run_variance: float, num_folds: int, margin: float
) -> int | None:
    """Estimate how many tested rows it takes to find equal methods equivalent with a power of 80%.

    Args:
        num_rows: Number of rows that were tested in all folds together.
        row_variance: Variance of the mean difference due to the choice of these rows; it falls with their number.
        run_variance: Variance of the mean difference from run to run, which more rows do not change.
        num_folds: Number of folds, which stays the same.
        margin: The largest difference that does not matter in practice.

    Returns:
        The number of rows; None if the runs vary so much that it takes more folds, or with fewer than three folds.
    """
    if num_folds < MIN_FOLDS or row_variance <= 0:
        return None

    def excess_power(log_rows: float) -> float:
        of_rows = row_variance * num_rows / np.exp(log_rows)
        room = margin - _half_widths(of_rows, run_variance, num_folds, TOST_LEVEL)
        return float(np.maximum(2 * norm.cdf(room / (of_rows + run_variance) ** 0.5) - 1, 0).mean()) - POWER

    if excess_power(np.log(MOST_ROWS)) < 0:
        return None
    return int(np.ceil(np.exp(brentq(excess_power, 0, np.log(MOST_ROWS)))))


def rows_needed(by_fold: np.ndarray, replicates: np.ndarray, num_rows: int, margin: float) -> int | None:
    """Estimate `rows_for_equivalence` from the results of a comparison.

    Args:
        by_fold: The difference on each fold, (folds,).
        replicates: Its mean over the folds in each resample of the bootstrap over rows, (samples,).
        num_rows: Number of rows that were tested in all folds together.
        margin: The largest difference that does not matter in practice.
    """
    row_variance = float(replicates.var(ddof=1))
    between = float(by_fold.var(ddof=1)) / len(by_fold) if len(by_fold) > 1 else 0.0
    return rows_for_equivalence(num_rows, row_variance, max(between - row_variance, 0.0), len(by_fold), margin)


def describe_power(class_counts: np.ndarray, num_folds: int, margin: float) -> str:
    """Predict in a sentence what a comparison can show.

    Args:
        class_counts: Number of distinct tested rows of each class in all folds together, at least 1 each, (classes,).
        num_folds: Number of folds that are run.
        margin: The largest difference that does not matter in practice.
    """
    if num_folds < MIN_FOLDS:
        return f"run.folds names {num_folds} of the {MIN_FOLDS} folds that a verdict on the methods takes at least"
    num_rows = int(class_counts.sum())
    # Macro-F1 weighs the rows of rare classes more than accuracy, whose variance is the disagreement over the rows.
    row_variance = DISAGREEMENT / num_rows * float((num_rows / class_counts).mean()) / len(class_counts)
    run_variance = 2 * RUN_SD**2 / num_folds

    def excess_power(difference: float) -> float:
        excess = difference - _half_widths(row_variance, run_variance, num_folds, CONFIDENCE_LEVEL)
        return float(norm.cdf(excess / (row_variance + run_variance) ** 0.5).mean()) - POWER

    detectable = brentq(excess_power, 0, 10)
    rows = rows_for_equivalence(num_rows, row_variance, 0.0, num_folds, margin)
    equivalence = f"takes at least {rows:,} test rows" if rows else "is out of reach"
    return (
        f"{num_folds} folds with {num_rows:,} test rows in all find a true difference of {detectable:.2g} in macro-F1 "
        f"with a power of {POWER:.0%}, if the methods disagree on {DISAGREEMENT:.0%} of the rows and macro-F1 varies "
        f"by {RUN_SD:g} from run to run; even if it did not vary, showing equivalence within {margin:g} {equivalence}"
    )
