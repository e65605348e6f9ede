"""Tables get new columns and keep the old ones; a broken table leads to an error of one line."""

import csv
import json
from datetime import datetime
from pathlib import Path

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.common.runtime.exceptions import UserError
from stages.common.serving.table_io import add_columns

TEXTS = ["<b>최고</b> ㅋㅋ", '화면,\n"환불"\r또', "😊", "", "보통", "끝"]
FORMATS = [".csv", ".tsv", ".xlsx", ".jsonl", ".parquet"]


def text_lengths(texts: pd.Series) -> pd.DataFrame:
    """Make new columns like those of a prediction: text and number, both null for an empty text."""
    lengths = texts.map(len).astype(float)
    return pd.DataFrame({"label": texts.map(lambda text: text[:1] or None), "length": lengths.where(lengths > 0)})


def add_lengths(source: Path, target: Path, text_column: str | None = "본문") -> None:
    add_columns(source, target, text_column, ["label", "length"], text_lengths)


def write_csv(path: Path, rows: list[list[str]], encoding: str = "utf-8-sig") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True, delimiter="\t" if path.suffix == ".tsv" else ","))


def write_excel(path: Path, rows: list[list]) -> None:
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(row)
    workbook.save(path)


def read_excel(path: Path) -> list[list]:
    return [list(row) for row in openpyxl.load_workbook(path).active.iter_rows(values_only=True)]


def read_json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture
def csv_rows(tmp_path: Path) -> list[list[str]]:
    """Return the rows of `in.csv`, with quotes and with cells that pandas would read as numbers or as missing."""
    cells = ["007", "", "1e5", "NA", "12345678901234567890123", ' "인용", ']
    rows = [["번호", "본문", "a b"], *([cell, text, cell[::-1]] for cell, text in zip(cells, TEXTS, strict=True))]
    write_csv(tmp_path / "in.csv", rows)
    return rows


def test_csv_keeps_every_cell(csv_rows, tmp_path):
    add_lengths(tmp_path / "in.csv", tmp_path / "out.csv")
    written = read_csv(tmp_path / "out.csv")
    assert [row[:3] for row in written] == csv_rows
    added = [["label", "length"], ["<", "12.0"], ["화", "10.0"], ["😊", "1.0"], ["", ""]]
    assert [row[3:] for row in written[:5]] == added


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_cells_of_csv_stay_text_in_other_formats(csv_rows, tmp_path, suffix):
    target = tmp_path / f"out{suffix}"
    add_lengths(tmp_path / "in.csv", target)
    rows = read_json_lines(target) if suffix == ".jsonl" else pq.read_table(target).to_pylist()
    assert [list(row.values())[:3] for row in rows] == csv_rows[1:]
    assert [row["length"] for row in rows] == [12, 10, 1, None, 2, 1]


def test_json_lines_are_extended_and_otherwise_left_as_they_are(tmp_path):
    values = ["1.10", "123456789012345678901", "1e400", '{"a": [1, null]}', '"\\u00e9"', "NaN"]
    lines = [f'{{"본문": {json.dumps(text)}, "n": {value} }}' for text, value in zip(TEXTS, values, strict=True)]
    lines[3] = lines[3].replace('""', "null")
    (tmp_path / "in.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8", newline="")
    add_lengths(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [line.partition(', "label": ')[0] for line in written] == [line.removesuffix(" }") for line in lines]
    assert json.loads(written[0])["length"] == 12
    assert json.loads(written[3])["label"] is None


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_values_of_json_lines_become_text_in_other_formats(tmp_path, suffix):
    rows = [{"본문": "최고", "n": 2**53 + 1, "b": True}, {"본문": "별로", "tags": ["가"], "n": 0.5}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    target = tmp_path / f"out{suffix}"
    add_lengths(tmp_path / "in.jsonl", target)
    if suffix == ".csv":
        table = [[cell or None for cell in row[:4]] for row in read_csv(target)[1:]]
    else:
        table = [list(row.values())[:4] for row in pq.read_table(target).to_pylist()]
    assert table == [["최고", str(2**53 + 1), "true", None], ["별로", "0.5", None, '["가"]']]


@pytest.fixture
def parquet_table(tmp_path: Path) -> pa.Table:
    """Return the table of `in.parquet`, with types that Python or pandas would change."""
    columns = {
        "본문": pa.array([*TEXTS[:3], None, *TEXTS[4:]]).dictionary_encode(),
        "big": pa.array([2**62, None, -1, 0, 1, 2]),
        "when": pa.array([0, 1, 2, 3, 4, None], pa.timestamp("ns", "Asia/Seoul")),
        "list": pa.array([[1], None, [], [2, 3], [4], [5]]),
        "share": pa.array([0.1, float("nan"), None, 1.0, float("inf"), -0.0]),
    }
    table = pa.table(columns).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "in.parquet")
    return pq.read_table(tmp_path / "in.parquet")


def test_parquet_keeps_types_and_metadata(parquet_table, tmp_path):
    add_lengths(tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == [*parquet_table.column_names, "label", "length"]
    assert written.schema.metadata[b"note"] == b"kept"
    kept = written.select(parquet_table.column_names)
    assert kept.schema == parquet_table.schema
    assert str(kept.to_pylist()) == str(parquet_table.to_pylist())  # NaN equals nothing, not even itself
    assert written["length"].to_pylist() == [12, 10, 1, None, 2, 1]


def test_parquet_becomes_csv(parquet_table, tmp_path):
    add_lengths(tmp_path / "in.parquet", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert [row[1] for row in rows] == ["big", str(2**62), "", "-1", "0", "1", "2"]
    assert [row[3] for row in rows] == ["list", "[1]", "", "[]", "[2, 3]", "[4]", "[5]"]
    assert rows[2][2] == "1970-01-01 09:00:00.000000001+09:00"


def test_parquet_becomes_json_lines_without_nan(parquet_table, tmp_path):
    add_lengths(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    rows = read_json_lines(tmp_path / "out.jsonl")
    assert [row["share"] for row in rows] == [0.1, None, None, 1.0, None, 0.0]
    assert [row["big"] for row in rows[:2]] == [2**62, None]


def write_table(path: Path, texts: list[str]) -> None:
    """Write a table with one column."""
    match path.suffix:
        case ".xlsx":
            write_excel(path, [["본문"], *([text] for text in texts)])
        case ".csv" | ".tsv":
            write_csv(path, [["본문"], *([text] for text in texts)])
        case ".jsonl":
            path.write_text("".join(f'{{"본문": {json.dumps(text)}}}\n' for text in texts), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.table({"본문": pa.array(texts, pa.string())}), path)


def read_rows(path: Path) -> tuple[list[str], list[list]]:
    """Read the columns and the rows of a table."""
    match path.suffix:
        case ".xlsx":
            header, *rows = read_excel(path)
            return header, rows
        case ".csv" | ".tsv":
            header, *rows = read_csv(path)
            return header, [[*row[:-1], float(row[-1])] for row in rows]
        case ".jsonl":
            rows = read_json_lines(path)
            return [*(rows[0] if rows else ())], [list(row.values()) for row in rows]
        case _:
            table = pq.read_table(path)
            return table.column_names, [list(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_rows_keep_their_order_over_many_chunks(tmp_path, monkeypatch, source, target):
    monkeypatch.setattr("stages.common.corpus.tables.CHUNK_ROWS", 7)
    texts = [f"{number}번" for number in range(20)]
    write_table(tmp_path / f"in{source}", texts)
    add_lengths(tmp_path / f"in{source}", tmp_path / f"out{target}")
    columns, rows = read_rows(tmp_path / f"out{target}")
    assert columns == ["본문", "label", "length"]
    assert rows == [[text, text[0], len(text)] for text in texts]
    assert {path.name for path in tmp_path.iterdir()} == {f"in{source}", f"out{target}"}


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_a_table_without_rows_keeps_its_columns(tmp_path, source, target):
    write_table(tmp_path / f"in{source}", [])
    add_lengths(tmp_path / f"in{source}", tmp_path / f"out{target}")
    columns, rows = read_rows(tmp_path / f"out{target}")
    assert columns == ([] if target == ".jsonl" else ["본문", "label", "length"])
    assert rows == []


def test_an_output_without_a_suffix_has_the_format_of_the_input(tmp_path):
    write_table(tmp_path / "in.parquet", TEXTS)
    add_lengths(tmp_path / "in.parquet", tmp_path / "out")
    assert pq.read_table(tmp_path / "out")["본문"].to_pylist() == TEXTS


def test_a_text_file_is_a_table_of_its_lines(tmp_path):
    (tmp_path / "in.txt").write_bytes('최고\r\n\n"별로",\t'.encode())
    add_lengths(tmp_path / "in.txt", tmp_path / "out.jsonl", None)
    rows = [(row["text"], row["length"]) for row in read_json_lines(tmp_path / "out.jsonl")]
    assert rows == [("최고", 2), ("", None), ('"별로",\t', 6)]


def test_excel_keeps_values_and_makes_no_formula_of_a_text(tmp_path):
    rows = [["본문", "n", "when", "빈칸"], ["최고", 1.5, datetime(2024, 1, 2, 3, 4), None], [None, True, 7, "x"]]
    write_excel(tmp_path / "in.xlsx", rows)
    workbook = openpyxl.load_workbook(tmp_path / "in.xlsx")
    workbook.active["A4"].value, workbook.active["A4"].data_type = "=1+1", "s"
    workbook.save(tmp_path / "in.xlsx")
    add_lengths(tmp_path / "in.xlsx", tmp_path / "out.xlsx")
    cells = list(openpyxl.load_workbook(tmp_path / "out.xlsx").active.rows)
    assert [[cell.value for cell in row] for row in cells] == [
        [*rows[0], "label", "length"],
        [*rows[1], "최", 2],
        [*rows[2], None, None],
        ["=1+1", None, None, None, "=", 4],
    ]
    assert cells[3][0].data_type == "s"


def test_values_of_excel_become_text_in_other_formats(tmp_path):
    write_excel(tmp_path / "in.xlsx", [["본문", "b"], [100, True], ["최고", None]])
    add_lengths(tmp_path / "in.xlsx", tmp_path / "out.csv")
    assert read_csv(tmp_path / "out.csv")[1:] == [["100", "true", "1", "3.0"], ["최고", "", "최", "2.0"]]


def test_a_control_character_is_refused_by_excel_alone(tmp_path):
    write_table(tmp_path / "in.csv", ["\x01"])
    with pytest.raises(UserError, match=r"an Excel file cannot hold this table: .*cannot be used"):
        add_lengths(tmp_path / "in.csv", tmp_path / "out.xlsx")


@pytest.mark.parametrize("encoding", ["cp949", "utf-8-sig", "utf-16"])
def test_the_encoding_of_a_table_is_found(tmp_path, encoding):
    write_csv(tmp_path / "in.csv", [["본문"], ["뷁 최고"]], encoding)
    add_lengths(tmp_path / "in.csv", tmp_path / "out.csv")
    assert read_csv(tmp_path / "out.csv")[1][0] == "뷁 최고"


BROKEN = {
    "quote.csv": ('본문,b\n"a"x,1\n', "line 2: ',' expected after '\"'"),
    "cells.csv": ("본문,b\na,1\na,1,2\n", "line 3: 3 cells, but the header has 2"),
    "few.csv": ('본문,b\n"a\n\n",1\na\n', "line 5: 1 cells, but the header has 2"),
    "open.csv": ('본문,b\n"a,1\n', "line 2: unexpected end"),
    "column.csv": ("a,b\n1,2\n", "has no column '본문'; it has a, b"),
    "taken.csv": ("본문,label\n1,2\n", "the column 'label' exists already"),
    "twice.csv": ("본문,a,a\n1,2,3\n", "the column 'a' exists already, or twice"),
    "empty.csv": ("", "has no column '본문'"),
    "late.csv": ("본문\n좋아요\n".encode() + b"\xff\n", "line 3: not UTF-8"),
    "json.jsonl": ('{"본문": "a"}\n{"본문": \n', "line 2: Expecting value"),
    "deep.jsonl": ("[" * 10**6 + "\n", "line 1: maximum recursion depth"),
    "array.jsonl": ("[1]\n", "line 1: not an object"),
    "key.jsonl": ('{"본문": "a"}\n\n{"text": "a"}\n', "line 3: has no column '본문'; it has text"),
    "number.jsonl": ('{"본문": 1}\n', "line 1: the text is of type int"),
    "half.jsonl": ('{"본문": "\\ud800"}\n', "line 1: .* surrogates not allowed"),
    "taken.jsonl": ('{"본문": "a", "label": 1}\n', "line 1: the column 'label' exists already"),
    "text.parquet": ("no", "not a parquet file|file size|magic bytes|smaller than"),
    "text.xlsx": ("no", "cannot be read as .xlsx: BadZipFile"),
    "text.ods": ("본문\n", r"its name must end in \.csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused_in_one_line_and_the_output_stays(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "out.jsonl").write_text("before", encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        add_lengths(tmp_path / name, tmp_path / "out.jsonl")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / name))
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "before"
    assert {path.name for path in tmp_path.iterdir()} == {name, "out.jsonl"}


def test_a_key_that_a_csv_cannot_get_any_more_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.common.corpus.tables.CHUNK_ROWS", 1)
    (tmp_path / "in.jsonl").write_text('{"본문": "a"}\n{"본문": "a", "late": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"key 'late' is not in the first 1 lines: write \.jsonl"):
        add_lengths(tmp_path / "in.jsonl", tmp_path / "out.csv")
    add_lengths(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [row.get("late") for row in read_json_lines(tmp_path / "out.jsonl")] == [None, 1]


def test_a_parquet_column_that_holds_no_text_is_refused(tmp_path):
    pq.write_table(pa.table({"본문": [1]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match="column '본문' holds int64, not text"):
        add_lengths(tmp_path / "in.parquet", tmp_path / "out.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_bytes_go_into_parquet_only(tmp_path, suffix):
    pq.write_table(pa.table({"본문": ["최고"], "raw": [b"\xff"]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"column 'raw' holds bytes, which only \.parquet can store"):
        add_lengths(tmp_path / "in.parquet", tmp_path / f"out{suffix}")
    add_lengths(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["raw"].to_pylist() == [b"\xff"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.csv", "out.csv", "none.csv: the file does not exist"),
        ("in.csv", "out.ods", "out.ods: its name must end in"),
        ("in.csv", "out.txt", "out.txt: its name must end in"),
        ("in.csv", "folder.csv", "folder.csv: this is a folder"),
    ],
)
def test_a_wrong_path_is_refused(tmp_path, source, target, message):
    write_table(tmp_path / "in.csv", ["최고"])
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=message):
        add_lengths(tmp_path / source, tmp_path / target)
