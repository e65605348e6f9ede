"""Faster training of linear layers with LoRA adapters on a CPU.

PEFT computes an adapter in a dozen operations and its backward pass in more, and `autocast` converts the frozen weight
at every step. In a small model, or with short batches, this takes longer than the matrix products. Here the frozen
weights are converted once, and layers with the same input share one matrix product and one dropout mask, as in
Microsoft's loralib; in PEFT each layer has a mask of its own. Given the same masks, outputs and gradients equal PEFT's
up to rounding.
"""

import functools
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from stages.common.modeling.dropout import dropout_mask

ADAPTER = "default"  # Name that PEFT gives to the only adapter of a model.


class _AdaptedLinear(torch.autograd.Function):
    """The function hidden @ weight.T + bias + scaling * dropout(hidden) @ a.T @ b.T.

    It has gradients with respect to `hidden`, `a` and `b`; `weight` and `bias` are frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # (tokens, in_features)
        weight: torch.Tensor,  # (out_features, in_features)
        bias: torch.Tensor | None,
        a: torch.Tensor,  # (r, in_features)
        b: torch.Tensor,  # (out_features, r)
        scaling: float,
        p: float,
    ) -> torch.Tensor:
        states, a16, b16 = hidden.to(weight.dtype), a.to(weight.dtype), b.to(weight.dtype)
        mask, factor = dropout_mask(states, p)
        dropped = states if mask is None else states * mask
        reduced = dropped @ a16.T
        output = states @ weight.T if bias is None else torch.addmm(bias, states, weight.T)
        output.addmm_(reduced, b16.T, alpha=scaling * factor)
        ctx.save_for_backward(weight, a16, b16, mask, dropped, reduced)
        ctx.scaling, ctx.dtype = scaling * factor, hidden.dtype
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, a, b, mask, dropped, reduced = ctx.saved_tensors
        grad_reduced = (grad @ b).mul_(ctx.scaling)
        grad_a = grad_reduced.T @ dropped
        grad_b = (grad.T @ reduced).mul_(ctx.scaling)
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            grad_hidden = grad @ weight
            if mask is None:
                grad_hidden.addmm_(grad_reduced, a)
            else:
                grad_hidden.addcmul_(grad_reduced @ a, mask)
            grad_hidden = grad_hidden.to(ctx.dtype)
        return grad_hidden, None, None, grad_a.float(), grad_b.float(), None, None


class SharedInputLayers:
    """Linear layers that have the same input.

    They are computed together if all have LoRA adapters and the model is trained on a CPU. Otherwise they are called
    one by one: with DoRA or without adapters, in evaluation, and on a GPU.

    Args:
        layers: The layers. Either none of them has an adapter, or all have adapters of the same kind and rank.
    """

    def __init__(self, *layers: Any) -> None:
        self._layers = layers
        self._adapted = all(type(layer) is LoraLinear and not layer.use_dora[ADAPTER] for layer in layers)
        self._frozen: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def _frozen_in(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        if dtype not in self._frozen:
            weights = [layer.base_layer.weight.detach() for layer in self._layers]
            biases = [layer.base_layer.bias for layer in self._layers]
            weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # The only one is not copied in float32.
            bias = None if biases[0] is None else torch.cat(biases).detach().to(dtype)
            self._frozen[dtype] = weight.to(dtype), bias
        return self._frozen[dtype]

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the output (..., out_features) of each layer from hidden states (..., in_features)."""
        if torch.is_autocast_enabled(hidden.device.type):  # Autocast would convert them once for each layer.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        if not self._adapted or not self._layers[0].training or hidden.device.type != "cpu":
            return tuple(layer(hidden) for layer in self._layers)
        weight, bias = self._frozen_in(hidden.dtype)
        first = self._layers[0]
        a = [layer.lora_A[ADAPTER].weight for layer in self._layers]
        b = [layer.lora_B[ADAPTER].weight for layer in self._layers]
        output = _AdaptedLinear.apply(
            hidden.flatten(0, -2),
            weight,
            bias,
            a[0] if len(a) == 1 else torch.cat(a),
            b[0] if len(b) == 1 else torch.block_diag(*b),
            first.scaling[ADAPTER],
            getattr(first.lora_dropout[ADAPTER], "p", 0.0),
        )
        return output.view(*hidden.shape[:-1], -1).split([layer.out_features for layer in self._layers], dim=-1)


def _forward(layers: SharedInputLayers, layer: LoraLinear, forward: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layers(hidden)[0] if layer.training else forward(hidden)


def use_fast_adapters(model: nn.Module) -> None:
    """Let the LoRA layers of `model` be computed faster in training on a CPU. Layers with DoRA stay as they are."""
    for layer in model.modules():
        if type(layer) is LoraLinear and not layer.use_dora[ADAPTER] and layer.weight.device.type == "cpu":
            forward = functools.partial(_forward, SharedInputLayers(layer), layer, layer.forward)
            vars(layer)["forward"] = forward
