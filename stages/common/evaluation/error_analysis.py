"""Which rows the methods misclassify, and how well they do on each kind of rows."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from stages.common.artifacts.arrow import get_class_names
from stages.common.evaluation.vectorized_metrics import compute_metrics

MAX_CATEGORIES = 20  # with a slice of their own, the most frequent


def confusion_counts(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The cells of the confusion matrix, as rows for DVC's plots, from logits (rows, classes) and labels (rows,)."""
    cells = product(class_names, class_names)
    counts = np.bincount(labels * len(class_names) + logits.argmax(1), minlength=len(class_names) ** 2)
    return [{"actual": a, "predicted": p, "count": int(n)} for (a, p), n in zip(cells, counts, strict=True)]


def misclassified(table: pa.Table, logits: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows that at least one method misclassifies, the most confident mistake first.

    Args:
        table: of a split, with Index, text and labels.
        logits: by method, (rows, classes).

    Returns:
        Index, text, label, each method's prediction, `disagree` ("yes" where the methods predict different classes) and
        each method's probabilities.
    """
    labels, names = table["labels"].to_numpy(), np.array(get_class_names(table.schema))
    probabilities = np.stack([softmax(values, axis=1) for values in logits.values()])  # (methods, rows, classes)
    predictions = probabilities.argmax(2)
    confidence_if_wrong = np.where(predictions != labels, probabilities.max(2), 0).max(0)
    rows = np.argsort(-confidence_if_wrong, kind="stable")[: np.count_nonzero(confidence_if_wrong)]
    columns = {name: table[name].take(rows) for name in ("Index", "text")} | {"label": names[labels[rows]]}
    columns |= {method: names[predicted[rows]] for method, predicted in zip(logits, predictions, strict=True)}
    columns["disagree"] = np.where((predictions != predictions[0]).any(0)[rows], "yes", "")
    for method, by_class in zip(logits, probabilities, strict=True):
        columns |= {f"{method}_{label}": by_class[rows, index] for index, label in enumerate(names)}
    return pa.table(columns)


def metrics_by_slice(table: pa.Table, statistics: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Accuracy and macro-F1 by length of the cleaned text, in characters, and by MainCategory where there is one.

    Macro-F1 is the mean over the classes that occur in the slice. Lengths are cut at the quartiles.

    Args:
        statistics: by method, `per_example_statistics` of its runs, (rows, runs, columns); metrics are means over runs.
    """
    labels, lengths = table["labels"].to_numpy(), pc.utf8_length(table["text"]).to_pandas()
    class_names = get_class_names(table.schema)
    category = table["MainCategory"].to_pandas().fillna("").str.strip()

    def measure(inside: pd.Series) -> dict[str, Any]:
        occurring = [class_names[label] for label in np.unique(labels[inside])]
        result: dict[str, Any] = {"rows": int(inside.sum())}
        for method, values in statistics.items():
            metrics = compute_metrics(values[inside].mean(0), class_names)
            macro_f1 = np.mean([metrics[f"per_class.{label}.f1"] for label in occurring])
            result[method] = {"accuracy": float(metrics["accuracy"].mean()), "macro_f1": float(macro_f1)}
        return result

    quarter = np.searchsorted(lengths.quantile([0.25, 0.5, 0.75]).unique(), lengths)
    ends = lengths.groupby(quarter).agg(["min", "max"]).to_numpy()
    slices = {"length": {f"{low}-{high}": measure(lengths.between(low, high)) for low, high in ends}}
    frequent = category[category != ""].value_counts().sort_index().nlargest(MAX_CATEGORIES).index
    if len(frequent):
        slices["category"] = {name: measure(category == name) for name in frequent}
        if (others := ~category.isin(frequent)).any():  # rare categories, and rows without one
            slices["category"]["..."] = measure(others)
    return slices
