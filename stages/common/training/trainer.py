"""One training loop, blind to the method: it optimises whatever of the model requires a gradient."""

import contextlib
import math
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import get_scheduler

from stages.common.core.exceptions import UserError
from stages.common.core.params import RunParams, TrainParams
from stages.common.core.prefetch import prefetch
from stages.common.modeling.collator import (
    NO_LABEL,
    Batch,
    Collator,
    Rows,
    first_logits,
    predict_logits,
    shuffled,
)
from stages.common.modeling.distributed import Processes, device
from stages.common.modeling.dropout import use_fast_dropout
from stages.common.modeling.packing import Model
from stages.common.training.checkpointing import SavedPoints
from stages.common.training.cuda_graphs import Graphed
from stages.common.training.metrics import macro_scores

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
CHECK_EVERY = 50  # steps between looks at the loss; each look makes a GPU wait


@dataclass(frozen=True)
class Outcome:
    """What training leaves besides the weights."""

    history: list[dict[str, float]]  # an object an epoch
    best_epoch: int  # counted from 1
    seconds: float = field(compare=False)  # with those before a stop


def train(
    model: Model,
    train_rows: Rows,
    validation_rows: Rows,
    params: RunParams,
    rate: float,
    processes: Processes | None = None,
    points: SavedPoints | None = None,
) -> Outcome:
    """Train, and leave `model` with the weights of the epoch that had the best validation macro-F1.

    Of equal epochs the earlier one is best. Dropout and the order of the rows draw from separate streams. Neither the
    batches nor, dropout apart, the losses depend on the number of `processes`, each of which gets its share of a batch.
    With `points`, training goes on from the last one, to the same bytes.

    Raises:
        UserError: a loss is not finite.
        Stopped: a signal came; what was done is saved in `points`.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may sum in another order each time
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    run = Run(model, train_rows, params, rate, processes or Processes(0, 1, device()), points)
    with run.progress:
        while not run.is_over():
            run.train_epoch()
            run.validate(validation_rows)
    with torch.no_grad():
        for name, parameter in run.trainable.items():
            parameter.copy_(run.best[name])
    return Outcome(run.history, run.best_epoch, run.seconds())


class Run:
    """A training under way."""

    def __init__(
        self,
        model: Model,
        rows: Rows,
        params: RunParams,
        rate: float,
        processes: Processes,
        points: SavedPoints | None = None,
    ) -> None:
        self.rows, self.params, self.processes, self.points = rows, params, processes, points
        # Each process draws its own dropout.
        torch.manual_seed(int(np.random.default_rng([params.seed, processes.rank]).integers(2**63)))
        use_fast_dropout(model)
        self.model = model.to(processes.device)
        self.collate = Collator(model, params.packing)
        self.parallel = DistributedDataParallel(model) if processes.count > 1 else model
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.graphed = (
            Graphed(lambda batch, weight: self._learn([(batch, weight)]))
            if processes.device.type == "cuda" and processes.count == 1 and self.collate.packs
            else None
        )
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(),
            lr=torch.tensor(rate, device=processes.device) if self.graphed else rate,  # a graph keeps a plain number
            weight_decay=params.weight_decay,
            fused=True,
            capturable=bool(self.graphed),
        )
        self.step_size = params.batch_size * params.gradient_accumulation_steps
        self.steps_an_epoch = math.ceil(len(rows) / self.step_size)
        steps = self.steps_an_epoch * params.epochs
        warmup = round(params.warmup_ratio * steps)
        self.scheduler = get_scheduler(SCHEDULES[params.schedule], self.optimizer, warmup, steps)
        self.autocast = torch.autocast(processes.device.type, torch.bfloat16, enabled=_in_bfloat16(params, processes))
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best_f1 = 0, -1.0
        self.best: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []  # of the epoch under way, a step each
        self.started = time.monotonic()
        self.progress = tqdm(total=steps, unit="step", leave=False, disable=None if processes.is_main else True)
        if points and (point := points.latest()):
            self._go_on(*point)

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return len(self.history) + 1

    def seconds(self) -> float:
        """How long the run has been under way, pauses left out."""
        return time.monotonic() - self.started

    def is_over(self) -> bool:
        """Whether the epochs or the patience are at an end."""
        patience, done = self.params.patience, len(self.history)
        return done == self.params.epochs or bool(patience and done - self.best_epoch >= patience)

    def train_epoch(self) -> None:
        """One pass over the rows; the loss of each step is the one before it."""
        self.model.train()
        params = self.params
        steps = shuffled(self.rows, self.step_size, params.seed, self.epoch, params.group_by_length)
        unread: list[torch.Tensor] = []
        coming = prefetch(map(self._batches, steps[len(self.losses) :]))
        for number, batches in enumerate(coming, start=len(self.losses) + 1):
            unread.append(self._step(batches))
            self.progress.update()
            may_look = number % CHECK_EVERY == 0 or number == len(steps)
            # Asking other GPUs makes this one wait.
            may_ask = may_look or self.processes.count == 1 or self.processes.device.type == "cpu"
            save, signal = self.points.wanted() if self.points and may_ask else (False, 0)
            if save or may_look:
                self.losses += self.processes.total(torch.stack(unread)).tolist()
                unread = []
                self._check_finite()
                f1 = f"{self.history[-1]['macro_f1']:.3f}" if self.history else "-"
                self.progress.set_postfix(epoch=self.epoch, loss=f"{self.losses[-1]:.3f}", f1=f1)
            if save and self.points:
                self._save(self.points, signal)
        self.train_loss = float(np.average(self.losses, weights=list(map(len, steps))))

    def _save(self, points: SavedPoints, signal: int) -> None:
        states = {f"{kind}.{name}": p for kind, named in self._named_tensors().items() for name, p in named.items()}
        rngs = {
            f"rng.{rank}": rng for rank, rng in enumerate(self.processes.all(self._rng().to(self.processes.device)))
        }
        facts = {"history": self.history, "best_epoch": self.best_epoch, "losses": self.losses}
        facts["seconds"] = self.seconds()
        points.save(self._steps_done(), {**states, **rngs}, facts)
        if signal:
            text = f"stopped in epoch {self.epoch}, step {len(self.losses)}, and saved; `dvc repro` goes on from there"
            raise Stopped(signal, text if self.processes.is_main else "")

    def _go_on(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Be the run that `_save` saved."""
        self.history, self.best_epoch, self.losses = facts["history"], facts["best_epoch"], facts["losses"]
        self.started -= facts["seconds"]
        self.best_f1 = self.history[self.best_epoch - 1]["macro_f1"] if self.history else -1.0
        kinds: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            kinds.setdefault(kind, {})[rest] = tensor
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(kinds["model"][name])
        self.best = {name: tensor.to(self.processes.device) for name, tensor in kinds.get("best", {}).items()}
        own = self.optimizer.state_dict()
        slots = {
            number: {kind: kinds[kind][name] for kind in OPTIMIZER}
            for number, name in enumerate(self.trainable)
            if name in kinds["step"]
        }
        self.optimizer.load_state_dict({**own, "state": slots})
        self.scheduler.last_epoch = self._steps_done() - 1
        with warnings.catch_warnings(action="ignore"):  # no step of this process comes before
            self.scheduler.step()
        rng = kinds["rng"][str(self.processes.rank)]
        (torch.cuda if self.processes.device.type == "cuda" else torch).set_rng_state(rng)
        self.progress.update(self._steps_done())
        if self.processes.is_main:
            print(f"going on from epoch {self.epoch}, step {len(self.losses)}", file=sys.stderr)

    def _steps_done(self) -> int:
        return len(self.history) * self.steps_an_epoch + len(self.losses)

    def _rng(self) -> torch.Tensor:
        return torch.cuda.get_rng_state() if self.processes.device.type == "cuda" else torch.get_rng_state()

    def _named_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        # A parameter that takes no part in the logits has no state.
        states = {name: self.optimizer.state[p] for name, p in self.trainable.items() if p in self.optimizer.state}
        slots = {kind: {name: state[kind] for name, state in states.items()} for kind in OPTIMIZER}
        return {"model": self.trainable, "best": self.best, **slots}

    def _batches(self, step: np.ndarray) -> list[tuple[Batch, float]]:
        """This process's share of a step, and what each loss in it weighs."""
        result = []
        for start in range(0, len(step), self.params.batch_size):
            numbers = step[start : start + self.params.batch_size]
            own = numbers[self.processes.rank :: self.processes.count]
            # A process without a row must still meet the others in the backward pass.
            weight = 1 / len(step) if len(own) else 0.0
            own = own if len(own) else numbers[:1]
            result.append((self.collate(self.rows, own, filled=self.graphed is not None), weight))
        return result

    def _step(self, batches: list[tuple[Batch, float]]) -> torch.Tensor:
        """Move the weights and the rate; this process's share of the mean loss."""
        loss = self.graphed(*batches[0]) if self.graphed and len(batches) == 1 else self._learn(batches)
        self.scheduler.step()
        return loss

    def _learn(self, batches: list[tuple[Batch, float]]) -> torch.Tensor:
        total = torch.zeros((), device=self.processes.device)
        for number, (batch, weight) in enumerate(batches, start=1):
            more_to_come = number < len(batches) and self.processes.count > 1
            with self.parallel.no_sync() if more_to_come else contextlib.nullcontext():
                with self.autocast:
                    logits = first_logits(self.parallel, batch)
                loss = cross_entropy(logits.float(), batch.labels, reduction="sum", ignore_index=NO_LABEL) * weight
                # The processes' gradients are averaged, where a sum is wanted.
                (loss * self.processes.count).backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _check_finite(self) -> None:
        for number, loss in enumerate(self.losses, start=1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the training loss is {loss} in epoch {self.epoch}, step {number}: "
                    "a lower learning rate or a longer train.warmup_ratio usually helps"
                )

    def validate(self, rows: Rows) -> None:
        """End the epoch: score the validation rows, in float32, and keep the weights if they are the best."""
        logits = predict_logits(self.model, self.collate, rows, 4 * self.params.batch_size, self.processes)
        if not torch.isfinite(logits).all():
            raise UserError(f"the outputs are not finite after epoch {self.epoch}: a lower learning rate usually helps")
        labels = torch.from_numpy(rows.labels)
        row = {
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            "validation_loss": float(cross_entropy(logits, labels)),
            **macro_scores(logits.argmax(1).tolist(), labels.tolist()),
            "learning_rate": float(self.scheduler.get_last_lr()[0]),
        }
        if is_best := row["macro_f1"] > self.best_f1:
            self.best_epoch, self.best_f1 = self.epoch, row["macro_f1"]
            self.best = {name: p.detach().clone() for name, p in self.trainable.items()}
        self.history.append(row)
        self.losses = []
        if self.processes.is_main:
            with self.progress.external_write_mode():
                _print_epoch(row, self.params.epochs, is_best)
        save, signal = self.points.wanted() if self.points else (False, 0)
        if save and self.points:
            self._save(self.points, signal)


def _in_bfloat16(params: TrainParams, processes: Processes) -> bool:
    if params.precision == "auto":
        return processes.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return params.precision == "bf16"


def _print_epoch(row: dict[str, float], epochs: int, is_best: bool) -> None:
    print(
        f"epoch {row['epoch']:>2}/{epochs}  train loss {row['train_loss']:.4f}  "
        f"validation loss {row['validation_loss']:.4f}  precision {row['macro_precision']:.4f}  "
        f"recall {row['macro_recall']:.4f}  macro-F1 {row['macro_f1']:.4f}  lr {row['learning_rate']:.2e}"
        + ("  best" if is_best else ""),
        flush=True,
    )
