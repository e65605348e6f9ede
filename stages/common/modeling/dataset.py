"""Tokenized examples in memory."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.runtime.paths import TOKENIZED


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """Tokenized examples with their classes."""

    input_ids: pa.ListArray  # int32, one row per example
    labels: np.ndarray  # (examples,) int64 class indices
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (examples,)."""
        return self.input_ids.value_lengths().to_numpy()

    def take(self, rows: np.ndarray) -> Self:
        """Select the examples with these numbers."""
        return type(self)(self.input_ids.take(pa.array(rows)), self.labels[rows], self.class_names)


def read_dataset() -> TokenizedDataset:
    """Read all of data/tokenized.arrow; a UserError says that the file is missing or damaged."""
    table = read_table(TOKENIZED)
    input_ids, labels = table["input_ids"].combine_chunks(), table["labels"].to_numpy()
    return TokenizedDataset(input_ids, labels, get_class_names(table.schema))
