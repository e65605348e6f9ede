"""Copy the project, run its commands, and run its stages within the test process."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.corpus import SHIPPED_TEXT, records, write_corpus

ROOT = Path(__file__).resolve().parents[2]


def encode(folder: Path, texts: list[str], max_length: int = 64) -> list[list[int]]:
    """Return the token ids of each text from the tokenizer in `folder`."""
    from stages.common.pretrained.tokenizer import load_tokenizer

    return load_tokenizer(folder).encode(texts, max_length).input_ids.to_pylist()


def copy_project(target: Path) -> Path:
    """Copy all files that git does not ignore, with uncommitted changes but with the shipped parameters."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    (target / "params.yaml").write_text(SHIPPED_TEXT, encoding="utf-8")
    return target


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the virtual environment of the tests, without the hub unless `variables` allow it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def stage_runner() -> Callable[..., None]:
    """Return a function that runs a stage in the current folder, with the shipped parameters.

    Its keyword arguments, such as `train__epochs=1`, change parameters for this and all later calls.
    """
    params = yaml.safe_load(SHIPPED_TEXT)

    def run_stage(name: str, *arguments: object, **changed: Any) -> None:
        for key, value in changed.items():
            section, _, leaf = key.partition("__")
            params[section][leaf] = value
        Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True, sort_keys=False), encoding="utf-8")
        run_tool(name, *arguments)

    return run_stage


def run_tool(name: str, *arguments: object) -> None:
    """Run the `main` of a script with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        importlib.import_module(f"stages.{name}").main()


def prepare(folder: Path, base_model: Path, **changed: Any) -> Callable[..., None]:
    """Run all stages before training on `records` in `folder`, the current one, and return a runner of later stages."""
    stage = stage_runner()
    stage("base_model", base_model__folder=str(base_model))
    stage("ingest", data__source=str(write_corpus(folder / "raw", records())))
    for name in ("filter", "clean_and_tokenize", "split"):
        stage(name, tokenize__max_length=64, **changed)
    return stage
