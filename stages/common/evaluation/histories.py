"""Read signs of overfitting and of missing convergence from the training history of a run."""

from stages.common.artifacts.history import History
from stages.common.evaluation.result import Epochs

LAST_FRACTION_OF_EPOCHS = 0.1  # A validation loss that is lowest in these epochs may still fall.


def best_epochs(history: History) -> Epochs:
    """Find the best epochs by validation macro-F1 and by validation loss; of equal epochs the first, as in training."""
    by_f1 = max(history, key=lambda row: row["macro_f1"])
    by_loss = min(history, key=lambda row: row["validation_loss"])
    return Epochs(
        best_epoch_by_f1=int(by_f1["epoch"]),
        best_epoch_by_loss=int(by_loss["epoch"]),
        gap_at_best_epoch_by_f1=by_f1["validation_loss"] - by_f1["train_loss"],
        gap_at_best_epoch_by_loss=by_loss["validation_loss"] - by_loss["train_loss"],
    )


def has_not_converged(history: History) -> bool:
    """Tell whether the validation loss is lowest in the last epochs, so that more epochs could lower it further."""
    last_epochs = max(1, round(LAST_FRACTION_OF_EPOCHS * len(history)))
    return best_epochs(history).best_epoch_by_loss > len(history) - last_epochs
