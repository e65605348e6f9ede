"""Sizes, strata and leaks of the split."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.common.core.exceptions import UserError
from stages.common.core.params import SplitParams
from stages.split import labels_and_groups, split


def params(test_size: float = 0.2, validation_size: float = 0.1, seed: int = 42) -> SplitParams:
    return SplitParams(test_size=test_size, validation_size=validation_size, seed=seed)


def rows_of(counts: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1, 2], counts)
    return labels, np.arange(len(labels))


def test_sizes_are_the_notebooks():
    labels, groups = rows_of((1500, 1150, 1758))
    rows = split(labels, groups, params())
    assert {name: len(part) for name, part in rows.items()} == {"train": 3173, "validation": 353, "test": 882}
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(4408))
    for part in rows.values():
        assert np.abs(np.bincount(labels[part]) - np.bincount(labels) * len(part) / 4408).max() <= 1


def test_no_validation_means_the_test_rows():
    rows = split(*rows_of((1500, 1150, 1758)), params(validation_size=0))
    assert len(rows["train"]) == 3526
    assert np.array_equal(rows["validation"], rows["test"])


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_stay_together(seed):
    generator = np.random.default_rng(seed)
    groups = np.unique(generator.integers(0, 120, 400), return_inverse=True)[1]
    labels = generator.integers(0, 3, 400)
    rows = split(labels, groups, params(seed=seed))
    sides = [set(groups[part]) for part in rows.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == groups.max() + 1
    assert abs(len(rows["test"]) - 80) <= 9
    assert sum(map(len, rows.values())) == 400


@pytest.mark.parametrize("seed", range(20))
def test_a_small_class_stands_in_every_split(seed):
    labels = np.repeat([0, 1, 2], (200, 3, 53))
    groups = np.concatenate([np.arange(203), [203, 204, 205], np.full(50, 206)])
    rows = split(labels, groups, params(seed=seed))
    assert all(set(labels[part]) == {0, 1, 2} for part in rows.values())


@pytest.mark.parametrize("test_size", [0.01, 0.5, 0.99])
def test_no_split_is_ever_empty(test_size):
    rows = split(*rows_of((10, 10, 10)), params(test_size=test_size))
    assert all(len(part) >= 3 for part in rows.values())


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    labels, groups = rows_of((100, 100, 100))
    one, two, other = (split(labels, groups, params(seed=seed))["test"] for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_class_with_too_few_texts_is_named():
    with pytest.raises(UserError, match=r"중립 has 2 distinct texts.*at least 3"):
        split(*rows_of((50, 2, 50)), params())
    with pytest.raises(UserError, match="중립 has 0 distinct"):
        split(*rows_of((50, 0, 50)), params(validation_size=0))


def test_equal_texts_are_one_group_numbered_as_they_are_met():
    generator = np.random.default_rng(0)
    texts = [f"글 {number}" for number in generator.integers(0, 300, 1000)]
    batches = [pa.record_batch({"labels": [1] * 500, "text": texts[start : start + 500]}) for start in (0, 500)]
    labels, groups = labels_and_groups(batches)
    assert labels.tolist() == [1] * 1000
    assert groups.tolist() == [list(dict.fromkeys(texts)).index(text) for text in texts]


def test_the_stage_writes_what_it_counts(stage, capsys):
    from stages.clean_and_tokenize import SCHEMA
    from stages.common.artifacts.arrow import read_table, write_table

    texts = [f"글 {number}" for number in range(90)] + ["글 0"] * 10
    labels = [number % 3 for number in range(90)] + [0] * 10
    ids = [[2, number, 3] for number in range(100)]
    columns = [ids, [[1] * 3] * 100, [[0] * 3] * 100, labels, list(map(str, range(100))), texts, ["이어폰"] * 100]
    write_table(Path("data/tokenized.arrow"), [pa.table(columns, schema=SCHEMA)], SCHEMA)
    stage("split", split__validation_size=0.0)
    assert "optimistic" in capsys.readouterr().err
    metrics = json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))
    assert metrics["duplicate_rows"] == 10
    for name in ("train", "validation", "test"):
        table = read_table(Path(f"data/splits/{name}.arrow"))
        assert metrics[name]["rows"] == table.num_rows
        assert sum(metrics[name][label] for label in ("부정", "중립", "긍정")) == table.num_rows
    assert metrics["train"]["rows"] + metrics["test"]["rows"] == 100
    assert math.isclose(metrics["test"]["rows"], 20, abs_tol=9)
