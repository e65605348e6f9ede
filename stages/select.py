"""The learning rate of each method, by the mean validation score over seeds, and the best run at that rate."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from stages.common.artifacts.files import atomic_write, read_json, write_json
from stages.common.artifacts.history import History, validation_score
from stages.common.artifacts.trained_run import TrainedRun, read_trained_run
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import MODELS, PLOTS, RUN_PLAN, RUNS, SELECTION

SCORES = ("macro_f1", "validation_loss")  # of a run, shown in plots
Runs = dict[str, TrainedRun]  # by name


def describe(run: TrainedRun) -> dict[str, Any]:
    """Return what data/selection.json says of a run."""
    return {
        **run.metadata.model_dump(exclude={"base_model", "preprocessing", "labels"}),
        "checkpoint_bytes": run.checkpoint_bytes,
        "weights_sha256": run.weights_sha256,
        "history": run.history,
    }


def select(runs: Runs, select_by: str) -> dict[str, Any]:
    """Select the learning rate with the best mean validation score over seeds, and the best run at that learning rate.

    Of equal learning rates and runs the first is selected.

    Returns:
        learning_rate, best_run, the runs at that learning rate by name, and the trials: the scores of the runs at each
        learning rate, in the order of learning rates.
    """
    by_learning_rate: dict[float, Runs] = defaultdict(dict)
    for name, run in runs.items():
        by_learning_rate[run.metadata.learning_rate][name] = run
    scores = {name: validation_score(run.metadata.validation, select_by) for name, run in runs.items()}
    mean_scores = {rate: fmean(scores[name] for name in names) for rate, names in by_learning_rate.items()}
    learning_rate = max(mean_scores, key=lambda rate: mean_scores[rate])
    selected = by_learning_rate[learning_rate]
    return {
        "learning_rate": learning_rate,
        "best_run": max(selected, key=lambda name: scores[name]),
        "runs": {name: describe(run) for name, run in selected.items()},
        "trials": [
            {"learning_rate": rate}
            | {name: [run.metadata.validation[name] for run in tried.values()] for name in SCORES}
            for rate, tried in sorted(by_learning_rate.items())
        ],
    }


def summarize(histories: Mapping[str, History]) -> list[dict[str, Any]]:
    """One object per epoch: the mean over the runs that reached it, `*_sd` (null for one run) and each run, `*_RUN`."""
    rows = []
    for index in range(max(map(len, histories.values()))):
        reached = {run: history[index] for run, history in histories.items() if index < len(history)}
        row: dict[str, Any] = {"epoch": index + 1, "runs": len(reached)}
        for name in next(iter(reached.values())):
            if name != "epoch":
                values = [epoch[name] for epoch in reached.values()]
                row[name] = fmean(values)
                row[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
                row |= {f"{name}_{run}": epoch[name] for run, epoch in reached.items()}
        rows.append(row)
    return rows


@report_user_errors
def main() -> None:
    select_by = load_params().train.select_by
    selection, rows = {}, []
    for method, names in read_json(RUN_PLAN).items():
        runs = {name: read_trained_run(RUNS / method / name) for name in names}
        selected = selection[method] = select(runs, select_by)
        with atomic_write(MODELS / method) as folder:
            shutil.copytree(RUNS / method / selected["best_run"] / "checkpoint", folder)
        histories = {str(run["seed"]): run["history"] for run in selected["runs"].values()}
        write_json(PLOTS / f"{method}.json", summarize(histories))
        for trial in selected["trials"]:
            row = {"method": method, "learning_rate": trial["learning_rate"], "mean": fmean(trial["macro_f1"])}
            row["selected"] = trial["learning_rate"] == selected["learning_rate"]
            rows += [{**row, "macro_f1": score} for score in trial["macro_f1"]]
    write_json(PLOTS / "learning_rates.json", rows)
    write_json(SELECTION, selection)


if __name__ == "__main__":
    main()
