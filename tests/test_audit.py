"""The audit finds labels that were made wrong, and estimates their number."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.audit import confident_classes, noise_rates
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.logits import write_logits
from stages.common.runtime.paths import AUDIT_METRICS, LABEL_ISSUES, LABEL_NOISE, RUNS, fold_path, run_name
from tests.support.corpus import records
from tests.support.runs import labelled_logits, write_runs


def test_confident_classes_are_those_above_the_mean_of_their_own_rows():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.15, 0.85], [0.4, 0.6], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # The means are 0.583 for class 0 and 0.65 for class 1.
    confident = confident_classes(probabilities, labels)
    assert confident.tolist() == [0, 0, 1, -1, 1, -1]
    assert noise_rates(confident, labels, 2) == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]))


@pytest.fixture
def wrong(stage) -> list[str]:
    """Write runs of good models on all folds of `records` with 12 wrong labels, and return the ids of these rows."""
    rows = records()
    right = np.array([int(row["GeneralPolarity"]) + 1 for row in rows])
    for row in rows[::15]:
        row["GeneralPolarity"] = str((int(row["GeneralPolarity"]) + 2) % 3 - 1)
    write_runs(rows, folds=range(5), learning_rates={"full": [0.1], "lora": [0.1]})
    for method, seed in (("full", 1), ("lora", 2)):
        for fold in range(5):
            parts = vars(read_fold(fold_path(fold), len(rows)))
            logits = {part: labelled_logits(right[numbers], 6.0, seed) for part, numbers in parts.items()}
            given = np.array([int(row["GeneralPolarity"]) + 1 for row in rows])[parts["train"]]
            if method == "full":  # It has learned the given labels of its training rows by heart.
                logits["train"] = np.eye(3)[given]
            write_logits(RUNS / method / run_name(fold, 0.1) / "logits.safetensors", logits)
    rates = {"full__learning_rates": [0.1], "lora__learning_rates": [0.1]}
    for name in ("prune_runs", "select", "audit"):
        stage(name, run__folds=list(range(5)), **rates)
    return [row["Index"] for row in rows[::15]]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_wrong_labels_are_listed_first(wrong):
    with LABEL_ISSUES.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["Index"] for row in rows[: len(wrong)]} == set(wrong)
    assert all(row["label"] != row["suggested"] and row["suspected"] == "yes" for row in rows[: len(wrong)])
    metrics = read(AUDIT_METRICS)
    assert metrics["rows"] == 180
    assert len(wrong) <= metrics["suspected"] <= len(rows)
    assert metrics["estimated_wrong"] == pytest.approx(len(wrong) / 180, abs=0.05)
    noise = read(LABEL_NOISE)
    assert len(noise) == 6
    assert noise == sorted(noise, key=lambda pair: -pair["rate"])


def test_a_method_that_learned_the_noise_fits_the_suspected_labels(wrong):
    fit = read(AUDIT_METRICS)["label_fit"]
    assert fit["full"] == {"suspected": 1.0, "others": 1.0}
    assert fit["lora"]["suspected"] < 0.1 < 0.9 < fit["lora"]["others"]
