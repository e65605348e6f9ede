"""Files that are written as a whole or not at all."""

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
    """Write a file, or a folder's list of names, through to the disk: a power cut could leave it empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network drives flush no folders
            raise
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed; they would fill the disk."""
    pattern = f".{glob.escape(path.name)}.*"
    # Without the file itself, what it held before is not a leftover but the last copy.
    suffixes = (".tmp", ".old") if path.exists() else (".tmp",)
    for leftover in (found for suffix in suffixes for found in path.parent.glob(pattern + suffix)):
        try:
            os.kill(int(leftover.name.split(".")[-2]), 0)
        except ProcessLookupError:
            _remove(leftover)
        except (PermissionError, ValueError, OverflowError):
            pass  # another user's process is alive, or the file is none of ours


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder, which replaces `path` when the block ends without an error.

    Raises:
        UserError: the disk is full, for example, or the folder read-only; `path` is unchanged.
    """
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/null would become a file, for everybody
            raise OSError("it is neither a file nor a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        temporary.touch()
        mode = temporary.stat().st_mode  # that the user's umask gives a file
        temporary.unlink()
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            if written.is_file():  # safetensors creates files that nobody else may read
                written.chmod(mode)
            _fsync(written)
        if path.is_dir():  # a folder cannot be renamed over one that is not empty
            path.rename(before)
        temporary.replace(path)
        _fsync(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        with suppress(OSError):  # what hindered writing may hinder this
            _remove(temporary)
            _remove(before)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write readable, strict JSON: Korean as it is, no NaN."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file; a UserError says that it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def lock_exclusively(path: Path) -> IO[str]:
    """Open and lock a file; the lock lasts until the file is closed or the process ends.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # POSIX allows either of the two
        raise BlockingIOError from error
    return file
