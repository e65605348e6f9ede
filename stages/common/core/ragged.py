"""Rows of different lengths in one flat array."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True, eq=False)
class RaggedArray:
    """Rows of different lengths, one after the other, as Arrow's lists and PyTorch's nested tensors keep them.

    Row i is `values[offsets[i]:offsets[i + 1]]`.
    """

    values: np.ndarray  # (total length,)
    offsets: np.ndarray  # (rows + 1,) int64, from 0

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "RaggedArray":
        """Cut `values` into rows of the given lengths (rows,)."""
        return cls(values, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | np.ndarray], dtype: type = np.int32) -> "RaggedArray":
        """Copy rows into one array."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls.from_lengths(np.fromiter(chain.from_iterable(rows), dtype, lengths.sum()), lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64"""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "RaggedArray":
        """The given rows, in the given order, copied."""
        lengths = self.lengths[rows]
        taken = RaggedArray.from_lengths(self.values[:0], lengths)
        # Position of each value in `self.values`: the start of its row, plus how far it stands in it.
        starts = np.repeat(self.offsets[rows] - taken.offsets[:-1], lengths)
        return RaggedArray(self.values[starts + np.arange(len(starts))], taken.offsets)
