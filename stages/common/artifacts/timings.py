"""How long training and inference took: kept outside the DAG, since its artifacts are the same in every run."""

from pathlib import Path

from stages.common.core.files import read_json, sha256, write_json
from stages.common.core.paths import TIMINGS


def timing_key(checkpoint: Path) -> str:
    """Identify a run by the hash of its weights, so that its timings are found again when a cache restores it."""
    (weights,) = checkpoint.glob("*.safetensors")
    return sha256(weights)[:16]


def write_timing(checkpoint: Path, phase: str, seconds: float, examples: int) -> None:
    """Store that `phase`, "training" or "inference", took `seconds` for `examples`."""
    values = {"seconds": round(seconds, 2), "samples_per_second": round(examples / seconds, 1)}
    write_json(TIMINGS / f"{timing_key(checkpoint)}-{phase}.json", values)


def read_timings(key: str) -> dict[str, dict[str, float]]:
    """Read what is known of a run, by phase; empty where it ran on another machine."""
    paths = {phase: TIMINGS / f"{key}-{phase}.json" for phase in ("training", "inference")}
    return {phase: read_json(path) for phase, path in paths.items() if path.is_file()}
