"""Reading and writing files; a file or folder is written completely or not at all."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from stages.common.runtime.exceptions import UserError


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Flush a file, or the list of names in a folder, to the disk; otherwise a power cut could leave it empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # Some network drives cannot flush folders.
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left, since they would fill the disk."""
    pattern = f".{glob.escape(path.name)}.*"
    # If `path` is missing, the file .old holds its last content and must stay.
    suffixes = (".tmp", ".old") if path.exists() else (".tmp",)
    for leftover in (found for suffix in suffixes for found in path.parent.glob(pattern + suffix)):
        try:
            os.kill(int(leftover.name.split(".")[-2]), 0)
        except ProcessLookupError:
            _remove(leftover)
        except (PermissionError, ValueError, OverflowError):
            pass  # The process belongs to another user and is alive, or the file was not written by this module.


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file or folder written there replaces `path` when the block ends without an error.

    Raises:
        UserError: Writing failed, for example because the disk is full; `path` is unchanged.
    """
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # Root would replace /dev/null.
            raise OSError("it is neither a file nor a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.touch()
        mode = temporary.stat().st_mode  # The permissions that the umask of the user gives to a new file.
        temporary.unlink()
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            if written.is_file():  # safetensors creates files that only their owner can read.
                written.chmod(mode)
            _fsync(written)
        if path.is_dir():  # A folder cannot be renamed to the name of a folder that is not empty.
            path.rename(before)
        temporary.replace(path)
        _fsync(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        with suppress(OSError):  # The error that stopped the writing may also stop the removal.
            _remove(temporary)
            _remove(before)


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with Korean unescaped; NaN and infinity, which JSON does not have, raise a ValueError."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def lock_exclusively(path: Path) -> IO[str]:
    """Open and lock a file; the lock lasts until the file is closed or the process ends.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # POSIX allows a system to raise either of the two errors.
        raise BlockingIOError from error
    return file
