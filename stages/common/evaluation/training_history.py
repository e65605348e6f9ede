"""Histories of training: several runs as one, and where each was best."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

History = list[dict[str, float]]  # an object an epoch


def summarize(histories: dict[int, History]) -> list[dict[str, Any]]:
    """An object an epoch: the mean over the runs that reached it, `*_sd` (null for one run) and each run, `*_SEED`."""
    rows = []
    for number in range(max(map(len, histories.values()))):
        reached = {seed: history[number] for seed, history in histories.items() if number < len(history)}
        row: dict[str, Any] = {"epoch": number + 1, "runs": len(reached)}
        for name in next(iter(reached.values())):
            if name != "epoch":
                values = [epoch[name] for epoch in reached.values()]
                row[name] = fmean(values)
                row[f"{name}_sd"] = stdev(values) if len(values) > 1 else None
                row |= {f"{name}_{seed}": epoch[name] for seed, epoch in reached.items()}
        rows.append(row)
    return rows


def best_seed(runs: Mapping[Any, dict[str, Any]]) -> Any:
    """The key of the run with the best validation macro-F1; of equal ones the first."""
    return max(runs, key=lambda seed: runs[seed]["validation"]["macro_f1"])


def overfitting(history: History) -> dict[str, Any]:
    """The best epochs by validation macro-F1 and by validation loss, and how far that loss exceeds training loss."""
    by_f1 = max(history, key=lambda row: row["macro_f1"])  # of equals the first, as in training
    by_loss = min(history, key=lambda row: row["validation_loss"])
    return {
        "best_epoch": by_f1["epoch"],
        "best_epoch_by_loss": by_loss["epoch"],
        "gap_at_best_epoch": by_f1["validation_loss"] - by_f1["train_loss"],
        "gap_at_best_epoch_by_loss": by_loss["validation_loss"] - by_loss["train_loss"],
    }
