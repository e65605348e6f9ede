"""A batch without padding: one long row of real tokens, on which a stock encoder gives what it gives on padded rows.

Every layer computes on that row; attention alone takes the reviews apart again, so that no review sees another. And
since a review is classified by its token 0, the last layer computes nothing else but that token's query, attention and
feed-forward part. `packs_exactly` tries all this on the model at hand before anything relies on it.
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

from stages.common.dropout import drop

# A token classifier of transformers, or PEFT's around it; to a type checker an nn.Module has no config and no parts.
Model = Any


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed row stand in the padded square that attention needs."""

    slots: torch.Tensor  # (tokens,) position in the flattened square
    mask: torch.Tensor  # (reviews, 1, 1, longest) True where a token stands
    first: torch.Tensor  # (reviews,) position of each review's token 0 in the packed row


def _spread(packed: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(tokens, heads, size) -> (reviews, heads, longest, size)."""
    reviews, _, _, longest = layout.mask.shape
    square = packed.new_zeros(reviews * longest, *packed.shape[1:]).index_copy(0, layout.slots, packed)
    return square.view(reviews, longest, *packed.shape[1:]).transpose(1, 2)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float | None
) -> torch.Tensor:
    """Attention over (reviews, heads, tokens, size). On a CPU torch's own has no fast way with dropout."""
    if dropout == 0 or query.device.type != "cpu":
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.where(mask, (query * scale) @ key.transpose(-1, -2), float("-inf"))
    return drop(softmax(scores, -1), dropout) @ value


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each review of a packed row; a padded batch, which has no `layout`, gets transformers' own.

    `query`, `key` and `value` are (1, heads, tokens, size), the result is (1, tokens, heads, size).
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
        )
    query, key, value = (_spread(packed[0].transpose(0, 1), layout) for packed in (query, key, value))
    out = _attend(query, key, value, layout.mask, dropout, scaling)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)[None], None


def _first_tokens(
    whole: Any, layer: Any, hidden_states: torch.Tensor, *args: Any, layout: Layout | None = None, **kwargs: Any
) -> torch.Tensor:
    """A layer of BERT's kind on a packed row (1, tokens, width), its result for token 0 alone (1, reviews, width)."""
    if layout is None:
        return whole(hidden_states, *args, **kwargs)
    attention, own = layer.attention, layer.attention.self
    first = hidden_states[:, layout.first]

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, own.attention_head_size))

    key, value = (_spread(heads(project(hidden_states))[0], layout) for project in (own.key, own.value))
    query = heads(own.query(first)).transpose(0, 1).transpose(1, 2)
    dropout = own.dropout.p if own.training else 0.0
    out = _attend(query, key, value, layout.mask, dropout, own.scaling)
    return layer.feed_forward_chunk(attention.output(out.flatten(1)[None], first))


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


def set_packing(model: Model, attention: str, short_last_layer: bool) -> None:
    """Give `model`, with adapters or without, its attention function; its last layer all tokens or the first alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(attention)
    layers = [module for module in base.modules() if hasattr(module, "feed_forward_chunk")]
    for last in layers[-1:]:
        vars(last).pop("forward", None)
        if short_last_layer and hasattr(getattr(last, "attention", None), "self"):
            last.forward = functools.partial(_first_tokens, last.forward, last)
