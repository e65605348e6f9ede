"""The vectorised metrics and their bootstrap agree with scikit-learn, SciPy and statsmodels."""

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss, precision_recall_fscore_support

from stages.common.evaluation.bootstrap import bootstrap, resampling_weights
from stages.common.evaluation.calibration import NUM_BINS
from stages.common.evaluation.metrics import Metrics, RowStatistics
from tests.support.runs import labelled_logits

NUM_ROWS = 300
NUM_SAMPLES = 4000


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(99).integers(0, 3, NUM_ROWS)


@pytest.fixture
def pair(labels) -> dict[str, np.ndarray]:
    """Draw logits (rows, 3) of two classifiers, of which the first is better."""
    return {"a": labelled_logits(labels, 1.2, seed=1), "b": labelled_logits(labels, 0.9, seed=2)}


def statistics_of(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> RowStatistics:
    return RowStatistics.from_logits(logits, labels, np.full(len(labels), temperature))


def metrics_of(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> Metrics:
    return Metrics.from_means(statistics_of(labels, logits, temperature).map(lambda values: values.mean(0)))


def test_count_metrics_are_those_of_scikit_learn(labels, pair):
    metrics = metrics_of(labels, pair["a"])
    predictions = pair["a"].argmax(1)
    expected = precision_recall_fscore_support(labels, predictions)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert vars(metrics)[f"macro_{name}"] == pytest.approx(values.mean())
        assert vars(metrics)[name] == pytest.approx(values)
    assert metrics.accuracy == pytest.approx(accuracy_score(labels, predictions))


@pytest.mark.parametrize("prefix, temperature", [("", 1.0), ("scaled_", 2.0)])
def test_calibration_metrics_are_those_of_scikit_learn(labels, pair, prefix, temperature):
    metrics = vars(metrics_of(labels, pair["a"], temperature=2.0))
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
    metrics = metrics_of(labels, np.eye(3)[np.zeros(6, int)])
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, np.zeros(6), average="macro"))
    assert metrics.precision[2] == 0


def test_each_row_is_scaled_by_the_temperature_of_its_own_model(labels, pair):
    temperatures = np.where(np.arange(NUM_ROWS) < 100, 0.5, 2.0)
    mixed = RowStatistics.from_logits(pair["a"], labels, temperatures)
    for rows, temperature in ((slice(100), 0.5), (slice(100, None), 2.0)):
        alone = statistics_of(labels[rows], pair["a"][rows], temperature)
        assert mixed.scaled_loss[rows] == pytest.approx(alone.scaled_loss)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bootstrap_replicate_is_the_mean_over_folds_of_the_metric_of_the_rows_drawn(labels, pair, name):
    folds = np.arange(NUM_ROWS) % 3
    statistics = {each: statistics_of(labels, logits) for each, logits in pair.items()}
    replicates = bootstrap(statistics, folds, np.arange(NUM_ROWS), NUM_SAMPLES, seed=7)[name].replicates
    rows = np.random.default_rng([7, 0]).integers(0, NUM_ROWS, (NUM_SAMPLES, NUM_ROWS))  # Both use the same rows.
    for sample in (0, 1, NUM_SAMPLES - 1):
        scores, losses = [], []
        for fold in range(3):
            drawn = rows[sample][folds[rows[sample]] == fold]
            scores.append(f1_score(labels[drawn], pair[name][drawn].argmax(1), average="macro"))
            losses.append(log_loss(labels[drawn], softmax(pair[name][drawn], axis=1)))
        assert replicates.macro_f1[sample] == pytest.approx(np.mean(scores))
        assert replicates.loss[sample] == pytest.approx(np.mean(losses))


def test_metrics_are_observed_on_each_fold_and_on_all_rows_together(labels, pair):
    folds = np.arange(NUM_ROWS) % 2
    observed = bootstrap({"a": statistics_of(labels, pair["a"])}, folds, np.arange(NUM_ROWS), 100, seed=7)["a"]
    predictions = pair["a"].argmax(1)
    of_folds = [f1_score(labels[folds == fold], predictions[folds == fold], average="macro") for fold in (0, 1)]
    assert observed.by_fold.macro_f1 == pytest.approx(of_folds)
    assert observed.mean("macro_f1") == pytest.approx(np.mean(of_folds))
    assert observed.pooled.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro"))


def test_the_bootstrap_varies_as_that_of_scipy(labels, pair):
    statistics = {name: statistics_of(labels, logits) for name, logits in pair.items()}
    metrics = bootstrap(statistics, np.zeros(NUM_ROWS, int), np.arange(NUM_ROWS), NUM_SAMPLES, seed=7)
    correct = [(logits.argmax(1) == labels).astype(float) for logits in pair.values()]
    expected = scipy.stats.bootstrap(
        correct, lambda x, y, axis: (x - y).mean(axis), paired=True, n_resamples=NUM_SAMPLES, rng=1
    ).standard_error
    difference = metrics["a"].replicates.accuracy - metrics["b"].replicates.accuracy
    assert difference.std(ddof=1) == pytest.approx(expected, rel=0.05)


def test_rows_of_one_group_are_drawn_together():
    groups = np.array([0, 0, 1, 2, 2, 2])
    (counts,) = resampling_weights(groups, 50, seed=0)
    assert counts.shape == (50, len(groups))
    for group in range(3):
        assert (np.ptp(counts[:, groups == group], axis=1) == 0).all()
    first_of_group = counts[:, [0, 2, 3]]
    assert (first_of_group.sum(1) == 3).all(), "as many groups as there are"


def test_a_resample_that_misses_a_tiny_fold_leaves_finite_metrics():
    labels, folds = np.tile([0, 1], 8)[:15], np.repeat(range(5), 3)
    logits = np.random.default_rng(0).normal(size=(15, 2))
    metrics = bootstrap({"a": statistics_of(labels, logits)}, folds, np.arange(15), 5000, seed=42)["a"]
    assert np.isfinite(metrics.replicates.macro_f1).all()
