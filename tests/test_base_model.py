"""The stage base_model with a folder, and with a server that acts like the hub: its output, and each failure."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import close_session

from tests.support.corpus import SHIPPED_TEXT
from tests.support.hub import COMMIT, PATIENCE, REPOSITORY, TAG_COMMIT, Hub, serving
from tests.support.project import encode, run_tool

Fetch = Callable[..., tuple[int, str]]
TOKENIZER = "tokenizer_78b3253a26.model"
SELECTED = {"config.json", "model.safetensors", TOKENIZER, "tokenizer_config.json", "vocab.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def provenance(project: Path) -> dict:
    return json.loads((project / "data/base_model/base_model.json").read_text(encoding="utf-8"))


@pytest.fixture
def repository(tiny_base_model) -> dict[str, bytes]:
    """Return the files of the tiny base model in the layout of monologg/kobert."""
    files = contents(tiny_base_model)
    files[TOKENIZER] = files.pop("tokenizer.model")
    auto_map = {"AutoTokenizer": ["tokenization_kobert.KoBertTokenizer", None]}
    files["tokenizer_config.json"] = json.dumps({"do_lower_case": False, "auto_map": auto_map}).encode()
    files["tokenization_kobert.py"] = b"raise SystemExit('code of the repository was run')\n"
    return files | {"pytorch_model.bin": b"pickle", "flax_model.msgpack": b"flax", "README.md": b"# KoBERT\n"}


@pytest.fixture
def hub(repository) -> Iterator[Hub]:
    with serving(repository) as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path, capsys) -> Fetch:
    """Run the stage with the hub and its cache in `tmp_path`; returns exit status and standard error.

    It runs in this process. The library has read its environment variables long since, so that its constants are set.
    That the variables themselves are heeded, tests/test_pipeline.py shows.
    """

    def run_stage(
        hub_id: str = REPOSITORY,
        revision: str = COMMIT,
        folder: str = "data/none",
        waiting: bool = True,
        endpoint: str = hub.url,
        offline: bool = False,
    ) -> tuple[int, str]:
        params = yaml.safe_load(SHIPPED_TEXT)
        params["base_model"] = {"folder": folder, "hub_id": hub_id, "revision": revision}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
        constants = {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hf"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": offline,
            **{name: int(seconds) for name, seconds in PATIENCE.items()},
        }
        status, message = 0, ""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in {"HF_TOKEN": "", "NO_PROXY": "*"}.items():
                patch.setenv(name, value)
            for name, value in constants.items():
                patch.setattr(f"huggingface_hub.constants.{name}", value)
            if not waiting:  # The library waits between its attempts.
                patch.setattr("time.sleep", lambda _: None)
            close_session()
            try:
                run_tool("base_model")
            except SystemExit as exit_info:
                status, message = 1, f"{exit_info.code}\n"
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err + message

    return run_stage


def test_only_the_selected_files_of_a_commit_are_downloaded(hub, fetch, repository, tmp_path):
    assert fetch() == (0, "")
    assert hub.downloaded() == SELECTED
    written = contents(tmp_path / "data/base_model")
    unchanged = SELECTED - {"tokenizer_config.json"}
    assert {name: written[name] for name in unchanged} == {name: repository[name] for name in unchanged}
    assert written.keys() == SELECTED | {"base_model.json"}


def test_configs_name_no_code_of_the_repository(fetch, tmp_path):
    assert fetch() == (0, "")
    config = (tmp_path / "data/base_model/tokenizer_config.json").read_text(encoding="utf-8")
    assert json.loads(config) == {"do_lower_case": False}


def test_the_source_and_all_hashes_are_written_down(fetch, tmp_path):
    assert fetch() == (0, "")
    files = contents(tmp_path / "data/base_model")
    del files["base_model.json"]
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert provenance(tmp_path) == {"name": REPOSITORY, "revision": COMMIT, "sha256": hashes}


def test_a_second_run_downloads_nothing(hub, fetch):
    assert fetch() == (0, "")
    hub.requests.clear()
    assert fetch() == (0, "")
    assert hub.downloaded() == set()


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub, fetch, repository, tmp_path):
    assert fetch() == (0, "")
    (cached,) = (tmp_path / "hf").rglob("model.safetensors")
    cached.resolve().write_bytes(b"damaged")
    hub.requests.clear()
    assert fetch() == (0, "")
    assert hub.downloaded() == {"model.safetensors"}
    assert (tmp_path / "data/base_model/model.safetensors").read_bytes() == repository["model.safetensors"]


def test_pickled_weights_become_safetensors(fetch, repository, tmp_path):
    import torch
    from safetensors.torch import load, load_file

    tensors = load(repository.pop("model.safetensors"))
    tied = {**tensors, "tied": next(iter(tensors.values()))}
    torch.save(tied, tmp_path / "weights.bin", _use_new_zipfile_serialization=False)
    repository["pytorch_model.bin"] = (tmp_path / "weights.bin").read_bytes()
    assert fetch() == (0, "")
    assert set(provenance(tmp_path)["sha256"]) == SELECTED
    written = load_file(tmp_path / "data/base_model/model.safetensors")
    assert written.keys() == tied.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tied.items())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bombed",)


@pytest.mark.parametrize("content", ["bomb", "number", "list", "damaged"])
def test_a_pickle_with_more_than_tensors_is_refused_without_running_it(tiny_base_model, fetch, tmp_path, content):
    import torch

    folder = Path(shutil.copytree(tiny_base_model, tmp_path / "모델 폴더"))
    (folder / "model.safetensors").unlink()
    weights = {"bomb": {"a": Bomb()}, "number": {"a": torch.ones(2), "epoch": 3}, "list": [torch.ones(2)]}
    torch.save(weights.get(content), folder / "pytorch_model.bin")
    if content == "damaged":
        (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 damaged")
    status, error = fetch(hub_id="", revision="", folder=str(folder))
    assert status == 1
    assert error == f"error: {folder}/pytorch_model.bin: {error.partition('bin: ')[2]}"
    assert "holds more than tensors" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "bombed").exists()
    assert not (tmp_path / "data/base_model").exists()


def test_a_hub_id_takes_the_place_of_the_folder(hub, fetch, tiny_base_model, tmp_path):
    assert fetch(folder=str(tiny_base_model)) == (0, "")
    assert hub.downloaded() == SELECTED
    assert provenance(tmp_path)["name"] == REPOSITORY


def test_a_folder_needs_no_hub(hub, fetch, tiny_base_model, tmp_path):
    assert fetch(hub_id="", revision="", folder=str(tiny_base_model)) == (0, "")
    assert hub.requests == []
    assert provenance(tmp_path)["name"] == str(tiny_base_model)
    assert provenance(tmp_path)["revision"] is None


def test_a_revision_without_a_hub_id_is_reported(fetch, tiny_base_model):
    warning = "warning: base_model.revision is not used, because base_model.hub_id is empty\n"
    assert fetch(hub_id="", folder=str(tiny_base_model)) == (0, warning)


def test_a_transfer_that_breaks_off_once_is_resumed(hub, fetch, repository, tmp_path):
    hub.fault = "cut once"
    assert fetch(waiting=False) == (0, "")
    assert (tmp_path / "data/base_model/model.safetensors").read_bytes() == repository["model.safetensors"]


NO_HUB = {"endpoint": "http://127.0.0.1:9"}
UNKNOWN = "0" * 40
MAIN = f"full hash of a commit of {REPOSITORY}; main is now at {COMMIT}"
# What is asked for, how the hub fails, and what the error says.
FAILURES = {
    "no revision": ({"revision": ""}, None, ["base_model.revision is ''", MAIN]),
    "a branch": ({"revision": "main"}, None, ["base_model.revision is 'main'", MAIN]),
    "a tag": ({"revision": "v1"}, None, ["base_model.revision is 'v1'", f"v1 is now at {TAG_COMMIT}"]),
    "a short hash": ({"revision": COMMIT[:7]}, None, [f"base_model.revision is '{COMMIT[:7]}'", MAIN]),
    "capitals": ({"revision": COMMIT.upper()}, None, [f"base_model.revision is '{COMMIT.upper()}'", MAIN]),
    "an unknown revision": ({"revision": UNKNOWN}, None, [f"base_model.revision is '{UNKNOWN}'", MAIN]),
    "a branch, and no hub": ({"revision": "main", **NO_HUB}, None, ["refused", "check the network"]),
    "an unknown id": ({"hub_id": "monologg/kobart"}, None, ["has no model 'monologg/kobart'", "check the id"]),
    "no id at all": ({"hub_id": "a/b/c"}, None, ["'a/b/c' is not a model id"]),
    "no folder": ({"hub_id": "", "folder": "data/mini"}, None, ["base_model.folder: data/mini is not a folder"]),
    "no access": ({}, "401", [REPOSITORY, "log in with `hf auth login`"]),
    "a hub that is down": ({}, "503", ["status 503", "try again later"]),
    "no hub": (NO_HUB, None, ["refused", "check the network", "set base_model.folder"]),
    "offline": ({"offline": True}, None, ["HF_HUB_OFFLINE"]),
    "a transfer cut short": ({"waiting": False}, "cut", ["closed", "check the network", "run again"]),
    "a wrong checksum": ({}, "wrong bytes", ["wrong checksum of config.json", "try again later"]),
    "a wrong size": ({}, "wrong size", ["wrong checksum of config.json", "try again later"]),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_one_line_and_the_old_base_model_stays(hub, fetch, tiny_base_model, tmp_path, failure):
    old = tmp_path / "data/base_model"
    shutil.copytree(tiny_base_model, old)
    before = contents(old)
    arguments, hub.fault, expected = FAILURES[failure]
    status, error = fetch(**arguments)
    assert status == 1
    assert error.startswith("error: base_model.")
    assert error.count("\n") == 1, error
    for text in expected:
        assert text in error
    assert contents(old) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["base_model"]


@pytest.mark.parametrize("name", [*sorted(SELECTED)])
def test_each_file_is_checked(hub, fetch, tmp_path, name):
    hub.fault, hub.faulty = "wrong bytes", name
    status, error = fetch()
    assert status == 1
    assert f"wrong checksum of {name}, " in error
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


@pytest.fixture
def base_model(tiny_base_model, tmp_path) -> Path:
    """Copy the tiny base model, so that a test may damage it."""
    return Path(shutil.copytree(tiny_base_model, tmp_path / "모델 폴더"))


def test_only_what_is_read_is_copied_with_its_hashes(stage, base_model):
    (base_model / "evil.py").write_text("raise SystemExit", encoding="utf-8")
    (base_model / "pytorch_model.bin").write_bytes(b"pickle")
    stage("base_model", base_model__folder=str(base_model))
    names = {path.name for path in Path("data/base_model").iterdir()}
    assert names == {"base_model.json", "config.json", "model.safetensors", "tokenizer.model", "vocab.txt"}
    assert set(provenance(Path())["sha256"]) == names - {"base_model.json"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "vocab.txt"])
def test_a_folder_that_lacks_a_file_is_refused_and_the_old_base_model_stays(stage, base_model, name):
    stage("base_model", base_model__folder=str(base_model))
    before = contents(Path("data/base_model"))
    (base_model / name).unlink()
    with pytest.raises(SystemExit, match=name.replace("tokenizer.model", r"\*\.model")):
        stage("base_model")
    assert contents(Path("data/base_model")) == before


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: edit_config(folder, vocab_size=50), "모델 폴더: the tokenizer has .* but vocab_size .* is 50"),
        (lambda folder: edit_config(folder, model_type=None), r"모델 폴더/config\.json: has no model_type"),
        (lambda folder: (folder / "config.json").write_text("{"), r"모델 폴더/config\.json: cannot be read as JSON"),
        (lambda folder: truncate(folder / "model.safetensors"), "모델 폴더/model.safetensors: is damaged, or not"),
        (shutil.rmtree, "base_model.folder: .*모델 폴더 is not a folder"),
    ],
)
def test_a_damaged_or_contradicting_folder_is_refused(stage, base_model, damage, error):
    damage(base_model)
    with pytest.raises(SystemExit, match=error):
        stage("base_model", base_model__folder=str(base_model))
    assert not Path("data/base_model").exists()


def test_a_git_lfs_pointer_is_named_as_such(stage, base_model):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 369000000\n"
    (base_model / "model.safetensors").write_text(pointer, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"model\.safetensors: is a Git LFS pointer .* `git lfs pull`"):
        stage("base_model", base_model__folder=str(base_model))


def test_weights_in_several_files_are_refused_with_the_way_out(stage, base_model):
    from transformers import BertModel

    model = BertModel.from_pretrained(base_model)
    (base_model / "model.safetensors").unlink()
    model.save_pretrained(base_model, max_shard_size="5KB")
    with pytest.raises(SystemExit, match=r"weights in several files \(model\.safetensors\.index\.json\)"):
        stage("base_model", base_model__folder=str(base_model))
    BertModel.from_pretrained(base_model).save_pretrained(base_model, max_shard_size="100GB")
    (base_model / "model.safetensors.index.json").unlink(missing_ok=True)
    stage("base_model")


def write_tokenizer_json(folder: Path, template: str) -> None:
    """Write a word-level tokenizer.json whose post-processor has this template to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(template, None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("template", ["$A", "$A [SEP] [CLS]"])
def test_a_tokenizer_that_does_not_begin_with_a_special_token_is_refused(stage, base_model, template):
    write_tokenizer_json(base_model, template)
    with pytest.raises(SystemExit, match=r"does not begin a text with a special token such as \[CLS\] or <s>"):
        stage("base_model", base_model__folder=str(base_model))
    write_tokenizer_json(base_model, "[CLS] $A [SEP]")
    stage("base_model")


def test_a_model_with_vocab_txt_alone_is_read_as_word_piece(stage, base_model):
    (base_model / "tokenizer.model").unlink()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "최고", "최", "##고", "##예요"]
    (base_model / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    (base_model / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    stage("base_model", base_model__folder=str(base_model))
    assert encode(Path("data/base_model"), ["최고예요"]) == [[2, 5, 8, 3]]
