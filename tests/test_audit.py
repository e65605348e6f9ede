"""The audit finds labels that were made wrong, and tells how many there are."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.audit import confident_classes, noise_rates
from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.runtime.paths import TEST, TRAIN, VALIDATION
from tests.support.corpus import LABELS, records


def test_confident_classes_are_those_above_the_mean_of_their_own_rows():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.15, 0.85], [0.4, 0.6], [0.2, 0.8], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # The means are 0.583 for class 0 and 0.65 for class 1.
    confident = confident_classes(probabilities, labels)
    assert confident.tolist() == [0, 0, 1, -1, 1, -1]
    assert noise_rates(confident, labels, 2) == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]))


@pytest.fixture
def wrong(stage) -> list[str]:
    """Splits of `records` with 12 wrong labels; their ids."""
    rows = [row | {"labels": int(row["GeneralPolarity"]) + 1} for row in records()]
    wrong = rows[::15]
    for row in wrong:
        row["labels"] = (row["labels"] + 1) % 3
    schema = make_schema({"labels": pa.int64(), "Index": pa.string(), "text": pa.string()}, LABELS)
    columns = {"labels": "labels", "Index": "Index", "text": "RawText"}
    table = pa.table({name: [row[key] for row in rows] for name, key in columns.items()}, schema)
    is_validation = np.arange(len(rows)) % 10 == 9
    write_table(TRAIN, [table.filter(pa.array(~is_validation))], schema)
    write_table(VALIDATION, [table.filter(pa.array(is_validation))], schema)
    write_table(TEST, [table], schema)
    return [row["Index"] for row in wrong]


def test_wrong_labels_are_listed_first(stage, wrong):
    stage("audit")
    with Path("plots/label_issues.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["Index"] for row in rows[: len(wrong)]} == set(wrong)
    assert all(row["label"] != row["suggested"] and row["suspected"] == "yes" for row in rows[: len(wrong)])
    metrics = json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))
    assert metrics["rows"] == 180
    assert len(wrong) <= metrics["suspected"] <= len(rows)
    assert metrics["estimated_wrong"] == pytest.approx(len(wrong) / 180, abs=0.05)
    noise = json.loads(Path("data/label_noise.json").read_text(encoding="utf-8"))
    assert len(noise) == 6
    assert noise == sorted(noise, key=lambda pair: -pair["rate"])


def test_test_rows_are_not_audited_even_where_they_serve_as_validation(stage, wrong):
    stage("audit", split__validation_size=0.0)
    assert json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))["rows"] == 162
