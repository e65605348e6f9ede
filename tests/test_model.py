"""The trained parameters, their number, and the content of a checkpoint."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from stages.common.artifacts.files import write_json
from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.modeling.classifier import (
    add_lora,
    build_classifier,
    count_parameters,
    load_checkpoint,
    save_checkpoint,
)
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import LoraParams
from tests.support.corpus import LABELS, SHIPPED
from tests.support.project import ROOT, run

LORA = SHIPPED.lora
INPUTS = {"input_ids": torch.tensor([[2, 7, 8, 9, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def lora(**changed: object) -> LoraParams:
    return LORA.model_copy(update={"target_modules": ["query", "value"], **changed})


def expected_base_parameters(vocab: int, width: int = 8, inner: int = 16, layers: int = 2, positions: int = 64) -> int:
    embeddings = (vocab + positions + 2) * width + 2 * width
    attention = 4 * (width * width + width) + 2 * width
    feed_forward = 2 * width * inner + inner + width + 2 * width
    return embeddings + layers * (attention + feed_forward)


def test_counts_are_exact(tiny_base_model):
    vocab = json.loads((tiny_base_model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    base, head = expected_base_parameters(vocab), 8 * 3 + 3
    full = build_classifier(tiny_base_model, LABELS, 0.1, 42)
    assert count_parameters(full) == (base + head, base + head)
    adapters = 2 * 2 * (8 * 8 + 8 * 8)  # layers x (query, value) x (A: r x width, B: width x r)
    counts = count_parameters(add_lora(full, lora(), 42))
    assert counts == (adapters + head, base + adapters + head)


@pytest.mark.parametrize("classes", [3, 2])
def test_the_head_is_new_even_if_the_base_model_has_one(tiny_base_model, tmp_path, classes):
    """The base model may have been fine-tuned before, for the same or for other classes."""
    from transformers import BertForTokenClassification

    folder = shutil.copytree(tiny_base_model, tmp_path / "fine-tuned")
    fine_tuned = BertForTokenClassification.from_pretrained(tiny_base_model, num_labels=classes)
    torch.nn.init.constant_(fine_tuned.classifier.weight, 400.0)
    fine_tuned.save_pretrained(folder)
    expected, built = (build_classifier(path, LABELS, 0.1, 42).state_dict() for path in (tiny_base_model, folder))
    assert all(torch.equal(built[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("model_type, changed", [("gpt2", {}), ("llama", {}), ("bert", {"is_decoder": True})])
def test_a_decoder_is_refused(tiny_base_model, tmp_path, model_type, changed):
    folder = shutil.copytree(tiny_base_model, tmp_path / "decoder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"model_type": model_type} | changed
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=f"'{model_type}' is a decoder"):
        build_classifier(folder, LABELS, 0.1, 42)


def test_counts_at_the_size_of_kobert():
    from transformers import BertConfig, BertForTokenClassification

    with torch.device("meta"):
        model = BertForTokenClassification(BertConfig(vocab_size=8002, pad_token_id=1, num_labels=3))
        assert count_parameters(model).total == 91_598_595
        counts = count_parameters(add_lora(model, lora(), 42))
    assert counts == (297_219, 91_893_507)


def source_of(base_model: Path) -> BaseModelSource:
    """Return the metadata of a base model that a checkpoint stores."""
    return BaseModelSource(name=str(base_model), revision=None, sha256={})


TWO_STEPS = """
import json, resource, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from transformers import BertConfig, BertModel
from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.classifier import add_lora, build_classifier, save_checkpoint
from stages.common.runtime.params import load_params
from stages.common.training.trainer import Trainer

folder, method, params = Path(sys.argv[1]), sys.argv[2], load_params()
BertModel(BertConfig(vocab_size=8002, pad_token_id=1), add_pooling_layer=False).save_pretrained(folder / "base")
model = build_classifier(folder / "base", ["0", "1", "2"], 0.1, 42)
if method == "lora":
    model = add_lora(model, params.lora.model_copy(update={"target_modules": ["query", "value"]}), 42)
ids = np.random.default_rng(0).integers(5, 8002, (12, 12), dtype=np.int32)
ids[:, 0], ids[:, -1] = 2, 3
dataset = TokenizedDataset(pa.array(list(ids)), np.arange(12) % 3)
two_steps = params.train.model_copy(update={"epochs": 1, "batch_size": 6})
history = Trainer(model, dataset, dataset, two_steps, 5e-5, seed=42).train().history
save_checkpoint(model, folder / "model", BaseModelSource(name=str(folder / "base"), revision=None, sha256={}))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
size = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
print(json.dumps({"loss": history[0]["train_loss"], "peak": peak, "bytes": size}))
"""


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_steps_at_the_size_of_kobert_fit_into_6_gib(tmp_path, method):
    """This includes loading, validation, the copy of the best weights and saving. The reviews are short."""
    result = run(sys.executable, "-c", TWO_STEPS, str(tmp_path), method, cwd=ROOT)
    shutil.rmtree(tmp_path)  # The folder has up to 740 MB.
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert 0 < figures["loss"] < 5
    assert figures["peak"] < 6
    assert figures["bytes"] < (1_300_000 if method == "lora" else 370_000_000)


def test_all_linear_adapts_every_linear_layer_but_the_head(tiny_base_model):
    model = add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(target_modules="all-linear"), 42)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {"query", "key", "value", "dense"}


VARIANTS = [{"rslora": True}, {"dora": True}, {"init": "gaussian"}, {"init": "orthogonal"}]


@pytest.mark.parametrize("changed", VARIANTS, ids=lambda changed: next(iter(changed)))
def test_variants_of_lora_start_from_the_base_and_reload(tiny_base_model, tmp_path, changed):
    base = build_classifier(tiny_base_model, LABELS, 0.1, 42).eval()
    model = add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(**changed), 42).eval()
    assert torch.allclose(model(**INPUTS).logits, base(**INPUTS).logits, atol=1e-5)
    save_checkpoint(model, tmp_path / "model", source_of(tiny_base_model))
    again = load_checkpoint(tmp_path / "model", LABELS, tiny_base_model).eval()
    assert torch.equal(again(**INPUTS).logits, model(**INPUTS).logits)


def test_an_odd_rank_with_orthogonal_initialisation_is_one_line(tiny_base_model):
    with pytest.raises(UserError, match=r"^lora: "):
        add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(init="orthogonal", r=3), 42)


def test_lora_starts_from_the_base_and_shares_its_head(tiny_base_model):
    base = build_classifier(tiny_base_model, LABELS, 0.1, 42).eval()
    with_adapters = add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(), 42).eval()
    assert torch.equal(with_adapters(**INPUTS).logits, base(**INPUTS).logits)


def test_gradients_reach_adapters_and_head_alone(tiny_base_model):
    model = add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(target_modules=["query", "dense"]), 42)
    model(**INPUTS).logits.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached == trainable
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trainable)


def test_an_unknown_target_module_is_named_with_those_there_are(tiny_base_model):
    with pytest.raises(UserError, match=r"no linear layer 'q_proj'; choose from dense, key, query, value$"):
        add_lora(build_classifier(tiny_base_model, LABELS, 0.1, 42), lora(target_modules=["query", "q_proj"]), 42)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_checkpoint_reloads_exactly(tiny_base_model, tmp_path, method):
    model = build_classifier(tiny_base_model, LABELS, 0.1, 42)
    if method == "lora":
        model = add_lora(model, lora(), 42)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_checkpoint(model, tmp_path / "model", source_of(tiny_base_model))
    again = load_checkpoint(tmp_path / "model", LABELS, tiny_base_model)
    assert torch.equal(again.eval()(**INPUTS).logits, model.eval()(**INPUTS).logits)
    assert not list((tmp_path / "model").glob("*.bin"))
    if method == "lora":
        from safetensors import safe_open

        with safe_open(tmp_path / "model/adapter_model.safetensors", "numpy") as weights:
            assert all("lora_" in name or "classifier" in name for name in weights.keys())  # noqa: SIM118
            sizes = [weights.get_tensor(name).size for name in weights.keys()]  # noqa: SIM118
        assert sum(sizes) == count_parameters(model).trainable


def test_peft_and_transformers_load_checkpoints_without_our_code(tiny_base_model, tmp_path):
    from peft import AutoPeftModelForTokenClassification
    from transformers import AutoModelForTokenClassification

    full = build_classifier(tiny_base_model, LABELS, 0.1, 42)
    save_checkpoint(full, tmp_path / "full", source_of(tiny_base_model))
    stock = AutoModelForTokenClassification.from_pretrained(tmp_path / "full")
    assert torch.equal(stock.eval()(**INPUTS).logits, full.eval()(**INPUTS).logits)
    assert stock.config.id2label == {0: "부정", 1: "중립", 2: "긍정"}
    model = add_lora(full, lora(), 42)
    save_checkpoint(model, tmp_path / "lora", source_of(tiny_base_model))
    stock = AutoPeftModelForTokenClassification.from_pretrained(tmp_path / "lora", num_labels=3)
    assert torch.equal(stock.eval()(**INPUTS).logits, model.eval()(**INPUTS).logits)


def test_weights_that_do_not_fit_the_config_are_refused(tiny_base_model, tmp_path):
    folder = shutil.copytree(tiny_base_model, tmp_path / "base")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", values | {"num_hidden_layers": 3})
    with pytest.raises(UserError, match="16 weights are missing"):
        build_classifier(folder, LABELS, 0.1, 42)
    write_json(folder / "config.json", values | {"hidden_size": 16})
    with pytest.raises(UserError, match=r"weights have a shape that config\.json does not allow"):
        build_classifier(folder, LABELS, 0.1, 42)
    write_json(folder / "config.json", values | {"hidden_act": "unheard-of"})
    with pytest.raises(UserError, match="cannot be loaded"):
        build_classifier(folder, LABELS, 0.1, 42)
    write_json(folder / "config.json", values | {"model_type": "unheard-of"})
    with pytest.raises(UserError, match="has no model_type 'unheard-of'"):
        build_classifier(folder, LABELS, 0.1, 42)
