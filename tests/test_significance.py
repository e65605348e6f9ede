"""Intervals over folds, verdicts and tests of trained models agree with SciPy and statsmodels."""

import itertools

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar

from stages.common.evaluation.metrics import RowStatistics
from stages.common.evaluation.power import (
    describe_power,
    minimum_detectable_effect,
    rows_for_equivalence,
    rows_needed,
)
from stages.common.evaluation.significance import (
    TOST_LEVEL,
    Interval,
    divergent_runs,
    fold_interval,
    mcnemar_p_value,
    permutation_p_value,
    verdict,
)
from tests.support.runs import labelled_logits

BY_FOLD = np.array([0.01, 0.03, 0.02, 0.05])


def replicates_with(variance: float) -> np.ndarray:
    """Draw replicates that have exactly this variance."""
    values = np.random.default_rng(0).normal(size=4000)
    return (values - values.mean()) / values.std(ddof=1) * variance**0.5


def test_without_variance_of_the_rows_the_interval_is_the_paired_t_interval():
    expected = scipy.stats.ttest_1samp(BY_FOLD, 0).confidence_interval(0.9)
    interval = fold_interval(BY_FOLD, np.full(100, 0.0), TOST_LEVEL)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.degrees_of_freedom == len(BY_FOLD) - 1


def test_variances_between_folds_and_of_rows_add_up():
    row_variance, between = 1e-4, BY_FOLD.var(ddof=1) / len(BY_FOLD)
    interval = fold_interval(BY_FOLD, replicates_with(row_variance))
    assert interval.standard_error**2 == pytest.approx(row_variance + between)
    assert interval.degrees_of_freedom == pytest.approx((len(BY_FOLD) - 1) * (row_variance + between) / between)
    half_width = scipy.stats.t.ppf(0.975, interval.degrees_of_freedom) * interval.standard_error
    assert (interval.low, interval.high) == pytest.approx((BY_FOLD.mean() - half_width, BY_FOLD.mean() + half_width))


@pytest.mark.parametrize("by_fold", [np.array([0.02]), np.full(3, 0.02)])
def test_one_fold_and_equal_folds_leave_the_variance_of_the_rows(by_fold):
    interval = fold_interval(by_fold, replicates_with(1e-4))
    assert interval.high - interval.low == pytest.approx(2 * scipy.stats.norm.ppf(0.975) * 0.01)


def interval_of(low: float, high: float, num_folds: int = 3) -> Interval:
    return Interval(low, high, standard_error=0.01, degrees_of_freedom=4.0, num_folds=num_folds)


@pytest.mark.parametrize(
    "interval, tost_interval, expected",
    [
        ((-0.008, 0.009), (-0.007, 0.008), "equivalent"),
        ((-0.011, 0.009), (-0.009, 0.008), "equivalent"),
        ((0.001, 0.008), (0.002, 0.007), "equivalent"),
        ((0.001, 0.02), (0.002, 0.018), "better"),
        ((-0.05, -0.001), (-0.04, -0.002), "worse"),
        ((-0.02, 0.005), (-0.018, 0.004), "undecided"),
        ((-0.01, 0.0), (-0.01, -0.001), "undecided"),
        ((0.0, 0.0), (0.0, 0.0), "equivalent"),
    ],
)
def test_the_verdict_follows_from_both_intervals(interval, tost_interval, expected):
    assert verdict(interval_of(*interval), interval_of(*tost_interval), margin=0.01) == expected


@pytest.mark.parametrize("ends", [(0.1, 0.2), (-0.2, -0.1), (-0.001, 0.001)])
@pytest.mark.parametrize("num_folds", [1, 2])
def test_fewer_than_three_folds_decide_nothing(ends, num_folds):
    interval = interval_of(*ends, num_folds=num_folds)
    assert verdict(interval, interval, margin=0.01) == "undecided"
    assert minimum_detectable_effect(interval) is None
    assert rows_needed(np.full(num_folds, 0.1), replicates_with(1e-4), 1000, 0.01) is None


@pytest.mark.parametrize("num_folds", [3, 5, 10])
def test_the_detectable_effect_is_found_with_a_power_of_80_percent(num_folds):
    """The true difference of the experiments is the detectable effect that an earlier one reported, on average."""
    rng, row_sd, run_sd, experiments = np.random.default_rng(num_folds), 0.01, 0.015, 400
    between_sd = (row_sd**2 + run_sd**2) ** 0.5  # Standard deviation of a fold's difference.
    rows = replicates_with(row_sd**2 / num_folds)
    found = []
    for _ in range(experiments):
        printed = minimum_detectable_effect(fold_interval(rng.normal(0, between_sd, num_folds), rows))
        found.append(fold_interval(rng.normal(printed, between_sd, num_folds), rows).low > 0)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


def test_the_rows_needed_show_equivalence_with_a_power_of_80_percent():
    num_folds, num_rows, row_variance, margin = 5, 1000, 1e-4, 0.01
    needed = rows_for_equivalence(num_rows, row_variance, 0.0, num_folds, margin)
    sd = (row_variance * num_rows / needed) ** 0.5  # Standard deviation of the mean over folds.
    rng, rows = np.random.default_rng(0), replicates_with(sd**2)
    shown = []
    for _ in range(400):
        by_fold = rng.normal(0, sd * num_folds**0.5, num_folds)
        pair = fold_interval(by_fold, rows), fold_interval(by_fold, rows, TOST_LEVEL)
        shown.append(verdict(*pair, margin) == "equivalent")
    assert np.mean(shown) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("margin, expected", [(0.01, "takes at least"), (1e-7, "is out of reach")])
def test_power_is_foretold_in_a_sentence(margin, expected):
    sentence = describe_power(np.array([441, 441]), 3, margin)
    assert sentence.startswith("3 folds with 882 test rows in all find a true difference of 0.")
    assert f"showing equivalence within {margin:g} {expected}" in sentence
    assert "takes at least" in describe_power(np.array([441, 441]), 2, margin), "three folds"


def test_runs_that_vary_too_much_need_more_folds_instead_of_rows():
    assert rows_for_equivalence(1000, row_variance=1e-4, run_variance=1e-4, num_folds=3, margin=0.01) is None


@pytest.mark.parametrize(
    "scores, error, expected",
    [
        ([0.8, 0.81, 0.3], 0.01, [2]),
        ([0.3, 0.8, 0.81, 0.82, 0.25], 0.01, [0, 4]),
        ([0.8, 0.78, 0.83], 0.01, []),
        ([0.8, 0.81, 0.6], 0.06, []),
        ([0.8, 0.3], 0.01, []),
    ],
)
def test_a_run_far_from_the_others_is_named(scores, error, expected):
    assert divergent_runs(np.array(scores), error) == expected


def statistics_of(labels: np.ndarray, predictions: np.ndarray) -> RowStatistics:
    return RowStatistics.from_logits(np.eye(3)[predictions], labels, np.ones(len(labels)))


def macro_f1_difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray, swapped: np.ndarray) -> float:
    """Compute the difference between the predictions `a` and `b` after swapping some rows."""
    x, y = np.where(swapped, b, a), np.where(swapped, a, b)
    return f1_score(labels, x, average="macro") - f1_score(labels, y, average="macro")


EIGHT_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
GOOD, BAD = np.array([0, 1, 2, 0, 1, 1, 0, 1]), np.array([0, 2, 2, 1, 1, 0, 2, 0])


@pytest.mark.parametrize("groups", [np.arange(8), np.arange(8) // 2], ids=["rows", "pairs"])
def test_the_permutation_test_is_exact_on_few_rows(groups):
    observed = macro_f1_difference(EIGHT_LABELS, GOOD, BAD, np.zeros(8, bool))
    swaps = [np.array(swap)[groups] for swap in itertools.product((False, True), repeat=groups.max() + 1)]
    differences = [macro_f1_difference(EIGHT_LABELS, GOOD, BAD, swapped) for swapped in swaps]
    expected = np.mean([abs(difference) >= abs(observed) - 1e-12 for difference in differences])
    a, b = (statistics_of(EIGHT_LABELS, predictions) for predictions in (GOOD, BAD))
    assert permutation_p_value(a, b, groups, 10_000, seed=0) == pytest.approx(expected)


@pytest.mark.parametrize("num_discordant", [0, 1])
def test_fewer_than_two_discordant_rows_are_no_evidence(num_discordant):
    other = np.where(np.arange(8) < num_discordant, (GOOD + 1) % 3, GOOD)
    a, b = (statistics_of(EIGHT_LABELS, predictions) for predictions in (GOOD, other))
    assert permutation_p_value(a, b, np.arange(8), 1000, seed=0) == 1.0


def test_the_permutation_test_agrees_with_a_plain_loop():
    generator, permutations, num_rows = np.random.default_rng(0), 400, 300
    labels = generator.integers(0, 3, num_rows)
    a, b = (labelled_logits(labels, separation, seed).argmax(1) for separation, seed in ((1.2, 1), (0.9, 2)))
    observed = macro_f1_difference(labels, a, b, np.zeros(num_rows, bool))
    differences = [macro_f1_difference(labels, a, b, generator.random(num_rows) < 0.5) for _ in range(permutations)]
    expected = np.mean(np.abs(differences) >= abs(observed))
    pair = statistics_of(labels, a), statistics_of(labels, b)
    found = permutation_p_value(*pair, np.arange(num_rows), 10_000, seed=0)
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (3, 9), (10, 10), (25, 4)])
def test_mcnemar_is_that_of_statsmodels(only_a, only_b):
    both = 5  # Number of rows that both predict correctly.
    labels = np.zeros(both + only_a + only_b, int)
    a = np.array([0] * (both + only_a) + [1] * only_b)
    b = np.array([0] * both + [1] * only_a + [0] * only_b)
    expected = mcnemar([[both, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    pair = statistics_of(labels, a), statistics_of(labels, b)
    assert mcnemar_p_value(*pair, np.arange(len(labels))) == pytest.approx(expected)
