"""Real DVC in a clone."""

import json
from pathlib import Path
from typing import Any

from tests.support.project import run

DVC = ("python", "-m", "dvc")


def ran(text: str) -> set[str]:
    """The stages that DVC ran."""
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def status(root: Path) -> set[str]:
    """The stages that DVC would run."""
    result = run(*DVC, "status", "--json", cwd=root)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def commit(root: Path, message: str) -> None:
    for command in (["git", "add", "-A"], ["git", "commit", "-q", "--allow-empty", "-m", message]):
        assert run(*command, cwd=root).returncode == 0
