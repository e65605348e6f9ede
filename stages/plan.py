"""Say before training what it will cost, and what the planned folds can show.

python -m stages.plan

The cost is known as soon as the base model is: its folder, or its id on the hub and a network. What the folds can show
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

FLOAT = 4  # bytes of a float32
EMBEDDING_BYTES = 48  # What the embeddings keep for their backward pass, for each token and hidden unit.


class ActivationBytes(NamedTuple):
    """What a layer keeps for its backward pass, in bytes for each token.

    They were counted at several sizes of BERT; with other encoders, or adapters on few layers, they are an upper bound.
    """

    per_hidden_unit: float
    per_intermediate_unit: float
    per_score: float  # of attention, for each head and token attended to; a GPU keeps none


# By method and bytes of an element in matrix products.
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
    """Estimate the memory of a training step, without the 1 to 2 GB that libraries and allocators take.

    Args:
        config: The config of the encoder.
        method: "full" or "lora".
        trainable: Number of parameters that are trained.
        total: Number of all parameters.
        batch_size: Number of examples.
        length: Number of tokens of each example.
        element_bytes: 4 if matrix products are in float32, else 2.
        on_gpu: Whether attention keeps no scores.
    """
    kept = ACTIVATIONS[method, element_bytes]
    intermediate = getattr(config, "intermediate_size", 4 * config.hidden_size)
    per_token = kept.per_hidden_unit * config.hidden_size + kept.per_intermediate_unit * intermediate
    per_token += 0 if on_gpu else kept.per_score * config.num_attention_heads * length
    # The last layer computes [CLS] alone.
    per_token = per_token * (config.num_hidden_layers - 1) + EMBEDDING_BYTES * config.hidden_size
    activations = batch_size * length * per_token
    # Two moments of AdamW and the best weights stay; gradients grow as activations are freed.
    return FLOAT * (total + 3 * trainable) + max(FLOAT * trainable, activations)


def estimate_costs(folder: Path, params: Params) -> dict[str, ModelCost]:
    """Build both classifiers from the config.json in `folder`, without weights, and estimate what each costs."""
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
        config._attn_implementation = None  # A config may name a kernel, which is code, on the hub.
        with torch.device("meta"):
            model = AutoModelForTokenClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever an unusual config leads to
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
    """Whether `data/base_model` is this commit of a model of the hub."""
    try:
        here = BaseModelSource.model_validate(read_json(BASE_MODEL / "base_model.json"))
    except (UserError, ValueError):
        return False
    return (here.name, here.revision) == (source.hub_id, source.revision)


def print_model_costs(params: Params, run_counts: dict[str, int]) -> None:
    """Print parameters, download, memory and disk of the base model that the parameters name."""
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
            raise UserError(f"base_model.folder: {folder} holds no {CONFIG}")
        costs = estimate_costs(folder, params)
    full, lora = costs["full"], costs["lora"]
    print(
        f"parameters: {full.trainable:,} in full fine-tuning; {lora.total:,} with LoRA, of which {lora.trainable:,} "
        f"({lora.trainable / lora.total:.2%}) are trained"
    )
    print(
        f"memory of a training step at its largest: about {format_bytes(full.step_bytes)} in full fine-tuning, "
        f"{format_bytes(lora.step_bytes)} with LoRA, and 1 to 2 GB for the program itself"
    )
    parallel, num_runs = params.run.parallel, sum(run_counts.values())
    at_once = 1
    if params.run.launcher == "python":
        at_once = min(num_runs, count_runs_that_fit(full.total) if parallel == "auto" else parallel)
    checkpoints = BYTES_PER_PARAMETER * sum(run_counts[method] * cost.trainable for method, cost in costs.items())
    # Two checkpoints to resume from, and one that is being written.
    resumption = BYTES_PER_PARAMETER * 3 * RESUMPTION_COPIES * at_once * full.trainable
    free = shutil.disk_usage(".").free
    print(
        f"disk: {format_bytes(checkpoints)} for all runs, up to as much again in DVC's cache, and up to "
        f"{format_bytes(resumption)} to resume from, with {at_once} at a time; {format_bytes(free)} are free"
    )


@report_user_errors
def main() -> None:
    params = load_params()
    num_folds = len(params.run.folds)
    run_counts = {method: num_folds * len(getattr(params, method).learning_rates) for method in ("full", "lora")}
    num_models = sum(run_counts.values())
    num_rates = num_models // num_folds
    print(f"{num_models} models: {num_folds} folds, {num_rates} learning rates of both methods together")
    try:
        print_model_costs(params, run_counts)
    except UserError as error:
        warn(f"the cost is not known: {error}")
    if not SPLIT_METRICS.is_file():
        print("`dvc repro split` first: then this also says how many steps there are and what the folds can show")
        return
    # SciPy takes seconds to import; an error in params.yaml is reported before that.
    import numpy as np

    from stages.common.evaluation.power import describe_power

    metrics = SplitMetrics.model_validate(read_json(SPLIT_METRICS))
    examples_per_step = params.train.batch_size * params.train.gradient_accumulation_steps
    steps_per_epoch = [-(-metrics.folds[number].train.rows // examples_per_step) for number in params.run.folds]
    steps = params.train.epochs * sum(steps_per_epoch) * num_rates
    print(f"steps: {steps:,} in all, {steps // num_models:,} a model, unless train.patience ends some earlier")
    tested = [list(metrics.folds[number].test.classes.values()) for number in params.run.folds]
    class_counts = np.array(tested[0]) if metrics.fixed_test_rows else np.sum(tested, axis=0)
    print(describe_power(class_counts, num_folds, params.compare.margin))


if __name__ == "__main__":
    main()
