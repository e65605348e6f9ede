"""Sizes, strata and leaks of the split."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.clean_and_tokenize import FIELDS
from stages.common.artifacts.arrow import make_schema, read_table, write_table
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import SplitParams
from stages.common.runtime.paths import TOKENIZED
from stages.split import labels_and_groups, split
from tests.support.corpus import LABELS


def params(test_size: float = 0.2, validation_size: float = 0.1, seed: int = 42) -> SplitParams:
    sizes = {"test_size": test_size, "validation_size": validation_size, "train_fraction": 1.0}
    return SplitParams(**sizes, group_near_duplicates=True, seed=seed)


def rows_of(counts: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat([0, 1, 2], counts)
    return labels, np.arange(len(labels))


NOTEBOOK_COUNTS = (1500, 1150, 1758)  # 4,408 rows, as in the notebook


def test_sizes_are_those_of_the_notebook():
    rows = split(*rows_of(NOTEBOOK_COUNTS), LABELS, params())
    assert {name: len(part) for name, part in rows.items()} == {"train": 3173, "validation": 353, "test": 882}


def test_each_row_is_in_one_split():
    rows = split(*rows_of(NOTEBOOK_COUNTS), LABELS, params())
    assert np.array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(sum(NOTEBOOK_COUNTS)))


def test_each_split_has_the_class_fractions_of_all_rows():
    labels, groups = rows_of(NOTEBOOK_COUNTS)
    for part in split(labels, groups, LABELS, params()).values():
        expected = np.bincount(labels) * len(part) / len(labels)
        assert np.abs(np.bincount(labels[part]) - expected).max() <= 1


def test_without_validation_rows_the_test_rows_take_their_place():
    rows = split(*rows_of(NOTEBOOK_COUNTS), LABELS, params(validation_size=0))
    assert len(rows["train"]) == 3526
    assert np.array_equal(rows["validation"], rows["test"])


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_stay_together(seed):
    generator = np.random.default_rng(seed)
    groups = np.unique(generator.integers(0, 120, 400), return_inverse=True)[1]
    labels = generator.integers(0, 3, 400)
    rows = split(labels, groups, LABELS, params(seed=seed))
    sides = [set(groups[part]) for part in rows.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == groups.max() + 1
    assert abs(len(rows["test"]) - 80) <= 9
    assert sum(map(len, rows.values())) == 400


@pytest.mark.parametrize("seed", range(20))
def test_a_small_class_stands_in_every_split(seed):
    labels = np.repeat([0, 1, 2], (200, 3, 53))
    groups = np.concatenate([np.arange(203), [203, 204, 205], np.full(50, 206)])
    rows = split(labels, groups, LABELS, params(seed=seed))
    assert all(set(labels[part]) == {0, 1, 2} for part in rows.values())


@pytest.mark.parametrize("test_size", [0.01, 0.5, 0.99])
def test_no_split_is_ever_empty(test_size):
    rows = split(*rows_of((10, 10, 10)), LABELS, params(test_size=test_size))
    assert all(len(part) >= 3 for part in rows.values())


def test_the_same_seed_gives_the_same_split():
    one, two = (split(*rows_of((100, 100, 100)), LABELS, params(seed=1))["test"] for _ in range(2))
    assert np.array_equal(one, two)


def test_another_seed_gives_another_split():
    one, two = (split(*rows_of((100, 100, 100)), LABELS, params(seed=seed))["test"] for seed in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize(("neutral", "validation_size", "needed"), [(2, 0.1, 3), (0, 0.1, 3), (1, 0, 2)])
def test_a_class_with_too_few_texts_is_named(neutral, validation_size, needed):
    with pytest.raises(UserError, match=rf"중립 has {neutral} distinct texts.*at least {needed}"):
        split(*rows_of((50, neutral, 50)), LABELS, params(validation_size=validation_size))


def test_equal_texts_are_one_group_numbered_by_first_appearance():
    generator = np.random.default_rng(0)
    texts = [f"글 {number}" for number in generator.integers(0, 300, 1000)]
    batches = [pa.record_batch({"labels": [1] * 500, "text": texts[start : start + 500]}) for start in (0, 500)]
    labels, groups, num_texts = labels_and_groups(batches)
    assert labels.tolist() == [1] * 1000
    assert groups.tolist() == [list(dict.fromkeys(texts)).index(text) for text in texts]
    assert num_texts == len(set(texts))


def test_near_duplicates_are_one_group_where_asked_for():
    texts = ["배송 빨라요!!", "배송빨라요", "배송 빨라요ㅋㅋㅋ", "배송 빨라요 ㅋ", "Good", "GOOD.", "!!", "??", "!!"]
    batch = pa.record_batch({"labels": [1] * len(texts), "text": texts})
    _, groups, num_texts = labels_and_groups([batch], group_near_duplicates=True)
    assert groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 3]
    assert num_texts == len(texts) - 1
    _, groups, _ = labels_and_groups([batch], group_near_duplicates=False)
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6]


def test_a_line_break_does_not_shift_keys():
    texts = ["하나\n둘", "하나 둘", "셋"]
    _, groups, _ = labels_and_groups([pa.record_batch({"labels": [0] * 3, "text": texts})], group_near_duplicates=True)
    assert groups.tolist() == [0, 0, 1]


@pytest.fixture
def tokenized(stage) -> None:
    """100 rows, of which the last 10 repeat the first one's text."""
    texts = [f"글 {number}" for number in range(90)] + ["글 0"] * 10
    labels = [number % 3 for number in range(90)] + [0] * 10
    ids = [[2, number, 3] for number in range(100)]
    columns = [
        ids,
        [[1] * 3] * 100,
        [[0] * 3] * 100,
        labels,
        list(map(str, range(100))),
        texts,
        ["이어폰"] * 100,
        [False] * 100,
    ]
    schema = make_schema(FIELDS, LABELS)
    write_table(TOKENIZED, [pa.table(columns, schema=schema)], schema)


def test_the_metrics_count_what_the_files_hold(stage, tokenized):
    stage("split")
    metrics = json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))
    assert metrics.pop("duplicate_rows") == 10
    assert metrics.pop("near_duplicate_texts") == 8  # "글 11" is "글 1" with a run of ones
    assert metrics.pop("duplicates_of_test_source") == metrics.pop("excluded_rows") == 0
    for name, counts in metrics.items():
        labels = read_table(Path(f"data/splits/{name}.arrow"))["labels"].to_numpy()
        assert counts == {"rows": len(labels), **dict(zip(LABELS, np.bincount(labels).tolist(), strict=True))}
    assert sum(counts["rows"] for counts in metrics.values()) == 100


def test_the_files_together_hold_the_tokenized_rows(stage, tokenized):
    stage("split")
    tables = [read_table(Path(f"data/splits/{name}.arrow")) for name in ("train", "validation", "test")]
    rows = sorted((row for table in tables for row in table.to_pylist()), key=lambda row: int(row["Index"]))
    assert rows == read_table(TOKENIZED).drop_columns("is_test").to_pylist()


def test_a_warning_says_that_epochs_are_selected_on_test_rows(stage, tokenized, capsys):
    stage("split", split__validation_size=0.0)
    assert "epochs are selected on the test rows" in capsys.readouterr().err
