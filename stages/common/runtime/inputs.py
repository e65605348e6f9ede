"""What a stage reads is what DVC records: nothing of it may change while the stage runs.

DVC hashes the dependencies of a stage and reads its parameters after the stage has run. Without this check an edit of
params.yaml or of a corpus during a stage would be recorded, in dvc.lock and in DVC's run cache, as what was used.
"""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from stages.common.runtime.console import short_repr
from stages.common.runtime.paths import PARAMS

DVC_YAML = Path("dvc.yaml")


class InputChangedError(Exception):
    """Something that the stage reads was changed while it ran; the text names it."""


def _read_params() -> Any:
    try:
        return yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # `load_params` says what is wrong.


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _flatten(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield each value of a section with its dotted key."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _names(entries: Iterable[Any]) -> list[str]:
    """The paths or keys of a list in dvc.yaml, some of which have options."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _list_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        # Excel's lock files, which come and go, are called ~$NAME.xlsx.
        yield from (Path(folder, name) for name in files if not name.startswith((".", "~$")))


def _state(path: Path) -> object:
    """Of code the hash, since editors and git write it again as it was; of data size and time of the last change."""
    try:
        if path.suffix == ".py":
            return hashlib.sha256(path.read_bytes()).digest()
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None


def _is_deleted_by_dvc(out: Any) -> bool:
    """Whether DVC deletes an output before it runs the stage."""
    return not (isinstance(out, dict) and any(options.get("persist") for options in out.values()))


class StageInputs:
    """The dependencies and parameters that dvc.yaml lists for a stage, as they are now.

    Args:
        name: The stage. A stage that runs once for each cell of a matrix has the cell on its command line.
    """

    def __init__(self, name: str) -> None:
        self._name, self._params = name, _read_params()
        self._item = {key.lstrip("-").replace("-", "_"): value for key, value in pairwise(sys.argv)}
        stage = yaml.safe_load(DVC_YAML.read_text(encoding="utf-8"))["stages"].get(name, {})
        self._keys = _names(stage.get("params", []))
        self._paths = [self._resolve(path) for path in _names(stage.get("deps", []))]
        self._outs = [
            self._resolve(path)
            for path in _names(filter(_is_deleted_by_dvc, stage.get("outs", []) + stage.get("metrics", [])))
        ]
        self._states = self._read_states()

    def _resolve(self, path: str) -> Path:
        """Put the values of parameters and of the cell into a path of dvc.yaml."""
        values = {**(self._params if isinstance(self._params, dict) else {}), "item": self._item}
        return Path(re.sub(r"\$\{([^}]+)\}", lambda found: str(_get(values, found[1])), path))

    def _read_states(self) -> dict[Path, object]:
        return {file: _state(file) for path in self._paths for file in _list_files(path)}

    def _find_change(self) -> str | None:
        now = _read_params()
        for key in self._keys:
            part = "" if key == PARAMS.name else key  # A stage may depend on all of params.yaml.
            before, after = (dict(_flatten(_get(each, part) if part else each, part)) for each in (self._params, now))
            for name in {**before, **after}:
                if before.get(name) != after.get(name):
                    values = f"from {short_repr(before.get(name))} to {short_repr(after.get(name))}"
                    return f"{PARAMS}: {name} changed {values}"
        states = self._read_states()
        changed = [file for file in {**self._states, **states} if self._states.get(file) != states.get(file)]
        return f"{changed[0]}: changed" if changed else None

    def check(self) -> None:
        """Check that everything is as it was.

        Raises:
            InputChangedError: It is not. The outputs, which DVC must not record, have been deleted.
        """
        if change := self._find_change():
            for out in self._outs:
                shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
            raise InputChangedError(f"{change} while {self._name} ran; run `dvc repro` again")


_inputs: StageInputs | None = None


def watch_inputs(name: str) -> None:
    """Remember what a stage is about to read, for `check_inputs`; without DVC nothing is recorded, nor checked."""
    global _inputs
    # Of several processes of a launcher, one checks.
    is_stage = "DVC_STAGE" in os.environ and os.environ.get("RANK", "0") == "0" and DVC_YAML.is_file()
    _inputs = StageInputs(name) if is_stage else None


def check_inputs() -> None:
    """Check that nothing that the stage reads has changed since it began.

    Raises:
        InputChangedError: Something has changed. The stage's outputs are deleted.
    """
    if _inputs:
        _inputs.check()
