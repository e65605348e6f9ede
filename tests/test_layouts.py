"""Files in common layouts are read if they are unambiguous, and nothing is lost without a message."""

import io
import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.cleaning import clean
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import CleanParams
from stages.common.serving.table_io import add_columns
from stages.predict import parse_arguments
from tests.support.corpus import record
from tests.support.project import ROOT, run

INGESTED, FILTERED = Path("data/ingested.arrow"), Path("data/filtered.arrow")
COLUMNS = {"data__text_column": "text", "data__label_column": "label", "data__id_column": "id"}
RAW_TSV = 'id\ttext\tlabel\n1\t"최고\t1\n2\t별로 "정말"\t0\n3\t역시"\t1\n'


def ingested(stage, source: Path, **changed: Any) -> list[tuple[str, str]]:
    stage("ingest", data__source=str(source), **{**COLUMNS, **changed})
    table = read_table(INGESTED)
    return list(zip(table["RawText"].to_pylist(), table["GeneralPolarity"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("utf16.csv", "id\ttext\tlabel\r\n1\t최고\t1\r\n".encode("utf-16")),
        ("cp949.csv", "id,text,label\n1,최고,1\n".encode("cp949")),
        ("cr.csv", "id,text,label\r1,최고,1\r".encode()),
        ("semicolon.csv", "id;text;label\n1;최고;1\n".encode()),
        ("tabs.csv", "id\ttext\tlabel\n1\t최고\t1\n".encode()),
        ("comma.txt", "id,text,label\n1,최고,1\n".encode()),
        ("blanks.csv", "id,text , label\n1,최고,1\n".encode()),
        ("title.csv", "2024년 리뷰\n\nid,text,label\n1,최고,1\n".encode()),
        ("empty_names.csv", "id,text,label,,\n1,최고,1,,\n".encode()),
        ("object.json", b'{\n "id": "1",\n "text": "\xec\xb5\x9c\xea\xb3\xa0",\n "label": 1\n}\n'),
        ("wrapped.json", '{"version": 1, "all": {"data": [{"id": "1", "text": "최고", "label": 1}]}}'.encode()),
        ("cp949.json", '[{"id": "1", "text": "최고", "label": 1}]'.encode("cp949")),
        ("utf16.json", '[{"id": "1", "text": "최고", "label": 1}]'.encode("utf-16")),
    ],
)
def test_an_unambiguous_layout_is_read(stage, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert ingested(stage, tmp_path / name) == [("최고", "1")]


def test_each_file_of_a_folder_has_its_own_encoding(stage, tmp_path):
    (tmp_path / "raw").mkdir()
    for name, encoding in (("a.csv", "utf-8"), ("b.csv", "cp949"), ("c.csv", "utf-16")):
        (tmp_path / "raw" / name).write_text("id,text,label\n1,최고,1\n", encoding=encoding)
    assert ingested(stage, tmp_path / "raw") == [("최고", "1")] * 3


def test_nested_keys_are_named_by_a_path(stage, tmp_path):
    (tmp_path / "a.json").write_text('[{"review": {"text": "최고"}, "label": 1}]', encoding="utf-8")
    assert ingested(stage, tmp_path / "a.json", data__text_column="review.text") == [("최고", "1")]
    with pytest.raises(SystemExit, match=r"the last file has review\.text, label"):
        ingested(stage, tmp_path / "a.json", data__text_column="text")


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "최고", "label": 1}]\n[{"text": "별로", "label": 0}]\n',
        '{\n"text": "최고",\n"label": 1\n}\n{\n"text": "별로",\n"label": 0\n}\n',
        '{"text": "최고", "label": 1}\r{"text": "별로", "label": 0}\r',
    ],
    ids=["arrays", "objects", "lines that end with CR"],
)
def test_json_texts_one_after_the_other_are_all_read(stage, tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="utf-8", newline="")
    assert ingested(stage, tmp_path / "a.json") == [("최고", "1"), ("별로", "0")]


def test_the_whole_records_of_a_wrapped_array_that_is_cut_off_are_kept(stage, tmp_path):
    (tmp_path / "a.json").write_text('{\n"data": [\n{"text": "최고",\n"label": 1},\n{"text": "별', encoding="utf-8")
    assert ingested(stage, tmp_path / "a.json", data__on_error="skip") == [("최고", "1")]


def test_a_table_without_a_header_takes_its_names_from_the_parameters(stage, tmp_path):
    (tmp_path / "a.txt").write_text("5\t최고\n1\t별로\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"has no column 'text'; it has 5, 최고; .*data\.columns"):
        ingested(stage, tmp_path / "a.txt")
    found = ingested(stage, tmp_path / "a.txt", data__columns=["label", "text"], data__id_column="Index")
    assert found == [("최고", "5"), ("별로", "1")]
    (tmp_path / "a.txt").write_text("label\ttext\n5\t최고\n1\t별로\n", encoding="utf-8")
    assert ingested(stage, tmp_path / "a.txt", data__id_column="Index") == found, "a row that names them is no review"


def test_quotes_of_a_raw_tsv_are_text(stage, tmp_path):
    (tmp_path / "a.tsv").write_text(RAW_TSV, encoding="utf-8")
    assert ingested(stage, tmp_path / "a.tsv") == [('"최고', "1"), ('별로 "정말"', "0"), ('역시"', "1")]
    add_columns(tmp_path / "a.tsv", tmp_path / "out.jsonl", "text", ["n"], lambda texts: pd.DataFrame({"n": texts}))
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_a_quote_that_swallows_rows_is_an_error_of_one_row(stage, tmp_path):
    rows = 'id\ttext\tlabel\n1\t"최고\t1\n2\t별로\t0\n3\t역시"\t1\n4\t끝\n'
    (tmp_path / "a.tsv").write_text(rows, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"line 2: a quote opens a cell .*since line 5 has 2 cells"):
        ingested(stage, tmp_path / "a.tsv")
    assert [text for text, _ in ingested(stage, tmp_path / "a.tsv", data__on_error="skip")] == ["별로", '역시"']


def test_text_files_beside_tables_are_read_if_they_are_tables_and_named_if_not(stage, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text("id,text,label\n1,최고,1\n", encoding="utf-8")
    (tmp_path / "raw/b.txt").write_text("id\ttext\tlabel\n2\t별로\t0\n", encoding="utf-8")
    (tmp_path / "raw/c.txt").write_text("5\t배송이 빨라요\n", encoding="utf-8")
    (tmp_path / "raw/readme.txt").write_text("말뭉치", encoding="utf-8")
    assert ingested(stage, tmp_path / "raw") == [("최고", "1"), ("별로", "0")]
    assert "1 .txt files" in (warned := capsys.readouterr().err)
    assert "c.txt" in warned


def test_prediction_takes_names_and_paths_as_ingest_does(tmp_path):
    def predicted(source: Path, column: str, header: list[str]) -> list[dict[str, Any]]:
        target = tmp_path / "out.jsonl"
        add_columns(source, target, column, ["n"], lambda texts: pd.DataFrame({"n": texts}), header=header)
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    (tmp_path / "a.txt").write_text("5\t최고\n1\t별로\n", encoding="utf-8")
    rows = predicted(tmp_path / "a.txt", "text", ["label", "text"])
    assert rows == [{"label": "5", "text": "최고", "n": "최고"}, {"label": "1", "text": "별로", "n": "별로"}]
    (tmp_path / "a.jsonl").write_text('{"review": {"text": "최고"}, "id": 1}\n', encoding="utf-8")
    rows = predicted(tmp_path / "a.jsonl", "review.text", [])
    assert rows == [{"review": {"text": "최고"}, "id": 1, "n": "최고"}]
    with pytest.raises(UserError, match=r"no column 'text'; it has review, id, review\.text"):
        predicted(tmp_path / "a.jsonl", "text", [])


def test_blank_names_of_columns_get_names_of_their_own(tmp_path):
    """pandas writes such a table if its index is written twice."""
    (tmp_path / "a.csv").write_text(",Unnamed: 0,,text\n1,2,3,최고\n", encoding="utf-8")
    add_columns(tmp_path / "a.csv", tmp_path / "out.jsonl", "text", ["n"], lambda texts: pd.DataFrame({"n": texts}))
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert list(row.values()) == ["1", "2", "3", "최고", "최고"]


def test_a_text_file_with_a_named_column_is_a_table_in_prediction_too(tmp_path):
    (tmp_path / "a.txt").write_text("id\ttext\n1\t최고\n", encoding="utf-8")
    add_columns(tmp_path / "a.txt", tmp_path / "out.jsonl", "text", ["n"], lambda texts: pd.DataFrame({"n": texts}))
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {"id": "1", "text": "최고", "n": "최고"}


def workbook(path: Path, *sheets: tuple[str, list[list[Any]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title.removeprefix("hidden "))
        sheet.sheet_state = "hidden" if title.startswith("hidden ") else "visible"
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_sheet_below_a_cover_and_a_title_is_found_and_a_hidden_one_is_not_read(stage, tmp_path):
    rows = [["데이터 수", 1], ["id", "text", "label", None, None], [1, "최고", 1]]
    old = [["id", "text", "label"], [1, "옛것", 0]]
    path = workbook(tmp_path / "a.xlsx", ("hidden 옛", old), ("표지", [["설명"]]), ("자료", rows))
    assert ingested(stage, path) == [("최고", "1")]


def rewrite(path: Path, change) -> None:
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in change(parts).items():
            changed.writestr(name, content)


def with_chart_sheet(parts: dict[str, bytes]) -> dict[str, bytes]:
    """Replace the sheet of the workbook by a chart."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    book.create_chartsheet("chart").add_chart(openpyxl.chart.BarChart())
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as charts:
        return {name: charts.read(name) for name in charts.namelist()}


def far_row(parts: dict[str, bytes]) -> dict[str, bytes]:
    sheet = "xl/worksheets/sheet1.xml"
    content = re.sub(rb'(<row r=|r="[A-Z])"?2', lambda found: found[0][:-1] + b"999999999", parts[sheet])
    return {**parts, sheet: content}


@pytest.mark.parametrize(
    "change",
    [
        far_row,
        with_chart_sheet,
        lambda parts: {name: content for name, content in parts.items() if "worksheets" not in name},
        lambda parts: {name: content for name, content in parts.items() if name != "[Content_Types].xml"},
        lambda parts: {**parts, "xl/workbook.xml": parts["xl/workbook.xml"][:300]},
        lambda parts: {**parts, "xl/workbook.xml": re.sub(rb"<sheets>.*</sheets>", b"", parts["xl/workbook.xml"])},
    ],
)
def test_a_damaged_workbook_is_an_error_of_its_file_alone(stage, tmp_path, change):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text("id,text,label\n1,최고,1\n", encoding="utf-8")
    rewrite(workbook(tmp_path / "raw/b.xlsx", ("s", [["id", "text", "label"], [1, "글", 1]])), change)
    assert ingested(stage, tmp_path / "raw", data__on_error="skip") == [("최고", "1")]
    assert json.loads(Path("metrics/ingest.json").read_text(encoding="utf-8"))["file_errors"] == {"unreadable": 1}


def corrupt_deflate(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as whole:
        part = whole.getinfo("xl/worksheets/sheet1.xml")
    start = part.header_offset + 30 + len(part.filename)
    return content[: start + 8] + bytes([255] * 16) + content[start + 24 :]


def change_headers(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Write a value to the headers of all parts. `offset` counts from the signature of the central header."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for signature, at in ((b"PK\x01\x02", offset), (b"PK\x03\x04", offset - 2)):
            for found in re.finditer(signature, content):
                changed[found.start() + at : found.start() + at + len(value)] = value
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (corrupt_deflate, "cannot be read as .xlsx"),
        (change_headers(8, b"\x01\x00"), "encrypted"),
        (change_headers(10, b"\x63\x00"), "compression"),
    ],
    ids=["corrupt deflate", "encrypted", "unknown compression"],
)
def test_a_zip_that_cannot_be_unpacked_is_an_error_of_its_file_alone(stage, tmp_path, change, message):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text("id,text,label\n1,최고,1\n", encoding="utf-8")
    path = workbook(tmp_path / "raw/b.xlsx", ("s", [["id", "text", "label"], *([n, "글" * n, 1] for n in range(99))]))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SystemExit, match=rf"b\.xlsx: .*{message}"):
        ingested(stage, tmp_path / "raw")
    assert ingested(stage, tmp_path / "raw", data__on_error="skip") == [("최고", "1")]


def test_a_text_that_pandas_wrote_as_a_formula_is_read(stage, tmp_path):
    rows = pd.DataFrame({"id": [1, 2], "text": ["=_= 별로", "최고"], "label": [0, 1]})
    rows.to_excel(tmp_path / "a.xlsx", index=False)
    assert ingested(stage, tmp_path / "a.xlsx") == [("=_= 별로", "0"), ("최고", "1")]


def test_sheets_that_are_not_read_are_named(stage, tmp_path, capsys):
    rows = [["id", "text", "label"], [1, "최고", 1]]
    path = workbook(tmp_path / "a.xlsx", ("1월", rows), ("2월", rows))
    assert ingested(stage, path) == [("최고", "1")]
    assert "only sheet '1월' is read; save '2월' in separate files" in capsys.readouterr().err


def test_a_parquet_file_that_decodes_to_gigabytes_is_one_error(stage, tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 50_000, pa.int32()), pa.array(["가" * 400_000]))
    labels = pa.array([1] * 50_000)
    pq.write_table(pa.table({"text": column, "label": labels}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with pytest.raises(SystemExit, match="4096 rows hold 4,915,200,000 bytes of text"):
        ingested(stage, tmp_path / "a.parquet", data__id_column="Index")


def test_times_that_python_cannot_hold_are_written_as_arrow_writes_them(tmp_path):
    columns = {
        "text": ["최고"],
        "when": pa.array([10**15], pa.timestamp("s")),
        "day": pa.array([10**8], pa.date32()),
        "span": pa.array([2**62], pa.duration("s")),
        "nested": pa.array([{"binary_id": 7}]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    add_columns(tmp_path / "a.parquet", tmp_path / "a.csv", "text", ["n"], lambda texts: pd.DataFrame({"n": texts}))
    assert '{""binary_id"": 7}' in (tmp_path / "a.csv").read_text(encoding="utf-8")
    pq.write_table(pa.table({"text": ["최고"], "raw": [[b"1"]]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="column 'raw' holds bytes"):
        add_columns(tmp_path / "b.parquet", tmp_path / "b.csv", "text", ["n"], lambda texts: pd.DataFrame({"n": texts}))


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"부정": ["기쁨"], "긍정": ["슬픔"]}, ["기쁨 ", " 슬픔"]),
        ({"부정": [0], "긍정": [1]}, [" 0", "1 "]),
        ({"부정": [False], "긍정": [True]}, ["False", "yes"]),
        ({"부정": ["no"], "긍정": ["yes"]}, ["no", "TRUE"]),
        ({"부정": ["나쁨"], "긍정": ["좋음"]}, [unicodedata.normalize("NFD", text) for text in ("나쁨", "좋음")]),
    ],
)
def test_labels_are_compared_by_meaning(stage, tmp_path, labels, values):
    pd.DataFrame({"id": [1, 2], "text": "글", "label": values}).to_csv(tmp_path / "a.csv", index=False)
    ingested(stage, tmp_path / "a.csv")
    stage("filter", data__labels=labels)
    assert read_table(FILTERED)["labels"].to_pylist() == [0, 1]


def test_values_of_no_class_are_told(stage, tmp_path, capsys):
    pd.DataFrame({"id": range(3), "text": "글", "label": ["a", "b", "B"]}).to_csv(tmp_path / "a.csv", index=False)
    ingested(stage, tmp_path / "a.csv")
    stage("filter", data__labels={"부정": ["a"], "긍정": ["b"]})
    assert "because their value of 'label' belongs to no class: 'B' 1" in capsys.readouterr().err


def test_texts_that_cleaning_empties_are_told_and_decomposed_hangul_is_not_among_them(
    stage, tmp_path, tiny_base_model, capsys
):
    texts = [unicodedata.normalize("NFD", "배터리 최고"), "♥♥", "별로"]
    pd.DataFrame({"id": range(3), "text": texts, "label": [1, 0, 0]}).to_csv(tmp_path / "a.csv", index=False)
    stage("base_model", base_model__folder=str(tiny_base_model))
    ingested(stage, tmp_path / "a.csv")
    stage("filter", data__labels={"부정": [0], "긍정": [1]})
    stage("clean_and_tokenize", tokenize__max_length=64, tokenize__max_unk_rate=1.0)
    assert read_table(Path("data/tokenized.arrow"))["text"].to_pylist() == ["배터리 최고", "별로"]
    assert (
        "1 rows are dropped, because cleaning leaves nothing of their text, for example '♥♥'" in capsys.readouterr().err
    )


def test_emoticons_are_no_tags_if_only_tags_are_stripped():
    params = CleanParams(strip_tags="html", keep="", keep_jamo=False)
    texts = pa.array(["<3 최고 >_<", '<b>좋다</b><br/> <a href="x">여기</a>'])
    assert clean(texts, params).to_pylist() == ["<3 최고 >_<", "좋다 여기"]


def test_generated_ids_hold_the_path_and_tell_test_rows_apart(stage, tmp_path):
    for folder in ("train/A", "train/B", "test/A"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.csv").write_text("text,label\n글,1\n", encoding="utf-8")
    ingested(stage, tmp_path / "train", data__test_source=str(tmp_path / "test"), data__id_column="Index")
    assert read_table(INGESTED)["Index"].to_pylist() == ["A/a.csv:1", "B/a.csv:1", "test:A/a.csv:1"]


def test_ids_that_stand_twice_are_told(stage, tmp_path, capsys):
    rows = [record(1, "가"), record(1, "나"), record(2, "다")]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    stage("ingest", data__source=str(tmp_path / "a.json"))
    assert "Index: 2 rows share 1 ids, for example '1'" in capsys.readouterr().err
    assert json.loads(Path("metrics/ingest.json").read_text(encoding="utf-8"))["repeated_ids"] == 1


def test_a_text_that_begins_with_a_hyphen_gets_a_hint(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict", "--model", "x", "-_-"])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert "write -- before texts that begin with -" in capsys.readouterr().err


def test_a_process_with_closed_or_narrow_streams_goes_on():
    code = "from stages.common.runtime.process import set_up_process as s; s(); print('뷁 😊'); open('/dev/null')"
    command = f'PYTHONIOENCODING=euc-kr "{sys.executable}" -c "{code}"'
    assert subprocess.run(f"{command} >&- 2>&- <&-", shell=True, cwd=Path(__file__).parents[1]).returncode == 0
    printed = subprocess.run(command, shell=True, cwd=Path(__file__).parents[1], capture_output=True)
    assert printed.returncode == 0
    assert b"\\U0001f60a" in printed.stdout


def test_a_notebooks_matplotlib_backend_does_not_reach_a_stage(tmp_path):
    """Commands in a notebook inherit the name of a backend that the project's environment may lack."""
    code = "from stages.common.runtime.process import set_up_process as s; s(); import matplotlib.pyplot"
    result = run(
        "python", "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT), MPLBACKEND="module://matplotlib_inline.backend_inline"
    )
    assert result.returncode == 0, result.stderr
