"""The training loop, which is the same for both methods: epochs, validation, checkpoints and progress."""

import math
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from stages.common.artifacts.history import History, validation_score
from stages.common.modeling.adapters import use_fast_adapters
from stages.common.modeling.compact_embedding import compact_embedding, expand_embedding
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.modeling.dropout import use_fast_dropout
from stages.common.modeling.inference import build_collator, predict_logits
from stages.common.modeling.macro_scores import macro_scores
from stages.common.modeling.sampler import shuffled_batches
from stages.common.modeling.types import Model
from stages.common.runtime.console import ProgressBar, format_duration
from stages.common.runtime.exceptions import TrainingInterrupted, UserError
from stages.common.runtime.params import TrainParams
from stages.common.runtime.prefetch import prefetch
from stages.common.training.checkpointing import CheckpointManager
from stages.common.training.interruption import SaveDecision, SavePolicy
from stages.common.training.training_step import TrainingStep

LOSS_CHECK_INTERVAL = 50  # Training steps between two reads of the losses, since each read makes a GPU wait.


@dataclass(frozen=True)
class TrainResult:
    """The result of a training, apart from the weights."""

    history: History
    best_epoch: int  # Counted from 1.
    seconds: float = field(compare=False)  # Time of training, without pauses between interruption and resumption.


class Trainer:
    """Train a model, and leave it with the weights of the epoch that had the best validation score.

    If two epochs have the same score, the earlier one is the best. Dropout and the order of the examples draw from
    separate random streams. Each process gets its share of every batch, so the batches do not depend on the number of
    processes, and without dropout neither do the losses.

    Args:
        model: The model, which is moved to the device of `distributed`.
        dataset: The training examples.
        validation_dataset: The examples that are scored after each epoch.
        params: The parameters of the section `train`.
        learning_rate: Highest learning rate of the schedule.
        seed: Seed of the order of the examples and of dropout.
        distributed: The processes of the training; by default this process only.
        checkpoints: Saves checkpoints. Training resumes from the last one, and ends with the same bytes.
        save_policy: Decides when checkpoints are saved.
    """

    def __init__(
        self,
        model: Model,
        dataset: TokenizedDataset,
        validation_dataset: TokenizedDataset,
        params: TrainParams,
        learning_rate: float,
        seed: int,
        distributed: DistributedContext | None = None,
        checkpoints: CheckpointManager | None = None,
        save_policy: SavePolicy | None = None,
    ) -> None:
        use_deterministic_algorithms()
        self._validation_dataset, self._params, self._seed = validation_dataset, params, seed
        self.distributed = distributed or DistributedContext()
        self._checkpoints = checkpoints
        self._save_policy = save_policy or SavePolicy(0, self.distributed)
        # The dropout of each process has a random stream of its own.
        torch.manual_seed(int(np.random.default_rng([seed, self.distributed.rank]).integers(2**63)))
        self._rng: Any = torch.cuda if self.distributed.device.type == "cuda" else torch
        use_fast_dropout(model)
        self.model = model.to(self.distributed.device)
        use_fast_adapters(model)
        self.collator = build_collator(model, params.packing)
        compact_embedding(model, dataset)
        self._num_examples = len(dataset)
        self._step = TrainingStep(model, dataset, self.collator.packed, params, learning_rate, self.distributed)
        self._history: History = []
        self._best_epoch = 0
        self._best_weights: dict[str, torch.Tensor] = {}
        self._epoch_losses: list[float] = []  # Losses of the steps of the current epoch.
        self._started = time.monotonic()
        total_steps = self._step.steps_per_epoch * params.epochs
        self._progress = ProgressBar(total=total_steps, unit="step", disable=not self.distributed.is_main_process)
        if checkpoints and (state := checkpoints.latest()):
            self.load_state_dict(state)

    def train(self) -> TrainResult:
        """Train until all epochs or `train.patience` are exhausted.

        Raises:
            UserError: A loss or a logit is not finite.
            TrainingInterrupted: A signal arrived, and a checkpoint was saved.
        """
        with self._progress:
            while not self._is_finished():
                train_loss = self._train_epoch()
                self._validate(train_loss)
                self._save_if_due(self._save_policy.poll())
        self._step.load_weights(self._best_weights)
        expand_embedding(self.model)
        return TrainResult(self._history, self._best_epoch, self._seconds())

    @property
    def _epoch(self) -> int:
        return len(self._history) + 1

    @property
    def _step_count(self) -> int:
        return len(self._history) * self._step.steps_per_epoch + len(self._epoch_losses)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _is_finished(self) -> bool:
        patience, epochs = self._params.patience, len(self._history)
        return epochs == self._params.epochs or bool(patience and epochs - self._best_epoch >= patience)

    def _train_epoch(self) -> float:
        """Train on every example once, and return the mean of the losses before each update."""
        self.model.train()
        steps = shuffled_batches(self._num_examples, self._step.examples_per_step, self._seed, self._epoch)
        first = len(self._epoch_losses)  # Greater than 0 if training resumes within an epoch.
        pending_losses: list[torch.Tensor] = []
        for number, batches in enumerate(prefetch(map(self._step.collate, steps[first:])), start=first + 1):
            pending_losses.append(self._step(batches))
            self._progress.update()
            check_losses = number % LOSS_CHECK_INTERVAL == 0 or number == len(steps)
            # Several processes exchange a tensor to decide, which makes a GPU wait.
            may_poll = check_losses or self.distributed.world_size == 1 or self.distributed.device.type == "cpu"
            decision = self._save_policy.poll() if may_poll else SaveDecision(save_now=False, signal_number=0)
            if decision.save_now or check_losses:
                self._epoch_losses += self.distributed.all_reduce_sum(torch.stack(pending_losses)).tolist()
                pending_losses = []
                self._check_losses()
                self._show_progress()
            self._save_if_due(decision)
        return float(np.average(self._epoch_losses, weights=list(map(len, steps))))

    def _check_losses(self) -> None:
        for number, loss in enumerate(self._epoch_losses, start=1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the training loss is {loss} in epoch {self._epoch}, step {number}; "
                    "a lower learning rate or a larger train.warmup_ratio usually helps"
                )

    def _show_progress(self) -> None:
        f1 = f"{self._history[-1]['macro_f1']:.3f}" if self._history else "-"
        values = {"loss": f"{self._epoch_losses[-1]:.3f}", "F1": f1, "examples/s": self._examples_per_second()}
        self._progress.set_postfix({"epoch": self._epoch, **values}, refresh=False)

    def _examples_per_second(self) -> str:
        return f"{self._step_count * self._num_examples / self._step.steps_per_epoch / self._seconds():.0f}"

    def _validate(self, train_loss: float) -> None:
        """Score the validation examples in float32, and remember the weights if they are the best so far."""
        dataset = self._validation_dataset
        logits = predict_logits(self.model, self.collator, dataset, self._params.eval_batch_size, self.distributed)
        if not torch.isfinite(logits).all():
            raise UserError(
                f"the model's logits are not finite after epoch {self._epoch}; a lower learning rate usually helps"
            )
        labels = torch.from_numpy(dataset.labels)
        row = {
            "epoch": self._epoch,
            "train_loss": train_loss,
            "validation_loss": float(cross_entropy(logits, labels)),
            **macro_scores(logits.argmax(1).tolist(), labels.tolist(), num_classes=logits.shape[1]),
            "learning_rate": self._step.learning_rate,
        }
        is_best = not self._history or self._score(row) > self._score(self._history[self._best_epoch - 1])
        if is_best:
            self._best_epoch = self._epoch
            self._best_weights = {name: weight.clone() for name, weight in self._step.weights.items()}
        if self.distributed.is_main_process:
            self._print_epoch(row, is_best)
        self._history.append(row)
        self._epoch_losses = []

    def _score(self, row: dict[str, float]) -> float:
        return validation_score(row, self._params.select_by)

    def _print_epoch(self, row: dict[str, float], is_best: bool) -> None:
        line = (
            f"epoch {row['epoch']:>2}/{self._params.epochs}  {format_duration(self._seconds())}  "
            f"step {self._step_count}  {self._examples_per_second()} examples/s  loss {row['train_loss']:.4f}  "
            f"val loss {row['validation_loss']:.4f}  val F1 {row['macro_f1']:.4f}{'  best' if is_best else ''}"
        )
        if skipped := self._step_count - self._step.count_updates():
            line += f"  {skipped} steps skipped so far"
        with self._progress.external_write_mode():
            print(line, flush=True)

    def _save_if_due(self, decision: SaveDecision) -> None:
        if not decision.save_now or not self._checkpoints:
            return
        self._checkpoints.save(self._step_count, self.state_dict())
        if decision.signal_number:
            text = f"training stopped after step {self._step_count} and saved a checkpoint; `dvc repro` resumes from it"
            raise TrainingInterrupted(decision.signal_number, text if self.distributed.is_main_process else "")

    def state_dict(self) -> dict[str, Any]:
        """Return the state on which the rest of the training depends."""
        rng_states = self.distributed.all_gather(self._rng.get_rng_state().to(self.distributed.device))
        return {
            "step": self._step.state_dict(),
            "best_weights": self._best_weights,
            "rng_states": [state.cpu() for state in rng_states],  # In the order of ranks.
            "history": self._history,
            "best_epoch": self._best_epoch,
            "epoch_losses": self._epoch_losses,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._step.load_state_dict(state["step"])
        self._best_weights = {name: w.to(self.distributed.device) for name, w in state["best_weights"].items()}
        self._rng.set_rng_state(state["rng_states"][self.distributed.rank])
        self._history, self._best_epoch = state["history"], state["best_epoch"]
        self._epoch_losses = state["epoch_losses"]
        self._started = time.monotonic() - state["seconds"]
        self._progress.update(self._step_count)
        if self.distributed.is_main_process:
            print(f"training resumes after step {self._step_count}", file=sys.stderr)


def use_deterministic_algorithms() -> None:
    """Make torch compute the same bytes in each training with the same input."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Otherwise cuBLAS may sum in a different order.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # No code here reads uninitialised memory, so filling it would only take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
