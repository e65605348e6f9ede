"""The loop: it learns, it touches what it should, it gives the same bytes twice."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.common.core.exceptions import UserError
from stages.common.core.params import RunParams, load_params
from stages.common.modeling.classifier import add_lora, build_classifier, load_checkpoint
from stages.common.modeling.collator import Collator, Rows, first_logits, predict_logits, shuffled
from stages.common.modeling.dropout import drop
from stages.common.training.metrics import macro_scores
from stages.common.training.trainer import train
from tests.support.corpus import records
from tests.support.project import ROOT, encode, prepare

SHIPPED = load_params(ROOT / "params.yaml")


def params(**changed: object) -> RunParams:
    return SHIPPED.train.run(42).model_copy(update={"epochs": 2, "patience": 0, **changed})


def build(base_model: Path, method: str):
    model = build_classifier(base_model, 0.1, 42)
    return add_lora(model, SHIPPED.lora, 42) if method == "lora" else model


@pytest.fixture(scope="module")
def rows(tiny_base_model) -> Rows:
    texts = records()
    ids = encode(tiny_base_model, [row["RawText"] for row in texts])
    labels = np.array([int(row["GeneralPolarity"]) + 1 for row in texts])
    return Rows([np.array(row, dtype=np.int32) for row in ids], labels)


def part(rows: Rows, count: int) -> Rows:
    numbers = np.linspace(0, len(rows) - 1, count).astype(int)
    return Rows([rows.input_ids[number] for number in numbers], rows.labels[numbers])


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_batch_can_be_overfitted(tiny_base_model, rows, method):
    batch = part(rows, 9)
    model = build_classifier(tiny_base_model, 0.0, 42)
    if method == "lora":
        targets = ["query", "key", "value", "dense"]
        model = add_lora(model, SHIPPED.lora.model_copy(update={"target_modules": targets, "dropout": 0.0}), 42)
    outcome = train(without_dropout(model), batch, batch, params(epochs=200), 0.008)
    assert outcome.history[outcome.best_epoch - 1]["macro_f1"] == 1.0
    assert min(row["train_loss"] for row in outcome.history) < 0.5 * outcome.history[0]["train_loss"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_frozen_weights_stay_and_trainable_ones_move(tiny_base_model, rows, method):
    model = build(tiny_base_model, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, rows, part(rows, 20), params(epochs=1), 1e-2)
    for name, parameter in model.named_parameters():
        # The bias of a key shifts all scores of a query alike: its gradient is rounding.
        if parameter.requires_grad and "key.bias" not in name:
            assert not torch.equal(parameter, before[name]), name
        elif not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_runs_are_the_same_to_the_bit(tiny_base_model, rows, method):
    runs = []
    for _ in range(2):
        model = build(tiny_base_model, method)
        outcome = train(model, rows, part(rows, 30), params(), 1e-3)
        runs.append((outcome, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_the_best_epoch_is_what_is_kept(tiny_base_model, rows):
    model = build(tiny_base_model, "full")
    outcome = train(model, rows, rows, params(epochs=6), 0.02)
    scores = [row["macro_f1"] for row in outcome.history]
    assert outcome.best_epoch == 1 + scores.index(max(scores))
    logits = predict_logits(model, Collator(model, True), rows, 7)
    again = macro_scores(logits.argmax(1).tolist(), rows.labels.tolist())
    assert {name: outcome.history[outcome.best_epoch - 1][name] for name in again} == again
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4, 5, 6]


def test_patience_ends_training(tiny_base_model, rows):
    outcome = train(build(tiny_base_model, "full"), rows, rows, params(epochs=9, patience=2), 1e-8)
    assert len(outcome.history) == outcome.best_epoch + 2 < 9


def test_schedule_and_warmup_move_the_rate(tiny_base_model, rows):
    def rates(**changed: object) -> list[float]:
        model = build(tiny_base_model, "lora")
        return [row["learning_rate"] for row in train(model, part(rows, 32), rows, params(**changed), 1e-3).history]

    assert rates() == [1e-3, 1e-3]
    assert rates(schedule="linear") == pytest.approx([5e-4, 0])
    assert rates(warmup_ratio=0.5, epochs=4) == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packing_changes_no_loss(tiny_base_model, rows, method):
    """Same batches, same mathematics: the loss curve is the padded model's."""
    curves = []
    for packing in (True, False):
        model = without_dropout(build(tiny_base_model, method))
        history = train(model, rows, rows, params(packing=packing, epochs=5, batch_size=12), 5e-3).history
        curves.append([(row["train_loss"], row["validation_loss"]) for row in history])
    differences = np.abs(np.array(curves[0]) - np.array(curves[1])).max(1)
    assert differences[0] < 1e-5
    assert differences.max() < 1e-4  # rounding grows with the steps
    assert curves[0][-1][0] < curves[0][0][0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_four_batches_of_four_are_one_of_sixteen(tiny_base_model, rows, method):
    curves = []
    for changed in ({"batch_size": 16}, {"batch_size": 4, "gradient_accumulation_steps": 4}):
        model = without_dropout(build(tiny_base_model, method))
        history = train(model, part(rows, 90), rows, params(epochs=4, **changed), 5e-3).history
        curves.append([(row["train_loss"], row["validation_loss"]) for row in history])
    assert np.abs(np.array(curves[0]) - np.array(curves[1])).max() < 1e-5
    assert curves[0][-1][0] < curves[0][0][0]


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(rows):
    for grouped in (False, True):
        epochs = [shuffled(rows, 7, 42, epoch, grouped) for epoch in (1, 2)]
        for batches in epochs:
            assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
        assert [batch.tolist() for batch in epochs[0]] != [batch.tolist() for batch in epochs[1]]
    lengths = [[len(rows.input_ids[number]) for number in batch] for batch in epochs[1]]
    assert max(max(batch) - min(batch) for batch in lengths) <= 2
    assert [min(batch) for batch in lengths] != sorted(min(batch) for batch in lengths)


def test_cheap_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    for p in (0.1, 0.37):
        dropped = drop(torch.ones(1000, 1001), p)
        assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=2e-3)
        assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)
        # Neither rows nor columns are drawn together.
        assert float((dropped == 0).float().mean(0).std()) == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.1)
    states = torch.randn(3, 5, requires_grad=True)
    assert torch.equal(drop(states, 0.0), states)
    assert not drop(states, 1.0).any()
    again = drop(states, 0.5)
    again.sum().backward()
    assert torch.equal(states.grad != 0, again != 0)


def test_no_gradient_goes_below_the_first_adapter(tiny_base_model, rows):
    model = build(tiny_base_model, "lora").train()
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda *args: seen.append(args[-1].requires_grad))
    loss = first_logits(model, Collator(model, True)(rows, np.arange(8))).sum()
    assert loss.requires_grad
    assert not any(seen)


def test_no_review_sees_another(tiny_base_model, rows):
    model = build(tiny_base_model, "full").eval()
    collate = Collator(model, True)
    together = first_logits(model, collate(rows, np.arange(8)))
    for number in range(8):
        alone = first_logits(model, collate(rows, np.array([number])))
        assert torch.allclose(together[number], alone[0], atol=1e-6)
    embeddings = model.get_input_embeddings()
    embeddings.weight.grad = None
    first_logits(model, collate(rows, np.array([0, 50])))[0].sum().backward()
    seen = set(embeddings.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert seen == set(rows.input_ids[0].tolist())


def encoders():
    from transformers import ElectraConfig, ElectraForTokenClassification, RobertaConfig, RobertaForTokenClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shared = {"vocab_size": 200, "max_position_embeddings": 66, "num_labels": 3, **sizes}
    yield RobertaForTokenClassification(RobertaConfig(pad_token_id=1, **shared))
    yield ElectraForTokenClassification(ElectraConfig(pad_token_id=0, embedding_size=8, **shared))


@pytest.mark.parametrize("model", list(encoders()), ids=lambda model: type(model).__name__)
def test_other_encoders_pack_exactly(model, rows):
    torch.manual_seed(0)
    model.eval()
    numbers = np.arange(0, 180, 12)
    padded = first_logits(model, Collator(model, False)(rows, numbers))
    collate = Collator(model, True)
    assert model.config._attn_implementation == "packed"
    assert torch.allclose(first_logits(model, collate(rows, numbers)), padded, atol=1e-6)


def test_an_encoder_that_cannot_pack_is_padded(capsys):
    from transformers import DebertaV2Config, DebertaV2ForTokenClassification

    config = DebertaV2Config(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = DebertaV2ForTokenClassification(config)
    rows = Rows([np.array([1, 5, 2], dtype=np.int32), np.array([1, 2], dtype=np.int32)], np.array([0, 1]))
    batch = Collator(model, True)(rows, np.arange(2))
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "batches are padded" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(tiny_base_model, rows):
    model = build(tiny_base_model, "full")
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="nan in epoch 1, step 1:"):
        train(model, rows, rows, params(), 1e-3)


def test_outputs_that_are_not_finite_stop_after_the_last_step_too(tiny_base_model, rows):
    with pytest.raises(UserError, match="not finite after epoch 1:"):
        train(build(tiny_base_model, "full"), rows, rows, params(batch_size=180, weight_decay=1e44), 0.5)


def test_a_stage_reports_what_its_checkpoint_gives(monkeypatch, tmp_path, tiny_base_model, capsys):
    import json

    from stages.common.modeling.collator import read_rows

    monkeypatch.chdir(tmp_path)
    stage = prepare(tmp_path, tiny_base_model)
    stage("train_full", 42, train__epochs=2, full__learning_rate=0.01)
    stage("train_lora", 42)
    for name in ("evaluate", "baselines", "compare"):
        stage(name)
    figures = json.loads(Path("metrics/compare.json").read_text(encoding="utf-8"))
    rows = read_rows(Path("data/splits/test.arrow"))
    for method in ("full", "lora"):
        model = load_checkpoint(Path("data/models") / method, Path("data/base_model"))
        logits = predict_logits(model, Collator(model, False), rows, 5)
        scores = macro_scores(logits.argmax(1).tolist(), rows.labels.tolist())
        assert {name: figures[method][name] for name in scores} == {k: round(v, 4) for k, v in scores.items()}
        history = json.loads(Path(f"plots/{method}.json").read_text(encoding="utf-8"))
        assert len(history) == 2
        names = ("train_loss", "validation_loss", "learning_rate", "macro_precision", "macro_recall", "macro_f1")
        assert set(history[0]) == {"epoch", "runs", *(name + kind for name in names for kind in ("", "_sd", "_42"))}
        confusion = json.loads(Path(f"plots/confusion_{method}.json").read_text(encoding="utf-8"))
        assert len(confusion) == len(rows)
    assert figures["lora"]["checkpoint_bytes"] < figures["full"]["checkpoint_bytes"]
    assert capsys.readouterr().out.count("epoch") >= 4


def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    for _ in range(5):
        truth, guess = generator.integers(0, 3, (2, 50)).tolist()
        assert macro_scores(guess, truth)["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert macro_scores([0, 0], [0, 0])["macro_f1"] == pytest.approx(1 / 3)
