"""Checkpoints from which a killed training resumes and ends with the same bytes as one that ran through.

They are in a folder that is not tracked by git or DVC, since DVC deletes a stage's outs before it runs the stage. A
checkpoint is used only by a training with the same fingerprint: parameters, data, code, libraries and hardware.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import IO, Any

import torch

from stages.common.artifacts.files import atomic_write, lock_exclusively, read_json, sha256, write_json
from stages.common.modeling.distributed import DistributedContext
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.inputs import check_inputs

LOCK_TIMEOUT_SECONDS = 30.0


class CheckpointManager:
    """Saves and loads the checkpoints of one training. A lock keeps out a second training of the same run.

    The checkpoints are in a subfolder of `folder` whose name is a hash of the fingerprint. Those with another
    fingerprint are deleted with a warning.

    Args:
        folder: The folder of this run alone.
        fingerprint: Everything that decides the bytes of the run, as JSON values by name.
        distributed: Of several processes the main one deletes and writes.
        max_to_keep: The number of checkpoints to keep. If the last one is damaged, the one before it is used.

    Raises:
        UserError: Another training holds the lock.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], distributed: DistributedContext, max_to_keep: int = 2
    ) -> None:
        self._distributed, self._max_to_keep = distributed, max_to_keep
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
        self._root, self._folder = folder, folder / digest
        if distributed.is_main_process:
            lock = folder / "lock"
            self._lock = _wait_for_lock(lock)
            for other in sorted(folder.glob("*")):
                if other not in (self._folder, lock):
                    _delete_outdated(other, fingerprint)
            write_json(self._folder / "fingerprint.json", fingerprint)

    def latest(self) -> dict[str, Any] | None:
        """Load the last undamaged checkpoint onto the CPU; None if there is none that all processes can read."""
        (step,) = self._distributed.max_over_processes([self._latest_step()])
        path = next(self._folder.glob(f"{int(step):09d}-*.pt"), None)
        # Another machine may not see this one's folder.
        (unreadable,) = self._distributed.max_over_processes([path is None or not _is_undamaged(path)])
        return None if path is None or unreadable else torch.load(path, map_location="cpu", weights_only=True)

    def _latest_step(self) -> int:
        if not self._distributed.is_main_process:
            return 0
        for path in sorted(self._folder.glob("*.pt"), reverse=True):
            if _is_undamaged(path):
                return int(path.stem.partition("-")[0])
            warn(f"{path}: is damaged and not used; training resumes from the checkpoint before it, if there is one")
            path.rename(path.with_suffix(".damaged"))
        return 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after so many steps as a checkpoint, and delete all but the last `max_to_keep`.

        Raises:
            InputChangedError: What the training reads has changed. If it is changed back, training resumes from here.
        """
        if not self._distributed.is_main_process:
            return
        new = self._folder / "new"
        with atomic_write(new) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch closes its archive after a failed write, and fails again
                raise OSError(error.__context__ or error) from error
        new.rename(self._folder / f"{step:09d}-{sha256(new)}.pt")
        for path in sorted(self._folder.glob("*.pt"))[: -self._max_to_keep]:
            path.unlink()
        check_inputs()

    def delete(self) -> None:
        """Delete all checkpoints, since the training has ended."""
        shutil.rmtree(self._root, ignore_errors=True)


def _wait_for_lock(path: Path) -> IO[str]:
    """Lock a file. A training whose `dvc repro` was killed holds the lock until it has saved its checkpoint."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return lock_exclusively(path)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: another process is training this run; wait for it, or stop it") from error
            time.sleep(0.1)


def _is_undamaged(path: Path) -> bool:
    return sha256(path) == path.stem.partition("-")[2]


def _delete_outdated(folder: Path, fingerprint: dict[str, Any]) -> None:
    try:
        before = read_json(folder / "fingerprint.json")
        changed = [name for name, value in fingerprint.items() if before.get(name) != value]
    except Exception:  # whatever lies there is of no use
        changed = ["everything"]
    warn(f"{folder}: its checkpoints are deleted, since they were made with other {', '.join(changed)}")
    shutil.rmtree(folder, ignore_errors=True)
