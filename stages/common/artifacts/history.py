"""Training histories: a list of one object per epoch for each run, and their summary over several runs."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

History = list[dict[str, float]]
LAST_FRACTION_OF_EPOCHS = 0.1  # a validation loss that is lowest there may still fall


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


def validation_score(epoch: Mapping[str, float], select_by: str) -> float:
    """The score of an epoch by which epochs, rates and runs are selected: higher is better."""
    return -epoch["validation_loss"] if select_by == "loss" else epoch["macro_f1"]


def overfitting(history: History) -> dict[str, Any]:
    """The best epochs by validation macro-F1 and by validation loss, and how far that loss exceeds training loss."""
    by_f1 = max(history, key=lambda row: row["macro_f1"])  # of equal ones the first, as in training
    by_loss = min(history, key=lambda row: row["validation_loss"])
    return {
        "best_epoch_by_f1": by_f1["epoch"],
        "best_epoch_by_loss": by_loss["epoch"],
        "gap_at_best_epoch_by_f1": by_f1["validation_loss"] - by_f1["train_loss"],
        "gap_at_best_epoch_by_loss": by_loss["validation_loss"] - by_loss["train_loss"],
    }


def has_not_converged(history: History) -> bool:
    """Whether the validation loss is lowest in the last epochs, so that more epochs could lower it further."""
    last_epochs = max(1, round(LAST_FRACTION_OF_EPOCHS * len(history)))
    return overfitting(history)["best_epoch_by_loss"] > len(history) - last_epochs
