"""Estimate, before training, what it costs and how small a difference between the methods the folds can show.

python -m stages.plan

The estimate of the costs needs the base model: its folder, or its id on the hub and a network. The smallest difference
is known after `dvc repro split`.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stages.common.artifacts.files import read_json
from stages.common.artifacts.folds import SplitMetrics
from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.runtime.console import warn
from stages.common.runtime.disk import BYTES_PER_PARAMETER, RESUMPTION_COPIES, format_bytes
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import BaseModelParams, Params, load_params
from stages.common.runtime.paths import BASE_MODEL, SPLIT_METRICS
from stages.common.runtime.threads import count_runs_that_fit

FLOAT_BYTES = 4  # Size of a float32.
EMBEDDING_BYTES = 48  # Memory that the embeddings keep for their backward pass, per token and hidden unit.


class ActivationBytes(NamedTuple):
    """Memory that a layer keeps for its backward pass, in bytes per token.

    The values were counted with BERT models of several sizes. They are an upper bound for other encoders, and for
    adapters on few layers.
    """

    per_hidden_unit: float
    per_intermediate_unit: float
    per_score: float  # Per head and attended token, for the attention scores, which a GPU does not keep.


# Keys are the method, and the bytes of an element in matrix products.
ACTIVATIONS = {
    ("full", 4): ActivationBytes(44, 8, 11),
    ("full", 2): ActivationBytes(34, 6, 6),
    ("lora", 4): ActivationBytes(72, 12, 11),
    ("lora", 2): ActivationBytes(55, 10, 6),
}


class ModelCost(NamedTuple):
    """The parameters of a classifier, and the memory of its training step."""

    trainable: int
    total: int
    step_bytes: float


def estimate_step_bytes(
    config: Any, method: str, trainable: int, total: int, batch_size: int, length: int, element_bytes: int, on_gpu: bool
) -> float:
    """Estimate the peak memory of a training step in bytes, without the 1 to 2 GB of libraries and allocators.

    Args:
        config: Config of the encoder.
        method: "full" or "lora".
        trainable: Number of trainable parameters.
        total: Number of all parameters.
        batch_size: Number of examples in the batch.
        length: Number of tokens of each example.
        element_bytes: Size of an element in matrix products: 4 for float32, 2 for 16 bits.
        on_gpu: Whether the step runs on a GPU, where attention keeps no scores.
    """
    kept = ACTIVATIONS[method, element_bytes]
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    per_token = kept.per_hidden_unit * config.hidden_size + kept.per_intermediate_unit * intermediate
    per_token += 0 if on_gpu else kept.per_score * config.num_attention_heads * length
    # The last layer computes the [CLS] tokens only.
    per_token = per_token * (config.num_hidden_layers - 1) + EMBEDDING_BYTES * config.hidden_size
    activations = batch_size * length * per_token
    # Two moments of AdamW and the best weights stay in memory. Activations are freed while gradients are computed.
    return FLOAT_BYTES * (total + 3 * trainable) + max(FLOAT_BYTES * trainable, activations)


def estimate_costs(folder: Path, params: Params) -> dict[str, ModelCost]:
    """Build both classifiers without weights from the config.json in `folder`, and estimate the cost of each method."""
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification

    from stages.common.modeling.classifier import add_lora, count_parameters
    from stages.common.modeling.distributed import get_device
    from stages.common.training.training_step import choose_precision

    device = get_device()
    precision = choose_precision(params.train.precision, device)
    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, num_labels=len(params.data.labels)
        )
        config._attn_implementation = None  # A config can name a kernel on the hub, which is code.
        with torch.device("meta"):
            model = AutoModelForTokenClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # An unusual config can lead to any type of error in transformers.
        raise UserError(f"{folder}: no encoder can be built from its config.json: {error!r}") from error
    counts = {"full": count_parameters(model)}
    with torch.device("meta"):
        counts["lora"] = count_parameters(add_lora(model, params.lora.model_copy(update={"init": "kaiming"}), seed=0))
    length = min(params.tokenize.max_length, getattr(config, "max_position_embeddings", params.tokenize.max_length))
    costs = {}
    for method, (trainable, total) in counts.items():
        element_bytes, on_gpu = precision.itemsize, device.type == "cuda"
        step_bytes = estimate_step_bytes(
            config, method, trainable, total, params.train.batch_size, length, element_bytes, on_gpu
        )
        costs[method] = ModelCost(trainable, total, step_bytes)
    return costs


def is_here(source: BaseModelParams) -> bool:
    """Tell whether `data/base_model` has this model of the hub at this commit."""
    try:
        here = BaseModelSource.model_validate(read_json(BASE_MODEL / "base_model.json"))
    except (UserError, ValueError):
        return False
    return (here.name, here.revision) == (source.hub_id, source.revision)


def print_model_costs(params: Params, run_counts: dict[str, int]) -> None:
    """Print the size of the base model that the parameters name, and the memory and disk space of its training.

    Args:
        params: All parameters.
        run_counts: Number of runs of each method.
    """
    from stages.base_model import CONFIG, select_files
    from stages.common.pretrained.hub import download, list_sizes

    source = params.base_model
    with TemporaryDirectory() as temporary:
        folder = Path(source.folder)
        if source.hub_id and is_here(source):
            folder = BASE_MODEL
        elif source.hub_id:
            folder = Path(temporary)
            sizes = list_sizes(source.hub_id, source.revision)
            names = select_files(sizes, f"base_model.hub_id: {source.hub_id}")
            print(f"download: {format_bytes(sum(sizes[name] for name in names))} from {source.hub_id}")
            download(source.hub_id, source.revision, [CONFIG], folder)
        elif not (folder / CONFIG).is_file():
            raise UserError(f"base_model.folder: {folder} contains no {CONFIG}")
        costs = estimate_costs(folder, params)
    full, lora = costs["full"], costs["lora"]
    print(
        f"parameters: {full.trainable:,} with full fine-tuning; {lora.total:,} with LoRA, of which {lora.trainable:,} "
        f"({lora.trainable / lora.total:.2%}) are trained"
    )
    print(
        f"peak memory of a training step: about {format_bytes(full.step_bytes)} with full fine-tuning, "
        f"{format_bytes(lora.step_bytes)} with LoRA, and 1 to 2 GB for the program itself"
    )
    parallel, num_runs = params.run.parallel, sum(run_counts.values())
    at_once = 1
    if params.run.launcher == "python":
        at_once = min(num_runs, count_runs_that_fit(full.total) if parallel == "auto" else parallel)
    checkpoints = BYTES_PER_PARAMETER * sum(run_counts[method] * cost.trainable for method, cost in costs.items())
    # There are two checkpoints to resume from, and a third one while it is written.
    resumption = BYTES_PER_PARAMETER * 3 * RESUMPTION_COPIES * at_once * full.trainable
    free = shutil.disk_usage(".").free
    print(
        f"disk: {format_bytes(checkpoints)} for all runs, up to the same space once more in DVC's cache, and up to "
        f"{format_bytes(resumption)} to resume {at_once} runs at a time; {format_bytes(free)} are free"
    )


@report_user_errors
def main() -> None:
    params = load_params()
    num_folds = len(params.run.folds)
    run_counts = {method: num_folds * len(getattr(params, method).learning_rates) for method in ("full", "lora")}
    num_models = sum(run_counts.values())
    num_rates = num_models // num_folds
    print(f"runs: {num_models}, with {num_folds} folds and {num_rates} learning rates of both methods together")
    try:
        print_model_costs(params, run_counts)
    except UserError as error:
        warn(f"the costs are not known: {error}")
    if not SPLIT_METRICS.is_file():
        print("run `dvc repro split` to see here also the number of steps, and what the folds can show")
        return
    # SciPy takes seconds to import, so errors in params.yaml are reported first.
    import numpy as np

    from stages.common.evaluation.power import describe_power

    metrics = SplitMetrics.model_validate(read_json(SPLIT_METRICS))
    examples_per_step = params.train.batch_size * params.train.gradient_accumulation_steps
    steps_per_epoch = [-(-metrics.folds[number].train.rows // examples_per_step) for number in params.run.folds]
    steps = params.train.epochs * sum(steps_per_epoch) * num_rates
    print(f"steps: {steps:,} in total, {steps // num_models:,} per run, unless train.patience ends some runs earlier")
    tested = [list(metrics.folds[number].test.classes.values()) for number in params.run.folds]
    class_counts = np.array(tested[0]) if metrics.fixed_test_rows else np.sum(tested, axis=0)
    print(describe_power(class_counts, num_folds, params.compare.margin))


if __name__ == "__main__":
    main()
