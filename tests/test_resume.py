"""A training that is killed goes on where it was, to the same bytes.

The long form kills as often as `SOAK_KILLS` says: `SOAK_KILLS=50 pytest tests/test_resume.py -k killed`.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.modeling.classifier import add_lora, build_classifier
from stages.common.modeling.collator import Rows, read_rows
from stages.common.modeling.distributed import Processes
from stages.common.training.checkpointing import SavedPoints
from stages.common.training.trainer import Outcome, train
from tests.support.project import ROOT, prepare

KILLS = int(os.environ.get("SOAK_KILLS", 3))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def prepared(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder ready for a training of a few seconds."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder, tiny_base_model)
    set_train(folder, epochs=100, patience=0, save_every=0.05)
    return folder


def set_train(folder: Path, **changed: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"] |= changed
    params["full"]["learning_rate"] = 0.003
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))


def start(folder: Path, method: str) -> subprocess.Popen[str]:
    shutil.rmtree(folder / "data/runs", ignore_errors=True)  # as DVC does
    command = [sys.executable, "-m", f"stages.train_{method}", "42"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(folder: Path, method: str) -> tuple[dict[str, str], str]:
    """Hashes of what a training leaves, and its standard error."""
    process = start(folder, method)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not (folder / "data/scratch" / method / "42").exists()
    return hashes(folder, method), errors


def hashes(folder: Path, method: str) -> dict[str, str]:
    out = folder / "data/runs" / method / "42"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


def disturb(folder: Path, method: str, number: signal.Signals, seconds: float) -> tuple[int, str]:
    """Start a training and send it a signal so many seconds after its first epoch; status and standard error."""
    process = start(folder, method)
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize("method", ["full", "lora"] if KILLS > 3 else ["full"])
def test_a_killed_training_ends_with_the_bytes_of_an_undisturbed_one(prepared, method):
    undisturbed, errors = finish(prepared, method)
    assert "going on" not in errors
    draw, resumed = random.Random(method), 0
    for kill in range(KILLS):
        sent = SIGNALS[kill % len(SIGNALS)]
        status, errors = disturb(prepared, method, sent, draw.uniform(0, 0.6))
        resumed += "going on from epoch" in errors
        if (prepared / "data/runs" / method / "42").exists():  # the signal found nothing left to stop
            assert hashes(prepared, method) == undisturbed
        elif sent == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + sent
            assert "saved; `dvc repro` goes on from there" in errors
            assert "Traceback" not in errors
    disturbed, errors = finish(prepared, method)
    assert resumed or "going on from epoch" in errors
    assert disturbed == undisturbed


@pytest.fixture
def rows(prepared) -> tuple[Rows, Rows]:
    return read_rows(prepared / "data/splits/train.arrow"), read_rows(prepared / "data/splits/validation.arrow")


def points(folder: Path, **circumstances: object) -> SavedPoints:
    return SavedPoints(folder, circumstances, 0.02, Processes(0, 1, torch.device("cpu")))


def trained(base: Path, rows: tuple[Rows, Rows], saved: SavedPoints | None) -> tuple[Outcome, torch.Tensor]:
    params = load_params(ROOT / "params.yaml")
    model = add_lora(build_classifier(base, 0.1, 42), params.lora, 42)
    settings = params.train.model_copy(update={"epochs": 12, "patience": 0}).run(42)
    outcome = train(model, *rows, settings, 0.01, points=saved)
    return outcome, torch.cat([p.detach().flatten() for p in model.parameters()])


def stop_after(seconds: float, base: Path, rows: tuple[Rows, Rows], saved: SavedPoints) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with saved.on_signals(), pytest.raises(Stopped, match=r"stopped in epoch .*saved"):
        trained(base, rows, saved)
    timer.join()


def test_a_damaged_point_is_set_aside_for_the_one_before(tiny_base_model, rows, tmp_path, capsys):
    undisturbed = trained(tiny_base_model, rows, None)
    stop_after(0.4, tiny_base_model, rows, points(tmp_path))
    saved = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(saved) == 2
    with saved[1].open("r+b") as file:
        file.seek(saved[1].stat().st_size // 2)
        file.write(b"damage")
    again = trained(tiny_base_model, rows, points(tmp_path))
    errors = capsys.readouterr().err
    assert f"{saved[1].name}: is damaged and set aside" in errors
    assert "going on from epoch" in errors
    assert again[0] == undisturbed[0]
    assert torch.equal(again[1], undisturbed[1])


def test_a_point_is_saved_whole_or_not_at_all(tiny_base_model, rows, tmp_path):
    """Truncated files, as a power cut leaves them without fsync, and leftovers are no points."""
    stop_after(0.4, tiny_base_model, rows, points(tmp_path))
    for path in tmp_path.glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:1000])
    (path.parent / "new").write_bytes(b"half")
    assert points(tmp_path).latest() is None
    assert len(list(tmp_path.glob("*/*.damaged"))) == 2


def test_other_circumstances_start_afresh(tiny_base_model, rows, tmp_path, capsys):
    stop_after(0.3, tiny_base_model, rows, points(tmp_path, data="a", code="b"))
    assert points(tmp_path, data="a", code="b").latest()
    other = points(tmp_path, data="a", code="c")
    assert "other circumstances (code); this training starts afresh" in capsys.readouterr().err
    assert other.latest() is None
    assert not list(tmp_path.glob("*/*.safetensors"))
    other.remove()
    assert not tmp_path.exists()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getppid()):
        (tmp_path / f".a.json.{pid}.tmp").write_text("half")
    write_json(tmp_path / "a.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", f".a.json.{os.getppid()}.tmp"}


def test_one_training_of_a_run_at_a_time(tmp_path):
    held = points(tmp_path, data="a")
    command = f"from tests.test_resume import *; points(Path({str(tmp_path)!r}), data='a')"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    second = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
    assert "a training of this run is under way" in second.stderr
    held.remove()
