"""Saved points: where a training that was killed goes on, and ends with the bytes of one that was not.

They lie in a scratch folder that git and DVC do not know, since DVC deletes a stage's outs before it runs the stage. A
point is used only by a run with the same parameters, data, code, libraries and hardware.
"""

import fcntl
import hashlib
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from safetensors.torch import load_file, save_file

from stages.common.core.console import warn
from stages.common.core.exceptions import UserError
from stages.common.core.files import atomic_write, read_json, sha256, write_json
from stages.common.modeling.distributed import Processes

KEPT = 2  # points; the one before is used where the last is damaged


class SavedPoints:
    """The points of one run, at most one in `every` seconds (0: only when a signal asks), in a folder of its own.

    `circumstances` are JSON values by name; points that were saved under others are dropped with a warning.
    """

    def __init__(self, folder: Path, circumstances: dict[str, Any], every: float, processes: Processes) -> None:
        self._every, self._processes = every, processes
        self._last, self._signal = time.monotonic(), 0
        digest = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
        self._runs, self._folder = folder, folder / digest
        if processes.is_main:
            self._lock = self._locked(folder / "lock")
            for other in sorted(folder.glob("*")):
                if other not in (self._folder, folder / "lock"):
                    self._drop(other, circumstances)
            write_json(self._folder / "circumstances.json", circumstances)

    @staticmethod
    def _locked(path: Path) -> IO[str]:
        """An open file, locked until it is closed: a `dvc repro` that is killed leaves its training running."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"{path}: a training of this run is under way; wait for it to end, or end it") from error
        return file

    @staticmethod
    def _drop(other: Path, circumstances: dict[str, Any]) -> None:
        try:
            before = read_json(other / "circumstances.json")
            changed = [name for name, value in circumstances.items() if before.get(name) != value]
        except Exception:  # whatever lies there is of no use
            changed = ["all"]
        warn(f"{other}: saved under other circumstances ({', '.join(changed)}); this training starts afresh")
        shutil.rmtree(other, ignore_errors=True)

    def latest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last whole point that every process has; a damaged one is set aside."""
        last = self._last_whole() if self._processes.is_main else 0
        steps = int(self._processes.most(torch.tensor(last, device=self._processes.device)))
        path = next(self._folder.glob(f"{steps:09d}-*.safetensors"), None)
        has = torch.tensor(path is not None and self._is_whole(path), device=self._processes.device)
        everyone_has = all(self._processes.all(has))  # another machine may not see this one's folder
        if path is None or not everyone_has:
            return None
        tensors = load_file(path)
        return tensors, json.loads(bytes(tensors.pop("facts").tolist()))

    @staticmethod
    def _is_whole(path: Path) -> bool:
        return sha256(path) == path.stem.partition("-")[2]

    def _last_whole(self) -> int:
        """Steps of the last whole point, 0 if there is none. For one process, since it renames what is damaged."""
        for path in sorted(self._folder.glob("*.safetensors"), reverse=True):
            if self._is_whole(path):
                return int(path.stem.partition("-")[0])
            warn(f"{path}: is damaged and set aside; the point before is used, if there is one")
            path.rename(path.with_suffix(".damaged"))
        return 0

    def save(self, steps: int, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Write the point after `steps`, then forget all but the last `KEPT`. Of several processes one writes."""
        if self._processes.is_main:
            text = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
            named = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            new = self._folder / "new"
            with atomic_write(new) as temporary:
                save_file({**named, "facts": text}, temporary)
            new.rename(self._folder / f"{steps:09d}-{sha256(new)}.safetensors")
            for path in sorted(self._folder.glob("*.safetensors"))[:-KEPT]:
                path.unlink()
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget the run: it has ended well."""
        shutil.rmtree(self._runs, ignore_errors=True)

    def wanted(self) -> tuple[bool, int]:
        """Whether to save now, and the signal, if any, that asks to stop; every process hears the same."""
        due = self._processes.is_main and 0 < self._every <= time.monotonic() - self._last
        asked = torch.tensor([float(due), float(self._signal)], device=self._processes.device)
        due_or_not, number = self._processes.most(asked).tolist()
        return bool(due_or_not or number), int(number)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within, SIGTERM and Ctrl-C ask to save and stop. Launchers pass one on twice: more change nothing."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._signal = self._signal or number

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
