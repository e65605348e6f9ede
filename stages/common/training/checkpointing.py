"""Checkpoints from which an interrupted training resumes, so that it ends with the same bytes as without interruption.

They are in a folder that neither git nor DVC tracks, since DVC deletes the outputs of a stage before it runs the stage.
A training uses only checkpoints with its own fingerprint: parameters, data, code, libraries and hardware.
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

LOCK_TIMEOUT_SECONDS = 30.0  # Time to wait for a training that is still saving its last checkpoint.


class CheckpointManager:
    """Save and load the checkpoints of one training. A lock prevents a second training of the same run.

    The checkpoints are in a subfolder of `folder` whose name is a hash of the fingerprint. Checkpoints with another
    fingerprint are deleted with a warning.

    Args:
        folder: A folder that only this run uses.
        fingerprint: Everything that decides the bytes of the run, as JSON values by name.
        distributed: The processes of the training. Only the main process deletes and writes files.
        max_to_keep: Number of checkpoints to keep. If the last one is damaged, the one before it is used.

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
        """Load the last undamaged checkpoint onto the CPU, or return None if not all processes can read one."""
        (step,) = self._distributed.max_over_processes([self._latest_step()])
        path = next(self._folder.glob(f"{int(step):09d}-*.pt"), None)
        # The processes may run on several machines that do not share the folder.
        (unreadable,) = self._distributed.max_over_processes([path is None or not _is_undamaged(path)])
        return None if path is None or unreadable else torch.load(path, map_location="cpu", weights_only=True)

    def _latest_step(self) -> int:
        if not self._distributed.is_main_process:
            return 0
        for path in sorted(self._folder.glob("*.pt"), reverse=True):
            if _is_undamaged(path):
                return int(path.stem.partition("-")[0])
            warn(f"{path}: the checkpoint is damaged; training resumes from the one before it, or starts anew")
            path.rename(path.with_suffix(".damaged"))
        return 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint and delete all but the last `max_to_keep`.

        Args:
            step: Number of training steps so far.
            state: The state of the training.

        Raises:
            InputChangedError: An input of the training has changed. If it is changed back, training resumes from here.
        """
        if not self._distributed.is_main_process:
            return
        new = self._folder / "new"
        with atomic_write(new) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # After a failed write torch closes its archive, which fails again.
                raise OSError(error.__context__ or error) from error
        new.rename(self._folder / f"{step:09d}-{sha256(new)}.pt")
        for path in sorted(self._folder.glob("*.pt"))[: -self._max_to_keep]:
            path.unlink()
        check_inputs()

    def delete(self) -> None:
        """Delete all checkpoints of the run."""
        shutil.rmtree(self._root, ignore_errors=True)


def _wait_for_lock(path: Path) -> IO[str]:
    """Lock a file. A training whose `dvc repro` was killed holds the lock until it has saved a checkpoint."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return lock_exclusively(path)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: another process is training this run; wait for it or stop it") from error
            time.sleep(0.1)


def _is_undamaged(path: Path) -> bool:
    return sha256(path) == path.stem.partition("-")[2]


def _delete_outdated(folder: Path, fingerprint: dict[str, Any]) -> None:
    try:
        before = read_json(folder / "fingerprint.json")
        changed = [name for name, value in fingerprint.items() if before.get(name) != value]
    except Exception:  # Anything may be in this folder, and none of it can be used.
        changed = ["everything"]
    warn(f"{folder}: training starts anew, and old checkpoints are deleted, since this changed: {', '.join(changed)}")
    shutil.rmtree(folder, ignore_errors=True)
