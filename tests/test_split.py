"""The folds have the right sizes and class shares, and no leaks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.clean_and_tokenize import FIELDS
from stages.common.artifacts.arrow import make_schema, read_table, write_table
from stages.common.artifacts.folds import PARTS, Fold, FoldCounts, SplitMetrics, read_fold, write_fold
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import SplitParams
from stages.common.runtime.paths import SPLIT_METRICS, TOKENIZED, fold_path
from stages.split import Corpus, make_folds, read_corpus
from tests.support.corpus import LABELS


def folds_of(
    labels: np.ndarray, groups: np.ndarray | None = None, is_test: np.ndarray | None = None, **changed: float
) -> list[Fold]:
    """Split rows that are all different unless `groups` says otherwise."""
    values = {"folds": 5, "validation_size": 0.1, "train_fraction": 1.0, "seed": 42, **changed}
    groups = np.arange(len(labels)) if groups is None else groups
    is_test = np.zeros(len(labels), bool) if is_test is None else is_test
    corpus = Corpus(labels, groups, is_test, int(groups.max()) + 1)
    return list(make_folds(corpus, LABELS, SplitParams(group_near_duplicates=True, **values)))


def rows_as_lists(folds: list[Fold]) -> list[list[list[int]]]:
    return [[getattr(fold, part).tolist() for part in PARTS] for fold in folds]


NOTEBOOK_LABELS = np.repeat([0, 1, 2], (1500, 1150, 1758))  # 4,408 rows, as in the notebook


def test_the_sizes_are_those_of_the_notebook():
    for fold in folds_of(NOTEBOOK_LABELS):
        assert len(fold.test) in (881, 882)
        assert abs(len(fold.validation) - 353) <= 1
        assert not fold.selects_on_test_rows


def test_each_row_is_a_test_row_once_and_in_one_part_of_each_fold():
    folds = folds_of(NOTEBOOK_LABELS)
    assert np.array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(len(NOTEBOOK_LABELS)))
    for fold in folds:
        rows = np.concatenate([fold.train, fold.validation, fold.test])
        assert np.array_equal(np.sort(rows), np.arange(len(NOTEBOOK_LABELS)))


@pytest.mark.parametrize("folds", [2, 3, 7, 10])
def test_each_part_has_the_class_fractions_of_all_rows(folds):
    for fold in folds_of(NOTEBOOK_LABELS, folds=folds):
        for rows in (fold.train, fold.validation, fold.test):
            expected = np.bincount(NOTEBOOK_LABELS) * len(rows) / len(NOTEBOOK_LABELS)
            assert np.abs(np.bincount(NOTEBOOK_LABELS[rows]) - expected).max() <= 1.5


def test_the_sizes_of_test_folds_differ_by_one_row_for_any_number_of_classes():
    corpus = Corpus(labels := np.repeat(np.arange(20), 53), np.arange(1060), np.zeros(1060, bool), 1060)
    params = SplitParams(folds=8, validation_size=0.1, train_fraction=1.0, seed=1, group_near_duplicates=True)
    folds = list(make_folds(corpus, [f"class {label}" for label in range(20)], params))
    assert {len(fold.test) for fold in folds} == {132, 133}
    assert {int(count) for fold in folds for count in np.bincount(labels[fold.test])} == {6, 7}


@pytest.mark.parametrize("seed", range(20))
def test_equal_texts_are_never_in_two_parts_of_a_fold_nor_in_two_test_folds(seed):
    generator = np.random.default_rng(seed)
    groups = np.unique(generator.integers(0, 120, 400), return_inverse=True)[1]
    labels = generator.integers(0, 3, 400)
    folds = folds_of(labels, groups, seed=seed)
    for sides in ([fold.test for fold in folds], *([fold.train, fold.validation, fold.test] for fold in folds)):
        texts = [set(groups[rows]) for rows in sides]
        assert sum(map(len, texts)) == len(set.union(*texts)) == groups.max() + 1
    assert all(abs(len(fold.test) - 80) <= 3 for fold in folds)


def test_a_text_with_many_copies_leaves_the_other_folds_equal_and_is_no_validation_text():
    labels = np.repeat([0, 1, 2], 300)
    groups = np.concatenate([np.arange(600), np.arange(600, 700), np.full(200, 700)])  # two thirds of the last class
    for seed in range(10):
        folds = folds_of(labels, groups, seed=seed)
        assert sorted(np.bincount(labels[fold.test])[2] for fold in folds) == [25, 25, 25, 25, 200]
        assert all(700 not in groups[fold.validation] for fold in folds)
        assert all(set(labels[rows]) == {0, 1, 2} for fold in folds for rows in (fold.train, fold.validation))


def test_a_large_text_is_no_validation_text_if_that_takes_validation_farther_from_its_size():
    labels, groups = np.repeat([0, 1, 2], 208), np.arange(624)
    groups[424:524], groups[524:] = 424, 425  # There are eight texts, and two with 100 copies each.
    for fold in folds_of(labels, groups):
        assert np.bincount(labels[fold.validation])[2] <= 8


@pytest.mark.parametrize("validation_size", [0.01, 0.5, 0.99])
def test_every_part_holds_every_class(validation_size):
    labels = np.repeat([0, 1, 2], (5, 50, 9))
    groups = np.concatenate([np.arange(58), [58, 58, 59, 60, 61, 62]])
    for fold in folds_of(labels, groups, validation_size=validation_size):
        assert all(set(labels[rows]) == {0, 1, 2} for rows in (fold.train, fold.validation, fold.test))


def test_without_validation_rows_the_test_rows_take_their_place():
    for fold in folds_of(NOTEBOOK_LABELS, validation_size=0):
        assert len(fold.train) + len(fold.test) == len(NOTEBOOK_LABELS)
        assert fold.selects_on_test_rows


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_a_fraction_of_the_training_rows_is_part_of_a_larger_one(fraction):
    labels = np.random.default_rng(0).choice(3, 1000, p=[0.5, 0.3, 0.2])
    groups = np.unique(np.random.default_rng(1).integers(0, 900, 1000), return_inverse=True)[1]
    labels = labels[groups]  # Equal texts have equal labels.
    sizes = (fraction, fraction + 0.05, 1.0)
    for part, larger, whole in zip(*(folds_of(labels, groups, train_fraction=size) for size in sizes), strict=True):
        assert set(part.train) < set(larger.train) < set(whole.train)
        for fold in (part, larger):
            assert np.array_equal(fold.validation, whole.validation)
            assert np.array_equal(fold.test, whole.test)
        counts = [np.bincount(labels[fold.train], minlength=3) for fold in (whole, part)]
        assert np.abs(counts[1] - fraction * counts[0]).max() <= 2


def test_the_seed_alone_decides():
    one, same, other = (rows_as_lists(folds_of(NOTEBOOK_LABELS, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert all(fold != another for fold, another in zip(one, other, strict=True))


def test_the_folds_are_those_of_earlier_versions_and_other_machines():
    fold = folds_of(np.repeat([0, 1, 2], 5), folds=5, validation_size=0.2)[1]
    assert [rows.tolist() for rows in (fold.validation, fold.test)] == [[3, 8, 10], [0, 7, 14]]


def test_fixed_test_rows_are_those_of_every_fold_and_rows_with_their_texts_leave_the_others():
    labels, is_test = np.repeat([0, 1, 2], 100), np.arange(300) % 10 == 0
    groups = np.arange(300)
    groups[49::50] = 0  # These are copies of the first test row.
    groups = np.unique(groups, return_inverse=True)[1]
    folds = folds_of(labels, groups, is_test)
    for fold in folds:
        assert np.array_equal(fold.test, np.flatnonzero(is_test))
        others = np.concatenate([fold.train, fold.validation])
        assert sorted(others) == [row for row in range(300) if not is_test[row] and groups[row] != 0]
    assert len({tuple(fold.validation) for fold in folds}) == len(folds)


@pytest.mark.parametrize(
    ("neutral", "folds", "message"),
    [
        (4, 5, "class '중립' has 4 distinct texts for split.folds: 5, but needs at least 5"),
        (0, 2, "class '중립' has 0 distinct texts for split.folds: 2, but needs at least 2"),
        (2, 2, "class '중립' has 1 distinct texts outside the test rows, but needs at least 2"),
    ],
)
def test_a_class_with_too_few_texts_is_named(neutral, folds, message):
    with pytest.raises(UserError, match=message):
        folds_of(np.repeat([0, 1, 2], (50, neutral, 50)), folds=folds)


def test_a_class_without_fixed_test_rows_is_named():
    with pytest.raises(UserError, match=r"class '긍정' has 0 distinct texts in data\.test_source"):
        folds_of(np.repeat([0, 1, 2], 10), is_test=np.arange(30) < 20)


def record_batches(texts: list[str], batch_size: int = 500) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        yield pa.record_batch({"labels": [1] * len(part), "text": part, "is_test": [False] * len(part)})


def test_equal_texts_are_one_group_numbered_by_first_appearance():
    texts = [f"글 {number}" for number in np.random.default_rng(0).integers(0, 300, 1000)]
    corpus = read_corpus(record_batches(texts), group_near_duplicates=False)
    assert corpus.labels.tolist() == [1] * 1000
    assert corpus.groups.tolist() == [list(dict.fromkeys(texts)).index(text) for text in texts]
    assert corpus.num_texts == len(set(texts))


def test_near_duplicates_are_one_group_where_asked_for():
    texts = ["배송 빨라요!!", "배송빨라요", "배송 빨라요ㅋㅋㅋ", "배송 빨라요 ㅋ", "Good", "GOOD.", "!!", "??", "!!"]
    corpus = read_corpus(record_batches(texts), group_near_duplicates=True)
    assert corpus.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 3]
    assert corpus.num_texts == len(texts) - 1
    corpus = read_corpus(record_batches(texts), group_near_duplicates=False)
    assert corpus.groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6]


def test_a_line_break_does_not_shift_keys():
    corpus = read_corpus(record_batches(["하나\n둘", "하나 둘", "셋"]), group_near_duplicates=True)
    assert corpus.groups.tolist() == [0, 0, 1]


@pytest.fixture
def tokenized(stage) -> None:
    """Make 100 rows, of which the last 10 repeat the text of the first one."""
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
    metrics = SplitMetrics.model_validate_json(SPLIT_METRICS.read_bytes())
    assert (metrics.rows, metrics.duplicate_rows, metrics.excluded_rows) == (100, 10, 0)
    assert metrics.near_duplicate_texts == 8  # "글 11" is "글 1" with a run of ones
    labels = read_table(TOKENIZED)["labels"].to_numpy()
    for number, counts in enumerate(metrics.folds):
        fold = read_fold(fold_path(number), 100)
        for part in PARTS:
            of_class = np.bincount(labels[getattr(fold, part)]).tolist()
            assert getattr(counts, part).classes == dict(zip(LABELS, of_class, strict=True))
            assert getattr(counts, part).rows == sum(of_class)
    assert metrics.mean_rows["test"] == 20
    assert metrics.mean_rows["train"] + metrics.mean_rows["validation"] == 80


def test_the_folder_holds_one_file_per_fold_and_none_of_earlier_parameters(stage, tokenized):
    stage("split", split__folds=7)
    stage("split", split__folds=3)
    assert sorted(path.name for path in Path("data/splits").iterdir()) == ["0.arrow", "1.arrow", "2.arrow"]


def test_a_warning_says_that_epochs_are_selected_on_test_rows(stage, tokenized, capsys):
    stage("split", split__validation_size=0.0)
    assert "epochs are selected on the test rows" in capsys.readouterr().err
    assert read_fold(fold_path(0), 100).selects_on_test_rows


def test_excluded_rows_stay_test_rows_even_where_these_are_the_validation_rows():
    excluded = np.arange(9) % 2 == 0
    fold = Fold(np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([6, 7, 8])).exclude(excluded)
    assert rows_as_lists([fold]) == [[[1], [3, 5], [6, 7, 8]]]
    fold = Fold(np.array([0, 1, 2]), np.array([6, 7, 8]), np.array([6, 7, 8])).exclude(excluded)
    assert rows_as_lists([fold]) == [[[1], [6, 7, 8], [6, 7, 8]]]


def test_a_class_may_be_called_as_a_count_is():
    labels = np.array([0, 0, 1, 1, 0, 1])
    fold = Fold(np.array([0, 1, 2]), np.array([3]), np.array([4, 5]))
    counts = FoldCounts.of(fold, labels, ["rows", "classes"]).model_dump()
    assert counts["train"] == {"rows": 3, "classes": {"rows": 2, "classes": 1}}


def test_a_fold_is_read_as_it_was_written(tmp_path):
    (fold,) = folds_of(NOTEBOOK_LABELS)[:1]
    write_fold(tmp_path / "0.arrow", fold, len(NOTEBOOK_LABELS))
    assert rows_as_lists([read_fold(tmp_path / "0.arrow", len(NOTEBOOK_LABELS))]) == rows_as_lists([fold])
    assert (tmp_path / "0.arrow").stat().st_size < len(NOTEBOOK_LABELS)


def test_a_fold_that_does_not_fit_is_reported_in_one_line(tmp_path):
    path = tmp_path / "0.arrow"
    with pytest.raises(UserError, match=r"0\.arrow: cannot be read .*run `dvc repro`"):
        read_fold(path, 9)
    write_fold(path, Fold(np.array([0, 1]), np.array([2]), np.array([3])), 9)
    with pytest.raises(UserError, match=r"0\.arrow: has 9 rows, but data/tokenized\.arrow has 10; run `dvc repro`"):
        read_fold(path, 10)
    write_fold(path, Fold(np.array([0, 3]), np.array([2]), np.array([3])), 9)
    with pytest.raises(UserError, match=r"0\.arrow: a row is in two parts of the fold; run `dvc repro`"):
        read_fold(path, 9)
    schema = make_schema({"train": pa.bool_()})
    write_table(path, [pa.table([[True]], schema=schema)], schema)
    with pytest.raises(UserError, match=r"0\.arrow: is not a fold with the columns train, validation, test"):
        read_fold(path, 1)
