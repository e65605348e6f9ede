"""Runs of the matrix side by side, by real DVC in a clone.

The environment variable `SOAK_KILLS` sets the number of kills: `SOAK_KILLS=50 pytest tests/test_parallel.py -k killed`.
"""

import contextlib
import hashlib
import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import save_file

from stages.common.runtime import threads
from tests.support.dvc import DVC, change, ran, trained
from tests.support.project import run

KILLS = int(os.environ.get("SOAK_KILLS", 4))
FULL = [f"train_full@{fold}-0.001" for fold in range(2)]
LORA = [f"train_lora@{fold}-0.01" for fold in range(2)]
REPRO = (*DVC, "repro", "train_full", "train_lora")


def edit_training(root: Path) -> None:
    """Edit the training code so that every run is trained again and gives the same bytes."""
    with (root / "stages/common/training/trainer.py").open("a", encoding="utf-8") as file:
        file.write(f"# {time.time_ns()}\n")  # This differs from earlier edits.


def hashes(root: Path) -> dict[str, str]:
    files = [path for path in sorted((root / "data/runs").rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def matrix(repro) -> Path:
    """The clone with two folds, none of whose runs is there; two runs may be trained at the same time."""
    change(repro, run__folds=[0, 1], run__parallel=2, train__epochs=3)
    return repro


def run_in_terminal(*command: str, cwd: Path) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal, and return exit status, standard output and terminal output."""
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # It ends in one when the terminal is closed.
            while chunk := os.read(master, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    reader.join()
    os.close(master)
    return result.returncode, result.stdout, shown.decode(errors="replace")


def test_one_cell_trains_all_runs_and_dvc_restores_the_others(matrix):
    status, output, terminal = run_in_terminal(*REPRO, cwd=matrix)
    assert status == 0, terminal
    assert {name for name in ran(output) if name.startswith("train")} == {FULL[0]}
    assert trained(output) == {*FULL, *LORA}
    assert output.count("is cached - skipping run") == 3
    assert not list((matrix / "data/checkpoints").rglob("*.pt"))
    for name in (*FULL, *LORA):
        assert re.search(rf"{name}: +\d+%\|.*step/s", terminal), "each run has a bar"
    side_by_side = hashes(matrix)
    change(matrix, run__parallel=1)
    result = run(*DVC, "repro", "--force", "--single-item", LORA[1], cwd=matrix)
    assert trained(result.stdout) == {LORA[1]}, result.stderr
    assert hashes(matrix) == side_by_side, "the bytes of a run do not depend on what is trained beside it"


def test_a_run_that_fails_fails_its_own_cell_alone(matrix):
    change(matrix, lora__init="orthogonal", lora__r=3, run__folds=[0])  # That takes an even rank.
    result = run(*REPRO, cwd=matrix)
    assert result.returncode != 0
    assert trained(result.stdout) >= {FULL[0]}
    assert f"warning: {LORA[0]}: the run ended with exit status 1" in result.stderr
    assert f"{LORA[0]}: error: " in result.stderr
    assert f"failed to reproduce '{LORA[0]}'" in result.stderr
    assert "Traceback" not in result.stderr
    change(matrix, lora__r=8)
    result = run(*REPRO, cwd=matrix)
    assert result.returncode == 0, result.stderr
    assert trained(result.stdout) == {LORA[0]}


def test_a_temporary_experiment_trains_side_by_side(repro):
    changes = ("-S", "train.epochs=2", "-S", "run.parallel=2")
    result = run(*DVC, "exp", "run", "--temp", *changes, "train_full", "train_lora", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert {name for name in ran(result.stdout) if name.startswith("train")} == {FULL[0]}
    assert trained(result.stdout) == {FULL[0], LORA[0]}


def processes_in(root: Path) -> list[psutil.Process]:
    """Return the processes whose working folder is `folder`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == root.resolve():
                found.append(process)
    return found


def command_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class Repro:
    """`dvc repro` of all runs in the background, in a process group of its own, and its output."""

    def __init__(self, root: Path) -> None:
        self._root, self.lines = root, list[str]()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            REPRO,
            cwd=root,
            env={**os.environ, "PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self._reader.start()

    def wait_for_epochs(self, runs: int) -> None:
        """Wait until so many runs have printed an epoch, or until DVC has ended."""
        while len(trained("".join(self.lines))) < runs and self.process.poll() is None:
            time.sleep(0.05)

    def trainings(self) -> list[psutil.Process]:
        """Return the process that DVC has started, followed by the processes that train."""
        found = [process for process in processes_in(self._root) if "-m stages.train_" in command_of(process)]
        return sorted(found, key=lambda process: process.ppid() != self.process.pid)

    def end(self) -> str:
        """Wait until everything has ended, and return the output."""
        self.process.wait()
        deadline = time.monotonic() + 180  # They may still be importing PyTorch on a busy machine.
        while left := processes_in(self._root):
            assert time.monotonic() < deadline, f"left running: {[command_of(process) for process in left]}"
            time.sleep(0.05)
        self._reader.join()
        return "".join(self.lines)


def kill_everything(repro: Repro, root: Path) -> None:
    for process in processes_in(root):
        with contextlib.suppress(psutil.Error):
            process.kill()


def kill_dvc(repro: Repro, root: Path) -> None:
    repro.process.kill()


def kill_supervisor(repro: Repro, root: Path) -> None:
    for process in repro.trainings()[:1]:
        process.kill()


def press_ctrl_c(repro: Repro, root: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(repro.process.pid, signal.SIGINT)


ENDS: list[Callable[[Repro, Path], None]] = [kill_everything, press_ctrl_c, kill_supervisor, kill_dvc]


def wait_for(find: Callable[[], Any]) -> Any:
    """Wait until something is found, and return it."""
    deadline = time.monotonic() + 300
    while not (found := find()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def test_killed_runs_resume_and_nothing_is_left_running(matrix):
    change(matrix, train__epochs=25, run__save_interval_seconds=0.3, run__folds=[0, 1] if KILLS > 4 else [0])
    assert run(*REPRO, cwd=matrix).returncode == 0
    undisturbed = hashes(matrix)

    edit_training(matrix)
    repro = Repro(matrix)
    # It is looked for before it has a checkpoint, since it may end while all processes are searched.
    (beside,) = wait_for(lambda: [each for each in repro.trainings() if "train_lora --fold 0" in command_of(each)])
    wait_for(lambda: list((matrix / "data/checkpoints/lora/0-0.01").rglob("*.pt")))
    beside.kill()
    output = repro.end()
    assert repro.process.returncode == 0, output
    assert f"{LORA[0]}: the run ended with exit status -9" in output
    assert f"{LORA[0]}: training resumes after step" in output, "its own cell resumes it"
    assert hashes(matrix) == undisturbed

    edit_training(matrix)
    draw, resumed = random.Random(0), 0
    for kill in range(KILLS):
        repro, end = Repro(matrix), ENDS[kill % len(ENDS)]
        repro.wait_for_epochs(2)
        time.sleep(draw.uniform(0, 0.5))
        end(repro, matrix)
        output = repro.end()
        resumed += output.count("training resumes after step")
        if end is press_ctrl_c and repro.process.returncode:
            assert "saved a checkpoint; `dvc repro` resumes from it" in output
            assert "Traceback" not in output
        if not repro.process.returncode:  # Everything was trained before the kill.
            assert hashes(matrix) == undisturbed
            edit_training(matrix)
    repro = Repro(matrix)
    output = repro.end()
    assert repro.process.returncode == 0, output
    assert resumed or "training resumes after step" in output
    assert hashes(matrix) == undisturbed


@pytest.mark.parametrize(("parameters", "cores", "expected"), [(1, 64, 1), (26_000_000, 2, 1), (26_000_000, 64, 8)])
def test_threads_depend_on_the_machine_and_the_size_of_the_model(tmp_path, monkeypatch, parameters, cores, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    (tmp_path / "data/base_model").mkdir(parents=True)
    save_file({"weight": np.zeros(parameters, np.int8)}, tmp_path / "data/base_model/model.safetensors")
    threads.set_up_threads()
    assert os.environ["OMP_NUM_THREADS"] == str(expected)
    assert 1 <= threads.count_runs_that_fit() <= cores // expected
    for own_choice, set_to in (("3", "3"), ("0", str(expected))):
        monkeypatch.setenv("OMP_NUM_THREADS", own_choice)
        threads.set_up_threads()
        assert os.environ["OMP_NUM_THREADS"] == set_to
