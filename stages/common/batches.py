"""Rows of an Arrow split as batches of tensors."""

from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch

from stages.common.errors import UserError


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


def pad(rows: Rows, batch: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (reviews, longest review) and `labels` (reviews,) of some rows."""
    ids = [torch.from_numpy(rows.input_ids[index].astype(np.int64)) for index in batch]
    input_ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in ids])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": torch.from_numpy(rows.labels[batch])}
