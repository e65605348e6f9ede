"""A full disk and hostile files lead to an error of one line, and harm nothing."""

import ast
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.project import ROOT, prepare, run_tool

RUN = ("--fold", "0", "--learning-rate", "0.001")


@pytest.fixture
def project(tiny_base_model, tmp_path, monkeypatch) -> Path:
    """Prepare a folder for training."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_base_model, train__epochs=3, train__patience=0, run__save_interval_seconds=0.01)
    return tmp_path


def limited(blocks: int, name: str, *arguments: str) -> tuple[int, str]:
    """A stage that can write files of so many 512-byte blocks, as on a full disk; status and standard error."""
    command = f"ulimit -f {blocks}; exec {sys.executable} -m stages.{name} {' '.join(arguments)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    return result.returncode, result.stderr


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "arguments"), [("train_full", RUN), ("ingest", []), ("split", [])])
def test_a_full_disk_costs_one_line_and_no_file(project, name, arguments):
    if name == "train_full":
        run_tool(name, *arguments)
    before = {path: content for path, content in files(project / "data").items() if "checkpoints" not in path.parts}
    status, errors = limited(1, name, *arguments)
    assert status == 1
    lines = [line for line in errors.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: data/")
    assert "cannot be written" in lines[0]
    assert "too large" in lines[0].lower()
    after = {path: content for path, content in files(project / "data").items() if "checkpoints" not in path.parts}
    assert after == before


def test_a_disk_that_is_full_at_a_checkpoint_costs_one_line(project):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        with pytest.raises(SystemExit, match=r"^error: data/checkpoints/.*: cannot be written: .*[Tt]oo large$"):
            run_tool("train_full", *RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_run_that_cannot_be_written_leaves_the_last_checkpoint(project, capsys):
    """The training resumes from that checkpoint."""
    run_tool("train_full", *RUN)
    whole = files(project / "data/runs")
    shutil.rmtree(project / "data/runs")
    (project / "data/runs").write_text("in the way")  # Now the run cannot be written.
    with pytest.raises(SystemExit, match=r"^error: .*cannot be written"):
        run_tool("train_full", *RUN)
    assert list((project / "data/checkpoints/full/0-0.001").rglob("*.pt"))
    (project / "data/runs").unlink()
    capsys.readouterr()
    run_tool("train_full", *RUN)
    assert "training resumes after step" in capsys.readouterr().err
    assert files(project / "data/runs") == whole


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_costs_one_line(project):
    (project / "data").chmod(0o555)
    try:
        status, errors = limited(100_000, "ingest")
    finally:
        (project / "data").chmod(0o755)
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert "data/ingested.arrow" in errors


FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("path", sorted((ROOT / "stages").rglob("*.py")), ids=lambda path: path.stem)
def test_no_stage_loads_code_or_pickles(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.partition(".")[0] for alias in node.names}
            names |= {(getattr(node, "module", None) or "").partition(".")[0]}
            assert not names & FORBIDDEN or names == {"joblib", "cpu_count"}
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            called = ast.unparse(node.func)
            assert keywords.get("trust_remote_code", "False") == "False"
            assert keywords.get("weights_only", "True") == "True"
            assert keywords.get("shell", "False") == "False"
            assert keywords.get("allow_pickle", "False") == "False"
            assert called not in {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True"


def test_a_base_model_brings_no_code(tiny_base_model, project):
    """The Python files of a base model are neither run nor copied, whatever its config says."""
    hostile = shutil.copytree(tiny_base_model, project / "hostile")
    for name in ("modeling_bert.py", "tokenization_bert.py", "configuration_bert.py", "__init__.py", "torch.py"):
        (hostile / name).write_text("open('was-run', 'w').close()\n")
    config = json.loads((hostile / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_bert.BertConfig",
        "AutoModelForTokenClassification": "modeling_bert.BertForTokenClassification",
    }
    (hostile / "config.json").write_text(json.dumps(config))
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    params["base_model"]["folder"] = "hostile"
    (project / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    for name, arguments in (("base_model", []), ("clean_and_tokenize", []), ("train_lora", RUN)):
        run_tool(name, *arguments)
    assert not list(project.rglob("was-run"))
    assert not list((project / "data").rglob("*.py"))
