"""One optimizer step: forward and backward passes of its batches, then the optimizer and the learning rate schedule."""

import contextlib

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from stages.common.modeling.collator import IGNORE_INDEX, Batch, Collator
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.modeling.inference import cls_logits
from stages.common.modeling.types import Model
from stages.common.runtime.params import TrainParams
from stages.common.training.cuda_graphs import CudaGraphs

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}  # names of transformers
WeightedBatch = tuple[Batch, float]  # the weight of each example's loss


class OptimizerStep:
    """Trains whatever of `model` requires a gradient.

    Args:
        packed: batches are packed into rows without padding.
        num_training_steps: of the whole training, for the schedule.
        class_weights: (classes,) of the loss.
    """

    def __init__(
        self,
        model: Model,
        packed: bool,
        params: TrainParams,
        learning_rate: float,
        num_training_steps: int,
        distributed: DistributedContext,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self._batch_size, self._distributed = params.batch_size, distributed
        device = distributed.device
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._ddp = DistributedDataParallel(model) if distributed.world_size > 1 else model
        bf16 = uses_bfloat16(params.precision, device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        use_graphs = device.type == "cuda" and distributed.world_size == 1 and packed
        self._graphs = CudaGraphs(lambda batch, weight: self._train_step([(batch, weight)])) if use_graphs else None
        # On a CPU oneDNN compiles a kernel for each shape of a bf16 product.
        self._collator = Collator(model, packed, pad_to_multiple=use_graphs or (bf16 and device.type == "cpu"))
        self.optimizer = torch.optim.AdamW(
            self.trainable.values(),
            # A CUDA graph would record a plain number as a constant.
            lr=torch.tensor(learning_rate, device=device) if use_graphs else learning_rate,
            weight_decay=params.weight_decay,
            fused=True,
            capturable=use_graphs,
        )
        warmup = round(params.warmup_ratio * num_training_steps)
        self.scheduler = get_scheduler(SCHEDULES[params.schedule], self.optimizer, warmup, num_training_steps)

    def collate(self, dataset: TokenizedDataset, indices: np.ndarray) -> list[WeightedBatch]:
        """This process's share of the batches of a step, whose examples are at `indices`."""
        batches = []
        for start in range(0, len(indices), self._batch_size):
            batch = indices[start : start + self._batch_size]
            share = batch[self._distributed.rank :: self._distributed.world_size]
            # A process without an example takes part in the backward pass with one of weight 0.
            weight = 1 / len(indices) if len(share) else 0.0
            batches.append((self._collator(dataset, share if len(share) else batch[:1]), weight))
        return batches

    def __call__(self, batches: list[WeightedBatch]) -> torch.Tensor:
        """Update weights and learning rate; returns this process's share of the mean loss before the update."""
        loss = self._graphs(*batches[0]) if self._graphs and len(batches) == 1 else self._train_step(batches)
        self.scheduler.step()
        return loss

    def _train_step(self, batches: list[WeightedBatch]) -> torch.Tensor:
        total = torch.zeros((), device=self._distributed.device)
        for number, (batch, weight) in enumerate(batches, start=1):
            is_accumulating = number < len(batches) and self._distributed.world_size > 1
            with self._ddp.no_sync() if is_accumulating else contextlib.nullcontext():
                with self._autocast:
                    logits = cls_logits(self._ddp, batch)
                loss = self._loss(logits.float(), batch.labels) * weight
                # DistributedDataParallel averages gradients over processes; here they must be summed.
                (loss * self._distributed.world_size).backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, self._class_weights, reduction="sum", ignore_index=IGNORE_INDEX)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether `train.precision` means bf16: `auto` takes it where the device multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
