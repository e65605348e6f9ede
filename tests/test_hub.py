"""The stage base_model against a hub stand-in on loopback: what is asked for, what is left, what each failure costs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.hub import COMMIT, REPOSITORY, Hub, serving
from tests.support.project import ROOT, run

Fetch = Callable[..., tuple[int, str]]
NO_WAITING = "import time, runpy; time.sleep = lambda _: None; runpy.run_module('stages.base_model', None, '__main__')"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repository(tiny_base_model) -> dict[str, bytes]:
    """The tiny base model as monologg/kobert lays out its files."""
    files = contents(tiny_base_model)
    files["tokenizer_78b3253a26.model"] = files.pop("tokenizer.model")
    auto_map = {"AutoTokenizer": ["tokenization_kobert.KoBertTokenizer", None]}
    files["tokenizer_config.json"] = json.dumps({"do_lower_case": False, "auto_map": auto_map}).encode()
    files["tokenization_kobert.py"] = b"raise SystemExit('code of the repository was run')\n"
    files |= {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"flax", "README.md": b"# KoBERT\n"}
    assert b"\r\n" in files["vocab.txt"]
    return files


@pytest.fixture
def hub(repository) -> Iterator[Hub]:
    with serving(repository) as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path) -> Fetch:
    """Run the stage in a process of its own, with an empty cache; gives the exit status and what it told."""

    def run_stage(
        name: str = REPOSITORY, revision: str = COMMIT, waiting: bool = True, **variables: str
    ) -> tuple[int, str]:
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["base_model"] = {"name": name, "revision": revision}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
        environment = {
            **{"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "NO_PROXY": "*"},
            **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **variables},
        }
        command = ["-m", "stages.base_model"] if waiting else ["-c", NO_WAITING]
        result = run("python", *command, cwd=tmp_path, **environment)
        assert result.stdout == ""
        return result.returncode, result.stderr

    return run_stage


def test_a_commit_becomes_the_normal_form(hub, fetch, repository, tmp_path):
    assert fetch() == (0, "")
    needed = {"config.json", "model.safetensors", "tokenizer_78b3253a26.model", "tokenizer_config.json", "vocab.txt"}
    assert hub.downloaded() == needed
    folder = contents(tmp_path / "data/base_model")
    noted = json.loads(folder.pop("base_model.json"))
    assert noted == {
        "name": REPOSITORY,
        "revision": COMMIT,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in folder.items()},
    }
    assert json.loads(folder.pop("tokenizer_config.json")) == {"do_lower_case": False}, "code may not be named"
    assert folder == {name: repository[name] for name in needed - {"tokenizer_config.json"}}
    # The way back to this model downloads nothing.
    hub.requests.clear()
    assert fetch() == (0, "")
    assert hub.downloaded() == set()


def test_pickled_weights_become_safetensors(hub, fetch, repository, tiny_base_model, tmp_path):
    import torch
    from safetensors.torch import load, load_file

    tensors = load(repository.pop("model.safetensors"))
    tied = {**tensors, "tied": next(iter(tensors.values()))}
    torch.save(tied, tmp_path / "weights.bin", _use_new_zipfile_serialization=False)
    repository["pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    assert fetch() == (0, "")
    assert "pytorch_model.bin" in hub.downloaded()
    folder = tmp_path / "data/base_model"
    assert not (folder / "pytorch_model.bin").exists()
    assert set(json.loads((folder / "base_model.json").read_text(encoding="utf-8"))["sha256"]) == {
        *("config.json", "model.safetensors", "tokenizer_78b3253a26.model", "tokenizer_config.json", "vocab.txt")
    }
    written = load_file(folder / "model.safetensors")
    assert written.keys() == tied.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tied.items())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bombed",)


@pytest.mark.parametrize("what", ["bomb", "number", "list", "damaged"])
def test_a_pickle_of_more_than_tensors_is_refused_unread(tiny_base_model, fetch, tmp_path, what):
    import torch

    folder = Path(shutil.copytree(tiny_base_model, tmp_path / "모델 폴더"))
    (folder / "model.safetensors").unlink()
    weights = {"bomb": {"a": Bomb()}, "number": {"a": torch.ones(2), "epoch": 3}, "list": [torch.ones(2)]}
    torch.save(weights.get(what), folder / "pytorch_model.bin")
    if what == "damaged":
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 damaged")
    status, told = fetch(str(folder), "")
    assert status == 1
    assert told == f"error: {folder}/pytorch_model.bin: {told.partition('bin: ')[2]}"
    assert "not tensors alone" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "bombed").exists()
    assert not (tmp_path / "data/base_model").exists()


def test_a_folder_wins_and_says_that_the_revision_is_not_used(hub, fetch, tiny_base_model, tmp_path):
    shutil.copytree(tiny_base_model, tmp_path / REPOSITORY)
    assert fetch() == (0, f"warning: base_model.revision is not used: {REPOSITORY} is a folder\n")
    assert fetch(revision="") == (0, "")
    assert hub.requests == []
    noted = json.loads((tmp_path / "data/base_model/base_model.json").read_text(encoding="utf-8"))
    assert (noted["name"], noted["revision"]) == (REPOSITORY, None)


def test_a_transfer_cut_once_is_taken_up_again(hub, fetch, repository, tmp_path):
    hub.fault = "cut once"
    assert fetch(waiting=False) == (0, "")
    assert (tmp_path / "data/base_model/model.safetensors").read_bytes() == repository["model.safetensors"]


UNKNOWN = "0" * 40
MAIN = f"main is now at {COMMIT}"
FAILURES = {
    "no revision": ({"revision": ""}, None, ["base_model.revision", "full commit hash", MAIN]),
    "a branch": ({"revision": "main"}, None, ["base_model.revision is 'main'", MAIN]),
    "a tag": ({"revision": "v1"}, None, ["base_model.revision is 'v1'", f"v1 is now at {'1' * 40}"]),
    "a short hash": ({"revision": COMMIT[:7]}, None, [f"base_model.revision is '{COMMIT[:7]}'", MAIN]),
    "capitals": ({"revision": COMMIT.upper()}, None, ["full commit hash", MAIN]),
    "an unknown revision": ({"revision": UNKNOWN}, None, [f"has no commit {UNKNOWN}", MAIN]),
    "a branch, and no hub": (
        {"revision": "main", "HF_ENDPOINT": "http://127.0.0.1:9"},
        None,
        ["full commit", "refused"],
    ),
    "an unknown id": ({"name": "monologg/kobart"}, None, ["has no model monologg/kobart", "check the id"]),
    "a typing error": ({"name": "data/mini", "revision": ""}, None, ["data/mini is not a folder", "has no model"]),
    "no id at all": ({"name": "a/b/c"}, None, ["a/b/c is not a folder, nor a model id"]),
    "no access": ({}, "401", ["monologg/kobert", "log in with `hf auth login`"]),
    "a hub that is down": ({}, "503", ["status 503", "try again later"]),
    "no hub": ({"HF_ENDPOINT": "http://127.0.0.1:9"}, None, ["refused", "check the network", "give its folder"]),
    "offline": ({"HF_HUB_OFFLINE": "1"}, None, ["HF_HUB_OFFLINE"]),
    "a transfer cut short": ({"waiting": False}, "cut", ["config.json", "closed", "check the network", "run again"]),
    "a wrong checksum": ({}, "wrong bytes", ["config.json", "the hub says", "try again later"]),
    "a wrong size": ({}, "wrong size", ["config.json", "the hub says", "try again later"]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line_and_the_old_base_model_stays(hub, fetch, tiny_base_model, tmp_path, failure):
    old = tmp_path / "data/base_model"
    shutil.copytree(tiny_base_model, old)
    before = contents(old)
    arguments, hub.fault, told = FAILURES[failure]
    status, error = fetch(**arguments)
    assert status == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for text in told:
        assert text in error
    assert contents(old) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["base_model"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_78b3253a26.model"])
def test_each_file_is_checked(hub, fetch, repository, tmp_path, name):
    """LFS files by SHA-256, after small ones by git's hash."""
    hub.fault, hub.faulty = "wrong bytes", name
    status, error = fetch()
    assert status == 1
    assert name in error
    assert not (tmp_path / "data/base_model").exists()


@pytest.mark.parametrize("name", ["config.json", "vocab.txt"])
def test_a_repository_that_lacks_a_file_is_refused(hub, fetch, repository, tmp_path, name):
    del repository[name]
    status, error = fetch()
    assert status == 1
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert REPOSITORY in error
    assert name in error
    assert not (tmp_path / "data/base_model").exists()
