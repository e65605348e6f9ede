"""The comparison as sentences and tables, with no more digits than the width of an interval justifies."""

import csv
import math
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages.common.core.files import atomic_write
from stages.common.core.labels import LABELS, METHODS

Details = dict[str, Any]  # metrics/compare_details.json
Table = list[list[str]]  # header and rows
DISPLAY_NAMES = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "tfidf": "TF-IDF + logistic regression",
    "majority": "Majority class",
}
KOREAN_NAMES = {"full": "전체 미세조정", "lora": "LoRA", "tfidf": "TF-IDF + 로지스틱 회귀", "majority": "다수 클래스"}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
METRIC_NAMES = {
    "macro_f1": "macro-F1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "accuracy": "accuracy",
    "loss": "loss",
    "brier": "Brier",
    "ece": "ECE",
    "scaled.loss": "loss, scaled",
    "scaled.brier": "Brier, scaled",
    "scaled.ece": "ECE, scaled",
}


def decimal_places(low: float, high: float) -> int:
    """Up to the first significant digit of half the interval's width, at most 4."""
    width = (high - low) / 2
    return min(4, max(0, -math.floor(math.log10(width)))) if width > 0 else 2


def format_with_interval(value: float, low: float, high: float) -> str:
    """`0.80 [0.77, 0.83]`."""
    places = decimal_places(low, high)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def format_difference(value: float, low: float, high: float) -> str:
    """`-0.16 [-0.19, -0.12]`; with more digits where an end would read 0.00, which hides on which side of 0 it lies."""
    places = decimal_places(low, high)
    while places < 4 and any(end and not round(end, places) for end in (low, high)):
        places += 1
    return f"{value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def format_metric(values: Details, name: str) -> str:
    """A metric of one method, rounded by its interval; `a.b` is `values["a"]["b"]`."""
    value, interval = (reduce(getitem, name.split("."), nested) for nested in (values, values["interval"]))
    return f"{value:.{decimal_places(*interval)}f}"


def format_slice_metric(value: float, num_rows: int) -> str:
    """A metric without an interval, rounded by 1 / sqrt(num_rows), about the half-width of one."""
    return f"{value:.{decimal_places(0, 2 / math.sqrt(num_rows))}f}"


def format_p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(),  # in HTML only
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"difference": format_difference, "p_value": format_p_value, "slice_metric": format_slice_metric}


def verdict_sentences(details: Details) -> list[list[str]]:
    """What the comparison shows, each sentence in English and in Korean, the verdict first."""
    values = {"details": details, "names": DISPLAY_NAMES, "korean_names": KOREAN_NAMES}
    lines = TEMPLATES.get_template("verdict.txt").render(values).splitlines()
    return [line.split(" | ") for line in lines]


def method_table(details: Details) -> Table:
    """A row a method or baseline; of several runs the mean."""
    rows = [["method", *METRIC_NAMES.values(), "trainable parameters", "all parameters", "size of weights"]]
    for method, name in DISPLAY_NAMES.items():
        values = details[method]
        macro_f1 = format_with_interval(values["macro_f1"], *values["interval"]["macro_f1"])
        sizes = ["", "", ""]
        if method in METHODS:
            counts = [f"{values[key]:,}" for key in ("trainable_parameters", "total_parameters")]
            sizes = [*counts, f"{values['checkpoint_bytes'] / 1e6:,.2f} MB"]
        rows.append([name, macro_f1, *(format_metric(values, key) for key in list(METRIC_NAMES)[1:]), *sizes])
    return rows


def run_table(details: Details) -> Table:
    """A row a run, then the mean and the standard deviation of several."""
    epochs = {
        "best_epoch": "best epoch by macro-F1",
        "gap_at_best_epoch": "gap at that epoch",
        "best_epoch_by_loss": "best epoch by loss",
        "gap_at_best_epoch_by_loss": "gap at the best epoch by loss",
    }
    rows = [["method", "seed", "macro-F1", "accuracy", *epochs.values()]]
    for method in METHODS:
        runs, intervals = details[method]["runs"], details[method]["interval"]
        for run in (*runs["each"], *({"seed": name, **runs[name]} for name in ("mean", "sd") if name in runs)):
            extra = run["seed"] == "sd"  # a digit more
            scores = [f"{run[key]:.{decimal_places(*intervals[key]) + extra}f}" for key in ("macro_f1", "accuracy")]
            cells = [f"{run[key]:.2f}" if "gap" in key else str(run[key]) for key in epochs if key in run]
            rows.append([DISPLAY_NAMES[method], str(run["seed"]), *scores, *(cells or [""] * len(epochs))])
    return rows


def class_table(details: Details) -> Table:
    """A row a method and class."""
    rows = [["method", "class", "precision", "recall", "F1"]]
    for method, name in DISPLAY_NAMES.items():
        values = details[method]
        for label in LABELS:
            precision, recall = (format_metric(values, f"per_class.{label}.{key}") for key in ("precision", "recall"))
            interval = values["interval"]["per_class"][label]["f1"]
            f1 = format_with_interval(values["per_class"][label]["f1"], *interval)
            rows.append([name, label, precision, recall, f1])
    return rows


def to_markdown(table: Table) -> str:
    """A table in GitHub's Markdown."""
    header, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([header, "| --- |" + " ---: |" * (len(table[0]) - 1), *rows])


def write_spreadsheet(path: Path, frame: pd.DataFrame) -> None:
    """Write CSV with the byte order mark that spreadsheets want, and a `'` before what they would run as a formula."""

    def escape(cell: Any) -> Any:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell

    with atomic_write(path) as temporary:
        options = {"index": False, "encoding": "utf-8-sig", "lineterminator": "\n", "float_format": "%.3f"}
        frame.map(escape).to_csv(temporary, quoting=csv.QUOTE_ALL, **options)
