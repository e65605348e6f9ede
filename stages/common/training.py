"""One training loop, blind to the method: it optimises whatever of the model requires a gradient."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import get_scheduler

from stages.common.batches import Collator, Rows, device, first_logits, predict_logits, read_rows, shuffled
from stages.common.errors import UserError
from stages.common.files import read_json, replacing, write_json
from stages.common.metrics import macro_scores
from stages.common.model import count_parameters, save_checkpoint
from stages.common.params import TrainParams
from stages.common.paths import BASE_MODEL, TRAIN, VALIDATION
from stages.common.records import read_preprocessing

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
CHECK_EVERY = 50  # batches between looks at the loss; each look makes a GPU wait


@dataclass(frozen=True)
class Outcome:
    """What training leaves besides the weights."""

    history: list[dict[str, float]]  # an object an epoch
    best_epoch: int  # counted from 1


def train(model: nn.Module, train_rows: Rows, validation_rows: Rows, params: TrainParams, rate: float) -> Outcome:
    """Train, and leave `model` with the weights of the epoch that had the best validation macro-F1.

    Of equal epochs the earlier one is best. Dropout and the order of the rows draw from separate streams.

    Raises:
        UserError: a loss is not finite.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(params.seed)
    collate = Collator(model.to(device()), params.packing)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=rate, weight_decay=params.weight_decay, fused=True)
    steps = math.ceil(len(train_rows) / params.batch_size) * params.epochs
    scheduler = get_scheduler(SCHEDULES[params.schedule], optimizer, round(params.warmup_ratio * steps), steps)
    history: list[dict[str, float]] = []
    best_epoch, best_f1, best = 0, -1.0, {}
    for epoch in range(1, params.epochs + 1):
        train_loss = _train_epoch(model, collate, train_rows, params, epoch, optimizer, scheduler)
        logits = predict_logits(model, collate, validation_rows, 4 * params.batch_size)
        if not torch.isfinite(logits).all():
            raise UserError(f"the outputs are not finite after epoch {epoch}: a lower learning rate usually helps")
        labels = torch.from_numpy(validation_rows.labels)
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": float(cross_entropy(logits, labels)),
                **macro_scores(logits.argmax(1).tolist(), labels.tolist()),
                "learning_rate": scheduler.get_last_lr()[0],
            }
        )
        if history[-1]["macro_f1"] > best_f1:
            best_epoch, best_f1 = epoch, history[-1]["macro_f1"]
            best = {name: p.detach().clone() for name, p in trainable.items()}
        _print_epoch(history[-1], params.epochs, is_best=epoch == best_epoch)
        if params.patience and epoch - best_epoch >= params.patience:
            break
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(best[name])
    return Outcome(history, best_epoch)


def fit(model: nn.Module, params: TrainParams, rate: float, out: Path, history: Path) -> None:
    """Train `model` on the splits and write the best checkpoint to `out`, an object an epoch to `history`."""
    outcome = train(model, read_rows(TRAIN), read_rows(VALIDATION), params, rate)
    base = read_json(BASE_MODEL / "base_model.json")
    tokenizer = [BASE_MODEL / name for name in base["sha256"] if name not in ("config.json", "model.safetensors")]
    facts = {
        "base_model": base,
        "preprocessing": read_preprocessing(TRAIN).model_dump(),
        "best_epoch": outcome.best_epoch,
        "validation": outcome.history[outcome.best_epoch - 1],
        **count_parameters(model),
    }
    with replacing(out) as temporary:
        save_checkpoint(model, temporary, facts, tokenizer)
    write_json(history, outcome.history)


def _train_epoch(
    model: nn.Module,
    collate: Collator,
    rows: Rows,
    params: TrainParams,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Mean loss over the rows of the epoch, each batch before its own step."""
    model.train()
    batches = shuffled(len(rows), params.batch_size, params.seed, epoch)
    losses: list[torch.Tensor] = []
    progress = tqdm(batches, desc=f"epoch {epoch}/{params.epochs}", unit="batch", leave=False, disable=None)
    for number, rows_of_batch in enumerate(progress, start=1):
        batch = collate(rows, rows_of_batch)
        loss = cross_entropy(first_logits(model, batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if number % CHECK_EVERY == 0 or number == len(batches):
            _check_finite(losses, epoch)
            progress.set_postfix(loss=f"{float(losses[-1]):.3f}")
    sizes = torch.tensor([len(numbers) for numbers in batches], dtype=torch.float32)
    return float(torch.stack(losses).cpu() @ sizes / sizes.sum())


def _check_finite(losses: list[torch.Tensor], epoch: int) -> None:
    values = torch.stack(losses).cpu()
    if not (finite := torch.isfinite(values)).all():
        number = int((~finite).nonzero()[0])
        raise UserError(
            f"the training loss is {float(values[number])} in epoch {epoch}, batch {number + 1}: "
            "a lower learning rate or a longer train.warmup_ratio usually helps"
        )


def _print_epoch(row: dict[str, float], epochs: int, is_best: bool) -> None:
    print(
        f"epoch {row['epoch']:>2}/{epochs}  train loss {row['train_loss']:.4f}  "
        f"validation loss {row['validation_loss']:.4f}  precision {row['macro_precision']:.4f}  "
        f"recall {row['macro_recall']:.4f}  macro-F1 {row['macro_f1']:.4f}  lr {row['learning_rate']:.2e}"
        + ("  best" if is_best else ""),
        flush=True,
    )
