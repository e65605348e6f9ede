"""Training without padding: a batch is one row of real tokens and has the logits of the padded batch.

Every layer computes on that row. Attention alone unpacks it into padded examples, so that no example sees another.
Since an example is classified by its token 0, [CLS], the last layer computes the query, attention and feed-forward part
of that token alone. `inference.build_collator` checks all this on the model at hand before anything relies on it.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.common.modeling.dropout import fast_dropout
from stages.common.modeling.types import Model


@dataclass(frozen=True)
class PackedLayout:
    """Where the tokens of a packed row stand in the padded batch."""

    padded_indices: torch.Tensor  # (tokens,) index into the flattened (examples, longest)
    token_indices: torch.Tensor  # (examples * longest,) the inverse; where there is no token, the index of any
    mask: torch.Tensor  # (examples, 1, 1, longest) True for real tokens
    cls_positions: torch.Tensor  # (examples,) index of each example's [CLS] in the packed row


class _Unpack(torch.autograd.Function):
    """(tokens, ...) -> (examples * longest, ...), any token where there is none; no gradient may come from there.

    This and `_Pack` select rows forward and backward. The gradient of torch's index_select, and index_copy, would sort
    the indices on a GPU, to be deterministic, which takes about ten kernels.
    """

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        ctx.layout = layout
        return packed.index_select(0, layout.token_indices)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.index_select(0, ctx.layout.padded_indices), None


class _Pack(torch.autograd.Function):
    """(examples * longest, ...) -> (tokens, ...)."""

    @staticmethod
    def forward(ctx: Any, padded: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        ctx.layout = layout
        return padded.index_select(0, layout.padded_indices)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        is_token = ctx.layout.mask.view(-1, *[1] * (gradient.dim() - 1))
        return gradient.index_select(0, ctx.layout.token_indices) * is_token, None


def _unpack(packed: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
    """(tokens, heads, head_size) -> (examples, heads, longest, head_size); attention masks what is no token."""
    examples, _, _, longest = layout.mask.shape
    return _Unpack.apply(packed, layout).view(examples, longest, *packed.shape[1:]).transpose(1, 2)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float | None
) -> torch.Tensor:
    """Attention over (examples, heads, tokens, head_size). On a CPU torch has no fast kernel with dropout."""
    if dropout == 0 or query.device.type != "cpu":
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.where(mask, (query * scale) @ key.transpose(-1, -2), float("-inf"))
    return fast_dropout(softmax(scores, -1), dropout) @ value


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: PackedLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each example of a packed row; without a `layout` the batch is padded, and SDPA's is used.

    `query`, `key` and `value` are (1, heads, tokens, head_size), the result is (1, tokens, heads, head_size).
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
        )
    query, key, value = (_unpack(packed.squeeze(0).transpose(0, 1), layout) for packed in (query, key, value))
    attended = _attend(query, key, value, layout.mask, dropout, scaling)
    return _Pack.apply(attended.transpose(1, 2).flatten(0, 1), layout)[None], None


def _cls_only_forward(
    full_forward: Any,
    layer: Any,
    hidden_states: torch.Tensor,
    *args: Any,
    layout: PackedLayout | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """A BERT layer on a packed row (1, tokens, hidden_size) that computes [CLS] alone: (1, examples, hidden_size)."""
    if layout is None:
        return full_forward(hidden_states, *args, **kwargs)
    attention, self_attention = layer.attention, layer.attention.self
    cls_states = hidden_states[:, layout.cls_positions]

    def split_heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self_attention.attention_head_size))

    projections = (self_attention.key, self_attention.value)
    key, value = (_unpack(split_heads(project(hidden_states)).squeeze(0), layout) for project in projections)
    query = split_heads(self_attention.query(cls_states)).transpose(0, 1).transpose(1, 2)
    dropout = self_attention.dropout.p if self_attention.training else 0.0
    attended = _attend(query, key, value, layout.mask, dropout, self_attention.scaling)
    return layer.feed_forward_chunk(attention.output(attended.flatten(1)[None], cls_states))


def set_attention(model: Model, implementation: str, cls_only_last_layer: bool) -> None:
    """Set the attention function of `model`, and whether its last layer computes all tokens or [CLS] alone."""
    AttentionInterface.register("packed", packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(implementation)
    layers = [module for module in base.modules() if hasattr(module, "feed_forward_chunk")]
    for last in layers[-1:]:
        vars(last).pop("forward", None)
        if cls_only_last_layer and hasattr(getattr(last, "attention", None), "self"):
            last.forward = functools.partial(_cls_only_forward, last.forward, last)
