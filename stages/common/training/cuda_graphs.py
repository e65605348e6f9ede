"""On a GPU, a training step as one CUDA graph.

With 16 reviews a step is a thousand kernels of a few microseconds, and launching them one by one takes longer than
running them. A graph has fixed shapes, so batches are padded to one of a few shapes (`Collator.pad_to_multiple`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.common.modeling.collator import Batch


@dataclass(frozen=True)
class _CapturedGraph:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # static inputs
    loss: torch.Tensor  # static output


class CudaGraphs:
    """Replays `step`, a function of a packed batch and the weight of its losses.

    The first batch of a shape runs `step` itself, as a warm-up; the second captures it.
    """

    def __init__(self, step: Callable[[Batch, float], torch.Tensor]) -> None:
        self._step = step
        self._captured: dict[tuple[object, ...], _CapturedGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, weight: float) -> torch.Tensor:
        """The loss, as `step` returns it."""
        key = (weight, *(tensor.shape for tensor in batch.tensors()))
        if key not in self._captured:
            self._captured[key] = None
            return self._step(batch, weight)
        captured = self._captured[key] or self._capture(batch, weight)
        self._captured[key] = captured
        for static, new in zip(captured.batch.tensors(), batch.tensors(), strict=True):
            static.copy_(new)
        captured.graph.replay()
        return captured.loss.clone()

    def _capture(self, batch: Batch, weight: float) -> _CapturedGraph:
        graph = torch.cuda.CUDAGraph()
        # The thread that prefetches the next batch may use the GPU during the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            loss = self._step(batch, weight)
        return _CapturedGraph(graph, batch, loss)
