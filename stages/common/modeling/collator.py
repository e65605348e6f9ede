"""Make batches of tensors from examples: packed into one row without padding, or padded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.packing import PackedLayout
from stages.common.modeling.types import Model

# CUDA graphs and the kernels of oneDNN need few distinct shapes. The number of tokens of a batch is therefore rounded
# up to the next multiple of 64, and the length of its longest example to a multiple of 32.
TOKENS_MULTIPLE, LENGTH_MULTIPLE = 64, 32
IGNORE_INDEX = -100  # Label of an example that `cross_entropy` ignores.


@dataclass(frozen=True)
class Batch:
    """A batch of examples."""

    inputs: dict[str, Any]  # Keyword arguments of the model.
    cls_positions: torch.Tensor  # (examples,) Index of each example's [CLS] among all tokens of the batch.
    labels: torch.Tensor  # (examples,) Class indices.

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the batch, always in the same order."""
        layout = self.inputs.get("layout")
        inputs = [value for value in self.inputs.values() if isinstance(value, torch.Tensor)]
        return [
            *inputs,
            *((layout.padded_indices, layout.token_indices, layout.mask) if layout else ()),
            self.cls_positions,
            self.labels,
        ]


class Collator:
    """Make batches for one model.

    Args:
        model: The model, on the device to which the batches are moved.
        packed: Whether a batch is one row of tokens without padding. The model's attention must support this, see the
            module `packing`.
        pad_to_multiple: Whether a packed batch is filled up to one of a few shapes, with an additional example of
            [PAD] tokens whose label is `IGNORE_INDEX`.
    """

    def __init__(self, model: Model, packed: bool, pad_to_multiple: bool = False) -> None:
        self.packed, self.pad_to_multiple = packed, pad_to_multiple
        self._pad_id = model.config.pad_token_id
        # RoBERTa and its relatives number positions from pad_token_id + 1.
        counts_from_pad = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
        self._first_position = self._pad_id + 1 if counts_from_pad else 0
        self._device = next(model.parameters()).device

    def __call__(self, dataset: TokenizedDataset, indices: np.ndarray) -> Batch:
        """Make a batch of the examples at `indices`, (examples,), on the model's device."""
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
            # The example of [PAD] tokens may be longer than the encoder has positions.
            positions[-lengths[-1] :] = self._first_position
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
        # A copy from pinned memory does not block the GPU.
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor
