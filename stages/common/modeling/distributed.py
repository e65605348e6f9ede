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
    """This process's GPU, if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has used so far: the GPU's, or on a CPU the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@dataclass(frozen=True)
class DistributedContext:
    """The place of this process among all processes of a training. By default it is the only one."""

    rank: int = 0  # number of this process, counted from 0
    world_size: int = 1  # number of processes
    device: torch.device = field(default_factory=get_device)

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum element by element over all processes, in place; every process must call this."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max_over_processes(self, values: list[float]) -> list[float]:
        """Return the maximum of each value over all processes; every process must call this."""
        if self.world_size == 1:
            return values
        maxima = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def all_gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the values of every process, in the order of ranks; every process must call this."""
        if self.world_size == 1:
            return [values]
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(gathered, values)
        return gathered


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the process group that the environment variables of `accelerate launch` or `torchrun` describe, if any."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield DistributedContext()
        return
    if (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size(), device)
    finally:
        # DistributedDataParallel must be freed before the process group: freed after it, torch 2.13 may wait for ever
        # for a thread of gloo that waits for the interpreter's lock.
        gc.collect()
        dist.destroy_process_group()
