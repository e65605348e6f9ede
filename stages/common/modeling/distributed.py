"""Rank, world size and device of this process, and the collective operations that training needs."""

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist


def get_device() -> torch.device:
    """Return the GPU of this process, or the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process in MiB: GPU memory, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@dataclass(frozen=True)
class DistributedContext:
    """The rank of this process among all processes of a training. By default it is the only process."""

    rank: int = 0  # Number of this process, counted from 0.
    world_size: int = 1  # Number of processes.
    device: torch.device = field(default_factory=get_device)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum the values of all processes element by element, in place. Every process must call this."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max_over_processes(self, values: list[float]) -> list[float]:
        """Return the maximum of each value over all processes. Every process must call this."""
        if self.world_size == 1:
            return values
        maxima = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def all_gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the values of every process in the order of their ranks. Every process must call this."""
        if self.world_size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values)
        return gathered


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the process group if `accelerate launch` or `torchrun` has started this process; leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield DistributedContext()
        return
    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size(), device)
    finally:
        # DistributedDataParallel must be freed before the process group. Otherwise torch 2.13 may deadlock: it waits
        # for a thread of gloo, which waits for the interpreter's lock.
        gc.collect()
        dist.destroy_process_group()
