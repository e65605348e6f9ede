"""A stage fails if its inputs or parameters change while it runs; this is tested with DVC in a clone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.common.runtime.inputs import InputChangedError, StageInputs
from tests.support.corpus import SHIPPED_TEXT, records
from tests.support.dvc import DVC, change, status
from tests.support.project import ROOT, run

RATE = ("--fold", "0", "--learning_rate", "0.01")
ADAPTER = "data/runs/lora/0-0.01"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def repro_with_an_edit(root: Path, target: str, wait_for: str, edit: Callable[[], object]) -> tuple[int, str]:
    """Reproduce stages, and edit something as soon as there is a file of this pattern; status and standard error."""
    process = subprocess.Popen(
        [sys.executable, *DVC[1:], "repro", "--single-item", *target.split()],
        cwd=root,
        env={**os.environ, "PYTHONPATH": "", "PATH": PATH},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(root.glob(wait_for)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    edit()
    _, errors = process.communicate()
    return process.returncode, errors


def recorded(root: Path) -> str:
    """Return the contents of dvc.lock and of DVC's run cache."""
    runs = [path for path in (root / ".dvc/cache/runs").rglob("*") if path.is_file()]
    return "".join(path.read_text(encoding="utf-8") for path in (root / "dvc.lock", *runs))


def rank(root: Path) -> int:
    return json.loads((root / ADAPTER / "checkpoint/adapter_config.json").read_text(encoding="utf-8"))["r"]


def test_a_rank_that_changes_while_an_adapter_trains_is_recorded_for_no_other_adapter(repro):
    change(repro, train__epochs=60, run__save_interval_seconds=0.1)
    code, errors = repro_with_an_edit(
        repro, "train_lora@0-0.01", "data/checkpoints/lora/0-0.01/*/*.pt", lambda: change(repro, lora__r=16)
    )
    assert code != 0
    assert "error: params.yaml: lora.r changed from 8 to 16 while train_lora ran; run `dvc repro` again" in errors
    assert "Traceback" not in errors
    assert not (repro / ADAPTER).exists()
    assert "lora.r: 16" not in recorded(repro)

    change(repro, lora__r=8)
    result = run(*DVC, "repro", "--single-item", "train_lora@0-0.01", cwd=repro)
    assert "training resumes after step" in result.stderr, "what was trained is not lost if the change is undone"
    assert rank(repro) == 8
    change(repro, lora__r=16, train__epochs=1)
    assert run(*DVC, "repro", "--single-item", "train_lora@0-0.01", cwd=repro).returncode == 0
    assert rank(repro) == 16


def test_a_run_that_is_trained_beside_another_one_is_checked_too(repro):
    change(repro, train__epochs=60, run__save_interval_seconds=0.1, run__parallel=2)
    code, errors = repro_with_an_edit(
        repro,
        "train_full@0-0.001 train_lora@0-0.01",
        "data/checkpoints/lora/0-0.01/*/*.pt",
        lambda: change(repro, lora__r=16),
    )
    assert code == 0, errors
    assert "train_lora@0-0.01: error: params.yaml: lora.r changed from 8 to 16" in errors
    assert rank(repro) == 16, "its own cell has trained it again"
    assert not {"train_full@0-0.001", "train_lora@0-0.01"} & status(repro)


@pytest.fixture
def large_corpus(repro) -> Path:
    """Give the clone a corpus that takes seconds to ingest."""
    rows = [json.dumps(row, ensure_ascii=False) for row in records()] * 4000
    (repro / "data/large.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    change(repro, data__source="data/large.jsonl")
    return repro


def test_a_corpus_that_changes_while_it_is_read_is_not_recorded(large_corpus):
    def edit() -> None:
        with (large_corpus / "data/large.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(records()[0]) + "\n")

    code, errors = repro_with_an_edit(large_corpus, "ingest", "data/.ingested.arrow.*.tmp", edit)
    assert code != 0
    assert "error: data/large.jsonl: changed while ingest ran; run `dvc repro` again" in errors
    assert not (large_corpus / "data/ingested.arrow").exists()
    assert not (large_corpus / "metrics/ingest.json").exists()
    assert "data/large.jsonl" not in recorded(large_corpus)


def test_a_parameter_of_a_later_stage_may_be_edited(large_corpus):
    code, errors = repro_with_an_edit(
        large_corpus, "ingest", "data/.ingested.arrow.*.tmp", lambda: change(large_corpus, lora__r=16)
    )
    assert code == 0, errors
    assert "ingest" not in status(large_corpus)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Make a folder with dvc.yaml, params.yaml, and some inputs of stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", *RATE])
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "params.yaml").write_text(SHIPPED_TEXT, encoding="utf-8")
    for name in ("data/sample/a.json", "data/splits/0.arrow", "data/splits/1.arrow", "stages/train_lora.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("stage", "edit", "named"),
    [
        ("ingest", lambda: Path("data/sample/b.json").touch(), "data/sample/b.json: changed while ingest ran"),
        ("ingest", lambda: Path("data/sample/a.json").unlink(), "data/sample/a.json: changed while ingest ran"),
        ("ingest", lambda: change(Path(), data__source="b"), r"data\.source changed from 'data/sample' to 'b'"),
        ("split", lambda: change(Path(), split__seed=7), r"split\.seed changed from 42 to 7"),
        ("train_lora", lambda: Path("data/splits/0.arrow").write_text("xy"), r"data/splits/0\.arrow"),
        ("train_lora", lambda: Path("stages/train_lora.py").write_text("y"), r"stages/train_lora\.py"),
        ("report", lambda: change(Path(), run__folds=[0]), r"run\.folds changed from \[0, 1, 2\] to \[0\]"),
    ],
)
def test_what_changed_is_named_and_no_output_is_left(project, stage, edit, named):
    inputs = StageInputs(stage)
    out = Path(ADAPTER) if stage == "train_lora" else Path("data/ingested.arrow")
    out.mkdir(parents=True)
    edit()
    with pytest.raises(InputChangedError, match=named):
        inputs.check()
    assert out.exists() == (stage not in ("ingest", "train_lora"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda: change(Path(), full__learning_rates=[1e-5]),
        lambda: change(Path(), run__parallel=1),
        lambda: Path("params.yaml").write_text("# A comment.\n" + SHIPPED_TEXT),
        lambda: Path("data/splits/1.arrow").write_text("y"),  # This is another fold.
        lambda: Path("stages/train_lora.py").write_text("x"),  # Git does this when it returns to a commit.
        lambda: Path("data/sample/a.json").write_text("y"),  # This is an input of an earlier stage.
    ],
)
def test_what_the_stage_does_not_depend_on_may_change(project, edit):
    inputs = StageInputs("train_lora")
    edit()
    inputs.check()


def test_what_ingest_does_not_read_may_come_and_go(project):
    inputs = StageInputs("ingest")
    for name in ("~$a.xlsx", ".DS_Store"):
        Path("data/sample", name).touch()
    inputs.check()
