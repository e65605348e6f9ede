"""Temperature scaling and calibration bins."""

import numpy as np
import pytest
from scipy.special import softmax

from stages.common.evaluation.calibration import (
    confidence_bins,
    expected_ece_if_calibrated,
    fit_temperature,
    reliability_bins,
)
from stages.common.evaluation.metrics import Metrics, RowStatistics


def metrics_of(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Metrics:
    statistics = RowStatistics.from_logits(logits, labels, np.full(len(labels), temperature))
    return Metrics.from_means(statistics.map(lambda values: values.mean(0)))


@pytest.fixture(scope="module")
def calibrated() -> tuple[np.ndarray, np.ndarray]:
    """Draw logits (20,000, 3), and labels from their probabilities."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 3)) * 1.5
    return logits, np.array([generator.choice(3, p=row) for row in softmax(logits, axis=1)])


@pytest.mark.parametrize("factor", [3.0, 1 / 3], ids=["overconfident", "underconfident"])
def test_the_fitted_temperature_undoes_a_factor(calibrated, factor):
    logits, labels = calibrated
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_scaling_lowers_the_calibration_error(calibrated):
    logits, labels = calibrated
    temperature = fit_temperature(3 * logits, labels)
    metrics = metrics_of(3 * logits, labels, temperature)
    assert metrics.scaled_ece < 0.02 < 0.1 < metrics.ece


@pytest.mark.parametrize("num_rows", [500, 20_000])
def test_a_calibrated_model_has_the_ece_that_chance_gives(calibrated, num_rows):
    logits, labels = (values[:num_rows] for values in calibrated)
    measured = metrics_of(logits, labels).ece
    assert expected_ece_if_calibrated(logits, num_samples=100, seed=0) == pytest.approx(measured, rel=0.5)


def test_an_overconfident_model_has_more_than_the_ece_that_chance_gives(calibrated):
    logits, labels = calibrated
    measured = metrics_of(3 * logits, labels).ece
    assert measured > 10 * expected_ece_if_calibrated(3 * logits, num_samples=100, seed=0)


def test_a_bin_holds_its_upper_end():
    confidences = np.array([0.4, 6 / 15 + 1e-6, 1.0])
    rest = (1 - confidences) / 2
    with np.errstate(divide="ignore"):
        _, bins = confidence_bins(np.log(np.stack([confidences, rest, rest], axis=1)))
    assert bins.tolist() == [5, 6, 14]


def test_reliability_bins_hold_all_rows_before_and_after_scaling(calibrated):
    logits, labels = calibrated
    bins = reliability_bins(logits, labels, np.full(len(labels), 2.0))
    for scaled in (False, True):
        rows = np.array([each["rows"] for each in bins if each["scaled"] is scaled])
        accuracy = np.array([each["accuracy"] for each in bins if each["scaled"] is scaled])
        assert rows.sum() == len(labels)
        assert (rows * accuracy).sum() == pytest.approx((logits.argmax(1) == labels).sum())
