"""Several processes train the same model as one process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.project import ROOT, prepare, run, run_tool

LAUNCHER = "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"


@pytest.fixture(scope="module")
def without_dropout(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a folder for training without dropout."""
    folder = tmp_path_factory.mktemp("processes")
    base = shutil.copytree(tiny_base_model, folder / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder, base)
    return folder


def history(folder: Path, method: str, launcher: str | None = None, **changed: object) -> list[dict[str, float]]:
    """Run a training stage, in this process unless there is a launcher, and return its history."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["run"]["launcher"] = launcher or "python"
    params["train"] |= {"dropout": 0.0, "epochs": 4, "schedule": "constant", "warmup_ratio": 0.0}
    params["train"] |= {"precision": "fp32", **changed}
    params["lora"]["dropout"] = 0.0
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.rmtree(folder / "data/runs", ignore_errors=True)
    arguments = ("--fold", "0", "--learning-rate", "0.02")
    if launcher:
        command = ("python", "-m", f"stages.train_{method}", *arguments)
        result = run(*command, cwd=folder, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("epoch") == 4, "one of the processes prints"
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run_tool(f"train_{method}", *arguments)
    assert (folder / f"data/runs/{method}/0-0.02/checkpoint/training.json").is_file()
    return json.loads((folder / f"data/runs/{method}/0-0.02/history.json").read_text())


def curves(rows: list[dict[str, float]]) -> np.ndarray:
    return np.array([[row["train_loss"], row["validation_loss"], row["macro_f1"]] for row in rows])


@pytest.mark.parametrize(("method", "shared"), [("full", (16, 4)), ("lora", (64, 1))])
def test_two_processes_give_the_curves_of_one(without_dropout, method, shared):
    batch_size, accumulated = shared  # 64 rows a step, and one in the last step, for two processes
    alone = history(without_dropout, method, batch_size=64, gradient_accumulation_steps=1)
    together = history(
        without_dropout, method, LAUNCHER, batch_size=batch_size, gradient_accumulation_steps=accumulated
    )
    assert json.loads((without_dropout / "metrics/split.json").read_text())["folds"][0]["train"]["rows"] % 64 == 1
    assert np.abs(curves(alone) - curves(together)).max() < 1e-4
    assert np.ptp(curves(alone), axis=0)[:2].min() > 0.01  # Losses change far more than the tolerance.
