"""Several runs of the matrices of training and baselines side by side; DVC alone would start one after the other.

The training cell that DVC starts runs, beside itself, all others that are missing, each in a process of its own, and
stores what is finished in DVC's run cache. When DVC comes to the other cells, it restores them from there. Since DVC
itself is asked which runs are missing, none is trained that is up to date or in the run cache.
"""

import io
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any, Literal, TextIO

from tqdm import tqdm

from stages.common.runtime.console import COLUMNS, warn
from stages.common.runtime.exceptions import TrainingInterrupted
from stages.common.runtime.threads import count_runs_that_fit

SUPERVISED = "STAGE_SUPERVISED"  # Environment variable of the processes that `train_side_by_side` starts.
POLL_SECONDS = 0.1
CELLS = re.compile(r"-m stages\.(train_\w+|baselines) ")  # In the commands of the cells that can run side by side.
# Linux's C library reads this when a process starts; large tensors in huge pages make a step up to 10% faster.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def end_with_supervisor() -> None:
    """Send this process SIGTERM as soon as the `train_side_by_side` that started it has ended, even if it was killed.

    It holds the other end of the standard input, which the operating system then closes.
    """
    if SUPERVISED not in os.environ:
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # `sys.stdin.read` would hold a lock that Python needs to exit.
            pass
        null = os.open(os.devnull, os.O_WRONLY)
        for output in (sys.stdout, sys.stderr):  # Nobody reads them any more, and printing would fail.
            os.dup2(null, output.fileno())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Training:
    """A run that is trained in a process of its own, and what it prints."""

    def __init__(self, name: str, arguments: list[str], slot: int) -> None:
        self.name, self.slot = name, slot
        environment, self._bar = {**HUGE_PAGES, **os.environ, SUPERVISED: "1"}, None
        if sys.stderr.isatty():
            environment[COLUMNS] = str(shutil.get_terminal_size().columns - len(name) - 3)
            self._bar = tqdm(total=0, bar_format="{desc}", position=slot, leave=False)
        # In a process group of its own it does not get Ctrl-C from the terminal as well as from this process.
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        outputs = ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        self._threads = [threading.Thread(target=self._forward, args=output) for output in outputs]
        for thread in self._threads:
            thread.start()

    def _forward(self, source: IO[bytes], target: TextIO) -> None:
        """Print each line with the run's name before it; what ends in a carriage return is the state of its bar."""
        for line in io.TextIOWrapper(source, errors="replace", newline=""):
            text = line.rstrip("\r\n")
            with suppress(OSError):  # The run goes on when nobody reads what it prints.
                if self._bar is not None and line.endswith("\r"):
                    self._bar.set_description_str(f"{self.name}: {text}")
                elif text:
                    tqdm.write(f"{self.name}: {text}", file=target)
                    target.flush()

    def close(self) -> None:
        """Print the rest of what the process printed, once it has ended."""
        for thread in self._threads:
            thread.join()
        if self._bar is not None:
            self._bar.close()


class _Matrix:
    """The cells of the matrices as DVC sees them; `cells` are its stages by name."""

    def __init__(self) -> None:
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # It would announce what `is_missing` only asks.
        self._repo = Repo()
        stages = (stage for stage in self._repo.index.stages if CELLS.search(stage.cmd or ""))
        self.cells: dict[str, Any] = {stage.name: stage for stage in stages}

    def is_missing(self, name: str) -> bool:
        """Whether DVC would train this run: it is neither up to date nor in the run cache."""
        from dvc.exceptions import DvcException
        from dvc.stage.cache import RunCacheNotFoundError
        from dvc_data.hashfile.hash_info import HashInfo

        cell = self.cells[name]
        try:
            with self._repo.lock:
                if not cell.changed():
                    return False
                if cell.changed_stage() or cell.changed_deps():
                    cell.save_deps()
                    for out in cell.outs:  # DVC would take what dvc.lock names for the outs of the new dependencies.
                        out.hash_info = HashInfo()
                self._repo.stage_cache.restore(cell, dry=True)
        except RunCacheNotFoundError:
            return True
        except DvcException as error:
            warn(f"{name}: is not trained beside other runs: {error}")
        return False

    def store(self, name: str) -> None:
        """Store a finished run in the run cache, under the dependencies that it had when it was started."""
        from dvc.exceptions import DvcException

        cell = self.cells[name]
        try:
            with self._repo.lock:
                if cell.changed_deps():  # It may have read what came after the check of `is_missing`.
                    return
                cell.save_outs()
                for out in cell.outs:
                    out.commit()
                self._repo.stage_cache.save(cell)
        except (DvcException, OSError) as error:
            warn(f"{name}: cannot be stored in DVC's run cache: {error}")


def train_side_by_side(own: str, arguments: list[str], parallel: int | Literal["auto"]) -> int:
    """Train the run of the cell `own` and, side by side with it, all others that are missing.

    Args:
        own: Name of the cell that DVC has started.
        arguments: With these Python trains the own run.
        parallel: Upper bound on the runs at a time; "auto": as many as fit this machine.

    Returns:
        The exit status of the own run. Another one that fails does so again, with its message, when DVC starts it.

    Raises:
        TrainingInterrupted: A signal arrived, or DVC was killed; all runs have saved a checkpoint.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    parent, stopping = os.getppid(), False
    running = [first := _Training(own, arguments, 0)]
    matrix = _Matrix()  # This takes half a second, in which the first run has begun.
    matrix.cells[own].save_deps()
    pending = [name for name in matrix.cells if name != own and parallel != 1 and matrix.is_missing(name)]
    limit = (count_runs_that_fit() if parallel == "auto" else parallel) if pending else 1
    while running:
        if os.getppid() != parent:
            received.append(signal.SIGTERM)
        if received and not stopping:
            stopping = True
            pending.clear()
            for training in running:
                training.process.send_signal(received[0])
        while pending and len(running) < limit:
            name = pending.pop(0)
            if matrix.is_missing(name):  # Its dependencies may have changed in the meantime.
                slot = min(set(range(limit)) - {training.slot for training in running})
                running.append(_Training(name, shlex.split(matrix.cells[name].cmd)[1:], slot))
        for training in [each for each in running if each.process.poll() is not None]:
            running.remove(training)
            training.close()
            if training.process.returncode == 0:
                matrix.store(training.name)
            elif not stopping:
                warn(f"{training.name}: ended with status {training.process.returncode}")
        time.sleep(POLL_SECONDS)
    if received:
        raise TrainingInterrupted(received[0], "")
    status = first.process.returncode
    return status if status >= 0 else 128 - status  # as shells do
