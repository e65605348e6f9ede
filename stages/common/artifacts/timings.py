"""What a run cost: kept outside the DAG, since it depends on the machine and the hour."""

from pathlib import Path

from stages.common.core.files import read_json, sha256, write_json
from stages.common.core.paths import TIMINGS


def timing_key(checkpoint: Path) -> str:
    """Identify a run by the hash of its weights, so that its timings are found again when a cache restores it."""
    (weights,) = checkpoint.glob("*.safetensors")
    return sha256(weights)[:16]  # 64 bits: two runs never share them by chance


def write_timing(checkpoint: Path, **values: float) -> None:
    """Store what the training of a checkpoint cost."""
    path = TIMINGS / f"{timing_key(checkpoint)}.json"
    write_json(path, {name: round(value, 1) for name, value in values.items()})


def read_timing(key: str) -> dict[str, float]:
    """Read what a run cost; empty where it was trained on another machine."""
    path = TIMINGS / f"{key}.json"
    return read_json(path) if path.is_file() else {}
