"""No code of a stranger's model is run, and damaged or contradictory files are refused in one line."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from stages.base_model import convert_pickled_weights
from stages.common.modeling.classifier import build_classifier, load_checkpoint
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.common.runtime.exceptions import UserError
from tests.support.corpus import LABELS
from tests.support.project import ROOT, run

TEXT = "배터리 최고"
NAN = float("nan")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copies(trained_project, tmp_path, monkeypatch) -> Path:
    """Copy `full`, `lora` and `base_model`, so that a test may damage them."""
    for name in ("models/full", "models/lora", "base_model"):
        shutil.copytree(trained_project / "data" / name, tmp_path / name.rpartition("/")[2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def edit_weights(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def write_code(folder: Path) -> dict[str, str]:
    """Write Python files that leave a trace when they are run, and return the `auto_map` that names them."""
    (folder / "evil.py").write_text("open('was-run', 'w').close()\nclass Config: pass\nclass Model: pass\n")
    return {"AutoConfig": "evil.Config", "AutoModelForTokenClassification": "evil.Model"}


def test_a_model_whose_code_the_user_is_asked_about_is_refused_without_asking(copies, trained_project):
    """With `y` on standard input, transformers would ask and then run the code."""
    edit_json(copies / "full/config.json", model_type="evil", auto_map=write_code(copies / "full"))
    command = f"yes | python -m stages.predict --model full {TEXT.split()[0]}"
    result = run("sh", "-c", command, cwd=copies, PYTHONPATH=str(ROOT))
    assert result.returncode == 1
    assert result.stderr == (
        "error: full/config.json: transformers has no model_type 'evil', and code that comes with a model is not run; "
        "choose an encoder such as BERT\n"
    )
    assert not list(copies.rglob("was-run"))


def test_a_known_model_with_code_is_read_without_it(copies):
    edit_json(copies / "full/config.json", auto_map=write_code(copies / "full"))
    load_checkpoint(Path("full"), LABELS, Path("base_model"))
    assert not list(copies.rglob("was-run"))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_kernel_of_the_hub_is_not_asked_for(copies, key):
    edit_json(copies / "full/config.json", **{key: "someone/kernel"})
    assert load_checkpoint(Path("full"), LABELS, Path("base_model")).config._attn_implementation == "sdpa"


def test_an_adapter_in_the_folder_of_its_base_model_is_not_loaded_with_it(copies):
    shutil.copy("lora/adapter_config.json", "base_model/adapter_config.json")
    shutil.copy("lora/adapter_model.safetensors", "base_model/adapter_model.safetensors")
    with pytest.raises(UserError, match=r"base_model: .* has an adapter beside it"):
        load_checkpoint(Path("lora"), LABELS, Path("base_model"))


@pytest.mark.parametrize(
    "values",
    [
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"peft_type": "PROMPT_TUNING"},
        {"megatron_config": {}, "megatron_core": "megatron.core"},
        {"unknown": 1},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_else_an_adapter_config_says_changes_nothing(copies, values):
    inputs = {"input_ids": torch.tensor([[2, 9, 10, 3]])}
    expected = load_checkpoint(Path("lora"), LABELS, Path("base_model")).eval()(**inputs).logits
    edit_json(copies / "lora/adapter_config.json", **values)
    assert torch.equal(load_checkpoint(Path("lora"), LABELS, Path("base_model")).eval()(**inputs).logits, expected)


def drop(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def set_all(part: str, value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t.fill_(value) if part in name else t for name, t in tensors.items()}


DAMAGED_WEIGHTS = {
    "no head": ("full", drop("classifier"), "2 weights are missing, such as 'classifier.bias'"),
    "no layer": ("full", drop("layer.1."), "16 weights are missing"),
    "one weight too many": (
        "full",
        lambda tensors: tensors | {"bert.other": torch.zeros(1)},
        "1 weights are not in the model",
    ),
    "NaN": ("full", set_all("classifier.bias", NAN), "'classifier.bias' contains NaN or infinity"),
    "other shape": ("full", lambda tensors: tensors | {"classifier.bias": torch.zeros(5)}, "cannot be loaded"),
    "no head of adapters": ("lora", drop("classifier"), "2 weights are missing"),
    "half of the adapters": ("lora", drop("lora_B"), "12 weights are missing"),
    "infinite adapters": ("lora", set_all("lora_A", float("inf")), "contains NaN or infinity"),
}


@pytest.mark.parametrize("name", DAMAGED_WEIGHTS)
def test_weights_that_are_not_whole_and_finite_are_refused(copies, name):
    """transformers and PEFT would replace missing weights by random numbers."""
    method, change, message = DAMAGED_WEIGHTS[name]
    (weights,) = (copies / method).glob("*.safetensors")
    edit_weights(weights, change)
    with pytest.raises(UserError, match=message):
        load_checkpoint(Path(method), LABELS, Path("base_model"))


def test_a_base_model_with_nan_is_refused_before_training(copies):
    edit_weights(copies / "base_model/model.safetensors", set_all("query.weight", NAN))
    with pytest.raises(UserError, match="contains NaN or infinity"):
        build_classifier(Path("base_model"), LABELS, dropout=0.0, seed=0)


@pytest.mark.parametrize("size", [2**31, 2**62])
def test_a_header_of_gigabytes_is_refused(copies, size):
    with (copies / "full/model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", size))
        file.truncate(2**31)  # The file takes no disk space.
    with pytest.raises(UserError, match="header too large"):
        load_checkpoint(Path("full"), LABELS, Path("base_model"))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(1).expand(10**12), torch.empty(10**12, device="meta")], ids=["view", "meta"]
)
def test_a_pickle_of_a_kilobyte_does_not_become_terabytes(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        convert_pickled_weights(tmp_path)


SENSELESS_CONFIGS = [
    *({"num_attention_heads": 0}, {"hidden_act": "__import__"}, {"num_hidden_layers": 1}, {"num_hidden_layers": -1}),
    *({"hidden_size": "8"}, {"pad_token_id": None}, {"vocab_size": 10**12}, {"model_type": ["bert"]}),
    *({"model_type": None}, {"quantization_config": {"quant_method": "bitsandbytes"}}),
]


@pytest.mark.parametrize("values", SENSELESS_CONFIGS, ids=str)
def test_a_config_that_makes_no_sense_is_refused(copies, values):
    edit_json(copies / "full/config.json", **values)
    with pytest.raises(UserError, match="full"):
        load_checkpoint(Path("full"), LABELS, Path("base_model"))


@pytest.mark.parametrize("values", [{"r": "8"}, {"r": 10**10}, {"target_modules": "(.*a)*(.*e)*$"}, {"r": 9}], ids=str)
def test_an_adapter_config_that_makes_no_sense_is_refused(copies, values):
    edit_json(copies / "lora/adapter_config.json", **values)
    with pytest.raises(UserError, match="lora: the adapter cannot be loaded"):
        load_checkpoint(Path("lora"), LABELS, Path("base_model"))


@pytest.mark.parametrize("name", ["full/config.json", "full/training.json", "lora/adapter_config.json"])
def test_json_nested_without_end_is_refused(tool, copies, name):
    (copies / name).write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(SystemExit, match="cannot be read as JSON"):
        model = name.partition("/")[0]
        tool("predict", "--model", model, *(["--base-model", "base_model"] if model == "lora" else []), TEXT)


def write_tokenizer(folder: Path, **parts: Any) -> Path:
    """Write a tokenizer.json with the single word `a` and these changes."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.joinpath("tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()) | parts), encoding="utf-8")
    return folder


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def template(count: int, special: dict[str, Any]) -> dict[str, Any]:
    parts = [{"SpecialToken": {"id": "[X]", "type_id": 0}}] * count + [{"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": special}


def special_token(number: int) -> dict[str, Any]:
    return {"[X]": {"id": "[X]", "ids": [number], "tokens": ["[X]"]}}


WORD_PIECE = {
    "type": "WordPiece",
    "vocab": {"a": 0},
    "max_input_chars_per_word": 9,
    "continuing_subword_prefix": "##",
}
HOSTILE_TOKENIZERS = {
    "no unknown token": (
        {"model": {**WORD_PIECE, "unk_token": "[GONE]"}},
        "cannot tokenize",
    ),
    "panic": ({"post_processor": template(1, {})}, "cannot tokenize"),
    "id beyond the vocabulary": ({"post_processor": template(1, special_token(99))}, "not in its vocabulary"),
    "special tokens beyond the length": ({"post_processor": template(20, special_token(1))}, "too many"),
    "regular expression": ({"normalizer": replace({"Regex": "(a|aa|a)+$"}, "x")}, "cannot tokenize"),
    "growth": (
        {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 10)] * 9}},
        "make a text 1000000000 times as long",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_TOKENIZERS)
def test_a_hostile_tokenizer_is_refused(tmp_path, name):
    parts, message = HOSTILE_TOKENIZERS[name]
    folder = write_tokenizer(tmp_path, **parts)
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{message}"):
        load_tokenizer(folder).encode(["a" * 40 + "!"], 16)
