"""Training histories: a list of one object an epoch for each run, and their summary over several runs."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

History = list[dict[str, float]]


def summarize(histories: Mapping[str, History]) -> list[dict[str, Any]]:
    """One object an epoch: the mean over the runs that reached it, `*_sd` (null for one run) and each run, `*_RUN`."""
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


def validation_score(epoch: Mapping[str, float], select_by: str) -> float:
    """The score of an epoch by which epochs, rates and runs are selected: higher is better."""
    return -epoch["validation_loss"] if select_by == "loss" else epoch["macro_f1"]
