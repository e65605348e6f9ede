"""Seconds and memory that the training of a run took.

They are different on each machine and each time, so neither git nor DVC tracks them, and no result depends on them.
`python -m stages.timings` and the picture of costs in the report show them.
"""

import hashlib
import json
from pathlib import Path

from stages.common.runtime.paths import TIMINGS


def _timing_file(checkpoint: Path) -> Path:
    """Return the file for a checkpoint. Its name is the hash of the weights, which DVC may delete and restore."""
    (weights,) = checkpoint.glob("*.safetensors")
    with weights.open("rb") as file:
        return TIMINGS / f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.json"


def write_timing(checkpoint: Path, **values: float) -> None:
    """Store the cost of the training of a checkpoint."""
    path = _timing_file(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: round(value, 1) for name, value in values.items()}), encoding="utf-8")


def read_timing(checkpoint: Path) -> dict[str, float]:
    """Read the cost of the training of a checkpoint. It is empty if another machine has trained the checkpoint."""
    path = _timing_file(checkpoint)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
