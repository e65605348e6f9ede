"""A split in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.common.artifacts.arrow import read_table
from stages.common.core.ragged import RaggedArray


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """Tokenized examples with their classes."""

    input_ids: RaggedArray  # int32, a row an example
    labels: np.ndarray  # (examples,) int64 class indices

    def __len__(self) -> int:
        return len(self.labels)


def read_dataset(path: Path) -> TokenizedDataset:
    """Read one of `data/splits/*.arrow`.

    Raises:
        UserError: the file is missing or damaged.
    """
    table = read_table(path)
    input_ids = table["input_ids"].combine_chunks()
    rows = RaggedArray.from_lengths(input_ids.flatten().to_numpy(), input_ids.value_lengths().to_numpy())
    return TokenizedDataset(rows, table["labels"].to_numpy().copy())
