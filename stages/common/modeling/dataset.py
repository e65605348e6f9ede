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

    input_ids: pa.ListArray  # Token ids (int32), one list per example.
    labels: np.ndarray  # (examples,) Class indices (int64).
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, (examples,)."""
        return self.input_ids.value_lengths().to_numpy()

    def take(self, rows: np.ndarray) -> Self:
        """Select the examples at these indices."""
        return type(self)(self.input_ids.take(pa.array(rows)), self.labels[rows], self.class_names)


def read_dataset() -> TokenizedDataset:
    """Read all of data/tokenized.arrow.

    Raises:
        UserError: The file is missing or damaged.
    """
    table = read_table(TOKENIZED)
    input_ids, labels = table["input_ids"].combine_chunks(), table["labels"].to_numpy()
    return TokenizedDataset(input_ids, labels, get_class_names(table.schema))
