"""AI Hub files as they come: nested, Korean names, byte order marks, NDJSON; and as they must not."""

import json
from pathlib import Path

import pytest

from stages.common.artifacts.arrow import read_table
from tests.support.corpus import record, records, write_corpus


def fails_with(stage, capsys: pytest.CaptureFixture[str], source: Path, *parts: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        stage("ingest", data__source=str(source))
    assert isinstance(exit_.value.code, str)
    assert "\n" not in exit_.value.code
    for part in parts:
        assert part in exit_.value.code
    assert not list(Path("data").glob("*")) if Path("data").exists() else True


def test_rows_come_in_the_order_of_the_file_names(stage, tmp_path):
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    table = read_table(Path("data/ingested.arrow"))
    assert table.num_rows == 180
    assert table["file"][0].as_py() == "SNS/04. IT기기/4-1.IT기기(1).json"
    assert table["file"].unique().to_pylist() == sorted(table["file"].unique().to_pylist())
    assert [row["RawText"] for row in records()][:50] == table["RawText"].to_pylist()[:50]


def test_layouts_that_occur_are_read(stage, tmp_path):
    source = tmp_path / "raw"
    (source / "한글 폴더" / "더 깊이").mkdir(parents=True)
    row = record(1, "좋아요", 1)
    (source / "bom.json").write_text("\ufeff" + json.dumps([row]), encoding="utf-8")
    (source / "한글 폴더" / "lines.json").write_text("\n".join([json.dumps(row)] * 3) + "\n", encoding="utf-8")
    (source / "한글 폴더" / "더 깊이" / "LINES.JSONL").write_text(json.dumps(row), encoding="utf-8")
    (source / "empty.json").write_text("[]", encoding="utf-8")
    (source / "._hidden.json").write_text("not JSON", encoding="utf-8")
    (source / "readme.txt").write_text("not JSON", encoding="utf-8")
    stage("ingest", data__source=str(source))
    table = read_table(Path("data/ingested.arrow"))
    assert table.num_rows == 5
    assert set(table["GeneralPolarity"].to_pylist()) == {"1"}


def test_missing_keys_are_kept_apart_from_null(stage, tmp_path):
    rows = [record(1, "a", None), {"Index": 2, "RawText": "b"}, {"GeneralPolarity": 1.0}]
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", rows)))
    table = read_table(Path("data/ingested.arrow"))
    assert table["HasPolarity"].to_pylist() == [True, False, True]
    assert table["GeneralPolarity"].to_pylist() == [None, None, "1.0"]
    assert table["Index"].to_pylist() == ["1", "2", None]
    assert table["RawText"].to_pylist() == ["a", "b", ""]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'[{"RawText": "a"},\n {"RawText": ', "line 2 column"),
        ('[{"RawText": "한글"}]'.encode("cp949"), "byte 14: not UTF-8"),
        (b'"text"', "not an array"),
        (b'[{"RawText": "a"}, 7]', "record 2 is of type int"),
        (b'[{"RawText": 7}]', "record 1 RawText is of type int"),
        (b'{"RawText": "a"}\n{"RawText": \n', ".json: line 2 column"),
        (b'{"RawText": "a"}\n7\n', "line 2 is of type int"),
        (b'[{"RawText": "\\ud800"}]', "record 1 RawText holds half of a surrogate pair"),
        (b"", "line 1 column 1"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_broken_file_is_named_with_the_place(stage, tmp_path, capsys, content, part):
    source = write_corpus(tmp_path / "raw", records())
    (source / "깨진 파일.json").write_bytes(content)
    fails_with(stage, capsys, source, "깨진 파일.json", part)


def test_a_missing_or_empty_source_is_named(stage, tmp_path, capsys):
    fails_with(stage, capsys, tmp_path / "nowhere", "data.source", "nowhere", "not a folder")
    (tmp_path / "empty").mkdir()
    fails_with(stage, capsys, tmp_path / "empty", "data.source", "no .json")


def test_a_failed_run_leaves_the_previous_table(stage, tmp_path):
    source = write_corpus(tmp_path / "raw", records())
    stage("ingest", data__source=str(source))
    before = Path("data/ingested.arrow").read_bytes()
    (source / "x.json").write_text("[", encoding="utf-8")
    with pytest.raises(SystemExit):
        stage("ingest")
    assert Path("data/ingested.arrow").read_bytes() == before
    assert [path.name for path in Path("data").iterdir()] == ["ingested.arrow"]
