"""The processes that train one model together: one, unless `train.launcher` starts more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """This process among its like."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every process's `values`, on all of them."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def most(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of every process's `values`, element by element, on all of them."""
        if self.count > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def all(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Every process's `values`, by rank, on all of them."""
        everyones = [torch.empty_like(values) for _ in range(self.count)]
        if self.count > 1:
            distributed.all_gather(everyones, values)
        return everyones if self.count > 1 else [values]


def device() -> torch.device:
    """This process's GPU, if there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes, where `accelerate launch` or `torchrun` say in the environment that there are any."""
    own = device()
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(0, 1, own)
        return
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), own)
    finally:
        distributed.destroy_process_group()
