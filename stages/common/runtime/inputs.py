"""Check that no input of a stage changes while the stage runs, so that DVC records what the stage has read.

DVC hashes the dependencies of a stage and reads its parameters after the stage has run. If params.yaml or a corpus were
edited during the stage, dvc.lock and DVC's run cache would record the edited version as its input.
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
    """An input of the stage changed while it ran. The text names the input."""


def _read_params() -> Any:
    try:
        return yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # `load_params` reports the error.


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _flatten(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each parameter of a section."""
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flatten(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, values


def _names(entries: Iterable[Any]) -> list[str]:
    """Return the paths or keys of a list in dvc.yaml, without their options."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _list_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        # Excel creates and deletes lock files called ~$NAME.xlsx.
        yield from (Path(folder, name) for name in files if not name.startswith((".", "~$")))


def _state(path: Path) -> object:
    """Return what identifies the content of a file.

    This is the hash of code, since editors and git may write a file again without changes, and size and modification
    time of data, whose hash would take long.
    """
    try:
        if path.suffix == ".py":
            return hashlib.sha256(path.read_bytes()).digest()
        status = path.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None


def _is_deleted_by_dvc(out: Any) -> bool:
    """Tell whether DVC deletes an output before it runs the stage."""
    return not (isinstance(out, dict) and any(options.get("persist") for options in out.values()))


class StageInputs:
    """The current dependencies and parameters of a stage, as dvc.yaml lists them.

    Args:
        name: Name of the stage. If it has a matrix, the options of the command line are the values of the cell.
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
        """Replace the variables in a path of dvc.yaml by the values of parameters and of the cell."""
        values = {**(self._params if isinstance(self._params, dict) else {}), "item": self._item}
        return Path(re.sub(r"\$\{([^}]+)\}", lambda found: str(_get(values, found[1])), path))

    def _read_states(self) -> dict[Path, object]:
        return {file: _state(file) for path in self._paths for file in _list_files(path)}

    def _find_change(self) -> str | None:
        now = _read_params()
        for key in self._keys:
            part = "" if key == PARAMS.name else key  # A stage can depend on all of params.yaml.
            before, after = (dict(_flatten(_get(each, part) if part else each, part)) for each in (self._params, now))
            for name in {**before, **after}:
                if before.get(name) != after.get(name):
                    values = f"from {short_repr(before.get(name))} to {short_repr(after.get(name))}"
                    return f"{PARAMS}: {name} changed {values}"
        states = self._read_states()
        changed = [file for file in {**self._states, **states} if self._states.get(file) != states.get(file)]
        return f"{changed[0]}: changed" if changed else None

    def check(self) -> None:
        """Check that no input has changed.

        Raises:
            InputChangedError: An input has changed. The outputs have been deleted, so that DVC cannot record them.
        """
        if change := self._find_change():
            for out in self._outs:
                shutil.rmtree(out) if out.is_dir() and not out.is_symlink() else out.unlink(missing_ok=True)
            raise InputChangedError(f"{change} while {self._name} ran; run `dvc repro` again")


_inputs: StageInputs | None = None


def watch_inputs(name: str) -> None:
    """Remember the inputs of a stage for `check_inputs`. Without DVC nothing is recorded, so nothing is checked."""
    global _inputs
    # If a launcher starts several processes, one of them checks.
    is_stage = "DVC_STAGE" in os.environ and os.environ.get("RANK", "0") == "0" and DVC_YAML.is_file()
    _inputs = StageInputs(name) if is_stage else None


def check_inputs() -> None:
    """Check that no input of the stage has changed since it began.

    Raises:
        InputChangedError: An input has changed. The outputs of the stage have been deleted.
    """
    if _inputs:
        _inputs.check()
