"""Code that computes faster than PEFT and torch must give the same results."""

import numpy as np
import pytest
import torch
from torch import nn

from stages.common.modeling.adapters import SharedInputLayers, use_fast_adapters
from stages.common.modeling.compact_embedding import CompactEmbedding, compact_embedding, expand_embedding
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.dropout import dropout_mask
from tests.support.training import build, dataset_of_records, fit, subset, train_params, without_dropout


@pytest.fixture(scope="module")
def dataset(tiny_base_model) -> TokenizedDataset:
    return dataset_of_records(tiny_base_model)


@pytest.fixture
def attention(tiny_base_model):
    """Make a self-attention layer with adapters whose matrix B is not zero, as after some training."""
    model = build(tiny_base_model, "lora").train()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.base_model.model.bert.encoder.layer[0].attention.self


def gradients(layers, outputs) -> list[torch.Tensor]:
    torch.manual_seed(2)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    found = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


@pytest.mark.parametrize("names", [("query",), ("key", "value"), ("query", "key", "value")])
@pytest.mark.parametrize("bf16", [False, True])
def test_layers_of_one_input_give_pefts_outputs_and_gradients(attention, names, bf16):
    layers = [getattr(attention, name) for name in names]
    without_dropout(attention)
    results = []
    for compute in (SharedInputLayers(*layers), lambda states: [layer(states) for layer in layers]):
        torch.manual_seed(1)
        hidden = torch.randn(1, 70, layers[0].in_features, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = compute(hidden)
        results.append([*(output.float() for output in outputs), *gradients(layers, outputs), hidden.grad])
    for ours, pefts in zip(*results, strict=True):
        assert (ours - pefts).abs().max() < (0.02 if bf16 else 1e-5) * pefts.abs().max()


def test_adapters_with_dropout_have_the_gradient_of_what_they_compute(attention):
    layer, p = attention.query, 0.3
    layer.lora_dropout["default"].p = p
    hidden = torch.randn(70, layer.in_features, dtype=torch.float64, requires_grad=True)
    layer.double()

    def compute(states: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return SharedInputLayers(layer)(states)[0]

    weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    torch.manual_seed(3)
    mask, factor = dropout_mask(hidden, p)
    expected = layer.base_layer(hidden) + 2 * (hidden * mask * factor) @ weights[0].T @ weights[1].T
    assert torch.allclose(compute(hidden), expected)
    assert torch.autograd.gradcheck(compute, (hidden, *weights))


def test_adapters_of_dora_are_left_to_peft(tiny_base_model):
    from stages.common.modeling.classifier import add_lora
    from tests.support.corpus import SHIPPED

    model = add_lora(build(tiny_base_model, "full"), SHIPPED.lora.model_copy(update={"dora": True}), seed=42).train()
    use_fast_adapters(model)
    query = model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert "forward" not in vars(query)
    hidden = torch.randn(5, query.in_features)
    torch.manual_seed(0)
    ours = SharedInputLayers(query)(hidden)[0]
    torch.manual_seed(0)
    assert torch.equal(ours, query(hidden))


def test_adapters_on_another_device_are_left_to_peft(tiny_base_model):
    model = build(tiny_base_model, "lora").train().to("meta")
    use_fast_adapters(model)
    query = model.base_model.model.bert.encoder.layer[0].attention.self.query
    assert "forward" not in vars(query)


def test_rows_of_unused_tokens_end_where_adamw_takes_them(tiny_base_model, dataset):
    few, tables = subset(dataset, 12), []
    params = train_params(epochs=3, weight_decay=0.5)
    for compact in (True, False):
        model = without_dropout(build(tiny_base_model, "full"))
        if not compact:  # A subclass is left alone.
            table = model.get_input_embeddings()
            table.__class__ = type("Embedding", (nn.Embedding,), {})
        fit(model, few, dataset, params, learning_rate=5e-3)
        tables.append(model.get_input_embeddings().weight.detach())
    unused = np.setdiff1d(np.arange(len(tables[0])), few.input_ids.flatten().to_numpy())
    before = build(tiny_base_model, "full").get_input_embeddings().weight.detach()
    assert len(unused)
    assert (tables[1][unused] - before[unused]).abs().max() > 1e-4
    assert torch.allclose(tables[0], tables[1], atol=1e-5)
    assert torch.allclose(tables[0][unused], tables[1][unused], rtol=1e-5, atol=0)


def test_unused_tokens_keep_their_embeddings_in_evaluation(tiny_base_model, dataset):
    model = build(tiny_base_model, "full").eval()
    table = model.get_input_embeddings()
    all_ids = torch.arange(table.num_embeddings)[None]
    expected = table(all_ids)
    compact_embedding(model, subset(dataset, 5))
    compact = model.get_input_embeddings()
    assert isinstance(compact, CompactEmbedding)
    assert len(compact.weight) < table.num_embeddings
    assert torch.equal(compact(all_ids), expected)
    expand_embedding(model)
    assert torch.equal(model.get_input_embeddings()(all_ids), expected)


def test_frozen_embeddings_stay_as_they_are(tiny_base_model, dataset):
    model = build(tiny_base_model, "lora")
    table = model.get_input_embeddings()
    compact_embedding(model, dataset)
    assert model.get_input_embeddings() is table
