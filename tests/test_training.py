"""The training loop learns, changes only trainable weights, and gives the same bytes twice."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.common.artifacts.folds import read_fold
from stages.common.modeling.classifier import add_lora, build_classifier, load_checkpoint
from stages.common.modeling.collator import Collator
from stages.common.modeling.dataset import TokenizedDataset, read_dataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.modeling.inference import build_collator, cls_logits, predict_logits
from stages.common.modeling.macro_scores import macro_scores
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.paths import fold_path
from stages.common.runtime.threads import SPIN_COUNT, set_up_threads
from stages.common.training.training_step import PRECISIONS, TrainingStep, WeightedBatch, choose_precision
from tests.support.corpus import LABELS
from tests.support.project import prepare
from tests.support.training import (
    SHIPPED,
    build,
    dataset_of_records,
    fit,
    losses,
    subset,
    train_params,
    without_dropout,
)

ALONE = DistributedContext(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(tiny_base_model) -> TokenizedDataset:
    return dataset_of_records(tiny_base_model)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_batch_can_be_overfitted(tiny_base_model, dataset, method):
    batch = subset(dataset, 9)
    model = build_classifier(tiny_base_model, LABELS, dropout=0.0, seed=42)
    if method == "lora":
        targets = ["query", "key", "value", "dense"]
        lora = SHIPPED.lora.model_copy(update={"target_modules": targets, "dropout": 0.0})
        model = add_lora(model, lora, seed=42)
    params = train_params(epochs=200, schedule="constant", warmup_ratio=0.0)
    result = fit(without_dropout(model), batch, batch, params, learning_rate=0.008)
    assert result.history[result.best_epoch - 1]["macro_f1"] == 1.0
    assert losses(result)[:, 0].min() < 0.5 * losses(result)[0, 0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_frozen_weights_stay_and_trainable_ones_change(tiny_base_model, dataset, method):
    model = build(tiny_base_model, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, dataset, subset(dataset, 20), train_params(epochs=1), learning_rate=1e-2)
    for name, parameter in model.named_parameters():
        # The bias of a key shifts all scores of a query alike: its gradient is rounding.
        if parameter.requires_grad and "key.bias" not in name:
            assert not torch.equal(parameter, before[name]), name
        elif not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_trainings_give_the_same_bits(tiny_base_model, dataset, method):
    runs = []
    for _ in range(2):
        model = build(tiny_base_model, method)
        result = fit(model, dataset, subset(dataset, 30), train_params(), learning_rate=1e-3)
        runs.append((result, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_the_weights_of_the_best_epoch_are_kept(tiny_base_model, dataset):
    model = build(tiny_base_model, "full")
    result = fit(model, dataset, dataset, train_params(epochs=6), learning_rate=0.02)
    scores = [row["macro_f1"] for row in result.history]
    assert result.best_epoch == 1 + scores.index(max(scores))
    logits = predict_logits(model, Collator(model, packed=False), dataset, batch_size=7)
    again = macro_scores(logits.argmax(1).tolist(), dataset.labels.tolist(), len(LABELS))
    assert {name: result.history[result.best_epoch - 1][name] for name in again} == again
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]


def test_patience_ends_training(tiny_base_model, dataset):
    params = train_params(epochs=9, patience=2)
    result = fit(build(tiny_base_model, "full"), dataset, dataset, params, learning_rate=1e-8)
    assert len(result.history) == result.best_epoch + 2 < 9


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, [1e-3, 1e-3]),
        ({"schedule": "linear"}, [5e-4, 0]),
        ({"warmup_ratio": 0.5, "epochs": 4}, [5e-4, 1e-3, 1e-3, 1e-3]),
    ],
    ids=["constant", "linear", "warm-up"],
)
def test_schedule_and_warmup_change_the_learning_rate(tiny_base_model, dataset, changed, expected):
    shipped = {"schedule": "constant", "warmup_ratio": 0.0}
    params = train_params(**{**shipped, **changed})
    result = fit(build(tiny_base_model, "lora"), subset(dataset, 32), dataset, params, learning_rate=1e-3)
    assert [row["learning_rate"] for row in result.history] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-2)])
def test_four_accumulated_batches_of_four_equal_one_of_sixteen(tiny_base_model, dataset, method, precision, tolerance):
    curves = []
    for changed in ({"batch_size": 16}, {"batch_size": 4, "gradient_accumulation_steps": 4}):
        model = without_dropout(build(tiny_base_model, method))
        params = train_params(epochs=4, precision=precision, **changed)
        curves.append(losses(fit(model, subset(dataset, 90), dataset, params, learning_rate=5e-3)))
    assert np.abs(curves[0] - curves[1]).max() < tolerance
    assert curves[0][-1, 0] < curves[0][0, 0]


def test_accumulated_batches_that_are_replayed_train_as_others_do(tiny_base_model, dataset, monkeypatch):
    """Without a GPU, the test replaces the replay of a graph by the code that the graph would have recorded."""

    def capture(step: TrainingStep, weighted: WeightedBatch, is_last: bool) -> SimpleNamespace:
        loss = torch.zeros(())
        replays.append(is_last)
        graph = SimpleNamespace(replay=lambda: loss.copy_(step._process(weighted, is_last)))
        return SimpleNamespace(graph=graph, batch=weighted.batch, loss=loss)

    replays: list[bool] = []
    monkeypatch.setattr(TrainingStep, "_capture", capture)
    params = train_params(batch_size=4, gradient_accumulation_steps=3, warmup_ratio=0.0)
    results = []
    for by_graph in (False, True):
        model = without_dropout(build(tiny_base_model, "full"))
        build_collator(model, packing=True)
        step = TrainingStep(model, dataset, True, params, 0.01, ALONE)
        step.use_cuda_graphs = step._keeps_gradients = by_graph
        step._collator = Collator(model, packed=True, pad_to_multiple=True)
        order = np.random.default_rng(0).permutation(len(dataset))
        losses_of_steps = [float(step(step.collate(order[start : start + 12]))) for start in range(0, 175, 12)]
        results.append((losses_of_steps, torch.cat([weight.flatten() for weight in step.weights.values()])))
    assert set(replays) == {False, True}
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-6)
    assert torch.allclose(results[1][1], results[0][1], atol=1e-6)


def test_no_gradient_is_computed_below_the_first_adapter(tiny_base_model, dataset):
    model = build(tiny_base_model, "lora").train()
    requires_grad = []
    model.get_input_embeddings().register_forward_hook(lambda *args: requires_grad.append(args[-1].requires_grad))
    loss = cls_logits(model, build_collator(model, packing=True)(dataset, np.arange(8))).sum()
    assert loss.requires_grad
    assert not any(requires_grad)


def test_a_loss_that_is_not_finite_stops_and_names_epoch_and_step(tiny_base_model, dataset):
    model = build(tiny_base_model, "full")
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="nan in epoch 1, step 1;"):
        fit(model, dataset, dataset, train_params(), learning_rate=1e-3)


def test_outputs_that_are_not_finite_after_the_last_step_stop_too(tiny_base_model, dataset):
    params = train_params(batch_size=180, weight_decay=1e44)
    with pytest.raises(UserError, match="not finite after epoch 1;"):
        fit(build(tiny_base_model, "full"), dataset, dataset, params, learning_rate=0.5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_runs_logits_are_those_of_its_checkpoint(trained_project, method, monkeypatch):
    from stages.common.artifacts.logits import read_logits

    run = next((trained_project / "data/runs" / method).glob("0-*"))
    model = load_checkpoint(run / "checkpoint", LABELS, trained_project / "data/base_model")
    stored = read_logits(run / "logits.safetensors", len(LABELS))
    monkeypatch.chdir(trained_project)
    dataset = read_dataset()
    for part, rows in vars(read_fold(fold_path(0), len(dataset))).items():
        logits = predict_logits(model, Collator(model, packed=False), dataset.take(rows), batch_size=5)
        assert np.abs(logits.numpy() - stored[part]).max() < 1e-5


def test_an_epoch_is_one_short_line_with_time_and_speed(monkeypatch, tmp_path, tiny_base_model, capsys):
    monkeypatch.chdir(tmp_path)
    stage = prepare(tmp_path, tiny_base_model)
    stage("train_lora", "--fold", 0, "--learning-rate", 0.001, train__epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(len(line) <= 100 and "examples/s" in line and "step" in line for line in lines)


def test_select_keeps_the_history_of_every_run(trained_project):
    history = json.loads((trained_project / "plots/full.json").read_text(encoding="utf-8"))
    names = ("train_loss", "validation_loss", "learning_rate", "macro_precision", "macro_recall", "macro_f1")
    assert len(history) == 1
    assert set(history[0]) == {"epoch", "runs", *(name + kind for name in names for kind in ("", "_sd", "_fold_0"))}


def test_select_copies_the_best_checkpoint(trained_project):
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    selection = json.loads((trained_project / "data/selection.json").read_text(encoding="utf-8"))
    for method in ("full", "lora"):
        best = trained_project / "data/runs" / method / selection[method]["best_run"] / "checkpoint"
        assert files(trained_project / "data/models" / method) == files(best)
    sizes = {
        method: selected["runs"][selected["best_run"]]["checkpoint_bytes"] for method, selected in selection.items()
    }
    assert sizes["lora"] < sizes["full"]


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    for _ in range(5):
        labels, predictions = generator.integers(0, 3, (2, 50)).tolist()
        expected = f1_score(labels, predictions, average="macro")
        assert macro_scores(predictions, labels, len(LABELS))["macro_f1"] == pytest.approx(expected)
    assert macro_scores([0, 0], [0, 0], len(LABELS))["macro_f1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("variables", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(monkeypatch, variables):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    set_up_threads()
    expected = variables.get("GOMP_SPINCOUNT") if variables else str(SPIN_COUNT)
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_balanced_weights_find_more_of_a_rare_class(tiny_base_model, dataset):
    rare = np.flatnonzero(dataset.labels == 1)[:12]
    others = np.flatnonzero(dataset.labels != 1)
    indices = np.concatenate([rare, others])
    unbalanced = TokenizedDataset(dataset.input_ids.take(pa.array(indices)), dataset.labels[indices], LABELS)
    recall = {}
    for weights in ("none", "balanced"):
        model = without_dropout(build(tiny_base_model, "full"))
        fit(model, unbalanced, dataset, train_params(class_weights=weights, epochs=4), 0.02)
        predicted = predict_logits(model, Collator(model, packed=False), dataset, batch_size=64).argmax(1).numpy()
        recall[weights] = (predicted == 1)[dataset.labels == 1].mean()
    assert recall["balanced"] > recall["none"]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_learn_what_fp32_learns_and_weights_stay_in_fp32(tiny_base_model, dataset, method, precision):
    results = {}
    for tried in ("fp32", precision):
        model = without_dropout(build(tiny_base_model, method))
        results[tried] = losses(fit(model, dataset, dataset, train_params(precision=tried), 0.01))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert results[precision] == pytest.approx(results["fp32"], rel=0.1)
    assert not np.array_equal(results[precision], results["fp32"])


@pytest.mark.parametrize(
    ("native", "amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_takes_bf16_where_a_processor_multiplies_it(monkeypatch, native, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto", torch.device("cpu")) is expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
    ids=["P40", "V100", "T4", "A100", "L4", "B200"],
)
def test_auto_takes_what_a_gpu_multiplies_fast(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # It counts emulation.
    assert choose_precision("auto", torch.device("cuda", 0)) is expected


@pytest.mark.parametrize(("name", "expected"), PRECISIONS.items())
def test_a_precision_that_is_named_is_taken_anywhere(name, expected):
    assert choose_precision(name, torch.device("cpu")) is expected
    assert choose_precision(name, torch.device("cuda", 0)) is expected


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_whose_fp16_gradients_overflow_is_skipped_counted_and_scaled_down(tiny_base_model, dataset, accumulated):
    model = without_dropout(build(tiny_base_model, "full"))
    params = train_params(
        precision="fp16", batch_size=8, gradient_accumulation_steps=accumulated, schedule="constant", warmup_ratio=0.0
    )
    step = TrainingStep(model, dataset, False, params, 0.01, ALONE)
    batches = step.collate(np.arange(8 * accumulated))

    def update(scale: float) -> bool:
        """Take a step with this scale, and return whether it changed the weights."""
        state = step.state_dict()
        step.load_state_dict(state | {"scaler": state["scaler"] | {"scale": scale}})
        before = {name: weight.clone() for name, weight in step.weights.items()}
        assert torch.isfinite(step(batches))
        return not all(torch.equal(weight, before[name]) for name, weight in step.weights.items())

    assert update(2.0**10)
    assert not update(2.0**40)
    assert step.state_dict()["scaler"]["scale"] == 2.0**39
    assert update(2.0**10)
    assert step.count_updates() == 2


def test_skipped_steps_are_told_after_the_epoch(tiny_base_model, dataset, monkeypatch, capsys):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: scaler(*args, init_scale=2.0**40, **options))
    fit(build(tiny_base_model, "full"), dataset, dataset, train_params(precision="fp16", epochs=1), 1e-3)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert re.search(r" [1-9]\d* steps skipped so far$", line)
