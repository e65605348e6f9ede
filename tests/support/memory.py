"""Count the memory that the tensors of a training step take, without allocating it."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForTokenClassification

from stages.common.modeling.classifier import add_lora
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.distributed import DistributedContext
from stages.common.modeling.dropout import use_fast_dropout
from stages.common.modeling.packing import set_attention
from stages.common.training.training_step import TrainingStep
from tests.support.corpus import LABELS, SHIPPED
from tests.support.training import train_params


class PeakMemory(TorchDispatchMode):
    """Count the bytes of all tensors that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


def count_step_bytes(folder: Path, method: str, precision: str, batch_size: int, length: int, on_gpu: bool) -> int:
    """Count the peak memory of a training step in bytes, including a copy of the best weights.

    On a GPU attention is one kernel that keeps no scores. It is simulated by the CPU kernel without dropout.

    Args:
        folder: Folder with the config.json of the encoder.
        method: "full" or "lora".
        precision: The parameter `train.precision`.
        batch_size: Number of examples in the batch.
        length: Number of tokens of each example.
        on_gpu: Whether the step runs on a GPU.
    """
    overrides = {"attention_probs_dropout_prob": 0.0} if on_gpu else {}
    config = AutoConfig.from_pretrained(folder, num_labels=len(LABELS), **overrides)
    with torch.device("meta"):
        model: Any = AutoModelForTokenClassification.from_config(config).train()
        model = add_lora(model, SHIPPED.lora, seed=0) if method == "lora" else model
    use_fast_dropout(model)
    set_attention(model, "packed", fast_bert_layers=True)
    rows = pa.array([np.arange(length) % 5 + 2] * batch_size)
    with FakeTensorMode(allow_non_fake_inputs=True), PeakMemory() as memory:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=parameter.requires_grad)
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        dataset = TokenizedDataset(rows, np.zeros(batch_size, np.int64))
        params = train_params(precision=precision, batch_size=batch_size)
        distributed = DistributedContext(device=torch.device("cpu"))
        step = TrainingStep(model, dataset, True, params, 1e-3, distributed)
        step(step.collate(np.arange(batch_size)))
        best_weights = [weight.clone() for weight in step.weights.values()]
        memory.peak = memory.alive
        step(step.collate(np.arange(batch_size)))
        del best_weights
    return memory.peak
