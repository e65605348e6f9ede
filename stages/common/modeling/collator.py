"""Examples as a batch of tensors: packed into one row without padding, or padded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.packing import PackedLayout
from stages.common.modeling.types import Model

# CUDA graphs and oneDNN's kernels need few distinct shapes: a batch's tokens are rounded up to 64, the length of its
# longest example to 32.
TOKENS_MULTIPLE, LENGTH_MULTIPLE = 64, 32
IGNORE_INDEX = -100  # cross_entropy leaves such a label out


@dataclass(frozen=True)
class Batch:
    """The arguments of the model, and where its logits stand."""

    inputs: dict[str, Any]
    cls_positions: torch.Tensor  # (examples,) index of each example's [CLS] among all tokens of the batch
    labels: torch.Tensor  # (examples,)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the batch, always in the same order."""
        layout = self.inputs.get("layout")
        inputs = [value for value in self.inputs.values() if isinstance(value, torch.Tensor)]
        return [
            *inputs,
            *((layout.padded_indices, layout.token_indices, layout.mask) if layout else ()),
            self.cls_positions,
            self.labels,
        ]


class Collator:
    """Makes batches for one model.

    Args:
        packed: one row of real tokens; the model's attention must know the layout, see `packing`.
        pad_to_multiple: fill a packed batch up to one of a few shapes, with an example of [PAD] whose label is
            `IGNORE_INDEX`.
    """

    def __init__(self, model: Model, packed: bool, pad_to_multiple: bool = False) -> None:
        self.packed, self.pad_to_multiple = packed, pad_to_multiple
        self._pad_id = model.config.pad_token_id
        # RoBERTa and models derived from it count positions from pad_token_id + 1.
        counts_from_pad = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        self._first_position = self._pad_id + 1 if counts_from_pad else 0
        self._device = next(model.parameters()).device

    def __call__(self, dataset: TokenizedDataset, indices: np.ndarray) -> Batch:
        """The examples at `indices`, on the model's device."""
        examples = dataset.input_ids.take(pa.array(indices))
        values, lengths = examples.flatten().to_numpy(), examples.value_lengths().to_numpy()
        return (self._pack if self.packed else self._pad)(values, lengths, dataset.labels[indices])

    def _pad(self, values: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> Batch:
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        input_ids[mask] = values
        inputs = {"input_ids": self._to_device(input_ids), "attention_mask": self._to_device(mask.astype(np.int64))}
        cls_positions = np.arange(len(lengths)) * mask.shape[1]
        return Batch(inputs, self._to_device(cls_positions), self._to_device(labels))

    def _pack(self, values: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> Batch:
        longest = lengths.max()
        if self.pad_to_multiple:
            filler = np.full(TOKENS_MULTIPLE - len(values) % TOKENS_MULTIPLE, self._pad_id)
            values, lengths = np.append(values, filler), np.append(lengths, len(filler))
            labels = np.append(labels, IGNORE_INDEX)
            longest = -(-lengths.max() // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        mask = np.arange(longest) < lengths[:, None]
        positions = mask.nonzero()[1] + self._first_position
        if self.pad_to_multiple:
            positions[-lengths[-1] :] = self._first_position  # the encoder may have fewer positions than that example
        cls_positions = self._to_device(np.cumsum(lengths) - lengths)
        layout = PackedLayout(
            self._to_device(np.flatnonzero(mask)),
            self._to_device(mask.cumsum() - 1),
            self._to_device(mask[:, None, None, :]),
            cls_positions,
        )
        inputs = {
            "input_ids": self._to_device(values[None].astype(np.int64)),
            "position_ids": self._to_device(positions[None]),
            "layout": layout,
        }
        return Batch(inputs, cls_positions, self._to_device(labels))

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        # A copy from pinned memory runs beside the GPU's work.
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor
