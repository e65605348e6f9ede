"""Logits of a trained model or of the baselines, in a file that is read without torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from stages.common.artifacts.files import atomic_write
from stages.common.runtime.exceptions import UserError

Logits = Mapping[str, np.ndarray]  # Arrays (rows, classes) by part of the fold; for baselines by BASELINE/PART.


def write_logits(path: Path, logits: Logits) -> None:
    """Write logits as float32; the rows of each array are in the order of the part's rows."""
    with atomic_write(path) as temporary:
        save_file({name: np.ascontiguousarray(values, np.float32) for name, values in logits.items()}, temporary)


def read_logits(path: Path, num_classes: int, names: Iterable[str] = ()) -> Logits:
    """Read logits as float64.

    Args:
        num_classes: Number of logits that each row must have.
        names: Names of the arrays that the file must hold.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        logits = {name: values.astype(float) for name, values in load_file(path).items()}
        if missing := [name for name in names if name not in logits]:
            raise ValueError(f"the array {missing[0]} is missing")
        if not all(values.shape[1:] == (num_classes,) and np.isfinite(values).all() for values in logits.values()):
            raise ValueError(f"a row does not hold {num_classes} finite numbers")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro` to make it") from error
    return logits
