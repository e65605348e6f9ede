"""The part that both training stages share: train a model on a fold, and write its checkpoint and logits."""

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stages.common.artifacts.arrow import read_preprocessing
from stages.common.artifacts.files import atomic_write, read_json, sha256, write_json
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.logits import write_logits
from stages.common.artifacts.training_metadata import BaseModelSource, TrainingMetadata, write_training_metadata
from stages.common.modeling.classifier import count_parameters, save_checkpoint
from stages.common.modeling.dataset import read_dataset
from stages.common.modeling.distributed import DistributedContext, init_distributed, peak_memory_mib
from stages.common.modeling.inference import predict_logits
from stages.common.modeling.types import Model
from stages.common.runtime.inputs import check_inputs
from stages.common.runtime.params import Params
from stages.common.runtime.paths import BASE_MODEL, CHECKPOINTS, RUNS, TOKENIZED, fold_path, run_name
from stages.common.runtime.timings import write_timing
from stages.common.training.checkpointing import CheckpointManager
from stages.common.training.interruption import SavePolicy
from stages.common.training.out_of_memory import report_out_of_memory
from stages.common.training.trainer import Trainer
from stages.common.training.training_step import choose_precision

LIBRARIES = ("numpy", "peft", "torch", "transformers")
MODEL_FILES = ("config.json", "model.safetensors")


def train_stage(model: Model, method: str, params: Params, fold: int, seed: int, learning_rate: float) -> None:
    """Train `model` on a fold and write a run: the checkpoint of the best epoch, its logits, and the history.

    If there are several processes, the main process writes the run.

    Args:
        model: A new classifier.
        method: "full" or "lora".
        params: All parameters.
        fold: Number of the fold.
        seed: Seed of the order of the examples and of dropout.
        learning_rate: Highest learning rate of the schedule.
    """
    name = run_name(fold, learning_rate)
    run = RUNS / method / name
    dataset = read_dataset()
    parts = {part: dataset.take(rows) for part, rows in vars(read_fold(fold_path(fold), len(dataset))).items()}
    train, validation = parts["train"], parts["validation"]
    base_model = BaseModelSource.model_validate(read_json(BASE_MODEL / "base_model.json"))
    tokenizer_files = [BASE_MODEL / file for file in base_model.sha256 if file not in MODEL_FILES]
    with init_distributed() as distributed:
        method_params = getattr(params, method).model_dump(exclude={"learning_rates"})
        fingerprint = {
            "parameters": [params.train.model_dump(), method_params, learning_rate],
            "data": {str(path): sha256(path) for path in (TOKENIZED, fold_path(fold))},
            "base model": base_model.sha256,
            "precision": str(choose_precision(params.train.precision, distributed.device)),
            **_environment(distributed),
        }
        checkpoints = CheckpointManager(CHECKPOINTS / method / name, fingerprint, distributed)
        save_policy = SavePolicy(params.run.save_interval_seconds, distributed)
        # After a signal a training stops, but once it has ended, its logits are predicted and the run is written first.
        with save_policy.handle_signals(), report_out_of_memory(params.train):
            trainer = Trainer(
                model, train, validation, params.train, learning_rate, seed, distributed, checkpoints, save_policy
            )
            result, collator = trainer.train(), trainer.collator
            del trainer  # It refers to DistributedDataParallel, which must be freed first, see `init_distributed`.
            logits = {
                part: predict_logits(model, collator, examples, params.train.eval_batch_size, distributed).numpy()
                for part, examples in parts.items()
            }
            counts = count_parameters(model)
            metadata = TrainingMetadata(
                base_model=base_model,
                preprocessing=read_preprocessing(TOKENIZED),
                labels=train.class_names,
                fold=fold,
                seed=seed,
                learning_rate=learning_rate,
                best_epoch=result.best_epoch,
                validation=result.history[result.best_epoch - 1],
                trainable_parameters=counts.trainable,
                total_parameters=counts.total,
            )
            if distributed.is_main_process:
                check_inputs()  # If an input has changed, the checkpoints must not be deleted.
                with atomic_write(run) as temporary:
                    save_checkpoint(model, temporary / "checkpoint", base_model, tokenizer_files)
                    write_training_metadata(temporary / "checkpoint", metadata)
                    write_json(temporary / "history.json", result.history)
                    write_logits(temporary / "logits.safetensors", logits)
                checkpoints.delete()
                epochs = len(result.history)
                write_timing(
                    run / "checkpoint",
                    seconds=result.seconds,
                    seconds_to_best_epoch=result.seconds * result.best_epoch / epochs,
                    samples_per_second=len(train) * epochs / result.seconds,
                    peak_memory_mib=peak_memory_mib(distributed.device),
                )


def _environment(distributed: DistributedContext) -> dict[str, Any]:
    """Return what else decides the bytes of a run: code, libraries and hardware. The runtime room does not."""
    names = [name for name in sys.modules if name.startswith(("stages.", "__main__")) and ".runtime" not in name]
    modules = [sys.modules[name] for name in names]
    files = sorted(Path(file) for module in modules if (file := getattr(module, "__file__", None)))
    gpu = torch.cuda.get_device_name(distributed.device) if distributed.device.type == "cuda" else ""
    return {
        "code": {f"{path.parent.name}/{path.name}": sha256(path) for path in files},
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "hardware": [platform.machine(), gpu, torch.get_num_threads(), distributed.world_size],
    }
