"""The comparison's statistics against scipy, scikit-learn and statsmodels."""

import itertools
from functools import partial

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, precision_recall_fscore_support
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from stages.common.evaluation.histories import overfitting
from stages.common.evaluation.calibration import NUM_BINS
from stages.common.evaluation.comparison import expected_best, tuning
from stages.common.evaluation.significance import (
    bootstrap_replicates,
    confidence_interval,
    mcnemar_p_value,
    permutation_p_value,
    resampling_weights,
    rows_for_equivalence,
    smallest_detectable_difference,
    verdict,
)
from stages.common.evaluation.vectorized_metrics import compute_metrics, per_example_statistics
from tests.support.corpus import LABELS
from tests.support.runs import labelled_logits

NUM_ROWS = 300
NUM_SAMPLES = 4000


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(99).integers(0, 3, NUM_ROWS)


@pytest.fixture
def pair(labels) -> dict[str, np.ndarray]:
    """Logits (rows, 3) of two classifiers, of which the first is better."""
    return {"a": labelled_logits(labels, 1.2, seed=1), "b": labelled_logits(labels, 0.9, seed=2)}


def statistics_of(labels: np.ndarray, *runs: np.ndarray) -> np.ndarray:
    """(rows, runs, columns), without temperature scaling."""
    return np.stack([per_example_statistics(logits, labels, 1.0) for logits in runs], axis=1)


def replicates_of(statistics: dict[str, np.ndarray], seed: int = 7) -> dict[str, dict[str, np.ndarray]]:
    """Of a bootstrap in which every row is drawn by itself."""
    num_rows = len(next(iter(statistics.values())))
    return bootstrap_replicates(
        statistics, resampling_weights(np.arange(num_rows), NUM_SAMPLES, seed), partial(compute_metrics, labels=LABELS)
    )


def one_hot(predictions: np.ndarray) -> np.ndarray:
    return np.eye(3)[predictions]


def macro_f1_difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray, swapped: np.ndarray) -> float:
    """Of the predictions `a` and `b`, some rows swapped."""
    x, y = np.where(swapped, b, a), np.where(swapped, a, b)
    return f1_score(labels, x, average="macro") - f1_score(labels, y, average="macro")


def test_count_metrics_are_those_of_scikit_learn(labels, pair):
    metrics = compute_metrics(per_example_statistics(pair["a"], labels, 1.0).mean(0), LABELS)
    predictions = pair["a"].argmax(1)
    expected = precision_recall_fscore_support(labels, predictions)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert metrics[f"macro_{name}"] == pytest.approx(values.mean())
        assert [metrics[f"per_class.{label}.{name}"] for label in LABELS] == pytest.approx(values)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))


@pytest.mark.parametrize("prefix, temperature", [("", 1.0), ("scaled.", 2.0)])
def test_calibration_metrics_are_those_of_scikit_learn(labels, pair, prefix, temperature):
    metrics = compute_metrics(per_example_statistics(pair["a"], labels, 2.0).mean(0), LABELS)
    probabilities = softmax(pair["a"] / temperature, axis=1)
    assert metrics[f"{prefix}loss"] == pytest.approx(log_loss(labels, probabilities))
    brier = brier_score_loss(labels, probabilities, scale_by_half=False, labels=[0, 1, 2])
    assert metrics[f"{prefix}brier"] == pytest.approx(brier)
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    accuracies, confidences = calibration_curve(correct, confidence, n_bins=NUM_BINS)
    counts = np.histogram(confidence, np.linspace(0, 1, NUM_BINS + 1))[0]
    ece = (np.abs(accuracies - confidences) * counts[counts > 0]).sum() / len(labels)
    assert metrics[f"{prefix}ece"] == pytest.approx(ece)


def test_a_class_that_is_never_predicted_counts_as_zero():
    labels = np.array([0, 0, 1, 1, 2, 2])
    metrics = compute_metrics(per_example_statistics(one_hot(np.zeros(6, int)), labels, 1.0).mean(0), LABELS)
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, np.zeros(6), average="macro"))
    assert metrics["per_class.긍정.precision"] == 0


@pytest.mark.parametrize("method", ["a", "b"])
def test_a_bootstrap_replicate_is_the_metric_of_the_rows_drawn(labels, pair, method):
    statistics = {name: statistics_of(labels, logits) for name, logits in pair.items()}
    replicates = replicates_of(statistics)[method]
    rows = np.random.default_rng([7, 0]).integers(0, NUM_ROWS, (NUM_SAMPLES, NUM_ROWS))  # the same for both methods
    for sample in (0, 1, NUM_SAMPLES - 1):
        drawn_labels, drawn_logits = labels[rows[sample]], pair[method][rows[sample]]
        f1 = f1_score(drawn_labels, drawn_logits.argmax(1), average="macro")
        assert replicates["macro_f1"][sample] == pytest.approx(f1)
        assert replicates["loss"][sample] == pytest.approx(log_loss(drawn_labels, softmax(drawn_logits, axis=1)))


def test_the_interval_of_a_difference_is_that_of_scipy(labels, pair):
    statistics = {name: statistics_of(labels, logits) for name, logits in pair.items()}
    replicates = replicates_of(statistics)
    correct = [(logits.argmax(1) == labels).astype(float) for logits in pair.values()]
    expected = scipy.stats.bootstrap(
        correct, lambda x, y, axis: (x - y).mean(axis), paired=True, n_resamples=NUM_SAMPLES, method="percentile", rng=1
    ).confidence_interval
    interval = confidence_interval(0.0, replicates["a"]["accuracy"] - replicates["b"]["accuracy"])
    assert interval == pytest.approx([expected.low, expected.high], abs=0.008)


def test_the_interval_of_an_accuracy_is_that_of_a_proportion(labels, pair):
    replicates = replicates_of({"a": statistics_of(labels, pair["a"])})
    expected = proportion_confint((pair["a"].argmax(1) == labels).sum(), NUM_ROWS)
    assert confidence_interval(0.0, replicates["a"]["accuracy"]) == pytest.approx(expected, abs=0.01)


def test_a_replicate_of_several_runs_is_their_mean(labels, pair):
    runs = {"both": statistics_of(labels, *pair.values())} | {
        name: statistics_of(labels, logits) for name, logits in pair.items()
    }
    replicates = replicates_of(runs)
    mean = (replicates["a"]["macro_f1"] + replicates["b"]["macro_f1"]) / 2
    assert replicates["both"]["macro_f1"] == pytest.approx(mean)


def test_rows_of_one_group_are_drawn_together():
    groups = np.array([0, 0, 1, 2, 2, 2])
    (weights,) = resampling_weights(groups, 50, seed=0)
    assert weights.shape == (50, len(groups))
    assert weights.sum(1) == pytest.approx(1)
    for group in range(3):
        assert (np.ptp(weights[:, groups == group], axis=1) == 0).all()


RUNS_A, RUNS_B = np.array([0.70, 0.74, 0.75]), np.array([0.71, 0.70, 0.72])


def test_without_variance_of_the_rows_the_interval_is_welchs():
    estimate = RUNS_A.mean() - RUNS_B.mean()
    expected = scipy.stats.ttest_ind(RUNS_A, RUNS_B, equal_var=False).confidence_interval(0.9)
    interval = confidence_interval(estimate, np.full(NUM_SAMPLES, estimate), [RUNS_A, RUNS_B], level=0.9)
    assert interval == pytest.approx([expected.low, expected.high])


def test_variances_of_rows_and_runs_add_up():
    replicates = np.random.default_rng(0).normal(0, 0.02, NUM_SAMPLES)

    def width(*runs: np.ndarray) -> float:
        low, high = confidence_interval(0.0, replicates, runs)
        return high - low

    equal = np.full(3, 0.7)
    normal_quantile = scipy.stats.norm.ppf(0.975)
    assert width(equal, equal) == pytest.approx(2 * normal_quantile * replicates.std(ddof=1))
    assert width(RUNS_A, RUNS_B) > width(equal, equal)


def test_one_run_a_method_leaves_the_percentiles_of_the_bootstrap():
    replicates = np.linspace(0, 1, 1001)
    assert confidence_interval(0.5, replicates, [RUNS_A[:1], RUNS_B]) == pytest.approx([0.025, 0.975])


def test_the_detectable_difference_is_found_with_a_power_of_80_percent():
    standard_error = 0.01
    difference = smallest_detectable_difference(standard_error)
    found = scipy.stats.norm.sf(scipy.stats.norm.ppf(0.975) - difference / standard_error)
    assert found == pytest.approx(0.8)


def test_the_rows_needed_show_equivalence_with_a_power_of_80_percent():
    num_rows, row_variance, margin = 1000, 1e-4, 0.01
    needed = rows_for_equivalence(num_rows, row_variance, 0.0, margin)
    standard_error = (row_variance * num_rows / needed) ** 0.5
    estimates = scipy.stats.norm(0, standard_error)
    reach = margin - scipy.stats.norm.ppf(0.95) * standard_error  # estimates within it pass both one-sided tests
    assert estimates.cdf(reach) - estimates.cdf(-reach) == pytest.approx(0.8, abs=0.001)


def test_seeds_that_vary_too_much_need_more_seeds_instead_of_rows():
    assert rows_for_equivalence(1000, row_variance=1e-4, run_variance=1e-4, margin=0.01) is None


EIGHT_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
GOOD, BAD = np.array([0, 1, 2, 0, 1, 1, 0, 1]), np.array([0, 2, 2, 1, 1, 0, 2, 0])


def test_the_permutation_test_is_exact_on_few_rows():
    observed = macro_f1_difference(EIGHT_LABELS, GOOD, BAD, np.zeros(8, bool))
    swaps = map(np.array, itertools.product((False, True), repeat=8))
    differences = [macro_f1_difference(EIGHT_LABELS, GOOD, BAD, swapped) for swapped in swaps]
    expected = np.mean([abs(difference) >= abs(observed) - 1e-12 for difference in differences])
    a, b = (per_example_statistics(one_hot(predictions), EIGHT_LABELS, 1.0) for predictions in (GOOD, BAD))
    assert permutation_p_value(a, b, 10_000, seed=0) == pytest.approx(expected)


@pytest.mark.parametrize("num_discordant", [0, 1])
def test_fewer_than_two_discordant_rows_are_no_evidence(num_discordant):
    other = np.where(np.arange(8) < num_discordant, (GOOD + 1) % 3, GOOD)
    a, b = (per_example_statistics(one_hot(predictions), EIGHT_LABELS, 1.0) for predictions in (GOOD, other))
    assert permutation_p_value(a, b, 1000, seed=0) == 1.0


def test_the_permutation_test_agrees_with_a_plain_loop(labels, pair):
    a, b = (logits.argmax(1) for logits in pair.values())
    generator, permutations = np.random.default_rng(0), 400
    observed = macro_f1_difference(labels, a, b, np.zeros(NUM_ROWS, bool))
    differences = [macro_f1_difference(labels, a, b, generator.random(NUM_ROWS) < 0.5) for _ in range(permutations)]
    expected = np.mean(np.abs(differences) >= abs(observed))
    statistics = [per_example_statistics(logits, labels, 1.0) for logits in pair.values()]
    found = permutation_p_value(*statistics, 10_000, seed=0)
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (3, 9), (10, 10), (25, 4)])
def test_mcnemar_is_that_of_statsmodels(only_a, only_b):
    both = 5  # rows that both have right
    a = np.array([True] * (both + only_a) + [False] * only_b)
    b = np.array([True] * both + [False] * only_a + [True] * only_b)
    expected = mcnemar([[both, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar_p_value(a, b) == pytest.approx(expected)


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
    assert verdict(interval, tost_interval, margin=0.01) == expected


def history_of(scores: list[float], losses: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "macro_f1": f1, "validation_loss": loss, "train_loss": 0.5}
        for epoch, (f1, loss) in enumerate(zip(scores, losses, strict=True), start=1)
    ]


def test_best_epochs_by_f1_and_by_loss():
    assert overfitting(history_of([0.5, 0.7, 0.7, 0.6], [0.9, 0.8, 0.7, 1.0])) == {
        "best_epoch_by_f1": 2,
        "best_epoch_by_loss": 3,
        "gap_at_best_epoch_by_f1": pytest.approx(0.3),
        "gap_at_best_epoch_by_loss": pytest.approx(0.2),
    }


def test_the_expected_best_is_the_mean_over_all_subsets_of_trials():
    scores = [0.5, 0.9, 0.7, 0.8]
    subsets = (itertools.combinations(scores, size) for size in range(1, len(scores) + 1))
    assert expected_best(scores) == pytest.approx([np.mean([*map(max, of_size)]) for of_size in subsets])


def test_fewer_than_three_trials_make_no_curve():
    assert expected_best([0.5, 0.6]) == []


def tuning_of(rates: list[float], selected: float, losses: list[float]) -> dict:
    run = {"history": history_of([0.5] * len(losses), losses)}
    trials = [{"learning_rate": rate, "macro_f1": [0.5], "validation_loss": [1.0]} for rate in rates]
    return tuning({"learning_rate": selected, "runs": {"a": run}, "trials": trials})


@pytest.mark.parametrize(
    "rates, selected, at_edge",
    [([0.1, 0.2, 0.3], 0.3, 1), ([0.1, 0.2, 0.3], 0.2, 0), ([0.1, 0.2], 0.2, 0)],
)
def test_a_rate_is_at_the_edge_of_three_or_more(rates, selected, at_edge):
    assert tuning_of(rates, selected, losses=[1.0, 0.9])["at_edge"] == at_edge


@pytest.mark.parametrize(
    "losses, unconverged",
    [
        ([0.9, 0.8, 0.7], 1),
        ([0.9, 0.7, 0.8], 0),
        ([*np.linspace(1, 0.1, 19), 0.2], 1),
        ([*np.linspace(1, 0.1, 18), 0.2, 0.2], 0),
    ],
)
def test_a_run_whose_loss_is_lowest_in_the_last_tenth_has_not_converged(losses, unconverged):
    assert tuning_of([0.1], 0.1, losses)["unconverged"] == unconverged
