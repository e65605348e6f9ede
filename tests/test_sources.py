"""Tables as sources: equal rows of any format give equal bytes, and errors of a table are reported in one line."""

import json
import re
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.artifacts.folds import PARTS, read_fold
from stages.common.runtime.paths import fold_path
from tests.support.corpus import record, records, write_corpus

INGESTED, FILTERED, TOKENIZED = (Path(f"data/{name}.arrow") for name in ("ingested", "filtered", "tokenized"))
COLUMNS = {"data__text_column": "document", "data__label_column": "label", "data__id_column": "id"}


def all_records() -> list[dict[str, Any]]:
    """Make `records`, and records without a valid label that have quotes, tabs and line breaks in their texts."""
    odd = [
        record(1000, '"인용"\t탭, 쉼표\n줄', "1"),
        record(1001, "없음", None),
        record(1002, "밖", "7"),
        record(1003, "", "0"),
    ]
    return [*records(), *odd]


def write_table(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    frame = pd.DataFrame(rows)
    match path.suffix:
        case ".csv" | ".tsv" | ".txt":
            frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False, encoding=encoding)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        case ".parquet":
            frame.to_parquet(path)
        case ".xlsx":
            frame.to_excel(path, index=False)
    return path


def error_of(stage, *names: str, **changed: Any) -> str:
    with pytest.raises(SystemExit) as raised:
        for name in names:
            stage(name, **changed)
    error = str(raised.value)
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def ingest_metrics() -> dict[str, Any]:
    return json.loads(Path("metrics/ingest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenized_json(tiny_base_model, tmp_path_factory) -> bytes:
    """Return tokenized.arrow of `all_records` in AI Hub's layout."""
    from tests.support.project import stage_runner

    folder = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage = stage_runner()
        stage("base_model", base_model__folder=str(tiny_base_model))
        stage("ingest", data__source=str(write_corpus(folder / "raw", all_records())))
        stage("filter")
        stage("clean_and_tokenize", tokenize__max_length=64)
        return TOKENIZED.read_bytes()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "ratings_train.txt", "a.jsonl", "a.parquet", "a.xlsx", "cp949.csv"])
def test_equal_rows_of_any_format_give_equal_bytes(stage, tmp_path, tiny_base_model, tokenized_json, name):
    encoding = "cp949" if name == "cp949.csv" else "utf-8"
    source = write_table(tmp_path / name, all_records(), encoding)
    stage("base_model", base_model__folder=str(tiny_base_model))
    stage("ingest", data__source=str(source), data__encoding=encoding)
    stage("filter")
    stage("clean_and_tokenize", tokenize__max_length=64)
    assert TOKENIZED.read_bytes() == tokenized_json


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".xlsx"])
@pytest.mark.parametrize("kind", [int, float, str])
def test_labels_of_any_type_are_the_same(stage, tmp_path, suffix, kind):
    rows = [{"document": f"글 {number}", "label": kind(number % 2), "id": number} for number in range(4)]
    stage("ingest", data__source=str(write_table(tmp_path / f"a{suffix}", rows)), **COLUMNS)
    stage("filter", data__labels={"부정": [0], "긍정": [1]})
    table = read_table(FILTERED)
    assert table["labels"].to_pylist() == [0, 1, 0, 1]
    assert table["Index"].to_pylist() == ["0", "1", "2", "3"]
    assert get_class_names(table.schema) == ("부정", "긍정")


def test_a_folder_may_hold_files_of_several_formats(stage, tmp_path):
    (tmp_path / "raw").mkdir()
    for number, suffix in enumerate((".csv", ".jsonl", ".parquet", ".xlsx")):
        write_table(tmp_path / f"raw/{number}{suffix}", records()[number::4])
    (tmp_path / "raw/~$3.xlsx").write_bytes(b"Excel has the file open")
    stage("ingest", data__source=str(tmp_path / "raw"))
    assert sorted(read_table(INGESTED)["RawText"].to_pylist()) == sorted(row["RawText"] for row in records())


def test_rows_without_an_id_are_numbered(stage, tmp_path):
    source = write_table(tmp_path / "a.csv", [{"RawText": "글", "GeneralPolarity": 1}] * 3)
    stage("ingest", data__source=str(source))
    assert read_table(INGESTED)["Index"].to_pylist() == ["a.csv:1", "a.csv:2", "a.csv:3"]
    assert read_table(INGESTED)["MainCategory"].to_pylist() == [None] * 3


BROKEN_CSV = b'RawText,GeneralPolarity\ngood 1,1\n"never closed,1\ngood 2,0\na,b,c\n"x"y,1\n\xff,1\ngood 3,-1\n'


def test_broken_rows_are_skipped_and_counted_and_no_other(stage, tmp_path):
    (tmp_path / "a.csv").write_bytes(BROKEN_CSV)
    stage("ingest", data__source=str(tmp_path / "a.csv"), data__on_error="skip")
    assert read_table(INGESTED)["RawText"].to_pylist() == ["good 1", "good 2", "good 3"]
    metrics = ingest_metrics()
    assert metrics["records"] == {"read": 3, "skipped": 4}
    assert [error["place"] for error in metrics["first_errors"]] == ["line 3", "line 5", "line 6", "line 7"]


def test_a_broken_row_stops_the_stage_with_its_line(stage, tmp_path):
    (tmp_path / "a.csv").write_bytes(BROKEN_CSV)
    assert "a.csv: line 3: " in error_of(stage, "ingest", data__source=str(tmp_path / "a.csv"))


def password_protected(path: Path) -> None:
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 2000)


def damaged(path: Path) -> None:
    write_table(path, records())
    path.write_bytes(path.read_bytes()[:3000])


def empty_sheet(path: Path) -> None:
    openpyxl.Workbook().save(path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.xlsx", empty_sheet, "a.xlsx: is empty: its first row must name the columns"),
        ("a.xlsx", password_protected, "a.xlsx: has a password, or is an .xls file"),
        ("a.xlsx", damaged, "a.xlsx: cannot be read as .xlsx"),
        ("a.csv", lambda path: path.write_bytes(b""), "a.csv: is empty"),
        ("a.csv", lambda path: path.write_text("a,b\n1,2\n"), "text_column of params.yaml: has no column 'RawText'"),
        ("a.csv", lambda path: path.write_text("RawText,b\n1,2\n"), "label_column of params.yaml: has no column 'Gene"),
        ("a.csv", lambda path: path.write_text("RawText,RawText,GeneralPolarity\n"), "has two columns 'RawText'"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1"), "a.parquet: "),
        ("a.parquet", lambda path: write_table(path, [{"RawText": 1, "GeneralPolarity": 1}]), "holds int64, not text"),
        ("a.json", lambda path: path.write_text('[{"a": "글", "b": 1}]'), "no record .* has 'RawText'.* a, b"),
        ("a.json", lambda path: path.write_text('[{"RawText": "글"}]'), "no record .* has 'GeneralPolarity'.* RawText"),
        ("a.pdf", lambda path: path.write_bytes(b""), "its name must end in .csv, "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_one_line(stage, tmp_path, name, write, message):
    write(tmp_path / name)
    error = error_of(stage, "ingest", data__source=str(tmp_path / name))
    assert name in error

    assert re.search(message, error), error
    assert not INGESTED.exists()


def test_a_column_that_was_asked_for_must_be_there(stage, tmp_path):
    source = write_table(tmp_path / "a.csv", records())
    error = error_of(stage, "ingest", data__source=str(source), data__id_column="ID")
    assert "data.id_column of params.yaml: has no column 'ID'; it has Index, RawText" in error


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"부정": [0], "긍정": [0]}, "data.labels is .*names a value twice"),
        ({"부정": [1], "긍정": ["1.0"]}, "names a value twice"),
        ({"부정": [0]}, "data.labels"),
        ({"부정": [], "긍정": [1]}, "data.labels.부정"),
        ({f"c{number}": [number] for number in range(51)}, "data.labels"),
        ("{부정: [0]", "data.labels"),
        ("[" * 100_000, "data.labels"),
        ({"부정": [""], "긍정": [1]}, "data.labels"),
    ],
)
def test_a_senseless_mapping_is_refused(stage, tmp_path, labels, message):
    with pytest.raises(SystemExit, match=message) as raised:
        stage("filter", data__labels=labels)
    assert "\n" not in str(raised.value)


def test_a_mapping_may_be_text_as_dvc_sets_it(stage, tmp_path):
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    stage("filter", data__labels="{나쁨: [-1, 0], 좋음: ['1']}")
    table = read_table(FILTERED)
    assert get_class_names(table.schema) == ("나쁨", "좋음")
    assert table["labels"].to_pylist() == [0] * 120 + [1] * 60


def test_long_values_of_no_class_that_begin_alike_are_counted_together(stage, tmp_path):
    odd = [record(1000 + number, "글", "x" * 50 + str(number)) for number in range(3)]
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [*records(), *odd])))
    stage("filter")
    metrics = json.loads(Path("metrics/filter.json").read_text(encoding="utf-8"))
    assert metrics["unmapped_values"] == [{"value": "x" * 40, "rows": 3}]


def test_a_class_without_rows_is_named(stage, tmp_path):
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    error = error_of(stage, "filter", data__labels={"부정": [-1], "긍정": [1], "분노": ["angry"]})
    assert "data.labels: class '분노' has no row" in error
    assert "'0' 60" in error  # A value of no class, with its number of rows.
    assert not FILTERED.exists()


@pytest.fixture
def with_test_source(stage, tmp_path, tiny_base_model):
    """Sources of 150 and 30 rows; two texts of the test rows also stand among the others, one with another ending."""
    rows = records()
    test = rows[::6]
    others = [row for row in rows if row not in test]
    others += [record(2000, test[0]["RawText"], "1"), record(2001, test[1]["RawText"].replace("!", "!!!"), "1")]
    stage("base_model", base_model__folder=str(tiny_base_model))

    def run(**changed: Any) -> dict[str, Any]:
        sources = {"data__source": write_table(tmp_path / "train.tsv", others)}
        sources["data__test_source"] = write_table(tmp_path / "test.tsv", test)
        stage("ingest", **{key: str(path) for key, path in sources.items()})
        for name in ("filter", "clean_and_tokenize", "split"):
            stage(name, tokenize__max_length=64, **changed)
        return json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))

    return run


def ids(part: str, number: int = 0) -> list[str]:
    """Return the ids of the rows of a part of a fold."""
    table = read_table(TOKENIZED)
    return table["Index"].take(getattr(read_fold(fold_path(number), table.num_rows), part)).to_pylist()


@pytest.mark.parametrize(("grouped", "left_out"), [(True, 2), (False, 1)])
def test_the_rows_of_the_test_source_are_the_test_rows_of_every_fold(with_test_source, grouped, left_out):
    metrics = with_test_source(split__group_near_duplicates=grouped)
    assert metrics["duplicates_of_test_source"] == left_out
    for number in range(5):
        assert ids("test", number) == [row["Index"] for row in records()[::6]]
        others = ids("train", number) + ids("validation", number)
        assert len(others) == 152 - left_out
        assert "2000" not in others
    assert len({tuple(ids("validation", number)) for number in range(5)}) == 5


def test_a_fixed_test_set_may_serve_as_validation(with_test_source):
    with_test_source(split__validation_size=0.0)
    assert ids("validation") == ids("test") == [row["Index"] for row in records()[::6]]


def test_a_test_source_without_a_label_is_named(stage, tmp_path):
    sources = {"data__source": str(write_table(tmp_path / "train.csv", records()))}
    test = write_table(tmp_path / "test.csv", [{"RawText": "글"}])
    assert "test.csv: line 1: data.label_column of params.yaml: has no column" in error_of(
        stage, "ingest", data__test_source=str(test), **sources
    )
    write_table(test, [record(1, "글", "9")])
    stage("ingest")
    assert "data.test_source: no row has one of the values" in error_of(stage, "filter")


def test_a_missing_test_source_is_named(stage, tmp_path):
    source = str(write_table(tmp_path / "train.csv", records()))
    error = error_of(stage, "ingest", data__source=source, data__test_source="nowhere.csv")
    assert "data.test_source: nowhere.csv is not a folder or file" in error


@pytest.fixture
def tokenized(stage, tmp_path, tiny_base_model) -> None:
    stage("base_model", base_model__folder=str(tiny_base_model))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    for name in ("filter", "clean_and_tokenize", "split"):
        stage(name, tokenize__max_length=64)


@pytest.mark.parametrize("name", ["ids.txt", "label_issues.csv", "cp949.csv", "ids.xlsx"])
def test_excluded_rows_leave_training_and_validation_and_stay_test_rows(stage, tokenized, name):
    before = {(part, number): ids(part, number) for part in PARTS for number in range(5)}
    excluded = [*ids("test")[:3], ids("train")[0], ids("validation")[0]]
    frame = pd.DataFrame({"Index": excluded, "text": "글"})
    if name == "ids.txt":
        Path(name).write_text("\n".join(excluded) + "\n\n")
    elif name == "ids.xlsx":
        frame.to_excel(name, index=False)
    else:
        frame.to_csv(name, index=False, encoding="cp949" if name == "cp949.csv" else "utf-8-sig")
    stage("split", data__exclude=name)
    for (part, number), rows in before.items():
        assert ids(part, number) == [row for row in rows if part == "test" or row not in excluded]
    assert json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))["excluded_rows"] == 5


def test_a_row_that_is_excluded_does_not_change_the_fold_that_tests_it(stage, tokenized):
    before = [fold_path(number).read_bytes() for number in range(5)]
    Path("ids.txt").write_text(ids("test", 2)[0])
    stage("split", data__exclude="ids.txt")
    unchanged = [number for number in range(5) if fold_path(number).read_bytes() == before[number]]
    assert unchanged == [2]


def test_excluded_ids_of_no_row_and_of_several_rows_are_reported(stage, tmp_path, tiny_base_model, capsys):
    stage("base_model", base_model__folder=str(tiny_base_model))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [*records(), record(7, "다른 글", "1")])))
    for name in ("filter", "clean_and_tokenize"):
        stage(name, tokenize__max_length=64)
    Path("ids.txt").write_text("7\n8\nnobody\n")
    stage("split", data__exclude="ids.txt")
    warnings = capsys.readouterr().err
    assert "1 of the 3 ids in ids.txt belong to no row, for example 'nobody'" in warnings
    assert (
        "1 of the 3 ids in ids.txt belong to several rows, 2 in all, which are all excluded, for example '7'"
        in warnings
    )
    assert json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))["excluded_rows"] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.txt", None, "data.exclude: nowhere.txt: .*No such file"),
        ("a.csv", "id,text\n1,글\n", "data.exclude: a.csv: line 1: has no column 'Index'; it has id, text"),
        ("a.txt", b"1\n\xff\xff\n", "data.exclude: a.txt: line 2: not UTF-8"),
    ],
)
def test_a_file_of_ids_that_cannot_be_read_is_named(stage, tokenized, name, content, message):
    if content:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=message):
        stage("split", data__exclude=name)


def test_a_class_must_not_be_excluded_as_a_whole(stage, tokenized):
    rows = read_table(TOKENIZED).select(["Index", "labels"]).to_pylist()
    of_class = [row["Index"] for row in rows if row["labels"] == 2]
    Path("ids.txt").write_text("\n".join(of_class))
    assert "data.exclude: class '긍정' has no train row left" in error_of(stage, "split", data__exclude="ids.txt")
