"""What every run says of the validation and the test rows, and the best run of each method."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.common.artifacts.logits import write_logits
from stages.common.artifacts.timings import run_key, write_time
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import atomic_write, read_json, write_json
from stages.common.core.params import load_params
from stages.common.core.paths import BASE_MODEL, EVALUATED, METHODS, MODELS, PLOTS, RUNS, TEST, VALIDATION
from stages.common.evaluation.training_history import best_seed, summarize
from stages.common.modeling.classifier import load_checkpoint, weight_bytes
from stages.common.modeling.collator import Collator, Rows, predict_logits, read_rows
from stages.common.modeling.distributed import device

FACTS = ("best_epoch", "validation", "trainable_parameters", "total_parameters")


def describe(run: Path) -> dict[str, Any]:
    """What is known of a run besides its logits."""
    facts = read_json(run / "training.json")
    return {
        **{name: facts[name] for name in FACTS},
        "checkpoint_bytes": weight_bytes(run),
        "key": run_key(run),
        "history": read_json(run / "history.json"),
    }


def evaluate(run: Path, splits: dict[str, Rows], batch_size: int, packing: bool) -> dict[str, np.ndarray]:
    """Logits (rows, 3) of a run for each split; notes how long that took."""
    model = load_checkpoint(run, BASE_MODEL).to(device())
    collate = Collator(model, packing)
    start = time.perf_counter()
    logits = {name: predict_logits(model, collate, rows, batch_size).numpy() for name, rows in splits.items()}
    write_time(run, "inference", time.perf_counter() - start, sum(map(len, splits.values())))
    if faulty := [name for name, values in logits.items() if not np.isfinite(values).all()]:
        raise UserError(f"{run}: its outputs on the {faulty[0]} rows are not finite; train it again")
    return logits


@report_user_errors
def main() -> None:
    params = load_params()
    splits = {"validation": read_rows(VALIDATION), "test": read_rows(TEST)}
    runs: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in METHODS}
    outputs: dict[str, np.ndarray] = {}
    pairs = [(method, seed) for method in METHODS for seed in params.train.seeds]
    for method, seed in tqdm(pairs, desc="evaluate", unit="run", disable=None):
        run = RUNS / method / str(seed)
        runs[method][seed] = describe(run)
        for split, logits in evaluate(run, splits, params.compare.batch_size, params.train.packing).items():
            outputs[f"{method}/{seed}/{split}"] = logits
    with atomic_write(EVALUATED) as folder:
        folder.mkdir()
        write_logits(folder / "logits.safetensors", outputs)
        write_json(folder / "runs.json", runs)
    for method, of_method in runs.items():
        with atomic_write(MODELS / method) as folder:
            shutil.copytree(
                RUNS / method / str(best_seed(of_method)), folder, ignore=shutil.ignore_patterns("history.json")
            )
        write_json(PLOTS / f"{method}.json", summarize({seed: run["history"] for seed, run in of_method.items()}))
        # Runs of seeds that are no longer asked for would make DVC see other dependencies than a fresh clone has.
        for run in (RUNS / method).iterdir():
            if run.is_dir() and run.name not in map(str, of_method):
                shutil.rmtree(run)


if __name__ == "__main__":
    main()
