"""Results in other places: a clone that was moved, copied or pulled, and what others get through Git and DVC."""

import re
import shutil
from pathlib import Path

import pytest

from tests.support.dvc import DVC, commit, copy_clone, ran, read, status
from tests.support.project import ROOT, run


def dvc(*command: str, cwd: Path) -> str:
    """Run a command of DVC that must succeed, and return its output."""
    result = run(*DVC, *command, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_moved_clone_is_up_to_date(repro, tmp_path):
    repro.rename(tmp_path / "second")
    assert status(tmp_path / "second") == set()


def test_a_copied_clone_watches_its_own_files(repro, tmp_path):
    copied = shutil.copytree(repro, tmp_path / "copy", symlinks=True)
    shutil.rmtree(repro / "data/tiny-model")
    assert status(copied) == set()
    (copied / "data/tiny-model/config.json").write_text("{}", encoding="utf-8")
    assert "base_model" in status(copied)


@pytest.fixture(scope="session")
def published(clone, build_once) -> Path:
    """A folder with a copy of the clone, its DVC remote and its origin, a bare repository; both have its results."""

    def build(folder: Path) -> None:
        root = copy_clone(clone, folder)
        for command in (
            ("init", "-q", "--bare", "-b", "main", str(folder / "origin.git")),
            ("branch", "-M", "main"),
            ("remote", "add", "origin", str(folder / "origin.git")),
        ):
            assert run("git", *command, cwd=root).returncode == 0
        dvc("remote", "add", "-d", "storage", str(folder / "remote"), cwd=root)
        commit(root, "a remote")
        dvc("push", cwd=root)
        assert run("git", "push", "-q", "origin", "main", cwd=root).returncode == 0

    return build_once("published", build)


@pytest.fixture
def shared(published, tmp_path) -> Path:
    """A copy of the clone that has been published, with an origin and a DVC remote of its own."""
    for name in ("a clone", "origin.git", "remote"):
        shutil.copytree(published / name, tmp_path / name, symlinks=True)
    root = tmp_path / "a clone"
    assert run("git", "remote", "set-url", "origin", str(tmp_path / "origin.git"), cwd=root).returncode == 0
    return root


@pytest.fixture
def colleague(shared, tmp_path) -> Path:
    """Make the clone of another person."""
    origin = str(shared.parent / "origin.git")
    assert run("git", "clone", "-q", "-b", "main", origin, "theirs", cwd=tmp_path).returncode == 0
    return tmp_path / "theirs"


def test_a_pulled_clone_trains_nothing(colleague):
    dvc("pull", cwd=colleague)
    assert status(colleague) == set()
    assert ran(dvc("repro", cwd=colleague)) == set()
    assert run("git", "status", "--porcelain", cwd=colleague).stdout == ""


def test_an_experiment_is_pushed_and_pulled(shared, colleague):
    dvc("exp", "run", "-n", "rank", "-S", "lora.r=2", "select", cwd=shared)
    dvc("exp", "push", "origin", "rank", cwd=shared)
    dvc("exp", "pull", "origin", "rank", cwd=colleague)
    dvc("exp", "apply", "rank", cwd=colleague)
    expected, applied = (read(root / "data/models/lora/adapter_config.json") for root in (shared, colleague))
    assert applied == expected
    assert applied["r"] == 2


def test_a_model_is_got_by_its_name_and_tag(shared, tmp_path):
    for command in (
        ("tag", "-a", "-m", "first", "sentiment-lora@v1.0.0"),
        ("push", "-q", "origin", "sentiment-lora@v1.0.0"),
    ):
        assert run("git", *command, cwd=shared).returncode == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    origin = str(tmp_path / "origin.git")
    dvc("artifacts", "get", origin, "sentiment-lora", "-o", "lora", cwd=elsewhere)
    assert (elsewhere / "lora/adapter_model.safetensors").read_bytes() == (
        shared / "data/models/lora/adapter_model.safetensors"
    ).read_bytes()
    dvc("get", origin, "plots/report.html", cwd=elsewhere)
    assert (elsewhere / "report.html").read_bytes() == (shared / "plots/report.html").read_bytes()


def test_a_fresh_clone_without_data_is_up_to_date(colleague):
    """DVC recommends this check for continuous integration."""
    result = run(*DVC, "repro", "--allow-missing", "--dry", cwd=colleague)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) <= {"prune_runs"}  # Its output is in git.


def test_no_conversion_of_line_ends_changes_a_hash(clone, tmp_path):
    """Git for Windows sets core.autocrlf, which converts line ends."""
    command = ("git", "clone", "-q", "-c", "core.autocrlf=true", str(clone), "converted")
    assert run(*command, cwd=tmp_path).returncode == 0
    for name in ("params.yaml", "data/tiny-model/vocab.txt", "dvc.lock", "stages/select.py"):
        assert (tmp_path / "converted" / name).read_bytes() == (clone / name).read_bytes()


def test_dvc_keeps_its_caches_in_the_private_folder_of_the_readme(tmp_path):
    (command,) = re.findall(
        r"^mkdir .*DVC_SITE_CACHE_DIR.*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    script = f"{command} && git init -q && dvc init -q && dvc data status"
    result = run("bash", "-c", script, cwd=tmp_path, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ".dvc-private/repo").is_dir()
    assert (tmp_path / ".dvc-private").stat().st_mode & 0o077 == 0
