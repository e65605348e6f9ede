"""AI Hub files in nested folders, with Korean names, byte order marks or JSON lines, are read; others are errors."""

import json
from pathlib import Path

import pytest

from stages.common.artifacts.arrow import read_table
from tests.support.corpus import record, records, write_corpus

INGESTED = Path("data/ingested.arrow")


def error_of(stage, source: Path) -> str:
    """Return the error of the stage for `source`, and check that it leaves no output."""
    with pytest.raises(SystemExit) as raised:
        stage("ingest", data__source=str(source))
    error = str(raised.value)
    assert "\n" not in error
    assert not list(Path().glob("data/*"))
    return error


def test_rows_are_in_the_order_of_the_file_names(stage, tmp_path):
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    table = read_table(INGESTED)
    names = table["file"].to_pylist()
    assert names == sorted(names)
    assert names[0] == "SNS/04. IT기기/4-1.IT기기(1).json"
    assert table["RawText"].to_pylist() == [row["RawText"] for row in records()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", json.dumps([record(1, "좋아요")])),
        ("bom.json", "\ufeff" + json.dumps([record(1, "좋아요")])),
        ("한글 폴더/더 깊이/lines.json", json.dumps(record(1, "좋아요")) + "\n\n"),
        ("LINES.JSONL", json.dumps(record(1, "좋아요"))),
        ("lines.ndjson", json.dumps(record(1, "좋아요"))),
    ],
)
def test_each_layout_is_read(stage, tmp_path, name, content):
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    stage("ingest", data__source=str(tmp_path / "raw"))
    assert read_table(INGESTED)["RawText"].to_pylist() == ["좋아요"]
    assert read_table(INGESTED)["file"].to_pylist() == [name]


@pytest.mark.parametrize("name", ["._hidden.json", ".hidden/file.json", "readme.txt"])
def test_hidden_and_other_files_are_not_read(stage, tmp_path, name):
    source = write_corpus(tmp_path / "raw", records())
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text("not JSON", encoding="utf-8")
    stage("ingest", data__source=str(source))
    assert read_table(INGESTED).num_rows == len(records())


def test_an_empty_array_is_no_error(stage, tmp_path):
    source = write_corpus(tmp_path / "raw", records())
    (source / "empty.json").write_text("[]", encoding="utf-8")
    stage("ingest", data__source=str(source))
    assert read_table(INGESTED).num_rows == len(records())


def test_a_missing_key_is_distinguished_from_null(stage, tmp_path):
    rows = [record(1, "a", None), {"Index": 2, "RawText": "b"}, {"GeneralPolarity": 1.0}, {"Index": ""}]
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", rows)))
    table = read_table(INGESTED)
    assert table["HasPolarity"].to_pylist() == [True, False, True, False]
    assert table["GeneralPolarity"].to_pylist() == [None, None, "1.0", None]
    assert table["Index"].to_pylist() == ["1", "2", None, None]
    assert table["RawText"].to_pylist() == ["a", "b", "", ""]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'[{"RawText": "a"},\n {"RawText": ', "line 2 column"),
        (b'[{"RawText": "\xff"}]', "byte 14: not UTF-8"),
        (b'"text"', "not an array"),
        (b'[{"RawText": "a"}, 7]', "record 2: of type int"),
        (b'[{"RawText": 7}]', "record 1: RawText is of type int"),
        (b'{"RawText": "a"}\n{"RawText": \n', ".json: line 2 column"),
        (b'\n{"RawText": "a"}\n7\n', "line 3: of type int"),
        (b'[{"RawText": "\\ud800"}]', "record 1: RawText holds half of a surrogate pair"),
        (b"", "line 1 column 1"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_broken_file_is_named_with_the_place(stage, tmp_path, content, part):
    source = write_corpus(tmp_path / "raw", records())
    (source / "깨진 파일.json").write_bytes(content)
    error = error_of(stage, source)
    assert "깨진 파일.json: " in error
    assert part in error


def test_a_missing_source_is_named(stage, tmp_path):
    assert f"data.source: {tmp_path / 'nowhere'} is not a folder or file" in error_of(stage, tmp_path / "nowhere")


def test_a_source_without_files_is_named(stage, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        f"data.source: no .csv, .json, .jsonl, .ndjson, .parquet, .tsv, .xlsx file in {tmp_path / 'empty'}"
        in error_of(stage, tmp_path / "empty")
    )


def test_a_failed_run_leaves_the_previous_table(stage, tmp_path):
    source = write_corpus(tmp_path / "raw", records())
    stage("ingest", data__source=str(source))
    before = INGESTED.read_bytes()
    (source / "x.json").write_text("[", encoding="utf-8")
    with pytest.raises(SystemExit):
        stage("ingest")
    assert INGESTED.read_bytes() == before
    assert [path.name for path in Path("data").iterdir()] == ["ingested.arrow"]
