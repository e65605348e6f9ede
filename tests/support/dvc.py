"""Run DVC in a clone, and change the parameters of the clone."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.support.project import run

DVC = ("python", "-m", "dvc")


def copy_clone(clone: Path, folder: Path) -> Path:
    """Copy a clone with its Git repository and its DVC cache into `folder`, to a path with a space."""
    return shutil.copytree(clone, folder / "a clone", symlinks=True)


def ran(text: str) -> set[str]:
    """Return the stages that DVC ran, from its output."""
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def trained(text: str) -> set[str]:
    """Return the cells that were trained, from the names before the lines of their epochs."""
    return {line.partition(":")[0] for line in text.splitlines() if ": epoch " in line}


def status(root: Path) -> set[str]:
    """Return the stages that DVC would run."""
    from dvc.repo import Repo  # Starting DVC as a process of its own would take twice as long.

    with contextlib.chdir(root), Repo() as repo:
        return set(repo.status())


def change(root: Path, **changed: Any) -> None:
    """Change parameters, such as `train__epochs=1`."""
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for key, value in changed.items():
        section, _, leaf = key.partition("__")
        params[section][leaf] = value
    (root / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True, sort_keys=False), encoding="utf-8")


def commit(root: Path, message: str) -> None:
    for command in (["git", "add", "-A"], ["git", "commit", "-q", "--allow-empty", "-m", message]):
        assert run(*command, cwd=root).returncode == 0
