"""Every benchmark and generator script runs to its end with tiny input. The tests do not check its results."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.support.project import ROOT, stage_runner

SAMPLE = ROOT / "data/sample"
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("tests/benchmarks/*.py", "data/*/*.py", ".dvc/plots/*.py")
    for path in ROOT.glob(pattern)
    if path.name != "__init__.py"
)
# What a script needs that is not among the requirements.
PACKAGES = {"tests/benchmarks/tokenizer.py": "kobert_transformers", ".dvc/plots/make_page.py": "vl_convert"}
MODEL = ROOT / "data/kobert-mini"


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    """Write a Parquet file of reviews with ratings from 1 to 10."""
    files = sorted(SAMPLE.rglob("*.json"))[:8]
    texts = [row["RawText"] for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    path = tmp_path_factory.mktemp("reviews") / "reviews.parquet"
    pd.DataFrame({"review": texts, "rating": [1 + number % 10 for number in range(len(texts))]}).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def finished_project(trained_project, tmp_path_factory) -> Path:
    """Copy `trained_project`, and run the stages `audit` and `compare` in the copy."""
    folder = shutil.copytree(trained_project, tmp_path_factory.mktemp("finished"), dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage = stage_runner()
        stage("baselines", "--fold", 0, run__folds=[0], full__learning_rates=[0.01], lora__learning_rates=[0.05])
        for name in ("audit", "compare"):
            stage(name, compare__bootstrap_samples=100)
    return folder


def test_every_script_has_a_case():
    assert sorted([*CASES, "data/sample/generate.py"]) == SCRIPTS, "the last is run by tests/test_sample.py"


# Of each script the arguments of its runs, given the reviews and a new folder.
Arguments = Callable[[Path, Path], list[list[str]]]
CASES: dict[str, Arguments] = {
    ".dvc/plots/make_page.py": lambda reviews, new: [["--output", f"{new}.html"]],
    "data/kobert-mini/pretrain.py": lambda reviews, new: [
        [
            *("--corpus", f"{reviews}", "--exclude", "raw", "--output", f"{new}", "--tokens", "0.01"),
            *("--batch", "500", "--vocabulary", "1500", "--layers", "1", "--hidden", "64"),
        ]
    ],
    "tests/benchmarks/audit.py": lambda reviews, new: [["--output", f"{new}.txt"], ["--before", "."]],
    "tests/benchmarks/coverage.py": lambda reviews, new: [
        ["--replications", "2", "--folds", "3", "--truth-draws", "3000"]
    ],
    "tests/benchmarks/nsmc.py": lambda reviews, new: [
        [f"{reviews}", f"{new}", "--train-rows", "60", "--test-rows", "20"]
    ],
    "tests/benchmarks/scale.py": lambda reviews, new: [
        ["--rows", "120", "--reviews", f"{reviews}", "--formats", "csv", "--output", f"{new}.json"]
    ],
    "tests/benchmarks/serving.py": lambda reviews, new: [["--texts", "20", "--rounds", "1", "--formats", "ONNX, int8"]],
    "tests/benchmarks/tokenizer.py": lambda reviews, new: [["--files", f"{MODEL}", "--reviews", f"{reviews}"]],
    "tests/benchmarks/training.py": lambda reviews, new: [
        ["--sizes", "2x128", "--methods", "lora", "--rounds", "1", "--contenders", "ours", "--output", f"{new}.json"]
    ],
}


@pytest.mark.parametrize("script", sorted(CASES))
def test_a_script_runs_to_its_end(script, reviews, finished_project, tmp_path, monkeypatch):
    package = PACKAGES.get(script)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; the script's docstring says how to install it")
    # Training reads the sample of this checkout, others what a finished project has.
    monkeypatch.chdir(ROOT if script.endswith("training.py") else finished_project)
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", search_path)
    for arguments in CASES[script](reviews, tmp_path / "new"):
        if script.startswith("tests/"):  # Modules run in this process, which has imported torch already.
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()
        else:
            subprocess.run([sys.executable, ROOT / script, *arguments], check=True)
