"""Macro precision, recall and F1 as a metric of the library `evaluate`, which works without a network."""

import datasets
import evaluate
from sklearn.metrics import precision_recall_fscore_support


class MacroScores(evaluate.Metric):
    """Macro averages by scikit-learn. `evaluate.load` would download a script from the hub."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description="Macro-averaged precision, recall and F1.",
            citation="",
            inputs_description="predictions, references: class indices",
            features=features,
        )

    def _compute(self, predictions: list[int], references: list[int], num_classes: int) -> dict[str, float]:
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, labels=range(num_classes), average="macro", zero_division=0
        )
        return {"macro_precision": float(precision), "macro_recall": float(recall), "macro_f1": float(f1)}


def macro_scores(predictions: list[int], references: list[int], num_classes: int) -> dict[str, float]:
    """Compute macro averages over the classes.

    Args:
        predictions: Predicted class indices.
        references: Class indices of the labels.
        num_classes: Number of classes. A class without rows counts as 0.

    Returns:
        `macro_precision`, `macro_recall` and `macro_f1`, each in [0, 1].
    """
    values = {"predictions": predictions, "references": references, "num_classes": num_classes}
    return MacroScores(keep_in_memory=True).compute(**values)
