"""Dropout for CPUs, where drawing the mask takes torch longer than most layers take to compute."""

import torch
from torch import nn
from torch.nn.functional import dropout


def dropout_mask(states: torch.Tensor, p: float) -> tuple[torch.Tensor | None, float]:
    """Draw what dropout multiplies `states` by: a mask of zeros and ones of their shape and type, and a factor.

    Elements are zero with probability `p`, rounded to a multiple of 1/65536. Four elements share a 64-bit draw of
    torch's generator. Without dropout the mask is None.
    """
    threshold = min(round(p * 2**16), 2**16 - 1)
    if threshold == 0:
        return None, 1.0
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = torch.empty_like(states)  # Comparing into numbers is many times as fast as converting booleans to them.
    torch.ge(draws[: states.numel()].view(states.shape), threshold - 2**15, out=mask)
    return mask, 2**16 / (2**16 - threshold)


def fast_dropout(states: torch.Tensor, p: float) -> torch.Tensor:
    """Zero elements with probability `p` and scale the others by 1 / (1 - p), as torch's own dropout does."""
    if not 0 < p < 1 or states.device.type != "cpu":
        return dropout(states, p)
    mask, factor = dropout_mask(states, p)
    return states if mask is None else states * mask.mul_(factor)


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
