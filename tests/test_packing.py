"""Batches without padding give the logits, losses and gradients of padded ones, and keep examples apart."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.common.modeling.collator import IGNORE_INDEX, LENGTH_MULTIPLE, TOKENS_MULTIPLE, Collator
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.inference import build_collator, cls_logits
from tests.support.training import build, dataset_of_records, fit, losses, train_params, without_dropout


@pytest.fixture(scope="module")
def dataset(tiny_base_model) -> TokenizedDataset:
    return dataset_of_records(tiny_base_model)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packing_changes_no_loss(tiny_base_model, dataset, method):
    curves = []
    for packing in (True, False):
        model = without_dropout(build(tiny_base_model, method))
        params = train_params(packing=packing, epochs=5, batch_size=12)
        curves.append(losses(fit(model, dataset, dataset, params, learning_rate=5e-3)))
    differences = np.abs(curves[0] - curves[1]).max(1)
    assert differences[0] < 1e-5
    assert differences.max() < 1e-4  # Rounding errors grow with each step.
    assert curves[0][-1, 0] < curves[0][0, 0]


def test_the_logits_of_an_example_do_not_depend_on_its_batch(tiny_base_model, dataset):
    model = build(tiny_base_model, "full").eval()
    collator = build_collator(model, packing=True)
    assert collator.packed
    together = cls_logits(model, collator(dataset, np.arange(8)))
    for index in range(8):
        alone = cls_logits(model, collator(dataset, np.array([index])))
        assert torch.allclose(together[index], alone[0], atol=1e-6)


def test_filling_up_to_one_of_few_shapes_changes_no_logit(tiny_base_model, dataset):
    model = build(tiny_base_model, "full").eval()
    exact, filled = (Collator(model, True, fill)(dataset, np.arange(8)) for fill in (False, True))
    assert filled.inputs["input_ids"].shape[1] % TOKENS_MULTIPLE == 0
    assert filled.inputs["layout"].mask.shape[-1] % LENGTH_MULTIPLE == 0
    assert filled.inputs["position_ids"].max() == exact.inputs["position_ids"].max()
    assert filled.labels.tolist() == [*exact.labels.tolist(), IGNORE_INDEX]
    build_collator(model, packing=True)  # This sets packed attention.
    assert torch.allclose(cls_logits(model, exact), cls_logits(model, filled)[:-1], atol=1e-6)


def test_the_gradient_of_an_example_reaches_its_own_tokens_alone(tiny_base_model, dataset):
    model = build(tiny_base_model, "full").eval()
    collator = build_collator(model, packing=True)
    embeddings = model.get_input_embeddings()
    cls_logits(model, collator(dataset, np.array([0, 50])))[0].sum().backward()
    reached = set(embeddings.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert reached == set(dataset.input_ids[0].as_py())


def roberta():
    from transformers import RobertaConfig, RobertaForTokenClassification

    return RobertaForTokenClassification(RobertaConfig(pad_token_id=1, **SIZES))


def electra():
    from transformers import ElectraConfig, ElectraForTokenClassification

    return ElectraForTokenClassification(ElectraConfig(pad_token_id=0, embedding_size=8, **SIZES))


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 200,
    "max_position_embeddings": 66,
    "num_labels": 3,
}


@pytest.mark.parametrize("build_encoder", [roberta, electra])
def test_a_packed_batch_has_the_gradients_of_a_padded_one(build_encoder, dataset):
    torch.manual_seed(0)
    model = build_encoder().eval()
    gradients = []
    for collator in (Collator(model, packed=False), build_collator(model, packing=True)):
        model.zero_grad()
        cls_logits(model, collator(dataset, np.arange(0, 180, 12))).logsumexp(1).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("build_encoder", [roberta, electra])
def test_other_encoders_pack_exactly(build_encoder, dataset):
    torch.manual_seed(0)
    model = build_encoder().eval()
    indices = np.arange(0, 180, 12)
    padded = cls_logits(model, Collator(model, packed=False)(dataset, indices))
    collator = build_collator(model, packing=True)
    assert collator.packed
    assert torch.allclose(cls_logits(model, collator(dataset, indices)), padded, atol=1e-6)


def test_an_encoder_that_cannot_pack_is_padded_with_a_warning(capsys):
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification

    config = DebertaV2Config(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = DebertaV2ForTokenClassification(config)
    dataset = TokenizedDataset(pa.array([[1, 5, 2], [1, 2]]), np.array([0, 1]))
    batch = build_collator(model, packing=True)(dataset, np.arange(2))
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "batches are padded" in capsys.readouterr().err


def test_fast_dropout_zeroes_the_asked_fraction_and_keeps_the_mean():
    from stages.common.modeling.dropout import fast_dropout

    torch.manual_seed(0)
    for p in (0.1, 0.37):
        dropped = fast_dropout(torch.ones(1000, 1001), p)
        assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=2e-3)
        assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)
        # Independent within a column: the fractions of the columns spread as binomial ones do.
        assert float((dropped == 0).float().mean(0).std()) == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.1)


def test_fast_dropout_has_the_gradient_of_dropout():
    from stages.common.modeling.dropout import fast_dropout

    torch.manual_seed(0)
    states = torch.randn(3, 5, requires_grad=True)
    assert torch.equal(fast_dropout(states, 0.0), states)
    assert not fast_dropout(states, 1.0).any()
    dropped = fast_dropout(states, 0.5)
    dropped.sum().backward()
    assert torch.equal(states.grad != 0, dropped != 0)


def test_every_epoch_holds_every_example_once_in_an_order_of_its_own():
    from stages.common.modeling.sampler import shuffled_batches

    epochs = [shuffled_batches(180, 7, seed=42, epoch=epoch) for epoch in (1, 2)]
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(180))
    assert [batch.tolist() for batch in epochs[0]] != [batch.tolist() for batch in epochs[1]]


def test_mean_hidden_states_leave_padding_out(tiny_base_model, dataset):
    from stages.common.modeling.inference import mean_hidden_states

    model = build(tiny_base_model, "full").eval()
    means = mean_hidden_states(model, dataset, batch_size=16)
    with torch.no_grad():
        for index in (0, 100):
            input_ids = torch.tensor([dataset.input_ids[index].as_py()])
            alone = model.base_model(input_ids=input_ids).last_hidden_state.mean(1)[0]
            assert np.abs(alone.numpy() - means[index]).max() < 1e-5
