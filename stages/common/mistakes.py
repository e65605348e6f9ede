"""Row by row: where the methods err, how sure they were, and among which rows."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from stages.common.files import replacing
from stages.common.records import LABELS
from stages.common.statistics import BINS, confidence_bins, confusion_cells, confusion_figures

CATEGORIES = 20  # of them that have a line of their own, the most frequent
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # at the start of a cell, a spreadsheet runs it


def confusion(logits: np.ndarray, labels: np.ndarray) -> list[dict[str, str]]:
    """An object a row for DVC's plots, which count them."""
    pairs = zip(labels, logits.argmax(1), strict=True)
    return [{"actual": LABELS[label], "predicted": LABELS[guess]} for label, guess in pairs]


def reliability(logits: np.ndarray, labels: np.ndarray, temperature: float) -> list[dict[str, Any]]:
    """Mean confidence and accuracy of the rows in each of the bins that holds any, before and after scaling."""
    rows = []
    right = logits.argmax(1) == labels
    for scaled in (False, True):
        confidence, bins = confidence_bins(logits / temperature if scaled else logits)
        for number in range(BINS):
            if (inside := bins == number).any():
                means = {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
                rows.append({"scaled": scaled, **means, "rows": int(inside.sum())})
    return rows


def errors(table: pa.Table, logits: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rows that a method has wrong, the most confident mistake first; `disagree` where the methods differ."""
    labels = table["labels"].to_numpy()
    shares = {method: softmax(values, axis=1) for method, values in logits.items()}
    guesses = np.stack([values.argmax(1) for values in logits.values()])
    sure = np.stack([share.max(1) for share in shares.values()])
    worst = np.where(guesses != labels, sure, -1.0).max(0)
    disagree = (guesses != guesses[0]).any(0)
    rows = []
    for row in np.argsort(-worst, kind="stable")[: int((worst >= 0).sum())]:
        values = {name: table[name][int(row)].as_py() for name in ("Index", "text")}
        values["label"] = LABELS[labels[row]]
        values |= {method: LABELS[guess] for method, guess in zip(logits, guesses[:, row], strict=True)}
        values["disagree"] = "yes" if disagree[row] else ""
        for method, share in shares.items():
            values |= {f"{method}_{label}": f"{share[row, i]:.3f}" for i, label in enumerate(LABELS)}
        rows.append(values)
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write UTF-8 with a byte order mark, for spreadsheets; a text that would run as a formula gets a `'` before it."""

    def safe(value: str | None) -> str:
        return f"'{value}" if value and value.startswith(FORMULA) else value or ""

    with replacing(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([safe(row[name]) for name in columns] for row in rows)


def groups(table: pa.Table, logits: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Accuracy and macro-F1 by length of the cleaned text, in characters, and by MainCategory where there is one.

    Macro-F1 is the mean over the classes that occur in the group. Lengths are cut at the quartiles.

    Args:
        logits: by method, (runs, rows, 3); the figures are means over runs.
    """
    labels, lengths = table["labels"].to_numpy(), pc.utf8_length(table["text"]).to_numpy()
    quarter = np.searchsorted(np.unique(np.percentile(lengths, [25, 50, 75])), lengths)
    parts: dict[str, dict[str, np.ndarray]] = {"length": {}}
    for number in np.unique(quarter):
        inside = quarter == number
        parts["length"][f"{lengths[inside].min()}-{lengths[inside].max()}"] = inside
    category = pc.utf8_trim_whitespace(pc.fill_null(table["MainCategory"], "")).to_numpy()
    names, counts = np.unique(category[category != ""], return_counts=True)
    if len(names):
        shown = names[np.argsort(-counts, kind="stable")][:CATEGORIES]
        parts["category"] = {str(name): category == name for name in shown}
        parts["category"]["..."] = ~np.isin(category, shown)  # the others, and rows without one
    return {
        kind: {name: _group(labels, logits, inside) for name, inside in masks.items() if inside.any()}
        for kind, masks in parts.items()
    }


def _group(labels: np.ndarray, logits: Mapping[str, np.ndarray], inside: np.ndarray) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": int(inside.sum())}
    present = np.unique(labels[inside])
    for method, runs in logits.items():
        cells = np.stack([confusion_cells(run[inside].argmax(1), labels[inside]).sum(0) for run in runs])
        scores = confusion_figures(cells)
        f1 = np.mean([scores[f"per_class.{LABELS[label]}.f1"] for label in present])
        result[method] = {"accuracy": round(float(scores["accuracy"].mean()), 4), "macro_f1": round(float(f1), 4)}
    return result
