"""Both methods and the baselines on the same test rows: metrics, intervals, tests and a verdict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.common.artifacts.history import History
from stages.common.core.labels import BASELINES, METHODS
from stages.common.core.params import CompareParams
from stages.common.evaluation import significance
from stages.common.evaluation.vectorized_metrics import NUM_CELLS, NUM_CLASSES, Metrics, compute_metrics

PER_RUN_METRICS = ("macro_f1", "macro_precision", "macro_recall", "accuracy", "loss", "brier", "ece")
SIZES = ("trainable_parameters", "total_parameters", "checkpoint_bytes")


def unflatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        inner = result
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return result


def overfitting(history: History) -> dict[str, Any]:
    """The best epochs by validation macro-F1 and by validation loss, and how far that loss exceeds training loss."""
    by_f1 = max(history, key=lambda row: row["macro_f1"])  # of equal ones the first, as in training
    by_loss = min(history, key=lambda row: row["validation_loss"])
    return {
        "best_epoch": by_f1["epoch"],
        "best_epoch_by_loss": by_loss["epoch"],
        "gap_at_best_epoch": by_f1["validation_loss"] - by_f1["train_loss"],
        "gap_at_best_epoch_by_loss": by_loss["validation_loss"] - by_loss["train_loss"],
    }


def _metrics_of_runs(point_estimates: Metrics, runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    values = {name: point_estimates[name] for name in PER_RUN_METRICS}
    each = [
        {"seed": run["seed"], **{name: float(of_runs[index]) for name, of_runs in values.items()}}
        | {"validation_macro_f1": run["validation"]["macro_f1"], **overfitting(run["history"])}
        for index, run in enumerate(runs.values())
    ]
    if len(each) == 1:
        return {"each": each}
    mean = {name: float(of_runs.mean()) for name, of_runs in values.items()}
    return {"mean": mean, "sd": {name: float(of_runs.std(ddof=1)) for name, of_runs in values.items()}, "each": each}


def compare_methods(
    statistics: Mapping[str, np.ndarray], selection: Mapping[str, dict[str, Any]], params: CompareParams
) -> dict[str, Any]:
    """Each method's metrics with intervals, means over its runs, and what the differences between methods say.

    Args:
        statistics: by method and baseline, `per_example_statistics` of its runs on the test rows, (rows, runs, 43).
        selection: data/selection.json.
    """
    replicates = significance.bootstrap_replicates(statistics, params.bootstrap_samples, params.seed)
    point_estimates = {name: compute_metrics(values.mean(0)) for name, values in statistics.items()}

    def difference(a: str, b: str) -> dict[str, Any]:
        interval = significance.confidence_interval(replicates[a]["macro_f1"] - replicates[b]["macro_f1"])
        point_estimate = float(point_estimates[a]["macro_f1"].mean() - point_estimates[b]["macro_f1"].mean())
        verdict = significance.verdict_from_interval(interval, params.margin)
        return {"macro_f1": point_estimate, "interval": interval, "verdict": verdict}

    details: dict[str, Any] = {}
    correct: dict[str, Any] = {}  # by method, the test rows (rows,) that its best run has right
    for name, of_method in replicates.items():
        values: dict[str, Any] = {metric: float(runs.mean()) for metric, runs in point_estimates[name].items()}
        values |= {f"interval.{metric}": significance.confidence_interval(r) for metric, r in of_method.items()}
        if name in METHODS:
            runs, best_run = selection[name]["runs"], selection[name]["best_run"]
            best_overfitting = overfitting(runs[best_run]["history"])
            values |= {"best_seed": runs[best_run]["seed"], "best_epoch": best_overfitting.pop("best_epoch")}
            values |= {"overfitting": best_overfitting, **{size: runs[best_run][size] for size in SIZES}}
            values["runs"] = _metrics_of_runs(point_estimates[name], runs)
            values["against"] = [{"baseline": baseline, **difference(name, baseline)} for baseline in BASELINES]
            values["beats_baselines"] = all(against["verdict"] == "better" for against in values["against"])
            cells = statistics[name][:, list(runs).index(best_run), :NUM_CELLS]
            correct[name] = cells[:, :: NUM_CLASSES + 1].any(1)
        details[name] = unflatten(values)
    of_methods, pair = difference("lora", "full"), (statistics["full"], statistics["lora"])
    details["difference"] = {
        "macro_f1": of_methods["macro_f1"],
        "low": of_methods["interval"][0],
        "high": of_methods["interval"][1],
        "p_permutation": significance.permutation_p_value(*pair, params.bootstrap_samples, params.seed),
        "p_mcnemar": significance.mcnemar_p_value(correct["full"], correct["lora"]),
        "margin": params.margin,
        "verdict": of_methods["verdict"],
    }
    return details
