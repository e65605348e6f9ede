"""What was trained, used: on texts and on files of every format, which keep all that they had."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.common.core.labels import LABELS
from stages.common.modeling.classifier import load_checkpoint
from stages.common.modeling.collator import Collator, Rows, predict_logits
from stages.common.pretrained.tokenizer import load_tokenizer
from tests.support.corpus import records
from tests.support.project import ROOT

ADDED = ["label", *(f"p_{label}" for label in LABELS)]
TEXTS = [
    "<b>배터리</b> 최고! ㅋㅋ",
    '화면, 별로…\n"환불"하고 싶다\r또',
    "😊",
    "",
    "음질 보통이에요 " * 30,
    "가격 최고 #추천",
]
LORA = ("--model", "data/models/lora")


def expected(texts: list[str], model: str = "lora") -> np.ndarray:
    """Probabilities without `Trained.probabilities`: one padded review at a time, cleaned by hand."""
    tokenizer = load_tokenizer(Path("data/base_model"))
    classifier = load_checkpoint(Path(f"data/models/{model}"), Path("data/base_model"))
    rows = []
    for text in texts:
        text = re.sub(r"[^0-9가-힣A-Za-z\.\,\?\!]+", " ", re.sub(r"<[^>]+>", " ", text)).strip()
        if not text:
            rows.append([np.nan] * 3)
            continue
        one = Rows(tokenizer.encode([text], 64).rows(), np.zeros(1, dtype=np.int64))
        rows.append(predict_logits(classifier, Collator(classifier, False), one, 1).softmax(1)[0].tolist())
    return np.array(rows)


def check(added: list[list], texts: list[str], model: str = "lora") -> None:
    """Columns label and probabilities, null or "" where nothing was classified, against `expected`."""
    truth = expected(texts, model)
    for label, *shares, row in zip(*added, truth, strict=True):
        if np.isnan(row[0]):
            assert {label, *shares} in ({None}, {""})
        else:
            assert label == LABELS[int(row.argmax())]
            assert np.array(shares, dtype=float) == pytest.approx(row, abs=2e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_texts_are_printed_with_label_and_probabilities(tool, capsys, method):
    tool("predict", "--model", f"data/models/{method}", *TEXTS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TEXTS)
    for line, row in zip(lines, expected(TEXTS, method), strict=True):
        if np.isnan(row[0]):
            assert "no text is left after cleaning" in line
        else:
            shares = " ".join(f"{label} {share:.2f}" for label, share in zip(LABELS, row, strict=True))
            assert line.startswith(f"{LABELS[int(row.argmax())]}  {shares}  ")


def test_params_yaml_has_no_say(tool, tmp_path, monkeypatch, capsys):
    tool("predict", *LORA, *TEXTS)
    before = capsys.readouterr().out
    shutil.copytree("data/models/lora", tmp_path / "lora")
    base = Path("data/base_model").absolute()
    monkeypatch.chdir(tmp_path)  # no params.yaml here
    tool("predict", "--model", "lora", "--base-model", base, *TEXTS)
    assert capsys.readouterr().out == before


def test_the_commands_of_the_readme_run(tool, trained_project, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained_project / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    write_csv(Path("reviews.csv"), [["id", "text"], ["1", "최고"]])
    commands = re.findall(
        r"^python -m stages\.(\w+) (--model.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert [name for name, _ in commands] == ["predict", "predict", "export", "export"]
    for name, arguments in commands:
        if "onnx" not in arguments or importlib.util.find_spec("onnxscript"):
            tool(name, *shlex.split(arguments))
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert pq.read_table("labelled.parquet").column_names == ["id", "text", *ADDED]
    assert Path("exported/model.safetensors").is_file()


def test_adapters_do_not_carry_their_base_model(trained_project):
    names = {path.name for path in (trained_project / "data/models/lora").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    names = {path.name for path in (trained_project / "data/models/full").iterdir()}
    assert names == {"config.json", "model.safetensors", "training.json", "tokenizer.model", "vocab.txt"}


def write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(rows)


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, strict=True))


def predict(tool, source: Path, target: Path, column: str = "본문") -> None:
    tool("predict", *LORA, "--input", source, "--text-column", column, "--output", target)


def test_csv_keeps_every_cell(tool, tmp_path):
    cells = ["007", "", "1e5", "NA", "12345678901234567890123", ' "인용", ']
    rows = [["번호", "본문", "a b"], *([cell, text, cell[::-1]] for cell, text in zip(cells, TEXTS, strict=True))]
    write_csv(tmp_path / "in.csv", rows)
    predict(tool, tmp_path / "in.csv", tmp_path / "out.csv")
    written = read_csv(tmp_path / "out.csv")
    assert [row[:3] for row in written] == rows
    assert written[0][3:] == ADDED
    check(list(zip(*(row[3:] for row in written[1:]), strict=True)), TEXTS)
    predict(tool, tmp_path / "in.csv", tmp_path / "out.parquet")
    assert [list(row.values())[:3] for row in pq.read_table(tmp_path / "out.parquet").to_pylist()] == rows[1:]
    predict(tool, tmp_path / "in.csv", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [list(line.values())[:3] for line in lines] == rows[1:]


def test_json_lines_keep_what_they_say(tool, tmp_path):
    others = [
        '"n": 1.10',
        '"n": 123456789012345678901',
        '"n": 1e400',
        '"other": {"a": [1, null]}',
        '"n": "\\u00e9"',
        "",
    ]
    lines = [
        f'{{"본문": {json.dumps(text)}{other and ", " + other} }}' for text, other in zip(TEXTS, others, strict=True)
    ]
    lines[3] = lines[3].replace('""', "null")
    (tmp_path / "in.jsonl").write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8", newline="")
    predict(tool, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert all(new.startswith(old[:-2] + ', "label": ') for new, old in zip(written, lines, strict=True))
    check([[json.loads(line)[name] for line in written] for name in ADDED], TEXTS)


def test_parquet_keeps_its_types(tool, tmp_path):
    table = pa.table(
        {
            "본문": pa.array([*TEXTS[:3], None, *TEXTS[4:]]).dictionary_encode(),
            "big": pa.array([2**62, None, -1, 0, 1, 2]),
            "when": pa.array([0, 1, 2, 3, 4, None], pa.timestamp("ns", "Asia/Seoul")),
            "list": pa.array([[1], None, [], [2, 3], [4], [5]]),
            "share": pa.array([0.1, float("nan"), None, 1.0, 2.5, -0.0]),
        }
    ).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "in.parquet")
    predict(tool, tmp_path / "in.parquet", tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    before = pq.read_table(tmp_path / "in.parquet")
    assert written.select(before.column_names).cast(before.schema).to_pydict()["when"] == before.to_pydict()["when"]
    assert written.schema.names == [*table.schema.names, *ADDED]
    assert written.drop_columns(["share", *ADDED]).equals(before.drop_columns(["share"]))
    assert written.schema.metadata[b"note"] == b"kept"
    check([written[name].to_pylist() for name in ADDED], TEXTS)
    predict(tool, tmp_path / "in.parquet", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert [row[1] for row in rows] == ["big", str(2**62), "", "-1", "0", "1", "2"]
    assert [row[3] for row in rows[1:]] == ["[1]", "", "[]", "[2, 3]", "[4]", "[5]"]
    predict(tool, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["share"] for line in lines] == [0.1, None, None, 1.0, 2.5, 0.0]


def test_json_lines_become_tables(tool, tmp_path):
    rows = [{"본문": "최고", "n": 2**53 + 1}, {"본문": "별로", "tags": ["a"]}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    predict(tool, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["n"].to_pylist() == [2**53 + 1, None]
    assert table["tags"].to_pylist() == [None, '["a"]']
    predict(tool, tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert [row[:3] for row in read_csv(tmp_path / "out.csv")[1:]] == [
        ["최고", str(2**53 + 1), ""],
        ["별로", "", '["a"]'],
    ]


def test_a_value_that_its_column_cannot_hold_is_refused(tool, tmp_path, monkeypatch):
    """Arrow on its own makes 2 of 2.5 and drops what a struct does not know."""
    monkeypatch.setattr("stages.common.tables.ROWS_A_CHUNK", 1)
    for first, second, fits in (
        (1, 2.5, False),
        (1, 2.0, True),
        (1.5, 2, True),
        (1.5, 2**53 + 1, False),
        (1, "1", False),
        (1, True, False),
        (None, 1, False),
        ("a", None, True),
        ({"a": 1}, {"b": [2]}, True),
    ):
        lines = [json.dumps({"본문": "최고", "v": value}) for value in (first, second)]
        (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
        if fits:
            predict(tool, tmp_path / "in.jsonl", tmp_path / "out.parquet")
            values = pq.read_table(tmp_path / "out.parquet")["v"].to_pylist()
            assert values == [json.dumps(v) if isinstance(v, dict) else v for v in (first, second)]
        else:
            with pytest.raises(SystemExit, match="the values of v fit into no column"):
                predict(tool, tmp_path / "in.jsonl", tmp_path / "out.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("to", [".csv", ".jsonl", ".parquet"])
def test_order_holds_over_chunks_and_no_rows_are_rows_too(tool, tmp_path, monkeypatch, suffix, to):
    monkeypatch.setattr("stages.common.tables.ROWS_A_CHUNK", 7)
    texts = [row["RawText"] for row in records()[:40:2]]
    for name, some in (("some", texts), ("none", [])):
        source, target = tmp_path / f"{name}{suffix}", tmp_path / f"{name}-out{to}"
        match suffix:
            case ".csv":
                write_csv(source, [["본문"], *([text] for text in some)])
            case ".jsonl":
                source.write_text("".join(f'{{"본문": {json.dumps(text)}}}\n' for text in some), encoding="utf-8")
            case _:
                pq.write_table(pa.table({"본문": pa.array(some, pa.string())}), source)
        predict(tool, source, target)
        match to:
            case ".csv":
                header, *rows = read_csv(target)
                assert header == ["본문", *ADDED]
            case ".jsonl":
                rows = [list(json.loads(line).values()) for line in target.read_text(encoding="utf-8").splitlines()]
            case _:
                rows = [list(row.values()) for row in pq.read_table(target).to_pylist()]
        assert [row[0] for row in rows] == some
        if some:
            check(list(zip(*(row[1:] for row in rows), strict=True)), texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {f"some{suffix}", f"none{suffix}", f"some-out{to}", f"none-out{to}"}
    )


BROKEN = {
    "quote.csv": ('본문,b\n"a"x,1\n', "line 2"),
    "cells.csv": ("본문,b\na,1\na,1,2\n", "line 3: 3 cells, but the first line has 2"),
    "open.csv": ('본문,b\n"a,1\n', "line 2: unexpected end"),
    "column.csv": ("a,b\n1,2\n", "has no column 본문; it has a, b"),
    "taken.csv": ("본문,p_부정\n1,2\n", "has a column p_부정 already"),
    "empty.csv": ("", "has no column 본문"),
    "cp949.csv": ("본문\n좋아요\n최고\n".encode("cp949"), "line 1: not UTF-8"),
    "late.csv": ("본문\n좋아요\n".encode() + b"\xff\n", "line 3: not UTF-8"),
    "json.jsonl": ('{"본문": "a"}\n{"본문": \n', "line 2: Expecting value"),
    "array.jsonl": ("[1]\n", "line 1: not an object"),
    "key.jsonl": ('{"본문": "a"}\n\n{"text": "a"}\n', "line 3: has no column 본문; it has text"),
    "number.jsonl": ('{"본문": 1}\n', "line 1: the text is of type int"),
    "half.jsonl": ('{"본문": "\\ud800"}\n', "line 1: half of a surrogate pair"),
    "taken.jsonl": ('{"본문": "a", "label": 1}\n', "line 1: has a column label already"),
    "mixed.jsonl": ('{"본문": "a", "b": 1}\n{"본문": "a", "b": "x"}\n', "the values of b fit into no column"),
    "text.parquet": ("no", "not a Parquet file"),
    "text.tsv": ("본문\n", r"its name must end in \.csv, \.jsonl, \.parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_leaves_the_output(tool, tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    target = tmp_path / ("out.csv" if name == "mixed.jsonl" else "out.jsonl")
    target.write_text("before", encoding="utf-8")
    with pytest.raises(SystemExit, match=message) as raised:
        predict(tool, tmp_path / name, target)
    assert "\n" not in str(raised.value)
    assert target.read_text(encoding="utf-8") == "before"
    assert len(list(tmp_path.iterdir())) == 2


def test_mistakes_with_files_are_one_line(tool, tmp_path):
    write_csv(tmp_path / "in.csv", [["본문"], ["최고"]])
    pq.write_table(pa.table({"본문": [1], "raw": [b"\xff"]}), tmp_path / "in.parquet")
    for source, target, column, message in (
        ("none.csv", "out.csv", "본문", "no such file"),
        ("in.csv", "out.xlsx", "본문", "its name must end in"),
        ("in.csv", ".", "본문", "its name must end in"),
        ("in.parquet", "out.csv", "본문", "column 본문 holds int64, not text"),
        ("in.parquet", "out.csv", "text", "has no column text; it has 본문, raw"),
    ):
        with pytest.raises(SystemExit, match=message):
            predict(tool, tmp_path / source, tmp_path / target, column)
    pq.write_table(pa.table({"본문": ["최고"], "raw": [b"\xff"]}), tmp_path / "in.parquet")
    with pytest.raises(SystemExit, match=r"only \.parquet can hold the bytes of column raw"):
        predict(tool, tmp_path / "in.parquet", tmp_path / "out.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SystemExit, match="is a folder"):
        predict(tool, tmp_path / "in.csv", tmp_path / "folder.csv")


def test_mistakes_with_models_are_one_line(tool, tmp_path, tiny_base_model):
    lora = Path(shutil.copytree("data/models/lora", tmp_path / "lora"))
    full = Path(shutil.copytree("data/models/full", tmp_path / "full"))
    base = Path(shutil.copytree("data/base_model", tmp_path / "base"))

    def fails(message: str, *arguments: object) -> None:
        with pytest.raises(SystemExit, match=message) as raised:
            tool("predict", *arguments, "최고")
        assert "\n" not in str(raised.value)

    fails("no such folder; `dvc repro` makes", "--model", tmp_path / "none")
    fails("leave out --base-model", "--model", full, "--base-model", base)
    fails("is not a folder; name it with --base-model", "--model", lora, "--base-model", tmp_path / "none")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    fails(r"model\.safetensors is not that of the base model of", "--model", lora, "--base-model", base)
    weights.unlink()
    fails(r"has no model\.safetensors", "--model", lora, "--base-model", base)
    (lora / "adapter_model.safetensors").write_bytes(b"")
    fails("lora: cannot be loaded", "--model", lora)
    (lora / "adapter_model.safetensors").unlink()
    fails(r"adapter_model\.safetensors: no such file", "--model", lora)
    (full / "vocab.txt").unlink()
    fails("no tokenizer", "--model", full)
    shutil.copyfile("data/models/full/vocab.txt", full / "vocab.txt")
    (full / "model.safetensors").unlink()
    fails(r"model\.safetensors: no such file", "--model", full)
    (full / "training.json").write_text("{}", encoding="utf-8")
    fails("does not tell how the model was trained", "--model", full)
    (full / "training.json").unlink()
    fails(r"training\.json: cannot be read", "--model", full)


def test_memory_does_not_grow_with_the_file(trained_project, tmp_path):
    """Peak memory for 16 chunks and for 1: a file held as a whole would add its 80 MB and more."""
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"  # KiB
    code = f"import resource; from stages.predict import main; main(); print({peak})"
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    arguments = [*LORA, "--text-column", "본문", "--input", str(source), "--output", str(target)]
    peaks = []
    for rows in (4_000, 64_000):
        with source.open("w", encoding="utf-8") as file:
            file.write("본문,other\n")
            file.writelines(f"최고 {number},{'x' * 1250}\n" for number in range(rows))
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=trained_project,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == "", "a progress bar where there is no terminal"
        assert target.read_text(encoding="utf-8").count("\n") == rows + 1
        peaks.append(int(result.stdout) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 60, peaks
