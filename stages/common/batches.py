"""Rows of an Arrow split as batches of tensors, padded or, better, packed.

A packed batch is one long row that holds the real tokens of all its reviews and no padding. Every layer computes on
that row; attention alone takes the reviews apart again, so that no review sees another. The outputs are those of the
padded batch: `Collator` tries it on the model at hand before it packs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stages.common.errors import UserError, warn


@dataclass(frozen=True)
class Rows:
    """A split in memory."""

    input_ids: list[np.ndarray]  # int32, a row a review
    labels: np.ndarray  # int64 class indices

    def __len__(self) -> int:
        return len(self.labels)


def read_rows(path: Path) -> Rows:
    """Read one of `data/splits/*.arrow`.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        rows = datasets.Dataset.from_file(str(path)).with_format("numpy")
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro` to make it") from error
    return Rows([np.asarray(ids) for ids in rows["input_ids"]], np.asarray(rows["labels"]))


def shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch, from `seed` and `epoch` alone: no other random draw shifts them."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def by_length(rows: Rows, batch_size: int) -> list[np.ndarray]:
    """Row numbers of batches of like length, the longest first, so that running out of memory shows at once."""
    order = np.argsort([-len(ids) for ids in rows.input_ids], kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(rows), batch_size)]


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed row stand in the padded square that attention needs."""

    slots: torch.Tensor  # (tokens,) position in the flattened square
    mask: torch.Tensor  # (reviews, 1, 1, longest) True where a token stands


@dataclass(frozen=True)
class Batch:
    """What the model is called with, and where to read its answer."""

    inputs: dict[str, Any]
    first: torch.Tensor  # (reviews,) position of each review's token 0 in the flattened logits
    labels: torch.Tensor  # (reviews,)


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
    reviews, _, _, longest = layout.mask.shape

    def spread(packed: torch.Tensor) -> torch.Tensor:
        tokens = packed[0].transpose(0, 1)
        square = tokens.new_zeros(reviews * longest, *tokens.shape[1:]).index_copy(0, layout.slots, tokens)
        return square.view(reviews, longest, *tokens.shape[1:]).transpose(1, 2)

    out = scaled_dot_product_attention(
        spread(query), spread(key), spread(value), attn_mask=layout.mask, dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", sdpa_mask)


class Collator:
    """Turns rows into batches for one model, packed if `packing` is wanted and the model allows it."""

    def __init__(self, model: nn.Module, packing: bool) -> None:
        self._pad_id = model.config.pad_token_id
        # RoBERTa and its kin count positions from pad_token_id + 1.
        counts_from_pad = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        self._first_position = self._pad_id + 1 if counts_from_pad else 0
        self._device = next(model.parameters()).device
        self._packing = packing and self._packs_exactly(model)

    def __call__(self, rows: Rows, numbers: np.ndarray) -> Batch:
        """The rows numbered in `numbers`, on the model's device."""
        reviews = [torch.from_numpy(rows.input_ids[number].astype(np.int64)) for number in numbers]
        labels = torch.from_numpy(rows.labels[numbers]).to(self._device)
        return self._pack(reviews, labels) if self._packing else self._pad(reviews, labels)

    def _pad(self, reviews: list[torch.Tensor], labels: torch.Tensor) -> Batch:
        input_ids = nn.utils.rnn.pad_sequence(reviews, batch_first=True, padding_value=self._pad_id)
        inputs = {"input_ids": input_ids, "attention_mask": _mask(reviews).long()}
        first = torch.arange(len(reviews)) * input_ids.shape[1]
        return Batch({name: tensor.to(self._device) for name, tensor in inputs.items()}, first.to(self._device), labels)

    def _pack(self, reviews: list[torch.Tensor], labels: torch.Tensor) -> Batch:
        mask = _mask(reviews)
        positions = torch.cat([torch.arange(len(ids)) for ids in reviews]) + self._first_position
        first = torch.tensor([0, *map(len, reviews[:-1])]).cumsum(0)
        slots = mask.flatten().nonzero().flatten()
        inputs = {
            "input_ids": torch.cat(reviews)[None].to(self._device),
            "position_ids": positions[None].to(self._device),
            "layout": Layout(slots.to(self._device), mask[:, None, None, :].to(self._device)),
        }
        return Batch(inputs, first.to(self._device), labels)

    @torch.inference_mode()
    def _packs_exactly(self, model: nn.Module) -> bool:
        """Whether packed reviews get the logits of padded ones; if so, the model is left with packed attention."""
        was_training, before = model.training, model.config._attn_implementation
        reviews = [self._pad_id + 1 + torch.arange(length) % 2 for length in (3, 9, 5)]
        labels = torch.zeros(3, dtype=torch.long)
        model.eval()
        padded = first_logits(model, self._pad(reviews, labels))
        try:
            _set_attention(model, "packed")
            difference = (first_logits(model, self._pack(reviews, labels)) - padded).abs().max()
            # Relative to the logits: those of a fresh head are so small that a leak would pass for rounding.
            exact = model.config._attn_implementation == "packed" and bool(difference < 1e-4 * padded.abs().max())
        except (TypeError, ValueError, RuntimeError):
            exact = False
        if not exact:
            _set_attention(model, before)
            warn("train.packing: this base model does not allow it; batches are padded")
        model.train(was_training)
        return exact


def first_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (reviews, 3) of the token classifier at token 0, [CLS]."""
    return model(**batch.inputs).logits.flatten(0, 1).index_select(0, batch.first)


def _set_attention(model: nn.Module, name: str) -> None:
    (model.get_base_model() if hasattr(model, "get_base_model") else model).set_attn_implementation(name)


def _mask(reviews: list[torch.Tensor]) -> torch.Tensor:
    lengths = torch.tensor(list(map(len, reviews)))
    return torch.arange(int(lengths.max())) < lengths[:, None]


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def predict_logits(model: nn.Module, collate: Collator, rows: Rows, batch_size: int) -> torch.Tensor:
    """Logits (rows, 3), float32 on the CPU, in the order of `rows`."""
    model.eval()
    logits = torch.empty(len(rows), model.config.num_labels)
    for numbers in by_length(rows, batch_size):
        logits[torch.from_numpy(numbers)] = first_logits(model, collate(rows, numbers)).float().cpu()
    return logits
