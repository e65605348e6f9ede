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
from stages.common.evaluation.significance import (
    bootstrap,
    figures,
    fit_temperature,
    interval,
    mcnemar_p,
    permutation_p,
    row_values,
    verdict,
)
from stages.common.evaluation.training_history import best_seed, overfitting, summarize
from stages.common.reporting.formatting import decimals, difference, with_interval


def case(rows: int = 300, seed: int = 0, strength: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, 3) that know something of the labels (rows,)."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, 3, rows)
    return generator.normal(size=(rows, 3)) + strength * np.eye(3)[labels], labels


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    shares = softmax(logits, axis=1)
    right, confidence = shares.argmax(1) == labels, shares.max(1)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    return float((np.abs(accuracy - mean) * counts[counts > 0]).sum() / len(labels))


def test_figures_are_those_of_scikit_learn():
    logits, labels = case()
    found = figures(row_values(logits, labels, 2.0).mean(0))
    guesses = logits.argmax(1)
    by_class = dict(zip(("precision", "recall", "f1"), precision_recall_fscore_support(labels, guesses), strict=False))
    for name, values in by_class.items():
        assert found[f"macro_{name}"] == pytest.approx(values.mean())
        for label, value in zip(LABELS, values, strict=True):
            assert found[f"per_class.{label}.{name}"] == pytest.approx(value)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    for prefix, scaled in (("", logits), ("scaled.", logits / 2)):
        shares = softmax(scaled, axis=1)
        assert found[f"{prefix}loss"] == pytest.approx(log_loss(labels, shares))
        brier = brier_score_loss(labels, shares, scale_by_half=False, labels=[0, 1, 2])
        assert found[f"{prefix}brier"] == pytest.approx(brier)
        assert found[f"{prefix}ece"] == pytest.approx(expected_calibration_error(scaled, labels))


def test_a_class_that_is_never_predicted_counts_as_zero():
    found = figures(row_values(np.tile([5.0, 0, 0], (6, 1)), np.array([0, 0, 1, 1, 2, 2]), 1.0).mean(0))
    assert found["macro_f1"] == pytest.approx(0.5 / 3)
    assert found["per_class.긍정.precision"] == 0


def test_a_temperature_undoes_overconfidence():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)) * 1.5
    labels = np.array([generator.choice(3, p=row) for row in softmax(logits, axis=1)])
    assert fit_temperature(3 * logits, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 3, labels) == pytest.approx(1 / 3, rel=0.05)
    found = figures(row_values(3 * logits, labels, fit_temperature(3 * logits, labels)).mean(0))
    assert found["scaled.ece"] < 0.02 < 0.1 < found["ece"]


def test_the_bootstrap_resamples_the_same_rows_for_all():
    """Each draw is scikit-learn's figure of the rows drawn; the interval is scipy's."""
    (a, labels), (b, _) = case(seed=1), case(seed=2, strength=0.9)
    values = {name: row_values(logits, labels, 1.0)[:, None] for name, logits in (("a", a), ("b", b))}
    draws = bootstrap(values, 4000, seed=7)
    rows = np.random.default_rng([7, 0]).integers(0, 300, (4000, 300))
    for number in (0, 1, 3999):
        for name, logits in (("a", a), ("b", b)):
            drawn = rows[number]
            f1 = f1_score(labels[drawn], logits.argmax(1)[drawn], average="macro")
            assert draws[name]["macro_f1"][number] == pytest.approx(f1)
            assert draws[name]["loss"][number] == pytest.approx(log_loss(labels[drawn], softmax(logits[drawn], axis=1)))
    right = [(logits.argmax(1) == labels).astype(float) for logits in (a, b)]
    theirs = scipy.stats.bootstrap(
        right, lambda x, y, axis: (x - y).mean(axis), paired=True, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    ours = interval(draws["a"]["accuracy"] - draws["b"]["accuracy"])
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.008)
    low, high = proportion_confint(int(right[0].sum()), 300)
    assert interval(draws["a"]["accuracy"]) == pytest.approx([low, high], abs=0.01)


def test_seeds_are_resampled_with_the_rows():
    """Two runs, one always right and one never: the mean of two drawn runs is 0, 1/2 or 1, by chance 1 : 2 : 1."""
    labels = np.arange(90) % 3
    right, wrong = np.eye(3)[labels] * 9, np.eye(3)[(labels + 1) % 3] * 9
    values = np.stack([row_values(logits, labels, 1.0) for logits in (right, wrong)], axis=1)
    once = row_values(right, labels, 1.0)[:, None]
    draws = bootstrap({"two": values, "same": values, "once": once}, 4000, seed=0)
    shares = [float((draws["two"]["accuracy"] == value).mean()) for value in (0, 0.5, 1)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert np.array_equal(draws["two"]["accuracy"], draws["same"]["accuracy"]), "the same seeds for all methods"
    assert (draws["once"]["accuracy"] == 1).all()


def test_the_permutation_test_is_exact_on_few_rows():
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    a, b = np.array([0, 1, 2, 0, 1, 1, 0, 1]), np.array([0, 2, 2, 1, 1, 0, 2, 0])

    def gap(swapped: tuple[bool, ...]) -> float:
        x, y = np.where(swapped, b, a), np.where(swapped, a, b)
        return f1_score(labels, x, average="macro") - f1_score(labels, y, average="macro")

    observed = gap((False,) * 8)
    every = [gap(swapped) for swapped in itertools.product((False, True), repeat=8)]
    expected = np.mean([abs(value) >= abs(observed) - 1e-12 for value in every])
    assert permutation_p(labels, a[None], b[None], 10_000, 0) == pytest.approx(expected)
    assert permutation_p(labels, a[None], a[None], 1000, 0) == 1.0
    assert permutation_p(labels, a[None], np.where(np.arange(8) == 1, b, a)[None], 1000, 0) == 1.0
    assert permutation_p(labels, np.stack([a, a]), np.stack([b, b]), 10_000, 0) == pytest.approx(expected)


def test_the_permutation_test_agrees_with_the_plain_one():
    (a, labels), (b, _) = case(seed=1), case(seed=2, strength=0.9)
    x, y = a.argmax(1), b.argmax(1)
    generator = np.random.default_rng(0)
    observed = f1_score(labels, x, average="macro") - f1_score(labels, y, average="macro")
    larger = 0
    for _ in range(400):
        swap = generator.random(300) < 0.5
        p, q = np.where(swap, y, x), np.where(swap, x, y)
        gap = f1_score(labels, p, average="macro") - f1_score(labels, q, average="macro")
        larger += abs(gap) >= abs(observed)
    assert permutation_p(labels, x[None], y[None], 10_000, 0) == pytest.approx(larger / 400, abs=0.05)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (3, 9), (10, 10), (25, 4)])
def test_mcnemar_is_that_of_statsmodels(only_a, only_b):
    a = np.array([True] * (5 + only_a) + [False] * only_b)
    b = np.array([True] * 5 + [False] * only_a + [True] * only_b)
    expected = mcnemar([[5, only_a], [only_b, 0]], exact=True).pvalue if only_a + only_b else 1.0
    assert mcnemar_p(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    "low, high, word",
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
def test_the_verdict_follows_from_the_interval(low, high, word):
    assert verdict([low, high], 0.01) == word


def test_no_more_digits_than_the_interval_deserves():
    assert with_interval(0.79796, 0.7712, 0.8241) == "0.80 [0.77, 0.82]"
    assert with_interval(0.73694, 0.7331, 0.7401) == "0.737 [0.733, 0.740]"
    assert difference(0.0281, 0.0031, 0.0532) == "+0.028 [+0.003, +0.053]", "0.00 would hide the side of 0"
    assert with_interval(1.0, 1.0, 1.0) == "1.00 [1.00, 1.00]"
    assert decimals(-3, 4) == 0


def test_histories_carry_mean_deviation_and_each_run():
    runs = {
        42: [{"epoch": 1, "macro_f1": 0.5}, {"epoch": 2, "macro_f1": 0.7}],
        43: [{"epoch": 1, "macro_f1": 0.6}],
    }
    first, second = summarize(runs)
    assert first["runs"] == 2
    assert (first["macro_f1"], first["macro_f1_sd"]) == pytest.approx((0.55, np.std([0.5, 0.6], ddof=1)))
    assert (first["macro_f1_42"], first["macro_f1_43"]) == (0.5, 0.6)
    assert second == {"epoch": 2, "runs": 1, "macro_f1": 0.7, "macro_f1_sd": None, "macro_f1_42": 0.7}


def test_best_epochs_by_f1_and_by_loss():
    scores, losses = [0.5, 0.7, 0.7, 0.6], [0.9, 0.8, 0.7, 1.0]
    history = [
        {"epoch": i, "macro_f1": f1, "validation_loss": loss, "train_loss": 1 / i}
        for i, (f1, loss) in enumerate(zip(scores, losses, strict=True), start=1)
    ]
    found = overfitting(history)
    assert (found["best_epoch"], found["best_epoch_by_loss"]) == (2, 3)
    assert (found["gap_at_best_epoch"], found["gap_at_best_epoch_by_loss"]) == pytest.approx((0.3, 0.7 - 1 / 3))
    runs = {seed: {"validation": {"macro_f1": f1}} for seed, f1 in (("1", 0.5), ("2", 0.7), ("3", 0.7))}
    assert best_seed(runs) == "2"
