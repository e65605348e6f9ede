"""Find the rows that the methods misclassify, and measure how well the methods do on each kind of rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.bootstrap import resampling_weights
from stages.common.evaluation.metrics import Metrics, RowStatistics
from stages.common.evaluation.predictions import Predictions, TestedRows
from stages.common.evaluation.result import Estimate, Slice, SliceKind, SliceScores
from stages.common.runtime.params import CompareParams

MAX_CATEGORIES = 20  # Number of categories, the most frequent ones, that have a slice of their own.


def confusion_counts(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Count the rows in each cell of the confusion matrix, as records for DVC's plots.

    Args:
        logits: (rows, classes).
        labels: Class indices, (rows,).
        class_names: Names of the classes.
    """
    cells = product(class_names, class_names)
    counts = np.bincount(labels * len(class_names) + logits.argmax(1), minlength=len(class_names) ** 2)
    return [{"actual": a, "predicted": p, "count": int(n)} for (a, p), n in zip(cells, counts, strict=True)]


def misclassified(tested: TestedRows, predictions: Mapping[str, Predictions]) -> pa.Table:
    """Collect the tested rows that at least one method misclassifies, the most confident mistake first.

    Returns:
        A table with the columns Index, text and label, the prediction of each method, `disagree` ("yes" where the
        methods predict different classes, else empty), and the probabilities of each method.
    """
    labels, names = tested.labels, np.array(tested.class_names)
    probabilities = np.stack([softmax(predictions[method].logits, axis=1) for method in METHODS])
    predicted_classes = probabilities.argmax(2)
    confidence_if_wrong = np.where(predicted_classes != labels, probabilities.max(2), 0).max(0)
    rows = np.argsort(-confidence_if_wrong, kind="stable")[: np.count_nonzero(confidence_if_wrong)]
    columns = {name: tested.table[name].take(rows) for name in ("Index", "text")} | {"label": names[labels[rows]]}
    columns |= {method: names[predicted[rows]] for method, predicted in zip(METHODS, predicted_classes, strict=True)}
    columns["disagree"] = np.where((predicted_classes != predicted_classes[0]).any(0)[rows], "yes", "")
    for method, by_class in zip(METHODS, probabilities, strict=True):
        columns |= {f"{method}_{label}": by_class[rows, index] for index, label in enumerate(names)}
    return pa.table(columns)


def _slices(table: pa.Table) -> Iterator[tuple[SliceKind, str, np.ndarray]]:
    """Yield kind, name and membership (rows,) of each slice: quarters by length, and values of MainCategory."""
    lengths = pc.utf8_length(table["text"]).to_pandas()
    quarter = np.searchsorted(lengths.quantile([0.25, 0.5, 0.75]).unique(), lengths)
    for low, high in lengths.groupby(quarter).agg(["min", "max"]).to_numpy():
        yield "length", f"{low}-{high}", lengths.between(low, high).to_numpy()
    category: pd.Series = table["MainCategory"].to_pandas().fillna("").str.strip()
    frequent = category[category != ""].value_counts().sort_index().nlargest(MAX_CATEGORIES).index
    for name in frequent:
        yield "category", name, (category == name).to_numpy()
    others = ~category.isin(frequent)  # Rare categories, and rows without a category.
    if len(frequent) and others.any():
        yield "category", "...", others.to_numpy()


def measure_slices(tested: TestedRows, statistics: Mapping[str, RowStatistics], params: CompareParams) -> list[Slice]:
    """Measure both methods on each slice of the tested rows, with a paired interval of the difference in accuracy."""
    slices = list(_slices(tested.table))
    inside = np.stack([rows for _, _, rows in slices], axis=1).astype(float)  # (rows, slices)
    hits = {method: statistics[method].hits.sum(1) for method in METHODS}
    gained = (hits["lora"] - hits["full"])[:, None] * inside
    replicates = np.concatenate(
        [
            (counts @ gained) / np.maximum(counts @ inside, 1)
            for counts in resampling_weights(tested.groups, params.bootstrap_samples, params.seed)
        ]
    )
    ends = np.quantile(replicates, (0.025, 0.975), axis=0)

    def scores(method: str, rows: np.ndarray) -> SliceScores:
        of_slice = statistics[method].map(lambda values: values[rows].mean(0))
        metrics = Metrics.from_means(of_slice)
        return SliceScores(accuracy=float(metrics.accuracy), macro_f1=float(metrics.f1[of_slice.actual > 0].mean()))

    return [
        Slice(
            kind=kind,
            name=name,
            rows=int(rows.sum()),
            full=scores("full", rows),
            lora=scores("lora", rows),
            accuracy_difference=Estimate(
                value=float(gained[:, index].sum() / rows.sum()), low=float(ends[0, index]), high=float(ends[1, index])
            ),
        )
        for index, (kind, name, rows) in enumerate(slices)
    ]
