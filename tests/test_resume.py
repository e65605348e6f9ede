"""A killed training resumes and ends with the same bytes.

The environment variable `SOAK_KILLS` sets the number of kills: `SOAK_KILLS=50 pytest tests/test_resume.py -k killed`.
"""

import hashlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from stages.common.artifacts.files import write_json
from stages.common.artifacts.folds import read_fold
from stages.common.modeling.dataset import TokenizedDataset, read_dataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.runtime.exceptions import TrainingInterrupted, UserError
from stages.common.runtime.paths import fold_path
from stages.common.training import checkpointing
from stages.common.training.checkpointing import CheckpointManager
from stages.common.training.interruption import SaveDecision, SavePolicy
from stages.common.training.out_of_memory import report_out_of_memory
from stages.common.training.trainer import Trainer, TrainResult
from stages.common.training.training_step import TrainingStep, WeightedBatch
from tests.support.project import ROOT, prepare, run_tool
from tests.support.training import build, train_params

KILLS = int(os.environ.get("SOAK_KILLS", 3))
RUN = "0-0.003"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def prepared(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a folder for a training of a few seconds."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder, tiny_base_model)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"] |= {"epochs": 100, "patience": 0}
    params["run"]["save_interval_seconds"] = 0.05
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    return folder


def start(folder: Path, method: str) -> subprocess.Popen[str]:
    shutil.rmtree(folder / "data/runs", ignore_errors=True)  # DVC does this too.
    command = [sys.executable, "-m", f"stages.train_{method}", "--fold", "0", "--learning-rate", "0.003"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(folder: Path, method: str) -> tuple[dict[str, str], str]:
    """Finish a training, and return the hashes of its outputs and its standard error."""
    process = start(folder, method)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not (folder / "data/checkpoints" / method / RUN).exists()
    return hashes(folder, method), errors


def hashes(folder: Path, method: str) -> dict[str, str]:
    out = folder / "data/runs" / method / RUN
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_after_first_epoch(folder: Path, method: str, number: signal.Signals, seconds: float) -> tuple[int, str]:
    """Start a training and send it a signal so many seconds after its first epoch; status and standard error."""
    process = start(folder, method)
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize("method", ["full", "lora"] if KILLS > 3 else ["full"])
def test_a_killed_training_ends_with_the_bytes_of_an_uninterrupted_one(prepared, method):
    uninterrupted, errors = finish(prepared, method)
    assert "resuming" not in errors
    draw, resumed = random.Random(method), 0
    for kill in range(KILLS):
        sent = SIGNALS[kill % len(SIGNALS)]
        status, errors = kill_after_first_epoch(prepared, method, sent, draw.uniform(0, 0.6))
        resumed += "training resumes after step" in errors
        if (prepared / "data/runs" / method / RUN).exists():  # The training ended before the signal.
            assert hashes(prepared, method) == uninterrupted
        elif sent == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + sent
            assert "saved a checkpoint; `dvc repro` resumes from it" in errors
            assert "Traceback" not in errors
    resumed_hashes, errors = finish(prepared, method)
    assert resumed or "training resumes after step" in errors
    assert resumed_hashes == uninterrupted


@dataclass(frozen=True)
class Project:
    """The inputs of a training."""

    base_model: Path
    train: TokenizedDataset
    validation: TokenizedDataset


@pytest.fixture
def project(tiny_base_model, prepared, monkeypatch) -> Project:
    monkeypatch.chdir(prepared)
    dataset = read_dataset()
    fold = read_fold(fold_path(0), len(dataset))
    return Project(tiny_base_model, dataset.take(fold.train), dataset.take(fold.validation))


ALONE = DistributedContext(rank=0, world_size=1, device=torch.device("cpu"))


def manager(folder: Path, **fingerprint: object) -> CheckpointManager:
    return CheckpointManager(folder, fingerprint, ALONE)


def train(
    project: Project, checkpoints: CheckpointManager | None, precision: str = "fp32"
) -> tuple[TrainResult, torch.Tensor]:
    """Train 12 epochs, save a checkpoint every 20 ms, stop at SIGTERM, and return the result and all weights."""
    model = build(project.base_model, "lora")
    policy = SavePolicy(0.02, ALONE)
    params = train_params(epochs=12, precision=precision)
    with policy.handle_signals():
        trainer = Trainer(model, project.train, project.validation, params, 0.01, 42, ALONE, checkpoints, policy)
        result = trainer.train()
    return result, torch.cat([p.detach().flatten() for p in model.parameters()])


def interrupt(project: Project, folder: Path, precision: str = "fp32", **fingerprint: object) -> None:
    """Train, and send SIGTERM as soon as there are two checkpoints in `folder`."""
    ended = threading.Event()

    def send_signal() -> None:
        while len(list(folder.glob("*/*.pt"))) < 2:
            if ended.wait(0.002):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send_signal)
    sender.start()
    try:
        with pytest.raises(TrainingInterrupted, match=r"stopped after step .* saved a checkpoint"):
            train(project, manager(folder, **fingerprint), precision)
    finally:
        ended.set()
        sender.join()


def test_a_training_in_fp16_resumes_with_the_scale_of_its_loss(project, tmp_path, capsys, monkeypatch):
    scaler = torch.amp.GradScaler  # One whose scale changes all the time: it grows after three steps without overflow.
    options = {"init_scale": 2.0**24, "growth_interval": 3}
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **given: scaler(*args, **options, **given))
    uninterrupted = train(project, None, "fp16")
    interrupt(project, tmp_path, "fp16")
    resumed = train(project, manager(tmp_path), "fp16")
    captured = capsys.readouterr()
    assert "training resumes after step" in captured.err
    assert "steps skipped so far" in captured.out
    assert resumed[0] == uninterrupted[0]
    assert torch.equal(resumed[1], uninterrupted[1])


def _allocate_petabyte() -> None:
    torch.empty(2**50)


def _fail_as_cuda_does() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _fail_as_a_capture_does() -> None:
    try:
        _fail_as_cuda_does()
    finally:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("run_out", [_allocate_petabyte, _fail_as_cuda_does, _fail_as_a_capture_does])
def test_running_out_of_memory_ends_in_one_line_and_the_checkpoint_stays(
    prepared, tmp_path, monkeypatch, capsys, run_out
):
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "copy"))
    step, numbers = TrainingStep.__call__, itertools.count()

    def train_until_memory_is_out(self: TrainingStep, batches: list[WeightedBatch]) -> torch.Tensor:
        if next(numbers) == 30:
            run_out()
        return step(self, batches)

    monkeypatch.setattr(SavePolicy, "poll", lambda self: SaveDecision(save_now=True, signal_number=0))
    monkeypatch.setattr(TrainingStep, "__call__", train_until_memory_is_out)
    with pytest.raises(SystemExit) as exit_info:
        run_tool("train_full", "--fold", 0, "--learning-rate", 0.003)
    message = str(exit_info.value)
    assert "halve train.batch_size (16) and double train.gradient_accumulation_steps (1)" in message
    assert "\n" not in message
    monkeypatch.setattr(TrainingStep, "__call__", lambda self, batches: exit("step"))
    with pytest.raises(SystemExit, match="step"):
        run_tool("train_full", "--fold", 0, "--learning-rate", 0.003)
    assert "training resumes after step" in capsys.readouterr().err


def test_an_error_that_is_not_about_memory_stays_as_it_is():
    with pytest.raises(RuntimeError, match="shapes"), report_out_of_memory(train_params()):
        raise RuntimeError("shapes do not match")


def test_the_checkpoint_before_a_damaged_one_is_used(project, tmp_path, capsys):
    uninterrupted = train(project, None)
    interrupt(project, tmp_path)
    saved = sorted(tmp_path.glob("*/*.pt"))
    assert len(saved) == 2
    with saved[1].open("r+b") as file:
        file.seek(saved[1].stat().st_size // 2)
        file.write(b"damage")
    resumed = train(project, manager(tmp_path))
    errors = capsys.readouterr().err
    assert f"{saved[1].name}: the checkpoint is damaged" in errors
    assert "training resumes after step" in errors
    assert resumed[0] == uninterrupted[0]
    assert torch.equal(resumed[1], uninterrupted[1])


def test_truncated_checkpoints_are_not_used(project, tmp_path):
    """A power cut may truncate them if the disk ignores fsync."""
    interrupt(project, tmp_path)
    for path in tmp_path.glob("*/*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    (path.parent / "new").write_bytes(b"half")
    assert manager(tmp_path).latest() is None
    assert len(list(tmp_path.glob("*/*.damaged"))) == 2


def test_checkpoints_with_another_fingerprint_are_deleted(project, tmp_path, capsys):
    interrupt(project, tmp_path, data="a", code="b")
    assert manager(tmp_path, data="a", code="b").latest()
    other = manager(tmp_path, data="a", code="c")
    assert "training starts anew, and old checkpoints are deleted, since this changed: code" in capsys.readouterr().err
    assert other.latest() is None
    assert not list(tmp_path.glob("*/*.pt"))


def test_nothing_is_left_when_a_training_has_ended(tmp_path):
    checkpoints = manager(tmp_path / "run", data="a")
    checkpoints.save(1, {"model": {}})
    checkpoints.delete()
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getppid()):
        (tmp_path / f".a.json.{pid}.tmp").write_text("half")
    write_json(tmp_path / "a.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", f".a.json.{os.getppid()}.tmp"}


HOLD_LOCK = """
import sys
from pathlib import Path
from stages.common.artifacts.files import lock_exclusively

lock = lock_exclusively(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_training_of_the_same_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "LOCK_TIMEOUT_SECONDS", 0)
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is training this run"):
            manager(tmp_path, data="a")
        first.communicate()
    manager(tmp_path, data="a").delete()
