"""Row by row: where the methods err, how sure they were, and among which rows."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import softmax

from stages.common.core.files import atomic_write
from stages.common.core.labels import LABELS
from stages.common.evaluation.significance import BINS, confidence_bins, confusion_cells, confusion_figures

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


def errors(table: pa.Table, logits: Mapping[str, np.ndarray]) -> list[list[str | None]]:
    """Header and the rows that a method has wrong, the surest mistake first; `disagree` where the methods differ."""
    labels = table["labels"].to_numpy()
    shares = np.stack([softmax(values, axis=1) for values in logits.values()])  # (methods, rows, 3)
    guesses = shares.argmax(2)
    worst = np.where(guesses != labels, shares.max(2), -1.0).max(0)
    disagree = (guesses != guesses[0]).any(0)
    columns = [f"{method}_{label}" for method in logits for label in LABELS]
    rows: list[list[str | None]] = [["Index", "text", "label", *logits, "disagree", *columns]]
    for row in np.argsort(-worst, kind="stable")[: int((worst >= 0).sum())]:
        texts = [table[name][int(row)].as_py() for name in ("Index", "text")]
        named = [LABELS[label] for label in (labels[row], *guesses[:, row])]
        figures = [f"{share:.3f}" for share in shares[:, row].flat]
        rows.append([*texts, *named, "yes" if disagree[row] else "", *figures])
    return rows


def write_csv(path: Path, rows: Iterable[list[str | None]]) -> None:
    """Write UTF-8 with a byte order mark, for spreadsheets; a text that would run as a formula gets a `'` before it."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([f"'{cell}" if cell and cell.startswith(FORMULA) else cell for cell in row] for row in rows)


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
