"""Hostile files, parameters and tables are refused in one line, with bounded memory and time; nothing valid is lost."""

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from safetensors.numpy import save_file

from stages import predict
from stages.common.artifacts.arrow import make_schema, read_batches, read_table, write_table
from stages.common.artifacts.files import atomic_write
from stages.common.artifacts.logits import read_logits
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import load_params
from stages.common.serving.table_io import add_columns
from stages.ingest import find_files, read_files, to_batches
from tests.support.corpus import LABELS, SHIPPED_TEXT, record, write_corpus
from tests.support.project import copy_project, run


def test_no_value_of_params_yaml_reaches_the_shell(tmp_path):
    """If only a learning rate has changed, no stage checks it before `train_full`."""
    copy_project(tmp_path)
    run("git", "init", "-q", cwd=tmp_path)
    changed = re.sub(r"(full:\n(?:  #.*\n)+  learning_rates: ).*", r"\1['0.1; touch was-run; true']", SHIPPED_TEXT)
    assert changed != SHIPPED_TEXT
    (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
    for name in ("base_model", "splits"):
        (tmp_path / "data" / name).mkdir()
    for name in ("tokenized", "splits/0", "splits/1", "splits/2"):
        (tmp_path / f"data/{name}.arrow").touch()
    result = run("dvc", "repro", "-s", "train_full", cwd=tmp_path)
    assert "full.learning_rates.0 is '0.1; touch was-run; true'" in result.stderr + result.stdout
    assert not (tmp_path / "was-run").exists()


def test_a_launcher_with_a_shell_command_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text(SHIPPED_TEXT.replace("launcher: python", "launcher: python; touch x"))
    with pytest.raises(UserError, match=r"run\.launcher is 'python; touch x'"):
        load_params(tmp_path / "params.yaml")


TEN_TIMES = "[" + ", ".join(["*b"] * 10) + "]"
FOLDS = {
    "alias bomb": "\n".join(
        [f"b0: &b0 [{'x, ' * 9}x]", *(f"b{n}: &b{n} {TEN_TIMES.replace('*b', f'*b{n - 1}')}" for n in range(1, 12))]
    )
    + "\nrun: {folds: *b11}",
    "endless nesting": "folds: " + "[" * 5000 + "]" * 5000,
    "date that is none": "folds: [2024-99-99]",
    "number of 10,000 digits": "folds: [" + "9" * 10_000 + "]",
    "code": "folds: !!python/object/apply:os.system ['touch was-run']",
    "recursion": "folds: &a [*a]",
}


@pytest.mark.parametrize("name", FOLDS)
def test_hostile_yaml_costs_one_short_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(FOLDS[name], encoding="utf-8")
    with pytest.raises(UserError) as raised:
        load_params()
    assert len(str(raised.value)) < 10_000
    assert not Path("was-run").exists()


@pytest.mark.parametrize("keep", ["a]+(x+x+)+y[b", "[:alpha:]", "a-z&&b"])
def test_what_to_keep_is_the_inside_of_one_character_class(tmp_path, keep):
    params = yaml.safe_load(SHIPPED_TEXT)
    params["clean"]["keep"] = keep
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UserError, match=r"clean\.keep"):
        load_params(tmp_path / "params.yaml")


def test_pipes_devices_and_linked_folders_of_a_corpus_are_errors(tmp_path):
    """A pipe never ends, /dev/zero fills the memory, and a link to a parent folder leads in circles."""
    source = write_corpus(tmp_path / "raw", [record(1, "글")])
    os.mkfifo(source / "pipe.json")
    (source / "device.json").symlink_to("/dev/zero")
    (source / "itself.json").symlink_to("itself.json")
    (source / "circle").symlink_to(".")
    (source / "readme").symlink_to("/dev/null")
    names = [file.name for file in find_files(source)]
    assert sorted(names) == ["4-1.IT기기(1).json", "circle", "device.json", "itself.json", "pipe.json"]
    (batch,) = to_batches(read_files(source, find_files(source), on_error="skip"))
    assert batch["RawText"].to_pylist() == ["글"]
    with pytest.raises(UserError, match="circle: not a regular file, or a link to a folder"):
        list(read_files(source, [Path("circle")]))


SCHEMA = make_schema({"labels": pa.int64(), "text": pa.string(), "input_ids": pa.list_(pa.int32())}, LABELS)


@pytest.fixture
def arrow_file(tmp_path) -> Path:
    """Write an Arrow file with three batches of 20 rows."""
    rows = {"labels": [0] * 20, "text": ["글"] * 20, "input_ids": [[1, 2]] * 20}
    write_table(tmp_path / "table.arrow", [pa.RecordBatch.from_pydict(rows, schema=SCHEMA)] * 3, SCHEMA)
    return tmp_path / "table.arrow"


def test_a_truncated_arrow_file_is_refused_wherever_it_ends(arrow_file):
    """Arrow itself accepts a file that ends between two batches."""
    content = arrow_file.read_bytes()
    for length in range(0, len(content), 8):
        arrow_file.write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot be read as an Arrow stream"):
            read_table(arrow_file)
        with pytest.raises(UserError, match="cannot be read as an Arrow stream"):
            list(read_batches(arrow_file))


def test_a_wrong_offset_in_an_arrow_file_is_refused(arrow_file):
    """Reading beyond the end of the texts would crash the process."""
    content = arrow_file.read_bytes()
    offsets = (3 * np.arange(21, dtype=np.int32)).tobytes()  # 20 texts have three bytes each.
    assert content.count(offsets) == 3
    arrow_file.write_bytes(content.replace(offsets, offsets[:-4] + b"\xff\xff\xff\x7f"))
    with pytest.raises(UserError, match="cannot be read as an Arrow stream"):
        read_table(arrow_file)
    with pytest.raises(UserError, match="cannot be read as an Arrow stream"):
        list(read_batches(arrow_file))


@pytest.mark.parametrize("values", [np.full((5, 3), np.nan), np.zeros((5, 4)), np.zeros(5)], ids=["NaN", "4", "flat"])
def test_tampered_logits_are_refused(tmp_path, values):
    save_file({"test": values.astype(np.float32)}, tmp_path / "logits.safetensors")
    with pytest.raises(UserError, match="a row does not hold 3 finite numbers"):
        read_logits(tmp_path / "logits.safetensors", len(LABELS))


def test_logits_without_those_of_a_part_are_refused(tmp_path):
    save_file({"test": np.zeros((5, 3), np.float32)}, tmp_path / "logits.safetensors")
    with pytest.raises(UserError, match=r"logits\.safetensors: cannot be read \(the array validation is missing\)"):
        read_logits(tmp_path / "logits.safetensors", len(LABELS), ["test", "validation"])


def test_a_pipe_or_a_device_is_never_replaced(tmp_path):
    """As root, `--output /dev/null` would replace the device by a file."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"), atomic_write(tmp_path / "pipe") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "pipe").is_fifo()


def test_leftovers_are_known_by_the_number_of_their_process(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for kind in ("backup", "9" * 30, str(dead.pid)):
        (tmp_path / f".out.csv.{kind}.tmp").write_text("x")
    with atomic_write(tmp_path / "out.csv") as temporary:
        temporary.write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".out.csv.backup.tmp", f".out.csv.{'9' * 30}.tmp", "out.csv"]
    )


def test_a_line_of_standard_input_takes_linear_time(monkeypatch):
    read, write = os.pipe()
    line = b"a" * 40_000_000
    writer = subprocess.Popen([sys.executable, "-c", f"print('a' * {len(line)}, end='\\nb\\nc')"], stdout=write)
    os.close(write)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: read))
    started = time.process_time()
    assert [line for lines in predict.read_available_lines() for line in lines] == [line, b"b", b"c"]
    assert time.process_time() - started < 5  # a tenth of that; ten seconds when each piece copied all before it
    writer.wait()
    os.close(read)


def count_characters(texts: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"length": texts.str.len()})


SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)
ENTITIES = "<!DOCTYPE x [<!ENTITY a0 'aaaaaaaaaa'>{}]>".format(
    "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10))
)


def cell(place: str, text: str) -> str:
    return f'<row r="{place.lstrip("ABCDEFX")}"><c r="{place}" t="inlineStr"><is><t>{text}</t></is></c></row>'


HOSTILE_SHEETS = {
    "entities": (ENTITIES + SHEET.format(cell("A1", "text") + cell("A2", "&a9;")), "cannot be read as .xlsx"),
    "far cell": (
        SHEET.format(cell("A1", "text") + cell("XFD1048576", "x")),
        "row 1048576: 16384 cells, but the header has 1",
    ),
    "no end": (SHEET.format(cell("A1", "text"))[:-20], "cannot be read as .xlsx"),
}


@pytest.mark.parametrize("name", HOSTILE_SHEETS)
def test_a_hostile_excel_file_is_refused(tmp_path, name):
    content, message = HOSTILE_SHEETS[name]
    workbook = io.BytesIO()
    openpyxl.Workbook().save(workbook)
    with zipfile.ZipFile(workbook) as whole, zipfile.ZipFile(tmp_path / "in.xlsx", "w") as changed:
        for part in whole.namelist():
            changed.writestr(part, content if part.endswith("sheet1.xml") else whole.read(part))
    with pytest.raises(UserError, match=message):
        add_columns(tmp_path / "in.xlsx", tmp_path / "out.csv", "text", ["length"], count_characters)
    assert not (tmp_path / "out.csv").exists()
