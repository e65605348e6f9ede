"""Select the learning rate of each method and its best run by validation, and summarize the training histories."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from stages.common.artifacts.files import atomic_write, read_json, write_json
from stages.common.artifacts.history import History, validation_score
from stages.common.artifacts.selection import SelectedMethod, Trial, write_selection
from stages.common.artifacts.trained_run import TrainedRun, read_trained_run
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import MODELS, PARAMS, PLOTS, RUN_PLAN, RUNS


def select(runs: Mapping[str, TrainedRun], select_by: str) -> SelectedMethod:
    """Select the learning rate with the best mean validation score over the folds, and its best run.

    If several learning rates or runs have the same score, the first of them is selected.

    Args:
        runs: All runs of a method, by name.
        select_by: "loss" or "macro_f1", see `train.select_by`.
    """
    by_learning_rate: dict[float, dict[str, TrainedRun]] = defaultdict(dict)
    for name, run in runs.items():
        by_learning_rate[run.metadata.learning_rate][name] = run
    scores = {name: validation_score(run.metadata.validation, select_by) for name, run in runs.items()}
    means = {rate: fmean(scores[name] for name in names) for rate, names in by_learning_rate.items()}
    learning_rate = max(means, key=lambda rate: means[rate])
    selected = by_learning_rate[learning_rate]
    trials = [
        Trial(rate, [run.metadata.validation["macro_f1"] for run in tried.values()])
        for rate, tried in sorted(by_learning_rate.items())
    ]
    return SelectedMethod(learning_rate, max(selected, key=lambda name: scores[name]), selected, trials)


def summarize(histories: Mapping[str, History]) -> list[dict[str, Any]]:
    """Summarize the histories of several runs.

    Returns:
        One object for each epoch. For each metric it has the mean over the runs that reached the epoch (METRIC), the
        standard deviation (METRIC_sd; null for a single run) and the value of each run (METRIC_RUN).
    """
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
        if missing := [name for name in names if not (RUNS / method / name).is_dir()]:
            raise UserError(
                f"{RUNS / method / missing[0]}: is missing; if run.folds or {method}.learning_rates of {PARAMS} "
                "changed while `dvc repro` ran, run it again"
            )
        selected = select({name: read_trained_run(RUNS / method / name) for name in names}, select_by)
        selection[method] = selected
        with atomic_write(MODELS / method) as folder:
            shutil.copytree(RUNS / method / selected.best_run / "checkpoint", folder)
        histories = {f"fold_{run.metadata.fold}": run.history for run in selected.runs.values()}
        write_json(PLOTS / f"{method}.json", summarize(histories))
        for trial in selected.trials:
            row = {"method": method, "learning_rate": trial.learning_rate, "mean": fmean(trial.macro_f1)}
            row["selected"] = trial.learning_rate == selected.learning_rate
            rows += [{**row, "macro_f1": score} for score in trial.macro_f1]
    write_json(PLOTS / "learning_rates.json", rows)
    write_selection(selection)


if __name__ == "__main__":
    main()
