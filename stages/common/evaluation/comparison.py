"""Both methods and the baselines on the same test rows: metrics, intervals, tests, a verdict and its limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd

from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.evaluation import significance
from stages.common.evaluation.histories import has_not_converged, overfitting
from stages.common.evaluation.vectorized_metrics import compute_metrics, num_counts
from stages.common.runtime.params import CompareParams

PER_RUN_METRICS = ("macro_f1", "macro_precision", "macro_recall", "accuracy", "loss", "brier", "ece")
SIZES = ("trainable_parameters", "total_parameters", "checkpoint_bytes")
MIN_TRIALS = 3  # for a curve of the expected best score
MIN_RATES_FOR_EDGE = 3  # with fewer learning rates every one is the lowest or the highest


def expected_best(scores: Sequence[float]) -> list[float]:
    """The expected best of 1, 2, ... n trials by the unbiased estimator of arXiv 2004.13705, from n observed scores.

    Empty for fewer than `MIN_TRIALS` scores.
    """
    n = len(scores)
    if n < MIN_TRIALS:
        return []
    # Of all subsets of k scores, C(i, k - 1) have the i-th smallest one, counted from 0, as their best.
    weights = [[math.comb(i, k - 1) / math.comb(n, k) for i in range(n)] for k in range(1, n + 1)]
    return [float(expected) for expected in np.array(weights) @ np.sort(scores)]


def tuning(selected: Mapping[str, Any]) -> dict[str, Any]:
    """How a method was tuned: learning rates and runs that were tried, and what limits the result.

    Args:
        selected: the method's part of data/selection.json.
    """
    rates = [trial["learning_rate"] for trial in selected["trials"]]
    scores = [score for trial in selected["trials"] for score in trial["macro_f1"]]
    return {
        "learning_rate": selected["learning_rate"],
        "num_rates": len(rates),
        "num_runs": len(scores),
        "at_edge": int(len(rates) >= MIN_RATES_FOR_EDGE and selected["learning_rate"] in (min(rates), max(rates))),
        "unconverged": sum(has_not_converged(run["history"]) for run in selected["runs"].values()),
        "trials": selected["trials"],
        "expected_best": expected_best(scores),
    }


@dataclass(frozen=True)
class BootstrapEstimates:
    """Metrics of each method's runs on the rows of a split, and their replicates in a bootstrap over these rows."""

    point_estimates: Mapping[str, Mapping[str, np.ndarray]]  # by method and metric, (runs,)
    replicates: Mapping[str, Mapping[str, np.ndarray]]  # by method and metric, (samples,), mean over runs

    @classmethod
    def collect(
        cls, statistics: Mapping[str, np.ndarray], texts: Sequence[str], labels: Sequence[str], params: CompareParams
    ) -> Self:
        """From `per_example_statistics` of each method's runs; rows of one text are drawn together."""
        metrics = partial(compute_metrics, labels=labels)
        groups = np.unique(np.asarray(texts, dtype=object), return_inverse=True)[1]
        weights = significance.resampling_weights(groups, params.bootstrap_samples, params.seed)
        return cls(
            {method: metrics(values.mean(0)) for method, values in statistics.items()},
            significance.bootstrap_replicates(statistics, weights, metrics),
        )

    def interval(self, method: str, metric: str) -> list[float] | None:
        """95% interval of a metric, None of the expected calibration error: its bootstrap is biased upwards."""
        if metric.endswith("ece"):
            return None
        values = self.point_estimates[method][metric]
        runs = [values] if method in METHODS else []
        return significance.confidence_interval(float(values.mean()), self.replicates[method][metric], runs)

    def difference(self, a: str, b: str, margin: float) -> dict[str, Any]:
        """Macro-F1 of `a` minus `b`: estimate, intervals, verdict, and what these rows and runs could have shown."""
        estimate = float(self.point_estimates[a]["macro_f1"].mean() - self.point_estimates[b]["macro_f1"].mean())
        replicates = self.replicates[a]["macro_f1"] - self.replicates[b]["macro_f1"]
        runs = [self.point_estimates[method]["macro_f1"] for method in (a, b) if method in METHODS]
        interval, tost_interval = (
            significance.confidence_interval(estimate, replicates, runs, level)
            for level in (significance.CONFIDENCE_LEVEL, significance.TOST_LEVEL)
        )
        return {
            "macro_f1": estimate,
            "interval": interval,
            "tost_interval": tost_interval,
            "verdict": significance.verdict(interval, tost_interval, margin),
            "row_variance": float(replicates.var(ddof=1)),
            "run_variance": sum(float(values.var(ddof=1)) / len(values) for values in runs if len(values) > 1),
        }


def _metrics_of_runs(point_estimates: Mapping[str, np.ndarray], runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    metrics = pd.DataFrame({name: point_estimates[name] for name in PER_RUN_METRICS})
    result: dict[str, Any] = {"each": []}
    for run, values in zip(runs.values(), metrics.to_dict("records"), strict=True):
        known = {"seed": run["seed"], "validation_macro_f1": run["validation"]["macro_f1"]}
        result["each"].append(known | values | overfitting(run["history"]))
    return result | ({"mean": metrics.mean().to_dict(), "sd": metrics.std().to_dict()} if len(runs) > 1 else {})


def compare_methods(
    statistics: Mapping[str, np.ndarray],
    texts: Sequence[str],
    labels: Sequence[str],
    selection: Mapping[str, dict[str, Any]],
    params: CompareParams,
) -> dict[str, Any]:
    """Each method's metrics with intervals, means over its runs, and what the differences between methods say.

    Args:
        statistics: by method and baseline, `per_example_statistics` of its runs on the test rows (rows, runs, columns).
        texts: of the test rows.
        labels: names of the classes.
        selection: data/selection.json.
    """
    estimates = BootstrapEstimates.collect(statistics, texts, labels, params)
    details: dict[str, Any] = {"labels": list(labels)}
    for name, metrics in estimates.point_estimates.items():
        values: dict[str, Any] = {metric: float(runs.mean()) for metric, runs in metrics.items()}
        values["interval"] = {metric: estimates.interval(name, metric) for metric in metrics}
        if name in METHODS:
            selected = selection[name]
            runs, best_run = selected["runs"], selected["runs"][selected["best_run"]]
            values |= {"best_seed": best_run["seed"], "best_epoch": best_run["best_epoch"]}
            values |= {"overfitting": overfitting(best_run["history"]), **{size: best_run[size] for size in SIZES}}
            values |= {"tuning": tuning(selected), "runs": _metrics_of_runs(metrics, runs)}
            values["against"] = [{"baseline": b} | estimates.difference(name, b, params.margin) for b in BASELINES]
        details[name] = values
    difference = estimates.difference("lora", "full", params.margin)
    low, high = difference["interval"]
    variances = difference["row_variance"], difference["run_variance"]
    one_seed = min(len(selection[method]["runs"]) for method in METHODS) == 1
    best_runs = {method: list(selection[method]["runs"]).index(selection[method]["best_run"]) for method in METHODS}
    full, lora = (statistics[method][:, best_run] for method, best_run in best_runs.items())
    full_correct, lora_correct = (values[:, : num_counts(values) // 3].max(1) > 0 for values in (full, lora))
    p_permutation = significance.permutation_p_value(full, lora, params.bootstrap_samples, params.seed)
    p_mcnemar = significance.mcnemar_p_value(full_correct, lora_correct)
    # With one seed, interval and permutation test answer one question; where they disagree, nothing is decided.
    borderline = one_seed and (p_permutation < 1 - significance.CONFIDENCE_LEVEL) != (low > 0 or high < 0)
    if borderline and difference["verdict"] != "equivalent":
        difference["verdict"] = "undecided"
    details["difference"] = difference | {
        "margin": params.margin,
        "detectable": significance.smallest_detectable_difference(sum(variances) ** 0.5),
        "rows_needed": significance.rows_for_equivalence(len(texts), *variances, params.margin),
        "about": "checkpoints" if one_seed else "methods",
        "borderline": borderline,
        "checkpoint_tests": {"p_permutation": p_permutation, "p_mcnemar": p_mcnemar},
    }
    return details
