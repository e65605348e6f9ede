"""Faster dropout on a CPU, where torch takes longer to draw a mask than to compute most layers."""

import torch
from torch import nn
from torch.nn.functional import dropout


def dropout_mask(states: torch.Tensor, p: float) -> tuple[torch.Tensor | None, float]:
    """Draw a dropout mask for `states`.

    An element of the mask is zero with probability `p`, rounded to a multiple of 1/65536, and one otherwise. Four
    elements share one 64-bit random number.

    Returns:
        The mask, with the shape and type of `states`, or None if nothing is dropped; and the factor that scales the
        elements that are kept.
    """
    threshold = min(round(p * 2**16), 2**16 - 1)
    if threshold == 0:
        return None, 1.0
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = torch.empty_like(states)  # Writing floats directly is many times as fast as converting booleans to floats.
    torch.ge(draws[: states.numel()].view(states.shape), threshold - 2**15, out=mask)
    return mask, 2**16 / (2**16 - threshold)


def fast_dropout(states: torch.Tensor, p: float) -> torch.Tensor:
    """Zero elements with probability `p` and scale the others by 1 / (1 - p), as torch's own dropout does."""
    if not 0 < p < 1 or states.device.type != "cpu":
        return dropout(states, p)
    mask, factor = dropout_mask(states, p)
    return states if mask is None else states * mask.mul_(factor)


class FastDropout(nn.Dropout):
    """A layer like nn.Dropout that calls `fast_dropout`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return fast_dropout(states, self.p) if self.training else states


def use_fast_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout of `model` by FastDropout."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p))
