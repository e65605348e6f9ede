"""`stages.plan` estimates costs before any stage has run, and training refuses a disk that is too small."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from stages.common.runtime.disk import check_disk
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.threads import count_runs_that_fit
from stages.plan import estimate_costs, estimate_step_bytes
from tests.support.corpus import SHIPPED, SHIPPED_TEXT
from tests.support.hub import COMMIT, REPOSITORY, serving
from tests.support.memory import count_step_bytes
from tests.support.project import ROOT, run

MINI = ROOT / "data/kobert-mini"
KOBERT = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.fixture(scope="module")
def kobert(tmp_path_factory) -> Path:
    """Make a folder with a config.json that has the sizes of KoBERT, and without weights."""
    folder = tmp_path_factory.mktemp("kobert")
    config = json.loads((MINI / "config.json").read_text(encoding="utf-8")) | KOBERT
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_full_fine_tuning_of_kobert_with_16_reviews_of_256_tokens_fits_8_gb(kobert):
    for precision, most in (("fp32", 5e9), ("fp16", 4e9)):
        assert count_step_bytes(kobert, "full", precision, batch_size=16, length=256, on_gpu=True) < most


@pytest.mark.parametrize(
    ("size", "method", "precision", "on_gpu"),
    [
        ("kobert", "full", "fp16", True),
        ("kobert", "lora", "fp32", True),
        ("mini", "full", "fp32", False),
        ("mini", "lora", "bf16", False),
    ],
)
def test_the_memory_of_a_step_is_estimated_within_a_quarter(kobert, size, method, precision, on_gpu):
    from transformers import AutoConfig

    folder = kobert if size == "kobert" else MINI
    cost = estimate_costs(folder, SHIPPED)[method]
    element_bytes = 4 if precision == "fp32" else 2
    config = AutoConfig.from_pretrained(folder)
    estimate = estimate_step_bytes(config, method, cost.trainable, cost.total, 16, 256, element_bytes, on_gpu)
    counted = count_step_bytes(folder, method, precision, 16, 256, on_gpu)
    assert estimate == pytest.approx(counted, rel=0.25)


def test_the_parameters_of_kobert_are_those_that_are_known(kobert):
    costs = estimate_costs(kobert, SHIPPED)
    encoder, head = 91_596_288, 2_307
    assert costs["full"].trainable == costs["full"].total == encoder + head
    notebook = SHIPPED.model_copy(
        update={"lora": SHIPPED.lora.model_copy(update={"target_modules": ["query", "value"]})}
    )
    assert estimate_costs(kobert, notebook)["lora"].trainable == 294_912 + head


def plan(folder: Path, base_model: dict[str, str], **variables: str) -> tuple[str, str]:
    """Run the command in `folder`, where nothing else has run, and return standard output and error."""
    params = yaml.safe_load(SHIPPED_TEXT)
    params["base_model"] |= base_model
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    result = run("python", "-m", "stages.plan", cwd=folder, PYTHONPATH=str(ROOT), **variables)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def test_a_model_of_the_hub_is_described_without_its_weights(tiny_base_model, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny_base_model.iterdir()}
    with serving(files) as hub:
        environment = {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "NO_PROXY": "*", "HF_ENDPOINT": hub.url}
        environment |= {"HF_HUB_ETAG_TIMEOUT": "100", "HF_HUB_DOWNLOAD_TIMEOUT": "100"}  # Machines may be busy.
        model = {"hub_id": REPOSITORY, "revision": COMMIT}
        output, errors = plan(tmp_path, model, HF_HOME=str(tmp_path / "hf"), **environment)
        assert errors == ""
        assert hub.downloaded() == {"config.json"}
    assert re.search(rf"^download: \d+ MB from {REPOSITORY}$", output, re.MULTILINE)
    for line in ("runs: 6", "parameters:", "peak memory of a training step", "disk:", "run `dvc repro split`"):
        assert line in output


def test_a_model_that_is_here_needs_no_network(kobert, tmp_path):
    folder = shutil.copytree(kobert, tmp_path / "data/base_model")
    source = {"name": REPOSITORY, "revision": COMMIT, "sha256": {}}
    (folder / "base_model.json").write_text(json.dumps(source), encoding="utf-8")
    output, errors = plan(tmp_path, {"hub_id": REPOSITORY, "revision": COMMIT})
    assert "parameters: 91,598,595 with full fine-tuning" in output
    assert "warning" not in errors


@pytest.mark.parametrize(
    ("base_model", "reason"),
    [
        ({"hub_id": REPOSITORY, "revision": COMMIT}, "cannot be read from"),
        ({"folder": "data/no-such-model"}, "base_model.folder: data/no-such-model contains no config.json"),
    ],
)
def test_a_model_that_cannot_be_read_is_named_and_the_rest_is_said(tmp_path, base_model, reason):
    output, errors = plan(tmp_path, base_model)
    assert "runs: 6" in output
    (line,) = errors.splitlines()
    assert line.startswith("warning: the costs are not known: base_model.")
    assert reason in line


def test_auto_trains_one_run_at_a_time_on_a_gpu(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)
    assert count_runs_that_fit(1_000) > 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert count_runs_that_fit(1_000) == 1


def test_a_disk_that_cannot_hold_the_missing_runs_is_told_before_the_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/base_model").mkdir(parents=True)
    save_file({"weight": np.zeros(1_000_000, np.int8)}, tmp_path / "data/base_model/model.safetensors")
    usage = namedtuple("usage", "free")

    def check(free: float) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
        check_disk(SHIPPED)
        return capsys.readouterr().err

    assert check(50e6) == ""
    assert "3 runs of full fine-tuning still have to be trained, which take 4 MB each, and may take the same" in check(
        30e6
    )
    with pytest.raises(UserError, match=r"^data/runs: the disk has 20 MB free, but 3 runs .* fewer run\.folds"):
        check(20e6)
    for fold in SHIPPED.run.folds:
        (tmp_path / f"data/runs/full/{fold}-0.0002").mkdir(parents=True)
    assert check(1) == ""
