"""Dropout for CPUs, where drawing the mask takes torch longer than most layers take to compute."""

import torch
from torch import nn
from torch.nn.functional import dropout


def fast_dropout(states: torch.Tensor, p: float) -> torch.Tensor:
    """Zero elements with probability `p`, rounded to a multiple of 1/65536, and scale the others by 1 / (1 - p).

    Four elements share a 64-bit draw of torch's generator. Devices other than the CPU use torch's own dropout.
    """
    threshold = round(p * 2**16)
    if not 0 < threshold < 2**16 or states.device.type != "cpu":
        return dropout(states, p)
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = draws[: states.numel()].view(states.shape) >= threshold - 2**15
    return states * kept.to(states.dtype).mul_(2**16 / (2**16 - threshold))


class FastDropout(nn.Dropout):
    """nn.Dropout with `fast_dropout`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return fast_dropout(states, self.p) if self.training else states


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of `model`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))
