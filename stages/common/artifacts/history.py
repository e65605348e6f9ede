"""Training histories: a list with one object per epoch."""

from collections.abc import Mapping

History = list[dict[str, float]]


def validation_score(epoch: Mapping[str, float], select_by: str) -> float:
    """Return the score by which epochs, learning rates and runs are selected; higher is better."""
    return -epoch["validation_loss"] if select_by == "loss" else epoch["macro_f1"]
