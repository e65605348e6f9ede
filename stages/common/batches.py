"""Rows of an Arrow split as batches of tensors, packed or, where the model does not allow it, padded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.common.errors import warn
from stages.common.packing import Layout, Model, set_packing
from stages.common.processes import Processes
from stages.common.records import read_table

GROUPED = 50  # batches that are sorted by length together
FULL_TOKENS, FULL_LENGTH = 64, 32  # what a filled batch's tokens, and its longest review, are multiples of
NO_LABEL = -100  # cross_entropy passes it over


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
    table = read_table(path)
    input_ids = table["input_ids"].combine_chunks()
    ends = np.cumsum(input_ids.value_lengths().to_numpy())
    return Rows(np.split(input_ids.flatten().to_numpy(), ends[:-1]), table["labels"].to_numpy().copy())


def shuffled(rows: Rows, batch_size: int, seed: int, epoch: int, group_by_length: bool = False) -> list[np.ndarray]:
    """Row numbers of each batch of an epoch, from `seed` and `epoch` alone: no other random draw shifts them.

    Grouped by length, reviews of like length, out of a random `GROUPED` batches, share a batch; the batches come in
    random order.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(rows))
    if group_by_length:
        lengths = np.array([len(rows.input_ids[number]) for number in order])
        group = np.arange(len(rows)) // (GROUPED * batch_size)
        order = order[np.lexsort((lengths, group))]
    batches = [order[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[number] for number in generator.permutation(len(batches))] if group_by_length else batches


def by_length(rows: Rows, batch_size: int) -> list[np.ndarray]:
    """Row numbers of batches of like length, the longest first, so that running out of memory shows at once."""
    order = np.argsort([-len(ids) for ids in rows.input_ids], kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(rows), batch_size)]


@dataclass(frozen=True)
class Batch:
    """What the model is called with, and where to read its answer."""

    inputs: dict[str, Any]
    first: torch.Tensor  # (reviews,) position of each review's token 0 among all
    labels: torch.Tensor  # (reviews,)

    def tensors(self) -> list[torch.Tensor]:
        """All that the batch consists of, in an order of its own."""
        layout = self.inputs.get("layout")
        named = [value for value in self.inputs.values() if isinstance(value, torch.Tensor)]
        return [*named, *((layout.slots, layout.mask) if layout else ()), self.first, self.labels]


class Collator:
    """Turns rows into batches for one model, packed if `packing` is wanted and the model allows it."""

    def __init__(self, model: Model, packing: bool) -> None:
        self._pad_id = model.config.pad_token_id
        # RoBERTa and its kin count positions from pad_token_id + 1.
        counts_from_pad = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        self._first_position = self._pad_id + 1 if counts_from_pad else 0
        self._device = next(model.parameters()).device
        self.packs = packing and self._packs_exactly(model)

    def __call__(self, rows: Rows, numbers: np.ndarray, filled: bool = False) -> Batch:
        """The rows numbered in `numbers`, on the model's device.

        A packed batch can be `filled` up to one of a few shapes, by a last review of [PAD] that has no label.
        """
        reviews = [rows.input_ids[number] for number in numbers]
        if not self.packs:
            return self._pad(reviews, rows.labels[numbers])
        return self._pack(reviews, rows.labels[numbers], filled)

    def _pad(self, reviews: list[np.ndarray], labels: np.ndarray) -> Batch:
        lengths = np.array(list(map(len, reviews)))
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        input_ids[mask] = np.concatenate(reviews)
        inputs = {"input_ids": self._tensor(input_ids), "attention_mask": self._tensor(mask.astype(np.int64))}
        return Batch(inputs, self._tensor(np.arange(len(reviews)) * mask.shape[1]), self._tensor(labels))

    def _pack(self, reviews: list[np.ndarray], labels: np.ndarray, filled: bool = False) -> Batch:
        if filled:
            missing = FULL_TOKENS - sum(map(len, reviews)) % FULL_TOKENS
            reviews, labels = [*reviews, np.full(missing, self._pad_id)], np.append(labels, NO_LABEL)
        lengths = np.array(list(map(len, reviews)))
        longest = -(-lengths.max() // FULL_LENGTH) * FULL_LENGTH if filled else lengths.max()
        mask = np.arange(longest) < lengths[:, None]
        first = self._tensor(np.cumsum(lengths) - lengths)
        inputs = {
            "input_ids": self._tensor(np.concatenate(reviews)[None].astype(np.int64)),
            "position_ids": self._tensor(mask.nonzero()[1][None] + self._first_position),
            "layout": Layout(self._tensor(np.flatnonzero(mask)), self._tensor(mask[:, None, None, :]), first),
        }
        return Batch(inputs, first, self._tensor(labels))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        # Pinned memory lets the copy run beside the GPU's work.
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    @torch.inference_mode()
    def _packs_exactly(self, model: Model) -> bool:
        """Whether packed reviews get the logits of padded ones; if so, the model is left with packed attention."""
        was_training, before = model.training, model.config._attn_implementation
        reviews = [self._pad_id + 1 + np.arange(length) % 2 for length in (3, 9, 5)]
        labels = np.zeros(3, dtype=np.int64)
        model.eval()
        padded = first_logits(model, self._pad(reviews, labels))

        def is_exact(short_last_layer: bool) -> bool:
            try:
                set_packing(model, "packed", short_last_layer)
                difference = (first_logits(model, self._pack(reviews, labels)) - padded).abs().max()
            except (AttributeError, TypeError, ValueError, RuntimeError):
                return False
            # Relative to the logits: those of a fresh head are so small that a leak would pass for rounding.
            return model.config._attn_implementation == "packed" and bool(difference < 1e-4 * padded.abs().max())

        exact = is_exact(short_last_layer=True) or is_exact(short_last_layer=False)
        if not exact:
            set_packing(model, before, short_last_layer=False)
            warn("train.packing: this base model does not allow it; batches are padded")
        model.train(was_training)
        return exact


def first_logits(model: Model, batch: Batch) -> torch.Tensor:
    """Logits (reviews, 3) of the token classifier at token 0, [CLS]."""
    logits = model(**batch.inputs).logits.flatten(0, 1)
    # A short last layer has left out the other tokens.
    return logits if len(logits) == len(batch.first) else logits.index_select(0, batch.first)


@torch.inference_mode()
def predict_logits(
    model: Model, collate: Collator, rows: Rows, batch_size: int, processes: Processes | None = None
) -> torch.Tensor:
    """Logits (rows, 3), float32 on the CPU, in the order of `rows`; `processes` share the work, all get the result."""
    model.eval()
    own_device = next(model.parameters()).device
    logits = torch.zeros(len(rows), model.config.num_labels, device=own_device)
    batches = by_length(rows, batch_size)
    for numbers in batches[processes.rank :: processes.count] if processes else batches:
        logits[torch.from_numpy(numbers).to(own_device)] = first_logits(model, collate(rows, numbers)).float()
    return (processes.total(logits) if processes else logits).cpu()
