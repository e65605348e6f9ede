"""What can be said of both methods on the test rows, and how surely."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.common import paths, statistics
from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import Outputs, read_logits
from stages.common.artifacts.timings import read_times
from stages.common.core.console import warn
from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import atomic_write, read_json, write_json
from stages.common.core.params import CompareParams, load_params
from stages.common.core.paths import METHODS, PLOTS
from stages.common.evaluation.error_analysis import confusion, errors, groups, reliability, write_csv
from stages.common.evaluation.significance import figures, interval
from stages.common.evaluation.training_history import best_seed, overfitting
from stages.common.reporting.formatting import class_table, markdown, table, verdicts

BASES = ("tfidf", "majority")
BY_SEED = ("macro_f1", "macro_precision", "macro_recall", "accuracy", "loss", "brier", "ece")
COUNTS = ("trainable_parameters", "total_parameters", "checkpoint_bytes")
Runs = dict[str, dict[str, Any]]  # by seed, see `evaluate.describe`


@dataclass(frozen=True)
class Method:
    """The runs of a method on the test rows."""

    logits: np.ndarray  # (runs, rows, 3)
    temperatures: list[float]  # by run, fitted on the validation rows
    values: np.ndarray  # (rows, runs, 43), see `row_values`
    best: int  # the run that is kept as the model

    @property
    def predictions(self) -> np.ndarray:
        """(runs, rows)"""
        return self.logits.argmax(2)


def measure(outputs: Outputs, runs: Mapping[str, Runs], labels: Mapping[str, np.ndarray]) -> dict[str, Method]:
    """Every method's runs, in the order of their seeds; a baseline has one."""
    methods = {}
    for name in (*METHODS, *BASES):
        keys = [f"{name}/{seed}" for seed in runs[name]] if name in runs else [name]
        logits = [outputs[f"{key}/test"] for key in keys]
        temperatures = [statistics.fit_temperature(outputs[f"{key}/validation"], labels["validation"]) for key in keys]
        values = [statistics.row_values(run, labels["test"], t) for run, t in zip(logits, temperatures, strict=True)]
        best = list(runs[name]).index(best_seed(runs[name])) if name in runs else 0
        methods[name] = Method(np.stack(logits), temperatures, np.stack(values, axis=1), best)
    return methods


def nested(value: Any) -> Any:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`, figures rounded to four digits, p-values to as many that are not 0."""
    if isinstance(value, list):
        return [nested(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 4) if abs(value) >= 1e-3 else float(f"{value:.2g}")
    if not isinstance(value, dict):
        return value
    result: dict[str, Any] = {}
    for name, entry in value.items():
        *path, last = name.split(".")
        inner = result
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = nested(entry)
    return result


def by_seed(points: Mapping[str, np.ndarray], runs: Runs) -> dict[str, Any]:
    """The figures of each run and, of several, their mean and standard deviation."""
    each = [
        {"seed": int(seed), **{name: float(points[name][number]) for name in BY_SEED}}
        | {"validation_macro_f1": run["validation"]["macro_f1"], **overfitting(run["history"])}
        for number, (seed, run) in enumerate(runs.items())
    ]
    if len(each) == 1:
        return {"each": each}
    means = {name: float(points[name].mean()) for name in BY_SEED}
    return {"mean": means, "sd": {name: float(points[name].std(ddof=1)) for name in BY_SEED}, "each": each}


def compare(
    methods: Mapping[str, Method], runs: Mapping[str, Runs], labels: np.ndarray, params: CompareParams
) -> dict[str, Any]:
    """metrics/compare.json: each method's figures, means over runs, and what their differences say.

    Intervals, runs and baselines stand in lists, which `dvc metrics` leaves out of its tables.
    """
    draws = statistics.bootstrap(
        {name: method.values for name, method in methods.items()}, params.bootstrap_samples, params.seed
    )
    points = {name: figures(method.values.mean(0)) for name, method in methods.items()}

    def difference(a: str, b: str) -> dict[str, Any]:
        gap = float(points[a]["macro_f1"].mean() - points[b]["macro_f1"].mean())
        span = interval(draws[a]["macro_f1"] - draws[b]["macro_f1"])
        return {"macro_f1": gap, "interval": span, "verdict": statistics.verdict(span, params.margin)}

    result: dict[str, Any] = {}
    for name, method in methods.items():
        of_method: dict[str, Any] = {figure: float(values.mean()) for figure, values in points[name].items()}
        of_method["scaled.temperature"] = float(np.mean(method.temperatures))
        of_method |= {f"interval.{figure}": interval(values) for figure, values in draws[name].items()}
        if name in runs:
            seed, best = list(runs[name].items())[method.best]
            of_best = overfitting(best["history"])
            of_method |= {"best_seed": int(seed), "best_epoch": of_best.pop("best_epoch"), "overfitting": of_best}
            of_method |= {count: best[count] for count in COUNTS}
            of_method["runs"] = by_seed(points[name], runs[name])
            of_method["against"] = [{"baseline": base, **difference(name, base)} for base in BASES]
            of_method["beats_baselines"] = all(base["verdict"] == "better" for base in of_method["against"])
        result[name] = of_method
    full, lora = methods["full"], methods["lora"]
    right = [method.predictions[method.best] == labels for method in (full, lora)]
    gap = difference("lora", "full")
    result["difference"] = {
        "macro_f1": gap["macro_f1"],
        **dict(zip(("low", "high"), gap["interval"], strict=True)),
        "p_permutation": statistics.permutation_p(
            labels, full.predictions, lora.predictions, params.bootstrap_samples, params.seed
        ),
        "p_mcnemar": statistics.mcnemar_p(*right),
        "margin": params.margin,
        "verdict": gap["verdict"],
    }
    return nested(result)


@report_user_errors
def main() -> None:
    params = load_params()
    test = read_table(paths.TEST)
    labels = {"test": test["labels"].to_numpy(), "validation": read_table(paths.VALIDATION)["labels"].to_numpy()}
    runs = read_json(paths.EVALUATED / "runs.json")
    methods = measure(
        {**read_logits(paths.EVALUATED / "logits.safetensors"), **read_logits(paths.BASELINES)}, runs, labels
    )
    result = compare(methods, runs, labels["test"], params.compare)
    if on_test := not params.split.validation_size:
        warn("split.validation_size is 0: epochs were chosen on the test rows, so these figures are optimistic")
    result |= {"rows": len(test), "selected_on_test_rows": on_test}

    best = {name: methods[name].logits[methods[name].best] for name in METHODS}
    bins = []
    for name, logits in best.items():
        write_json(PLOTS / f"confusion_{name}.json", confusion(logits, labels["test"]))
        of_method = reliability(logits, labels["test"], methods[name].temperatures[methods[name].best])
        bins += [{"method": name, **row} for row in of_method]
    write_json(PLOTS / "reliability.json", bins)
    write_csv(PLOTS / "errors.csv", errors(test, best))
    write_json(paths.GROUPS, groups(test, {name: methods[name].logits for name in METHODS}))
    times = {name: {seed: read_times(run["key"]) for seed, run in of.items()} for name, of in runs.items()}
    write_json(paths.TIMINGS, times)
    write_json(paths.COMPARE_METRICS, result)
    english, korean = zip(*verdicts(result), strict=True)
    with atomic_write(paths.COMPARE_TABLE) as temporary:
        lines = [" ".join(english), "", markdown(table(result)), "", markdown(class_table(result)), ""]
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join([*english, *korean]))


if __name__ == "__main__":
    main()
