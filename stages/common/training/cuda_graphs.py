"""On a GPU, a training step as one CUDA graph.

At sixteen reviews a step is a thousand kernels of a few microseconds, and launching them one by one takes longer than
they do. A graph holds its shapes fixed, so a batch is filled up to one of a few (see `batches.Collator`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.common.modeling.collator import Batch


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # where the graph reads
    loss: torch.Tensor  # where it writes


class Graphed:
    """`step`, which takes a packed batch and what its loss weighs, replayed from the second time a shape comes."""

    def __init__(self, step: Callable[[Batch, float], torch.Tensor]) -> None:
        self._step = step
        self._recorded: dict[tuple[object, ...], _Recorded | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, weight: float) -> torch.Tensor:
        """The loss, as `step` returns it."""
        key = (weight, *(tensor.shape for tensor in batch.tensors()))
        if key not in self._recorded:
            # What torch and its libraries set up at a first call must not be recorded.
            self._recorded[key] = None
            return self._step(batch, weight)
        recorded = self._recorded[key] or self._record(batch, weight)
        self._recorded[key] = recorded
        for own, new in zip(recorded.batch.tensors(), batch.tensors(), strict=True):
            own.copy_(new)
        recorded.graph.replay()
        return recorded.loss.clone()

    def _record(self, batch: Batch, weight: float) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        # The thread that makes the next batch goes on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._step(batch, weight)
        return _Recorded(graph, batch, loss)
