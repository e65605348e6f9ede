"""The learning rate of each method, by the mean validation score over seeds, and the best run at that rate."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stages.common.artifacts.files import atomic_write, read_json, sha256, write_json
from stages.common.artifacts.history import History, validation_score
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import MODELS, PLOTS, RUN_PLAN, RUNS, SELECTION

METADATA = ("seed", "learning_rate", "best_epoch", "validation", "trainable_parameters", "total_parameters")
SCORES = ("macro_f1", "validation_loss")  # of a run, shown in plots
Runs = dict[str, dict[str, Any]]  # by name


def read_run(folder: Path) -> dict[str, Any]:
    """What is known of a run; a UserError says which of its files is missing or damaged."""
    checkpoint = folder / "checkpoint"
    training = read_json(checkpoint / "training.json")
    try:
        metadata = {name: training[name] for name in METADATA}
    except KeyError as error:
        raise UserError(f"{checkpoint / 'training.json'}: has no {error}; run `dvc repro` to train again") from error
    (weights,) = checkpoint.glob("*.safetensors")
    return {
        **metadata,
        "checkpoint_bytes": weights.stat().st_size,
        "weights_sha256": sha256(weights),
        "history": read_json(folder / "history.json"),
    }


def select(runs: Runs, select_by: str) -> dict[str, Any]:
    """Select the learning rate with the best mean validation score over seeds, and the best run at that rate.

    Of equal rates and runs the first is selected.

    Returns:
        learning_rate, best_run, the runs at that rate by name, and the trials: each rate's runs, in the order of rates.
    """
    by_learning_rate: dict[float, Runs] = defaultdict(dict)
    for name, run in runs.items():
        by_learning_rate[run["learning_rate"]][name] = run
    scores = {name: validation_score(run["validation"], select_by) for name, run in runs.items()}
    mean_scores = {rate: fmean(scores[name] for name in names) for rate, names in by_learning_rate.items()}
    learning_rate = max(mean_scores, key=lambda rate: mean_scores[rate])
    selected = by_learning_rate[learning_rate]
    return {
        "learning_rate": learning_rate,
        "best_run": max(selected, key=lambda name: scores[name]),
        "runs": selected,
        "trials": [
            {"learning_rate": rate, **{name: [run["validation"][name] for run in tried.values()] for name in SCORES}}
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
        selected = selection[method] = select({name: read_run(RUNS / method / name) for name in names}, select_by)
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
