"""The comparison's statistics against scipy, scikit-learn and statsmodels."""

import itertools

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, precision_recall_fscore_support
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from stages.common.core.labels import LABELS
from stages.common.evaluation.calibration import NUM_BINS
from stages.common.evaluation.comparison import overfitting
from stages.common.evaluation.significance import (
    bootstrap_replicates,
    confidence_interval,
    mcnemar_p_value,
    permutation_p_value,
    verdict_from_interval,
)
from stages.common.evaluation.vectorized_metrics import compute_metrics, per_example_statistics
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
    """(rows, runs, 43), without temperature scaling."""
    return np.stack([per_example_statistics(logits, labels, 1.0) for logits in runs], axis=1)


def one_hot(predictions: np.ndarray) -> np.ndarray:
    return np.eye(3)[predictions]


def macro_f1_difference(labels: np.ndarray, a: np.ndarray, b: np.ndarray, swapped: np.ndarray) -> float:
    """Of the predictions `a` and `b`, some rows swapped."""
    x, y = np.where(swapped, b, a), np.where(swapped, a, b)
    return f1_score(labels, x, average="macro") - f1_score(labels, y, average="macro")


def test_confusion_metrics_are_those_of_scikit_learn(labels, pair):
    metrics = compute_metrics(per_example_statistics(pair["a"], labels, 1.0).mean(0))
    predictions = pair["a"].argmax(1)
    expected = precision_recall_fscore_support(labels, predictions)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert metrics[f"macro_{name}"] == pytest.approx(values.mean())
        assert [metrics[f"per_class.{label}.{name}"] for label in LABELS] == pytest.approx(values)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))


@pytest.mark.parametrize("prefix, temperature", [("", 1.0), ("scaled.", 2.0)])
def test_calibration_metrics_are_those_of_scikit_learn(labels, pair, prefix, temperature):
    metrics = compute_metrics(per_example_statistics(pair["a"], labels, 2.0).mean(0))
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
    metrics = compute_metrics(per_example_statistics(one_hot(np.zeros(6, int)), labels, 1.0).mean(0))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, np.zeros(6), average="macro"))
    assert metrics["per_class.긍정.precision"] == 0


@pytest.mark.parametrize("method", ["a", "b"])
def test_a_bootstrap_replicate_is_the_metric_of_the_rows_drawn(labels, pair, method):
    statistics = {name: statistics_of(labels, logits) for name, logits in pair.items()}
    replicates = bootstrap_replicates(statistics, NUM_SAMPLES, seed=7)[method]
    rows = np.random.default_rng([7, 0]).integers(0, NUM_ROWS, (NUM_SAMPLES, NUM_ROWS))  # the same for both methods
    for sample in (0, 1, NUM_SAMPLES - 1):
        drawn_labels, drawn_logits = labels[rows[sample]], pair[method][rows[sample]]
        f1 = f1_score(drawn_labels, drawn_logits.argmax(1), average="macro")
        assert replicates["macro_f1"][sample] == pytest.approx(f1)
        assert replicates["loss"][sample] == pytest.approx(log_loss(drawn_labels, softmax(drawn_logits, axis=1)))


def test_the_interval_of_a_difference_is_that_of_scipy(labels, pair):
    statistics = {name: statistics_of(labels, logits) for name, logits in pair.items()}
    replicates = bootstrap_replicates(statistics, NUM_SAMPLES, seed=7)
    correct = [(logits.argmax(1) == labels).astype(float) for logits in pair.values()]
    expected = scipy.stats.bootstrap(
        correct, lambda x, y, axis: (x - y).mean(axis), paired=True, n_resamples=NUM_SAMPLES, method="percentile", rng=1
    ).confidence_interval
    interval = confidence_interval(replicates["a"]["accuracy"] - replicates["b"]["accuracy"])
    assert interval == pytest.approx([expected.low, expected.high], abs=0.008)


def test_the_interval_of_an_accuracy_is_that_of_a_proportion(labels, pair):
    replicates = bootstrap_replicates({"a": statistics_of(labels, pair["a"])}, NUM_SAMPLES, seed=7)
    expected = proportion_confint((pair["a"].argmax(1) == labels).sum(), NUM_ROWS)
    assert confidence_interval(replicates["a"]["accuracy"]) == pytest.approx(expected, abs=0.01)


@pytest.fixture
def replicates_of_two_runs() -> dict[str, np.ndarray]:
    """Accuracy in resamples of methods with a run that is always right and, but for "once", one that never is."""
    labels = np.arange(90) % 3
    right, wrong = one_hot(labels), one_hot((labels + 1) % 3)
    both = statistics_of(labels, right, wrong)
    statistics = {"first": both, "second": both, "once": statistics_of(labels, right)}
    return {name: of["accuracy"] for name, of in bootstrap_replicates(statistics, NUM_SAMPLES, seed=0).items()}


def test_runs_are_resampled_too(replicates_of_two_runs):
    """The mean of two drawn runs is 0, 1/2 or 1 with probabilities 1/4, 1/2 and 1/4."""
    fractions = [float((replicates_of_two_runs["first"] == value).mean()) for value in (0, 0.5, 1)]
    assert fractions == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_all_methods_are_resampled_with_the_same_runs(replicates_of_two_runs):
    assert np.array_equal(replicates_of_two_runs["first"], replicates_of_two_runs["second"])


def test_a_baseline_has_one_run_in_every_resample(replicates_of_two_runs):
    assert (replicates_of_two_runs["once"] == 1).all()


EIGHT_LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
GOOD, BAD = np.array([0, 1, 2, 0, 1, 1, 0, 1]), np.array([0, 2, 2, 1, 1, 0, 2, 0])


@pytest.mark.parametrize("num_runs", [1, 2])
def test_the_permutation_test_is_exact_on_few_rows(num_runs):
    observed = macro_f1_difference(EIGHT_LABELS, GOOD, BAD, np.zeros(8, bool))
    swaps = map(np.array, itertools.product((False, True), repeat=8))
    differences = [macro_f1_difference(EIGHT_LABELS, GOOD, BAD, swapped) for swapped in swaps]
    expected = np.mean([abs(difference) >= abs(observed) - 1e-12 for difference in differences])
    a, b = (statistics_of(EIGHT_LABELS, *[one_hot(predictions)] * num_runs) for predictions in (GOOD, BAD))
    assert permutation_p_value(a, b, 10_000, seed=0) == pytest.approx(expected)


@pytest.mark.parametrize("num_discordant", [0, 1])
def test_fewer_than_two_discordant_rows_are_no_evidence(num_discordant):
    other = np.where(np.arange(8) < num_discordant, (GOOD + 1) % 3, GOOD)
    a, b = (statistics_of(EIGHT_LABELS, one_hot(predictions)) for predictions in (GOOD, other))
    assert permutation_p_value(a, b, 1000, seed=0) == 1.0


def test_the_permutation_test_agrees_with_a_plain_loop(labels, pair):
    a, b = (logits.argmax(1) for logits in pair.values())
    generator, permutations = np.random.default_rng(0), 400
    observed = macro_f1_difference(labels, a, b, np.zeros(NUM_ROWS, bool))
    differences = [macro_f1_difference(labels, a, b, generator.random(NUM_ROWS) < 0.5) for _ in range(permutations)]
    expected = np.mean(np.abs(differences) >= abs(observed))
    found = permutation_p_value(statistics_of(labels, pair["a"]), statistics_of(labels, pair["b"]), 10_000, seed=0)
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (3, 9), (10, 10), (25, 4)])
def test_mcnemar_is_that_of_statsmodels(only_a, only_b):
    both = 5  # rows that both have right
    a = np.array([True] * (both + only_a) + [False] * only_b)
    b = np.array([True] * both + [False] * only_a + [True] * only_b)
    expected = mcnemar([[both, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar_p_value(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    "low, high, verdict",
    [
        (-0.008, 0.009, "equivalent"),
        (0.001, 0.008, "equivalent"),
        (0.001, 0.02, "better"),
        (0.02, 0.05, "better"),
        (-0.05, -0.001, "worse"),
        (-0.02, 0.005, "undecided"),
        (-0.01, 0.0, "undecided"),
        (0.0, 0.0, "equivalent"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, verdict):
    assert verdict_from_interval([low, high], margin=0.01) == verdict


def test_best_epochs_by_f1_and_by_loss():
    scores, losses = [0.5, 0.7, 0.7, 0.6], [0.9, 0.8, 0.7, 1.0]
    history = [
        {"epoch": epoch, "macro_f1": f1, "validation_loss": loss, "train_loss": 0.5}
        for epoch, (f1, loss) in enumerate(zip(scores, losses, strict=True), start=1)
    ]
    assert overfitting(history) == {
        "best_epoch": 2,
        "best_epoch_by_loss": 3,
        "gap_at_best_epoch": pytest.approx(0.3),
        "gap_at_best_epoch_by_loss": pytest.approx(0.2),
    }
