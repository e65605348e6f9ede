"""Batches without padding: one row of tokens, whose logits equal those of the padded batch.

Every layer computes on that row. Only attention unpacks it into padded examples, so that no example attends to another.
An example is classified by its token 0, [CLS], so the last layer computes query, attention and feed-forward network of
that token only. `inference.build_collator` checks each model before packing is used.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.common.modeling.adapters import SharedInputLayers
from stages.common.modeling.dropout import fast_dropout
from stages.common.modeling.types import Model


@dataclass(frozen=True)
class PackedLayout:
    """How the tokens of a packed row correspond to positions of the padded batch (examples, longest)."""

    padded_indices: torch.Tensor  # (tokens,) Position of each token in the flattened padded batch.
    token_indices: torch.Tensor  # (examples * longest,) Token at each position; any token where there is none.
    mask: torch.Tensor  # (examples, 1, 1, longest) True where there is a token.
    cls_positions: torch.Tensor  # (examples,) Index of each example's [CLS] in the packed row.


class _SelectRows(torch.autograd.Function):
    """The selection of the rows `indices` of states (rows, ...), whose gradient is selected as well, by `inverse`.

    Gradients of rows that are not selected are zero where `is_selected` says so. torch's own gradient of index_select,
    or index_copy, would sort the indices on a GPU in order to be deterministic, which takes about ten kernels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        indices: torch.Tensor,
        inverse: torch.Tensor,
        is_selected: torch.Tensor | None = None,
    ) -> torch.Tensor:
        ctx.inverse, ctx.is_selected = inverse, is_selected
        return states.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        selected = gradient.index_select(0, ctx.inverse)
        if ctx.is_selected is not None:
            selected *= ctx.is_selected.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype)
        return selected, None, None, None


def _unpack(packed: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
    """Unpack (tokens, heads, head_size) to (examples, heads, longest, head_size).

    Positions without a token get the values of any token, and must be masked, since their gradients are dropped.
    """
    examples, _, _, longest = layout.mask.shape
    padded = _SelectRows.apply(packed, layout.token_indices, layout.padded_indices)
    return padded.view(examples, longest, *packed.shape[1:]).transpose(1, 2)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float | None
) -> torch.Tensor:
    """Compute attention over (examples, heads, tokens, head_size)."""
    if dropout == 0 or query.device.type != "cpu":  # On a CPU torch has no fast kernel with dropout.
        return scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, scale=scale)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # Adding -inf takes a quarter of the time of torch.where, and its backward pass costs nothing.
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    scores = ((query * scale) @ key.transpose(-1, -2)).add_(bias)
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
    """Compute attention within each example of a packed row, as transformers' AttentionInterface requires.

    Args:
        module: The attention layer.
        query: Queries, (1, heads, tokens, head_size).
        key: Keys, of the same shape.
        value: Values, of the same shape.
        attention_mask: Mask of a padded batch.
        scaling: Factor of the scores; by default head_size ** -0.5.
        dropout: Dropout probability of the attention weights.
        layout: Layout of the packed row. Without it the batch is padded.

    Returns:
        The attended values, (1, tokens, heads, head_size), and no attention weights.
    """
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
        )
    row = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]
    return _attend_packed(row, layout, dropout, scaling), None


def _attend_packed(
    row: Sequence[torch.Tensor], layout: PackedLayout, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attend with a query, key and value row, (tokens, heads, head_size) each: (1, tokens, heads, head_size)."""
    query, key, value = (_unpack(states, layout) for states in row)
    attended = _attend(query, key, value, layout.mask, dropout, scaling)
    padded = attended.transpose(1, 2).flatten(0, 1)
    return _SelectRows.apply(padded, layout.padded_indices, layout.token_indices, layout.mask)[None]


def _self_attention_forward(
    full_forward: Any,
    attention: Any,
    project: SharedInputLayers,
    hidden_states: torch.Tensor,
    *args: Any,
    layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute BERT's self-attention on a packed row (1, tokens, hidden_size), with its three projections at once."""
    if layout is None:
        return full_forward(hidden_states, *args, **kwargs)
    row = [states.squeeze(0).unflatten(-1, (-1, attention.attention_head_size)) for states in project(hidden_states)]
    dropout = attention.dropout.p if attention.training else 0.0
    return _attend_packed(row, layout, dropout, attention.scaling).flatten(-2), None


def _cls_only_forward(
    full_forward: Any,
    layer: Any,
    project: SharedInputLayers,
    hidden_states: torch.Tensor,
    *args: Any,
    layout: PackedLayout | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute a BERT layer for the [CLS] tokens, (1, examples, hidden_size), of a row (1, tokens, hidden_size)."""
    if layout is None:
        return full_forward(hidden_states, *args, **kwargs)
    attention, self_attention = layer.attention, layer.attention.self
    cls_states = hidden_states[:, layout.cls_positions]

    def split_heads(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self_attention.attention_head_size))

    key, value = (_unpack(split_heads(states).squeeze(0), layout) for states in project(hidden_states))
    query = split_heads(self_attention.query(cls_states)).transpose(0, 1).transpose(1, 2)
    dropout = self_attention.dropout.p if self_attention.training else 0.0
    attended = _attend(query, key, value, layout.mask, dropout, self_attention.scaling)
    return layer.feed_forward_chunk(attention.output(attended.flatten(1)[None], cls_states))


def set_attention(model: Model, implementation: str, fast_bert_layers: bool) -> None:
    """Set how `model` computes attention.

    Args:
        model: A classifier, with adapters or without.
        implementation: "packed", or a name that transformers knows.
        fast_bert_layers: Whether BERT layers project query, key and value together, and the last of them computes the
            [CLS] tokens only. Layers of other architectures stay as they are.
    """
    AttentionInterface.register("packed", packed_attention)
    AttentionMaskInterface.register("packed", sdpa_mask)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(implementation)
    layers: list[Any] = [layer for layer in base.modules() if hasattr(layer, "feed_forward_chunk")]
    layers = [layer for layer in layers if hasattr(getattr(layer.attention, "self", None), "query")]
    for layer in layers:
        attention = layer.attention.self
        vars(layer).pop("forward", None)
        vars(attention).pop("forward", None)
        if fast_bert_layers and layer is layers[-1]:
            project = SharedInputLayers(attention.key, attention.value)
            layer.forward = functools.partial(_cls_only_forward, layer.forward, layer, project)
        elif fast_bert_layers:
            project = SharedInputLayers(attention.query, attention.key, attention.value)
            attention.forward = functools.partial(_self_attention_forward, attention.forward, attention, project)
