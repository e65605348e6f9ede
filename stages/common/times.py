"""How long something took: in files beside the DAG, since all that DVC keeps is the same in every run."""

from pathlib import Path

from stages.common.files import read_json, sha256, write_json
from stages.common.paths import TIMES


def run_key(checkpoint: Path) -> str:
    """A name for a run that follows its weights: what was timed stays true when a cache brings them back."""
    (weights,) = checkpoint.glob("*.safetensors")
    return sha256(weights)[:16]


def write_time(checkpoint: Path, what: str, seconds: float, reviews: int) -> None:
    """Note that `what`, "training" or "inference", took the run `seconds` for `reviews`."""
    values = {"seconds": round(seconds, 2), "samples_per_second": round(reviews / seconds, 1)}
    write_json(TIMES / f"{run_key(checkpoint)}-{what}.json", values)


def read_times(key: str) -> dict[str, dict[str, float]]:
    """What is known of a run; empty where it was timed elsewhere."""
    paths = {what: TIMES / f"{key}-{what}.json" for what in ("training", "inference")}
    return {what: read_json(path) for what, path in paths.items() if path.is_file()}
