"""Run cells of the training and baseline matrices side by side. DVC itself runs one cell after the other.

The first training cell that DVC starts runs itself and all other missing cells, each in a process of its own, and
stores every finished cell in DVC's run cache. When DVC comes to the other cells, it restores them from there. DVC
itself says which cells are missing, so a cell that is up to date or in the run cache does not run again.
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

SUPERVISED = "STAGE_SUPERVISED"  # Environment variable that `train_side_by_side` sets for its processes.
POLL_SECONDS = 0.1  # Time between two checks of the processes.
CELLS = re.compile(r"-m stages\.(train_\w+|baselines) ")  # Part of the command of a cell that can run beside others.
# The C library of Linux reads this when a process starts. Huge pages make a training step up to 10% faster.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def end_with_supervisor() -> None:
    """Send this process SIGTERM as soon as the process of `train_side_by_side` has ended, even if it was killed.

    That process holds the other end of the standard input, which the operating system closes when the process ends.
    """
    if SUPERVISED not in os.environ:
        return

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # `sys.stdin.read` would hold a lock that Python needs to exit.
            pass
        null = os.open(os.devnull, os.O_WRONLY)
        for output in (sys.stdout, sys.stderr):  # Nobody reads them any more, so printing would fail.
            os.dup2(null, output.fileno())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class _Training:
    """A run that is trained in a process of its own, whose output this process prints."""

    def __init__(self, name: str, arguments: list[str], slot: int) -> None:
        self.name, self.slot = name, slot
        environment, self._bar = {**HUGE_PAGES, **os.environ, SUPERVISED: "1"}, None
        if sys.stderr.isatty():
            environment[COLUMNS] = str(shutil.get_terminal_size().columns - len(name) - 3)
            self._bar = tqdm(total=0, bar_format="{desc}", position=slot, leave=False)
        else:
            print(f"{name}: starts", flush=True)
        # Ctrl-C reaches the process through this one only, not from the terminal as well.
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
        """Print each line after the name of the run. A line that ends in a carriage return updates the progress bar."""
        for line in io.TextIOWrapper(source, errors="replace", newline=""):
            text = line.rstrip("\r\n")
            with suppress(OSError):  # The run goes on even if nobody reads its output.
                if self._bar is not None and line.endswith("\r"):
                    self._bar.set_description_str(f"{self.name}: {text}")
                elif text:
                    tqdm.write(f"{self.name}: {text}", file=target)
                    target.flush()

    def close(self) -> None:
        """Print the rest of the output of the process, after it has ended."""
        for thread in self._threads:
            thread.join()
        if self._bar is not None:
            self._bar.close()


class _Matrix:
    """The cells of the matrices as DVC sees them. `cells` has the stages of DVC by name."""

    def __init__(self) -> None:
        from dvc.repo import Repo

        logging.getLogger("dvc").setLevel(logging.WARNING)  # DVC would announce runs that it does not restore.
        self._repo = Repo()
        stages = (stage for stage in self._repo.index.stages if CELLS.search(stage.cmd or ""))
        self.cells: dict[str, Any] = {stage.name: stage for stage in stages}

    def is_missing(self, name: str) -> bool:
        """Tell whether DVC would train this run, which is neither up to date nor in the run cache."""
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
                    # Otherwise DVC would look for the outputs in dvc.lock, which belong to the old dependencies.
                    for out in cell.outs:
                        out.hash_info = HashInfo()
                self._repo.stage_cache.restore(cell, dry=True)
        except RunCacheNotFoundError:
            return True
        except DvcException as error:
            warn(f"{name}: the run is not trained beside other runs: {error}")
        return False

    def store(self, name: str) -> None:
        """Store a finished run in the run cache, with the dependencies that it had when it was started."""
        from dvc.exceptions import DvcException

        cell = self.cells[name]
        try:
            with self._repo.lock:
                if cell.changed_deps():  # The run may have read dependencies that changed after `is_missing`.
                    return
                cell.save_outs()
                for out in cell.outs:
                    out.commit()
                self._repo.stage_cache.save(cell)
        except (DvcException, OSError) as error:
            warn(f"{name}: the run cannot be stored in DVC's run cache: {error}")


def train_side_by_side(own: str, arguments: list[str], parallel: int | Literal["auto"]) -> int:
    """Train the run of the cell `own` and, side by side with it, all other missing runs.

    Args:
        own: Name of the cell that DVC has started.
        arguments: Arguments of Python that train this run.
        parallel: Upper bound on the runs that are trained at the same time. "auto" trains as many as the machine can.

    Returns:
        The exit status of the run `own`. If another run fails, it fails again, with its message, when DVC starts it.

    Raises:
        TrainingInterrupted: A signal arrived, or DVC was killed. All runs have saved a checkpoint.
    """
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: received.append(number))
    parent, stopping = os.getppid(), False
    running = [first := _Training(own, arguments, 0)]
    matrix = _Matrix()  # This takes half a second, so the first run has been started before.
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
            if matrix.is_missing(name):  # The dependencies may have changed since the first check.
                slot = min(set(range(limit)) - {training.slot for training in running})
                running.append(_Training(name, shlex.split(matrix.cells[name].cmd)[1:], slot))
        for training in [each for each in running if each.process.poll() is not None]:
            running.remove(training)
            training.close()
            if training.process.returncode == 0:
                matrix.store(training.name)
            elif not stopping:
                warn(f"{training.name}: the run ended with exit status {training.process.returncode}")
        time.sleep(POLL_SECONDS)
    if received:
        raise TrainingInterrupted(received[0], "")
    status = first.process.returncode
    return status if status >= 0 else 128 - status  # This is the convention of shells.
