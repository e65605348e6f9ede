"""One training step: batches, forward pass, loss, backward pass, optimizer and learning rate schedule.

With 16 reviews a step runs a thousand kernels of a few microseconds on a GPU, and launching them one by one takes
longer than running them. The step is therefore captured as a CUDA graph and replayed. A graph has fixed shapes, so
batches are filled up to one of a few shapes (`Collator.pad_to_multiple`).
"""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from stages.common.modeling.collator import IGNORE_INDEX, Batch, Collator
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.modeling.inference import cls_logits
from stages.common.modeling.types import Model
from stages.common.runtime.params import TrainParams

NOT_DECAYED = [r"bias", r"layernorm"]  # Patterns of parameters without weight decay, as in transformers' Trainer.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Values of `train.schedule`, and what transformers calls them.
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class WeightedBatch:
    """The share of a batch that this process computes."""

    batch: Batch
    weight: float  # Weight of the loss of each example in the loss of the step.


@dataclass(frozen=True)
class _CapturedGraph:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # The tensors that the graph reads.
    loss: torch.Tensor  # The tensor that the graph writes.


class TrainingStep:
    """Train every parameter that requires a gradient, with one optimizer step per call.

    Args:
        model: The model, on the device of this process.
        dataset: The training examples.
        packed: Whether batches are packed into rows without padding.
        params: The parameters of the section `train`.
        learning_rate: Highest learning rate of the schedule.
        distributed: The processes of the training.
    """

    def __init__(
        self,
        model: Model,
        dataset: TokenizedDataset,
        packed: bool,
        params: TrainParams,
        learning_rate: float,
        distributed: DistributedContext,
    ) -> None:
        self._dataset, self._batch_size, self._distributed = dataset, params.batch_size, distributed
        self.examples_per_step = params.batch_size * params.gradient_accumulation_steps
        self.steps_per_epoch = math.ceil(len(dataset) / self.examples_per_step)
        num_training_steps = self.steps_per_epoch * params.epochs
        device = distributed.device
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._model = DistributedDataParallel(model) if distributed.world_size > 1 else model
        precision = choose_precision(params.precision, device)
        self._autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
        # The scaler scales the loss, since small gradients would be 0 in fp16, and skips a step with gradients that are
        # not finite. Neither makes a GPU wait, since the fused optimizer reads both on the device.
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self._class_weights: torch.Tensor | None = None
        if params.class_weights == "balanced":
            weights = compute_class_weight("balanced", classes=np.arange(model.config.num_labels), y=dataset.labels)
            self._class_weights = torch.from_numpy(weights).float().to(device)
        self.use_cuda_graphs = device.type == "cuda" and distributed.world_size == 1 and packed
        # The graphs by shape of the batch. None stands for a shape that has been warmed up, but not captured yet.
        self._graphs: dict[tuple[object, ...], _CapturedGraph | None] = {}
        # All graphs share their memory, and those of one optimizer step also the tensors of the gradients.
        self._graph_pool = torch.cuda.graph_pool_handle() if self.use_cuda_graphs else None
        self._keeps_gradients = self.use_cuda_graphs and params.gradient_accumulation_steps > 1
        # On a CPU oneDNN compiles a kernel for each shape of a matrix product in 16 bits.
        few_shapes = self.use_cuda_graphs or (precision != torch.float32 and device.type == "cpu")
        self._collator = Collator(model, packed, pad_to_multiple=few_shapes)
        decayed_names = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
        decayed = [p for name, p in self._trainable.items() if name in decayed_names]
        others = [p for name, p in self._trainable.items() if name not in decayed_names]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": params.weight_decay}, {"params": others, "weight_decay": 0.0}],
            # A CUDA graph would record a plain number as a constant.
            lr=torch.tensor(learning_rate, device=device) if self.use_cuda_graphs else learning_rate,
            fused=True,
            capturable=self.use_cuda_graphs,
        )
        warmup = round(params.warmup_ratio * num_training_steps)
        self._scheduler = get_scheduler(SCHEDULES[params.schedule], self._optimizer, warmup, num_training_steps)

    def collate(self, indices: np.ndarray) -> list[WeightedBatch]:
        """Make the batches of one step.

        Args:
            indices: Indices of the examples of the step, (examples,), over all processes.

        Returns:
            The share of this process in each batch.
        """
        batches = []
        for start in range(0, len(indices), self._batch_size):
            batch = indices[start : start + self._batch_size]
            share = batch[self._distributed.rank :: self._distributed.world_size]
            # All processes take part in the backward pass. A process without examples gets one with weight 0.
            weight = 1 / len(indices) if len(share) else 0.0
            batches.append(WeightedBatch(self._collator(self._dataset, share if len(share) else batch[:1]), weight))
        return batches

    def __call__(self, batches: list[WeightedBatch]) -> torch.Tensor:
        """Update the weights, then the learning rate.

        Returns:
            The share of this process in the mean loss before the update, a scalar on its device.
        """
        total = torch.zeros((), device=self._distributed.device)
        process = self._process_by_graph if self.use_cuda_graphs else self._process
        for number, weighted in enumerate(batches, start=1):
            total += process(weighted, is_last=number == len(batches))
        self._scheduler.step()
        return total

    def _process(self, weighted: WeightedBatch, is_last: bool) -> torch.Tensor:
        """Add the gradients of a batch to those of earlier batches, and update the weights after the last batch."""
        # Processes exchange gradients only once, in the backward pass of the last batch.
        is_accumulating = not is_last and self._distributed.world_size > 1
        with self._model.no_sync() if is_accumulating else contextlib.nullcontext():
            with self._autocast:
                logits = cls_logits(self._model, weighted.batch)
            loss = weighted.weight * cross_entropy(
                logits.float(),
                weighted.batch.labels,
                self._class_weights,
                reduction="sum",
                ignore_index=IGNORE_INDEX,
            )
            # DistributedDataParallel averages gradients over processes, but here they must be summed.
            self._scaler.scale(loss * self._distributed.world_size).backward()
        if is_last:
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        return loss.detach()

    def _process_by_graph(self, weighted: WeightedBatch, is_last: bool) -> torch.Tensor:
        """Do what `_process` does. The first batch of a shape is a warm-up, the second one captures the graph."""
        new = weighted.batch.tensors()
        key = (weighted.weight, is_last, *(tensor.shape for tensor in new))
        if key not in self._graphs:
            self._graphs[key] = None
            return self._process(weighted, is_last)
        captured = self._graphs[key] or self._capture(weighted, is_last)
        self._graphs[key] = captured
        for static, tensor in zip(captured.batch.tensors(), new, strict=True):
            static.copy_(tensor)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, weighted: WeightedBatch, is_last: bool) -> _CapturedGraph:
        graph = torch.cuda.CUDAGraph()
        # Another thread, which prepares the next batch, may use the GPU during the capture.
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
            loss = self._process(weighted, is_last)
        return _CapturedGraph(graph, weighted.batch, loss)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def count_updates(self) -> int:
        """Count the steps that have changed the weights. In fp16 a step whose gradients overflow is skipped.

        This makes a GPU wait.
        """
        return int(torch.stack([state["step"] for state in self._optimizer.state.values()]).max())

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The trainable weights by name. The next step changes these tensors."""
        return {name: parameter.detach() for name, parameter in self._trainable.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Set the trainable weights to these values, by name."""
        for name, parameter in self._trainable.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of trainable weights, optimizer and schedule. Frozen weights are in the base model."""
        return {
            "weights": self.weights,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.load_weights(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # load_state_dict does not move it from the CPU.
                group["lr"] = group["lr"].to(self._distributed.device)
        self._scheduler.load_state_dict(state["scheduler"])
        self._scaler.load_state_dict(state["scaler"])


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products that `train.precision` stands for on this device.

    `auto` chooses a type that the device multiplies natively. torch.cuda.is_bf16_supported() cannot decide this, since
    it is also true for GPUs that emulate bf16, such as a T4.
    """
    if precision != "auto":
        return PRECISIONS[precision]
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32
