"""Predictions of a trained model on texts, and on tables of every format."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from stages.common.artifacts.training_metadata import BaseModelSource, read_training_metadata
from stages.common.modeling.classifier import base_model_reference, load_checkpoint
from stages.common.runtime.exceptions import UserError
from tests.support.corpus import LABELS
from tests.support.project import ROOT, encode

NEW_COLUMNS = ["label", *(f"p_{label}" for label in LABELS)]
NOTHING_LEFT = "😊"  # Cleaning leaves nothing of this text.
TEXTS = [
    "<b>배터리</b> 최고! ㅋㅋ",
    '화면, 별로…\n"환불"하고 싶다\r또',
    NOTHING_LEFT,
    "",
    "음질 보통이에요 " * 30,
    "가격 최고 #추천",
]
LORA = ("--model", "data/models/lora")


def expected_probabilities(texts: list[str], method: str) -> list[list[float] | None]:
    """Probabilities without code of serving: one padded text at a time, cleaned by hand; None where nothing is left."""
    model = load_checkpoint(Path(f"data/models/{method}"), LABELS, Path("data/base_model")).eval()

    def predict(text: str) -> list[float] | None:
        text = re.sub(r"[^0-9가-힣A-Za-z\.\,\?\!]+", " ", re.sub(r"<[^>]+>", " ", text)).strip()
        if not text:
            return None
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor(encode(Path("data/base_model"), [text]))).logits[0, 0]
        return logits.double().softmax(0).tolist()

    return [predict(text) for text in texts]


def best_label(probabilities: list[float]) -> str:
    return LABELS[int(np.argmax(probabilities))]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_texts_are_printed_with_label_and_probabilities(tool, capsys, method):
    tool("predict", "--model", f"data/models/{method}", *TEXTS)
    lines = capsys.readouterr().out.splitlines()
    for line, probabilities in zip(lines, expected_probabilities(TEXTS, method), strict=True):
        if probabilities is None:
            assert "no text is left after cleaning" in line
        else:
            numbers = " ".join(f"{label} {value:.2f}" for label, value in zip(LABELS, probabilities, strict=True))
            assert line.startswith(f"{best_label(probabilities)}  {numbers}  ")


def test_params_yaml_is_not_needed(tool, tmp_path, monkeypatch, capsys):
    tool("predict", *LORA, *TEXTS)
    before = capsys.readouterr().out
    shutil.copytree("data/models/lora", tmp_path / "lora")
    base_model = Path("data/base_model").absolute()
    monkeypatch.chdir(tmp_path)
    tool("predict", "--model", "lora", "--base-model", base_model, *TEXTS)
    assert capsys.readouterr().out == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_gets_label_and_probabilities(tool, tmp_path, suffix):
    (tmp_path / "in.jsonl").write_text("".join(f'{{"본문": {json.dumps(text)}}}\n' for text in TEXTS), encoding="utf-8")
    target = tmp_path / f"out{suffix}"
    tool("predict", *LORA, "--input", tmp_path / "in.jsonl", "--text-column", "본문", "--output", target)
    match suffix:
        case ".csv":
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            rows = pyarrow.csv.read_csv(target, parse_options=options).to_pylist()
        case ".jsonl":
            rows = [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n")[:-1]]
        case _:
            rows = pq.read_table(target).to_pylist()
    assert list(rows[0]) == ["본문", *NEW_COLUMNS]
    for row, text, probabilities in zip(rows, TEXTS, expected_probabilities(TEXTS, "lora"), strict=True):
        assert row["본문"] == text
        if probabilities is None:
            assert [row[name] or None for name in NEW_COLUMNS] == [None] * len(NEW_COLUMNS)
        else:
            assert row["label"] == best_label(probabilities)
            assert [row[name] for name in NEW_COLUMNS[1:]] == pytest.approx(probabilities, abs=2e-6)  # 6 digits


@pytest.mark.parametrize("suffix", [".csv", ".xlsx", ".jsonl", ".parquet"])
def test_a_file_whose_name_is_not_utf8_is_read_and_written(tool, tmp_path, suffix):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xb0\xa1")  # `unzip` writes such names in CP949.
    Path(f"{name}.csv").write_text("text\n배터리 최고\n", encoding="utf-8")
    files = ("--input", f"{name}.csv", "--text-column", "text", "--output", f"{name}.out{suffix}")
    tool("predict", "--model", "data/models/full", *files)
    assert Path(f"{name}.out{suffix}").stat().st_size
    again = ("--input", f"{name}.out{suffix}", "--text-column", "text", "--output", f"{name}.again.csv")
    tool("predict", "--model", "data/models/full", *again, "--prefix", "again_")
    assert "again_p_긍정" in Path(f"{name}.again.csv").read_text(encoding="utf-8")


CLOSED, KOREAN = ("", ">&- 2>&- <&-"), ("PYTHONIOENCODING=euc-kr", "")


@pytest.mark.parametrize(
    ("command", "streams"),
    [
        ("predict --model data/models/full --input '{0}/in.csv' --text-column text --output '{0}/out.csv'", CLOSED),
        ("predict --model data/models/full '뷁 최고 😊'", KOREAN),
        ("ingest", CLOSED),
        ("audit", KOREAN),
    ],
)
def test_standard_streams_may_be_closed_or_of_another_encoding(trained_project, tmp_path, command, streams):
    """cron closes standard streams, and a terminal in a Korean locale has another encoding."""
    shutil.copytree(trained_project, tmp_path / "project")
    (tmp_path / "in.csv").write_text("text\n뷁 최고 😊\n", encoding="utf-8")
    variables, redirections = streams
    line = f'{variables} "{sys.executable}" -m stages.{command.format(tmp_path)} {redirections}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(line, shell=True, cwd=tmp_path / "project", env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    if "--input" in command:
        assert "뷁 최고 😊" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_a_link_as_output_is_followed(tool, tmp_path):
    (tmp_path / "in.csv").write_text("text\n배터리 최고\n", encoding="utf-8")
    (tmp_path / "target.csv").write_text("old", encoding="utf-8")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    files = ("--input", tmp_path / "in.csv", "--text-column", "text", "--output", tmp_path / "link.csv")
    tool("predict", "--model", "data/models/full", *files)
    assert (tmp_path / "link.csv").is_symlink()
    assert "p_긍정" in (tmp_path / "target.csv").read_text(encoding="utf-8")


def test_a_checkpoint_older_than_a_parameter_is_used(tool, models, monkeypatch):
    monkeypatch.chdir(models)
    path = Path("full/training.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["version"], values["fold"], values["preprocessing"]["clean"]["keep_jamo"]
    path.write_text(json.dumps(values), encoding="utf-8")
    metadata = read_training_metadata(Path("full"))
    assert (metadata.fold, metadata.preprocessing.clean.keep_jamo) == (0, False)
    tool("predict", "--model", "full", "배터리 최고")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda values: values.update(version=99), "version"),
        (lambda values: values["preprocessing"]["clean"].update(later=True), r"preprocessing\.clean\.later"),
        (lambda values: values["preprocessing"]["clean"].pop("keep"), r"preprocessing\.clean\.keep"),
        (lambda values: values.pop("labels"), "labels"),
    ],
)
def test_a_key_of_a_checkpoint_that_cannot_be_used_is_named(models, change, key):
    path = models / "full/training.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=rf"training\.json: {key}: "):
        read_training_metadata(models / "full")


def test_a_prefix_makes_room_for_a_column_label(tool, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "최고", "label": 1}\n', encoding="utf-8")
    arguments = ["--input", tmp_path / "in.jsonl", "--text-column", "text", "--output", tmp_path / "out.jsonl"]
    with pytest.raises(SystemExit, match=r"the column 'label' exists already.* --prefix"):
        tool("predict", *LORA, *arguments)
    tool("predict", *LORA, *arguments, "--prefix", "new_")
    row = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert list(row) == ["text", "label", *(f"new_{name}" for name in NEW_COLUMNS)]


def test_a_text_file_needs_no_column_name(tool, tmp_path):
    (tmp_path / "in.txt").write_text("최고\n별로\n", encoding="utf-8")
    tool("predict", *LORA, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.csv")
    assert pyarrow.csv.read_csv(tmp_path / "out.csv")["text"].to_pylist() == ["최고", "별로"]


def test_json_lines_are_printed_on_request(tool, capsys):
    tool("predict", *LORA, "--format", "jsonl", *TEXTS)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, text, probabilities in zip(rows, TEXTS, expected_probabilities(TEXTS, "lora"), strict=True):
        assert list(row) == ["text", *NEW_COLUMNS]
        assert row["text"] == text
        assert row["label"] == (probabilities and best_label(probabilities))


def start_predict(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `predict` on its standard input."""
    command = [sys.executable, "-m", "stages.predict", "--model", "data/models/lora", *arguments, "-"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)


def test_lines_of_standard_input_are_answered_as_they_come(trained_project):
    with start_predict(trained_project, "--format", "jsonl") as process:
        for text in ("최고", "별로\r"):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text.strip()
        output, errors = process.communicate("보통\n끝".encode())
    assert [json.loads(line)["text"] for line in output.splitlines()] == ["보통", "끝"]
    assert (process.returncode, errors) == (0, b"")


def test_a_line_of_standard_input_in_another_encoding_is_refused_by_its_number(tool, tmp_path, monkeypatch):
    (tmp_path / "in.txt").write_text("good\n최고\n", encoding="cp949")
    with (tmp_path / "in.txt").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(SystemExit, match=r"^error: text 2: this is not UTF-8; see --encoding$"):
            tool("predict", *LORA, "-")


def test_a_reader_that_ends_early_is_no_error(trained_project):
    with start_predict(trained_project) as process:
        process.stdin.write("최고\n".encode())
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("최고\n".encode() * 100)
        process.stdin.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


def test_adapters_are_saved_without_their_base_model(trained_project):
    names = {path.name for path in (trained_project / "data/models/lora").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "training.json", "README.md"}
    names = {path.name for path in (trained_project / "data/models/full").iterdir()}
    assert names == {"config.json", "model.safetensors", "training.json", "tokenizer.model", "vocab.txt"}


def test_adapters_name_their_base_model_and_its_hashes(trained_project):
    folder = trained_project / "data/models/lora"
    trained_on = json.loads((trained_project / "data/base_model/base_model.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == (trained_on["name"], None)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(value in readme for value in (trained_on["name"], *trained_on["sha256"].values()))


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        ("monologg/kobert", "f89943434bd5ebaf7be828a30587161a44a5d02c", "monologg/kobert"),
        ("/models/kobert", None, "/models/kobert"),
        ("data/kobert-mini", None, "./data/kobert-mini"),
    ],
)
def test_a_path_is_never_taken_for_a_model_of_the_hub(name, revision, expected):
    reference = base_model_reference(BaseModelSource(name=name, revision=revision, sha256={}))
    assert reference == {"base_model_name_or_path": expected, "revision": revision}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["최고", "--input", "in.csv", "--text-column", "본문", "--output", "out.csv"],
        ["--input", "in.csv", "--output", "out.csv"],
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tool, arguments, capsys):
    with pytest.raises(SystemExit):
        tool("predict", *LORA, *arguments)
    assert "--input, --text-column and --output" in capsys.readouterr().err


def test_a_text_that_is_not_utf8_is_refused(tool):
    with pytest.raises(SystemExit, match="not UTF-8"):
        tool("predict", *LORA, "\udcff")


@pytest.fixture
def models(trained_project, tmp_path) -> Path:
    """Copy `lora`, `full` and their base model, so that a test may damage them."""
    for name in ("models/lora", "models/full", "base_model"):
        shutil.copytree(trained_project / "data" / name, tmp_path / name.rpartition("/")[2])
    return tmp_path


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


DAMAGED_MODELS = {
    "no folder": (["--model", "none"], None, "none: no such folder; `dvc repro` makes"),
    "base model of a whole model": (["--model", "full", "--base-model", "base_model"], None, "omit --base-model"),
    "no base model": (
        ["--model", "lora", "--base-model", "none"],
        None,
        "does not exist, but lora needs its base model .*; run `dvc repro base_model`",
    ),
    "other base model": (
        ["--model", "lora", "--base-model", "base_model"],
        lambda: flip_last_bit(Path("base_model/model.safetensors")),
        r"model\.safetensors: this is not the file of .*, the base model of",
    ),
    "incomplete base model": (
        ["--model", "lora", "--base-model", "base_model"],
        lambda: Path("base_model/model.safetensors").unlink(),
        r"model\.safetensors: this file does not exist",
    ),
    "damaged adapter": (
        ["--model", "lora", "--base-model", "base_model"],
        lambda: Path("lora/adapter_model.safetensors").write_bytes(b""),
        "lora: the adapter cannot be loaded",
    ),
    "no adapter": (
        ["--model", "lora", "--base-model", "base_model"],
        lambda: Path("lora/adapter_model.safetensors").unlink(),
        r"No such file or directory: .*adapter_model\.safetensors",
    ),
    "no tokenizer": (["--model", "full"], lambda: Path("full/vocab.txt").unlink(), "there is no vocab.txt"),
    "no weights": (["--model", "full"], lambda: Path("full/model.safetensors").unlink(), "does not exist"),
    "empty metadata": (
        ["--model", "full"],
        lambda: Path("full/training.json").write_text("{}", encoding="utf-8"),
        r"training\.json: base_model: Field required",
    ),
    "no metadata": (["--model", "full"], lambda: Path("full/training.json").unlink(), "cannot be read as JSON"),
}


@pytest.mark.parametrize("name", DAMAGED_MODELS)
def test_a_damaged_model_is_refused_in_one_line(tool, models, monkeypatch, name):
    arguments, damage, message = DAMAGED_MODELS[name]
    monkeypatch.chdir(models)
    if damage:
        damage()
    with pytest.raises(SystemExit, match=message) as raised:
        tool("predict", *arguments, "최고")
    assert "\n" not in str(raised.value)


def test_memory_does_not_grow_with_the_file(trained_project, tmp_path):
    """This compares the peak memory for 16 chunks and for 1. A file in memory would add at least its 80 MB."""
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
        assert result.stderr == "", "progress of a command that takes seconds, where there is no terminal"
        assert target.read_text(encoding="utf-8").count("\n") == rows + 1
        peaks.append(int(result.stdout) / 1024)  # MiB
    assert peaks[1] - peaks[0] < 60, peaks
