"""What can be said of both methods on the test rows, and how surely: data only, `report` makes what people read."""

import json
from typing import Any

import numpy as np

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.artifacts.files import read_json, write_json
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.runtime import paths
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params

NUM_CALIBRATION_SAMPLES = 200  # of the validation rows, and of simulated outcomes


def scalars(details: dict[str, Any]) -> dict[str, Any]:
    """metrics/compare.json: the columns of `dvc metrics show` and `dvc exp show`, in the order in which one reads them.

    `detectable` is the smallest true difference that these rows and runs show with a power of 80%, `rows_needed` the
    test rows with which they would show equivalence within the margin (null: it takes more seeds).
    """
    difference = details["difference"]
    result = {name: difference[name] for name in ("verdict", "about")} | {"difference": difference["macro_f1"]}
    result |= dict(zip(("low", "high"), difference["interval"], strict=True))
    result |= {name: difference[name] for name in ("detectable", "rows_needed")}
    for method in METHODS:
        result[method] = {name: details[method][name] for name in ("macro_f1", "accuracy")}
        tuning = details[method]["tuning"]
        result[method] |= {name: tuning[name] for name in ("num_rates", "num_runs", "at_edge", "unconverged")}
    return result | {name: {"macro_f1": details[name]["macro_f1"]} for name in ("linear_probe", "tfidf")}


def round_float(text: str) -> float:
    """Four decimal places; two significant digits below 0.001, where p-values would become 0."""
    value = float(text)
    return round(value, 4) if abs(value) >= 1e-3 else float(f"{value:.2g}")


@report_user_errors
def main() -> None:
    params = load_params()
    # SciPy takes seconds to import; a fault in params.yaml is reported before that.
    from stages.common.evaluation import calibration
    from stages.common.evaluation.comparison import BootstrapEstimates, compare_methods
    from stages.common.evaluation.error_analysis import confusion_counts, metrics_by_slice
    from stages.common.evaluation.vectorized_metrics import per_example_statistics

    selection = read_json(paths.SELECTION)
    tables = {split: read_table(paths.SPLITS[split]) for split in ("validation", "test")}
    labels = {split: table["labels"].to_numpy() for split, table in tables.items()}
    texts = {split: table["text"].to_pylist() for split, table in tables.items()}
    class_names = get_class_names(tables["test"].schema)
    baselines = read_logits(paths.BASELINE_LOGITS, len(class_names))
    logits = {
        method: [
            dict(read_logits(paths.RUNS / method / run / "logits.safetensors", len(class_names)))
            for run in selection[method]["runs"]
        ]
        for method in METHODS
    }
    logits |= {name: [{split: baselines[f"{name}/{split}"] for split in tables}] for name in BASELINES}
    temperatures: dict[str, list[float]] = {}
    statistics: dict[str, dict[str, np.ndarray]] = {split: {} for split in tables}
    for method, runs in logits.items():
        temperatures[method] = [calibration.fit_temperature(run["validation"], labels["validation"]) for run in runs]
        for split, by_method in statistics.items():
            pairs = zip(runs, temperatures[method], strict=True)
            run_values = [per_example_statistics(run[split], labels[split], temperature) for run, temperature in pairs]
            by_method[method] = np.stack(run_values, axis=1)
    method_statistics = {split: {method: values[method] for method in METHODS} for split, values in statistics.items()}
    details = compare_methods(statistics["test"], texts["test"], class_names, selection, params.compare)
    estimates = BootstrapEstimates.collect(
        method_statistics["validation"], texts["validation"], class_names, params.compare
    )
    details["slices"] = metrics_by_slice(tables["test"], method_statistics["test"])
    if selected_on_test_rows := not params.split.validation_size:
        warn("split.validation_size is 0: epochs were chosen on the test rows, so these metrics are optimistic")
    details |= {"rows": len(labels["test"]), "selected_on_test_rows": selected_on_test_rows}

    bins, validation = [], {}
    for method in METHODS:
        selected = selection[method]
        best = list(selected["runs"]).index(selected["best_run"])
        temperature = temperatures[method][best]
        validation_logits, test_logits = (logits[method][best][split] for split in ("validation", "test"))
        samples = NUM_CALIBRATION_SAMPLES, params.compare.seed
        details[method]["calibration"] = {
            "temperature": temperature,
            "temperature_interval": calibration.temperature_interval(validation_logits, labels["validation"], *samples),
            "ece_if_calibrated": calibration.expected_ece_if_calibrated(test_logits, *samples),
            "scaled_ece_if_calibrated": calibration.expected_ece_if_calibrated(test_logits / temperature, *samples),
        }
        confusion = confusion_counts(test_logits, labels["test"], class_names)
        write_json(paths.PLOTS / f"confusion_{method}.json", confusion)
        method_bins = calibration.reliability_bins(test_logits, labels["test"], temperature)
        bins += [{"method": method, **row} for row in method_bins]
        interval = estimates.interval(method, "macro_f1") or [0.0, 0.0]
        validation[method] = {
            "val_f1": float(estimates.point_estimates[method]["macro_f1"].mean()),
            "val_moe": (interval[1] - interval[0]) / 2,  # margin of error; DVC leaves lists, as intervals are, out
            "learning_rate": selected["learning_rate"],
        }
    write_json(paths.PLOTS / "reliability.json", bins)
    write_json(paths.VALIDATION_METRICS, json.loads(json.dumps(validation), parse_float=round_float))
    details = json.loads(json.dumps(details), parse_float=round_float)
    write_json(paths.COMPARE_DETAILS, details)
    write_json(paths.COMPARE_METRICS, scalars(details))


if __name__ == "__main__":
    main()
