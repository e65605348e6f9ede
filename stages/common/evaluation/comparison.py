"""Compare full fine-tuning and LoRA on the test rows of all folds that were run: metrics, intervals and a verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.artifacts.selection import SelectedMethod
from stages.common.evaluation import power, significance
from stages.common.evaluation.bootstrap import BootstrappedMetrics, bootstrap
from stages.common.evaluation.calibration import expected_ece_if_calibrated
from stages.common.evaluation.error_analysis import measure_slices
from stages.common.evaluation.histories import best_epochs, has_not_converged
from stages.common.evaluation.metrics import RowStatistics
from stages.common.evaluation.predictions import Predictions, TestedRows
from stages.common.evaluation.result import (
    Against,
    ClassScores,
    Comparison,
    Difference,
    Estimate,
    MethodResult,
    Run,
    Scores,
    TrainedModels,
    Trial,
    Tuning,
)
from stages.common.runtime.params import CompareParams

CLASS_METRICS = tuple(ClassScores.model_fields)
POOLED_METRICS = ("ece", "scaled_ece")  # A bootstrap of the ECE is biased upwards, so these have no interval.
MEAN_METRICS = tuple(name for name in Scores.model_fields if name not in (*POOLED_METRICS, "classes"))
UNBOUNDED = ("loss", "brier")  # Other scores lie between 0 and 1.
MIN_RATES_FOR_EDGE = 3  # With fewer learning rates every one is the lowest or the highest.
NUM_CALIBRATION_SAMPLES = 200  # Number of simulated outcomes of each row.


def _estimate(by_fold: np.ndarray, replicates: np.ndarray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    interval = significance.fold_interval(by_fold, replicates)
    low, high = np.clip([interval.low, interval.high], *bounds)
    return Estimate(value=float(by_fold.mean()), low=float(low), high=float(high))


def scores_of(metrics: BootstrappedMetrics, labels: list[str]) -> Scores:
    """Compute the metrics of one classifier with their intervals."""
    by_fold, replicates = vars(metrics.by_fold), vars(metrics.replicates)
    classes = {
        label: {name: _estimate(by_fold[name][:, index], replicates[name][:, index], (0, 1)) for name in CLASS_METRICS}
        for index, label in enumerate(labels)
    }
    means = {
        name: _estimate(by_fold[name], replicates[name], (0, np.inf if name.endswith(UNBOUNDED) else 1))
        for name in MEAN_METRICS
    }
    pooled = {name: Estimate(value=float(vars(metrics.pooled)[name])) for name in POOLED_METRICS}
    return Scores.model_validate({**means, **pooled, "classes": classes})


def difference_of(a: BootstrappedMetrics, b: BootstrappedMetrics, num_rows: int | None, margin: float) -> Difference:
    """Compute macro-F1 of `a` minus `b`, with the verdict on the difference.

    Args:
        a: Metrics of one classifier.
        b: Metrics of another one.
        num_rows: Number of tested rows; None if all folds tested the same rows, since `rows_needed` is then unknown.
        margin: The largest difference that does not matter in practice.
    """
    by_fold = a.by_fold.macro_f1 - b.by_fold.macro_f1
    replicates = a.replicates.macro_f1 - b.replicates.macro_f1
    interval, tost_interval = (
        significance.fold_interval(by_fold, replicates, level)
        for level in (significance.CONFIDENCE_LEVEL, significance.TOST_LEVEL)
    )
    return Difference(
        macro_f1=Estimate(value=float(by_fold.mean()), low=interval.low, high=interval.high),
        equivalence=Estimate(value=float(by_fold.mean()), low=tost_interval.low, high=tost_interval.high),
        verdict=significance.verdict(interval, tost_interval, margin),
        by_fold=by_fold.tolist(),
        minimum_detectable_effect=power.minimum_detectable_effect(interval),
        rows_needed=power.rows_needed(by_fold, replicates, num_rows, margin) if num_rows else None,
    )


def trained_models_of(
    metrics: Mapping[str, BootstrappedMetrics],
    statistics: Mapping[str, RowStatistics],
    groups: np.ndarray,
    params: CompareParams,
) -> TrainedModels:
    """Compare the models that were trained, whatever other splits and seeds would give: LoRA minus full fine-tuning."""
    low, high = np.quantile(metrics["lora"].replicates.macro_f1 - metrics["full"].replicates.macro_f1, (0.025, 0.975))
    value = float(metrics["lora"].mean("macro_f1") - metrics["full"].mean("macro_f1"))
    pair = statistics["full"], statistics["lora"]
    return TrainedModels(
        macro_f1=Estimate(value=value, low=float(low), high=float(high)),
        p_permutation=significance.permutation_p_value(*pair, groups, params.bootstrap_samples, params.seed),
        p_mcnemar=significance.mcnemar_p_value(*pair, groups),
    )


def tuning_of(selected: SelectedMethod) -> Tuning:
    """Summarize how a method was tuned, and what limits the result."""
    rates = [trial.learning_rate for trial in selected.trials]
    return Tuning(
        learning_rate=selected.learning_rate,
        trials=[Trial(learning_rate=trial.learning_rate, macro_f1=trial.macro_f1) for trial in selected.trials],
        at_edge=len(rates) >= MIN_RATES_FOR_EDGE and selected.learning_rate in (min(rates), max(rates)),
        unconverged=sum(has_not_converged(run.history) for run in selected.runs.values()),
    )


def _runs_of(selected: SelectedMethod, metrics: BootstrappedMetrics, predictions: Predictions) -> list[Run]:
    scores = metrics.by_fold.macro_f1
    row_standard_error = float(metrics.replicates.macro_f1.std(ddof=1)) * len(scores) ** 0.5
    diverged = significance.divergent_runs(scores, row_standard_error)
    return [
        Run(
            fold=run.metadata.fold,
            macro_f1=float(scores[index]),
            accuracy=float(metrics.by_fold.accuracy[index]),
            validation_macro_f1=run.metadata.validation["macro_f1"],
            temperature=float(predictions.temperatures[index]),
            epochs=best_epochs(run.history),
            diverged=index in diverged,
        )
        for index, run in enumerate(selected.runs.values())
    ]


def compare_methods(
    tested: TestedRows,
    predictions: Mapping[str, Predictions],
    selection: Mapping[str, SelectedMethod],
    num_folds: int,
    params: CompareParams,
) -> Comparison:
    """Compare both methods with each other and with the baselines.

    Args:
        tested: The test rows of all folds that were run.
        predictions: The predictions of each method and baseline for these rows.
        selection: The selected runs of each method.
        num_folds: Number of folds into which the corpus is split.
        params: Section `compare` of params.yaml.
    """
    labels = list(tested.class_names)
    statistics = {
        name: RowStatistics.from_logits(each.logits, tested.labels, each.temperatures[tested.fold_index])
        for name, each in predictions.items()
    }
    metrics = bootstrap(statistics, tested.folds, tested.groups, params.bootstrap_samples, params.seed)

    def difference(a: str, b: str) -> Difference:
        return difference_of(metrics[a], metrics[b], None if tested.is_fixed else len(tested.labels), params.margin)

    results: dict[str, Any] = {}
    for method in METHODS:
        selected, each = selection[method], predictions[method]
        best = selected.runs[selected.best_run]
        scaled = each.logits / each.temperatures[tested.fold_index][:, None]
        by_chance = [
            expected_ece_if_calibrated(logits, NUM_CALIBRATION_SAMPLES, params.seed) for logits in (each.logits, scaled)
        ]
        results[method] = MethodResult(
            scores=scores_of(metrics[method], labels),
            runs=_runs_of(selected, metrics[method], each),
            best_fold=best.metadata.fold,
            tuning=tuning_of(selected),
            ece_if_calibrated=by_chance[0],
            scaled_ece_if_calibrated=by_chance[1],
            against=[Against(baseline=name, difference=difference(method, name)) for name in BASELINES],
            trainable_parameters=best.metadata.trainable_parameters,
            total_parameters=best.metadata.total_parameters,
            checkpoint_bytes=best.checkpoint_bytes,
        )
    f1_by_fold, f1_replicates = (
        metrics["lora"].by_fold.f1 - metrics["full"].by_fold.f1,
        metrics["lora"].replicates.f1 - metrics["full"].replicates.f1,
    )
    return Comparison(
        labels=labels,
        rows=len(np.unique(tested.rows)),
        folds=np.unique(tested.folds).tolist(),
        num_folds=num_folds,
        fixed_test_rows=tested.is_fixed,
        selected_on_test_rows=tested.selects_on_test_rows,
        margin=params.margin,
        difference=difference("lora", "full"),
        trained_models=trained_models_of(metrics, statistics, tested.groups, params),
        class_differences={
            label: _estimate(f1_by_fold[:, index], f1_replicates[:, index]) for index, label in enumerate(labels)
        },
        baselines={name: scores_of(metrics[name], labels) for name in BASELINES},
        slices=measure_slices(tested, statistics, params),
        **results,
    )
