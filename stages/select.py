"""The best run of each method by validation macro-F1: its checkpoint, and the training history of all runs."""

import shutil
from pathlib import Path
from typing import Any

from stages.common.artifacts.history import summarize
from stages.common.artifacts.timings import timing_key
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import atomic_write, read_json, write_json
from stages.common.core.params import load_params
from stages.common.core.paths import MODELS, PLOTS, RUN_PLAN, RUNS, SELECTION

METADATA = ("seed", "best_epoch", "validation", "trainable_parameters", "total_parameters")


def read_run(folder: Path) -> dict[str, Any]:
    """What is known of a run.

    Raises:
        UserError: a file of the run is missing or damaged.
    """
    checkpoint = folder / "checkpoint"
    training = read_json(checkpoint / "training.json")
    try:
        metadata = {name: training[name] for name in METADATA}
    except KeyError as error:
        raise UserError(f"{checkpoint / 'training.json'}: has no {error}; run `dvc repro` to train again") from error
    return {
        **metadata,
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        "timing_key": timing_key(checkpoint),
        "history": read_json(folder / "history.json"),
    }


def best_run(runs: dict[str, dict[str, Any]]) -> str:
    """The name of the run with the best validation macro-F1; of equal ones the first."""
    return max(runs, key=lambda name: runs[name]["validation"]["macro_f1"])


@report_user_errors
def main() -> None:
    load_params()
    selection = {}
    for method, names in read_json(RUN_PLAN).items():
        runs = {name: read_run(RUNS / method / name) for name in names}
        best = best_run(runs)
        selection[method] = {"best_run": best, "runs": runs}
        with atomic_write(MODELS / method) as folder:
            shutil.copytree(RUNS / method / best / "checkpoint", folder)
        write_json(PLOTS / f"{method}.json", summarize({name: run["history"] for name, run in runs.items()}))
    write_json(SELECTION, selection)


if __name__ == "__main__":
    main()
