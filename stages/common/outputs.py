"""Logits of every run on the validation and the test rows, as a table that needs no torch to be read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.common.records import LABELS, read_table, schema, write_table

SCHEMA = schema(
    {
        "method": pa.string(),
        "seed": pa.int64(),  # null: the method has none
        "split": pa.string(),  # validation or test
        "logits": pa.list_(pa.float32()),  # a row a review, in the order of the split
    }
)
Key = tuple[str, int | None, str]


def write_outputs(path: Path, outputs: dict[Key, np.ndarray]) -> None:
    """Write logits (rows, 3) by method, seed and split."""

    def batches() -> Iterator[pa.RecordBatch]:
        for (method, seed, split), logits in outputs.items():
            count = len(logits)
            values = pa.array(logits.astype(np.float32).ravel())
            offsets = pa.array(np.arange(0, len(LABELS) * count + 1, len(LABELS)), pa.int32())
            keys = [
                pa.repeat(pa.scalar(value, SCHEMA.field(i).type), count)
                for i, value in enumerate((method, seed, split))
            ]
            yield pa.RecordBatch.from_arrays([*keys, pa.ListArray.from_arrays(offsets, values)], schema=SCHEMA)

    write_table(path, batches(), SCHEMA)


def read_outputs(path: Path) -> dict[Key, np.ndarray]:
    """What `write_outputs` wrote, float64.

    Raises:
        UserError: the file is missing or damaged.
    """
    parts = {
        tuple(batch.column(name)[0].as_py() for name in ("method", "seed", "split")): batch["logits"].flatten()
        for batch in read_table(path).to_batches()
    }
    return {key: values.to_numpy().reshape(-1, len(LABELS)).astype(float) for key, values in parts.items()}
