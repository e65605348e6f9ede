"""What can be said of both methods on the test rows, and how surely: data only, `report` makes what people read."""

import json
from typing import Any

import numpy as np

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.timings import read_timing
from stages.common.core import paths
from stages.common.core.console import warn
from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import read_json, write_json
from stages.common.core.labels import BASELINES, METHODS
from stages.common.core.params import load_params

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
    from stages.common.evaluation.calibration import (
        expected_ece_if_calibrated,
        fit_temperature,
        reliability_bins,
        temperature_interval,
    )
    from stages.common.evaluation.comparison import compare_methods, text_groups, validation_metrics
    from stages.common.evaluation.error_analysis import confusion_counts, metrics_by_slice
    from stages.common.evaluation.vectorized_metrics import per_example_statistics

    table, selection = read_table(paths.TEST), read_json(paths.SELECTION)
    labels, validation_labels = (each["labels"].to_numpy() for each in (table, read_table(paths.VALIDATION)))
    baselines = read_logits(paths.BASELINE_LOGITS)
    logits = {name: [{split: baselines[f"{name}/{split}"] for split in ("validation", "test")}] for name in BASELINES}
    for method in METHODS:
        folders = [paths.RUNS / method / run for run in selection[method]["runs"]]
        logits[method] = [dict(read_logits(folder / "logits.safetensors")) for folder in folders]
    temperatures, statistics = {}, {}
    for method in (*METHODS, *BASELINES):
        temperatures[method] = [fit_temperature(run["validation"], validation_labels) for run in logits[method]]
        pairs = zip(logits[method], temperatures[method], strict=True)
        of_method = [per_example_statistics(run["test"], labels, temperature) for run, temperature in pairs]
        statistics[method] = np.stack(of_method, axis=1)
    details = compare_methods(statistics, text_groups(table["text"].to_pylist()), selection, params.compare)
    validation_statistics = {
        method: np.stack(
            [per_example_statistics(run["validation"], validation_labels, 1.0) for run in logits[method]], axis=1
        )
        for method in METHODS
    }
    validation = validation_metrics(validation_statistics, selection, params.compare)
    details["slices"] = metrics_by_slice(table, {method: statistics[method] for method in METHODS})
    if selected_on_test_rows := not params.split.validation_size:
        warn("split.validation_size is 0: epochs were chosen on the test rows, so these metrics are optimistic")
    details |= {"rows": len(table), "selected_on_test_rows": selected_on_test_rows}

    bins = []
    timings: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        runs = selection[method]["runs"]
        best = list(runs).index(selection[method]["best_run"])
        best_logits, temperature = logits[method][best], temperatures[method][best]
        samples = NUM_CALIBRATION_SAMPLES, params.compare.seed
        details[method]["calibration"] = {
            "temperature": temperature,
            "temperature_interval": temperature_interval(best_logits["validation"], validation_labels, *samples),
            "ece_if_calibrated": expected_ece_if_calibrated(best_logits["test"], *samples),
            "scaled_ece_if_calibrated": expected_ece_if_calibrated(best_logits["test"] / temperature, *samples),
        }
        write_json(paths.PLOTS / f"confusion_{method}.json", confusion_counts(best_logits["test"], labels))
        of_bins = reliability_bins(best_logits["test"], labels, temperature)
        bins += [{"method": method, **row} for row in of_bins]
        timings[method] = {name: read_timing(run["timing_key"]) for name, run in runs.items()}
    write_json(paths.PLOTS / "reliability.json", bins)
    write_json(paths.TIMING_TABLE, timings)
    write_json(paths.VALIDATION_METRICS, json.loads(json.dumps(validation), parse_float=round_float))
    details = json.loads(json.dumps(details), parse_float=round_float)
    write_json(paths.COMPARE_DETAILS, details)
    write_json(paths.COMPARE_METRICS, scalars(details))


if __name__ == "__main__":
    main()
