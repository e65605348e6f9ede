"""A training stage, but for how its model is built: splits in, a checkpoint out, saved points on the way."""

import argparse
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.common.artifacts.arrow import read_preprocessing
from stages.common.artifacts.timings import write_time
from stages.common.core.files import atomic_write, read_json, sha256, write_json
from stages.common.core.params import FullParams, LoraParams, TrainParams
from stages.common.core.paths import BASE_MODEL, RUNS, SCRATCH, TRAIN, VALIDATION
from stages.common.modeling.classifier import count_parameters, save_checkpoint
from stages.common.modeling.collator import read_rows
from stages.common.modeling.distributed import Processes, joined
from stages.common.training.checkpointing import SavedPoints
from stages.common.training.trainer import train

LIBRARIES = ("numpy", "peft", "torch", "transformers")
HARMLESS = {"seeds", "launcher", "save_every"}  # parameters that no byte of a run depends on


def run_seed(description: str | None) -> int:
    """The seed on the command line of a training stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("seed", type=int, help="one of train.seeds")
    return parser.parse_args().seed


def fit(model: nn.Module, params: TrainParams, method: FullParams | LoraParams, seed: int, out: Path) -> None:
    """Train `model` on the splits and write the best checkpoint, with an object an epoch in history.json, to `out`.

    Of several processes one writes.
    """
    rows = read_rows(TRAIN)
    base = read_json(BASE_MODEL / "base_model.json")
    tokenizer = [BASE_MODEL / name for name in base["sha256"] if name not in ("config.json", "model.safetensors")]
    with joined() as processes:
        circumstances = {
            "parameters": [params.model_dump(exclude=HARMLESS), method.model_dump(), seed],
            "data": {str(path): sha256(path) for path in (TRAIN, VALIDATION)},
            "base model": base["sha256"],
            **_circumstances(processes),
        }
        points = SavedPoints(SCRATCH / out.relative_to(RUNS), circumstances, params.save_every, processes)
        with points.on_signals():  # one that comes while the model is written waits until it is
            outcome = train(
                model, rows, read_rows(VALIDATION), params.run(seed), method.learning_rate, processes, points
            )
            facts = {
                "base_model": base,
                "preprocessing": read_preprocessing(TRAIN).model_dump(),
                "seed": seed,
                "best_epoch": outcome.best_epoch,
                "validation": outcome.history[outcome.best_epoch - 1],
                **count_parameters(model),
            }
            if processes.is_main:
                with atomic_write(out) as temporary:
                    save_checkpoint(model, temporary, facts, tokenizer)
                    write_json(temporary / "history.json", outcome.history)
                points.remove()
                write_time(out, "training", outcome.seconds, len(rows) * len(outcome.history))


def _circumstances(processes: Processes) -> dict[str, Any]:
    """What else decides the bytes of a run."""
    modules = [module for name, module in sys.modules.items() if name.startswith("stages.") or name == "__main__"]
    files = sorted(Path(file) for module in modules if (file := getattr(module, "__file__", None)))
    gpu = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else ""
    return {
        "code": {path.name: sha256(path) for path in files},
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "machine": [platform.machine(), gpu, torch.get_num_threads(), processes.count],
    }
