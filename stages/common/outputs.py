"""Logits of every run on the validation and the test rows, in a file that needs no torch to be read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from stages.common.errors import UserError
from stages.common.files import replacing

Outputs = Mapping[str, np.ndarray]  # METHOD/SEED/SPLIT, of baselines METHOD/SPLIT, to logits (rows, 3)


def write_outputs(path: Path, outputs: Outputs) -> None:
    """Write logits as float32, in the order of the split's rows."""
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(logits, np.float32) for name, logits in outputs.items()}, temporary)


def read_outputs(path: Path) -> Outputs:
    """What `write_outputs` wrote, as float64.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return {name: logits.astype(float) for name, logits in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `dvc repro` to make it") from error
