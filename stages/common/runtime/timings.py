"""What the training of a run cost in seconds and memory.

It depends on the machine and the hour, so it is no artifact: git and DVC do not track it, and no result depends on it.
`python -m stages.timings` and the picture of costs on the page show it.
"""

import hashlib
import json
from pathlib import Path

from stages.common.runtime.paths import TIMINGS


def _timing_file(checkpoint: Path) -> Path:
    """The file for a checkpoint, named by the hash of its weights: it is found again when DVC's cache restores them."""
    (weights,) = checkpoint.glob("*.safetensors")
    with weights.open("rb") as file:
        return TIMINGS / f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.json"


def write_timing(checkpoint: Path, **values: float) -> None:
    """Store what the training of a checkpoint cost."""
    path = _timing_file(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: round(value, 1) for name, value in values.items()}), encoding="utf-8")


def read_timing(checkpoint: Path) -> dict[str, float]:
    """Read what the training of a checkpoint cost; empty where it was trained on another machine."""
    path = _timing_file(checkpoint)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
