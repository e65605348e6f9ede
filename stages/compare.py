"""What can be said of both methods on the test rows, and how surely: data only, `report` makes what people read."""

import json
from typing import Any

import numpy as np

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.timings import read_timings
from stages.common.core import paths
from stages.common.core.console import warn
from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import read_json, write_json
from stages.common.core.labels import BASELINES, METHODS
from stages.common.core.params import load_params

SCALARS = {  # the columns of `dvc exp show`, in this order; `dvc metrics show` sorts them by name
    "difference": ("verdict", "macro_f1", "low", "high", "p_permutation", "p_mcnemar"),
    "full": ("macro_f1", "accuracy"),
    "lora": ("macro_f1", "accuracy", "trainable_parameters"),
    "tfidf": ("macro_f1",),
}


def round_float(text: str) -> float:
    """Four decimal places; two significant digits below 0.001, where p-values would become 0."""
    value = float(text)
    return round(value, 4) if abs(value) >= 1e-3 else float(f"{value:.2g}")


@report_user_errors
def main() -> None:
    params = load_params()
    # SciPy takes seconds to import; a fault in params.yaml is reported before that.
    from stages.common.evaluation.calibration import fit_temperature, reliability_bins
    from stages.common.evaluation.comparison import compare_methods
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
    for method, of_runs in logits.items():
        temperatures[method] = [fit_temperature(run["validation"], validation_labels) for run in of_runs]
        pairs = zip(of_runs, temperatures[method], strict=True)
        of_method = [per_example_statistics(run["test"], labels, temperature) for run, temperature in pairs]
        statistics[method] = np.stack(of_method, axis=1)
    details = compare_methods(statistics, selection, params.compare)
    for method in logits:
        details[method]["scaled"]["temperature"] = float(np.mean(temperatures[method]))
    details["slices"] = metrics_by_slice(table, {method: statistics[method] for method in METHODS})
    if selected_on_test_rows := not params.split.validation_size:
        warn("split.validation_size is 0: epochs were chosen on the test rows, so these metrics are optimistic")
    details |= {"rows": len(table), "selected_on_test_rows": selected_on_test_rows}
    details = json.loads(json.dumps(details), parse_float=round_float)

    bins = []
    timings: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        runs = selection[method]["runs"]
        best = list(runs).index(selection[method]["best_run"])
        best_logits = logits[method][best]["test"]
        write_json(paths.PLOTS / f"confusion_{method}.json", confusion_counts(best_logits, labels))
        of_bins = reliability_bins(best_logits, labels, temperatures[method][best])
        bins += [{"method": method, **row} for row in of_bins]
        timings[method] = {name: read_timings(run["timing_key"]) for name, run in runs.items()}
    write_json(paths.PLOTS / "reliability.json", bins)
    write_json(paths.TIMING_TABLE, timings)
    write_json(paths.COMPARE_DETAILS, details)
    scalars = {name: {key: details[name][key] for key in keys} for name, keys in SCALARS.items()}
    write_json(paths.COMPARE_METRICS, scalars)


if __name__ == "__main__":
    main()
