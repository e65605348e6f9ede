"""The classifier, with adapters or without: built, counted, saved and loaded.

It is the stock token classifier of transformers, read at token 0: the encoder without a pooler, dropout and one linear
layer. So its checkpoints need no code of ours.
"""

import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from stages.common.artifacts.files import read_json, write_json
from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.modeling.types import Model
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import LoraParams

HEAD = "classifier"
LORA_FIELDS = ("r", "alpha", "dropout", "target_modules", "rslora", "dora")  # of LoraParams
PEFT_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")  # in adapter_config.json
ADAPTER_README = """# LoRA adapters and the head of a classifier

They belong on the base model `{name}`, revision `{revision}`, whose files have these SHA-256 hashes:

{hashes}

`python -m stages.export --adapter` makes of them an adapter for `AutoPeftModelForSequenceClassification`.
`python -m stages.predict` looks for the base model in `data/base_model`, else in the folder that `--base-model` names.
"""


def _load(folder: Path, labels: Sequence[str], has_head: bool, **config_values: Any) -> transformers.PreTrainedModel:
    """Load the token classifier in `folder` as data alone, with its own head if `has_head`.

    Raises:
        UserError: it is damaged, or needs more than data: code of its own, a quantizer, an adapter.
    """
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    values = read_json(config_file)
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in list(transformers.CONFIG_MAPPING):
        raise UserError(f"{config_file}: transformers has no model_type {model_type!r}, and no code of a model is run")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or values.get("is_decoder"):
        raise UserError(f"{config_file}: {model_type} is a decoder, or no encoder of texts; choose one of BERT's kind")
    if values.get("quantization_config") or (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: is quantized, or holds an adapter beside the whole model; neither is supported")
    config_values |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
    config_values["label2id"] = {label: index for index, label in enumerate(labels)}
    transformers.utils.logging.disable_progress_bar()  # It would tell of the loading of a file that takes a moment.
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **config_values
        )
        config._attn_implementation = None  # a config may name a kernel, which is code, on the hub
        model, loading = transformers.AutoModelForTokenClassification.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=not has_head,  # an old head may have other classes
        )
    except Exception as error:  # transformers raises whatever an unusual config leads to
        raise UserError(f"{folder}: cannot be loaded: {error!r}") from error
    if config.pad_token_id is None:
        raise UserError(f"{config_file}: has no pad_token_id")
    mismatched = [name for name, *_ in loading["mismatched_keys"] if not name.startswith(f"{HEAD}.")]
    if mismatched:
        shown = f"{len(mismatched)} weights have another shape than config.json says, such as {mismatched[0]}"
        raise UserError(f"{weights}: {shown}")
    missing = {name for name in loading["missing_keys"] if has_head or not name.startswith(f"{HEAD}.")}
    _check_weights(model, weights, missing, loading["unexpected_keys"] if has_head else ())
    return model


def _check_weights(model: Model, path: Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    if names := sorted(missing) or sorted(unexpected):
        raise UserError(f"{path}: {'lacks' if missing else 'has no use for'} {len(names)} weights, such as {names[0]}")
    if damaged := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"{path}: {damaged[0]} holds NaN or infinity")


def build_classifier(folder: Path, labels: Sequence[str], dropout: float, seed: int) -> transformers.PreTrainedModel:
    """Load the base model in `folder` and add a new head for the classes `labels`, initialised from `seed`.

    Raises:
        UserError: the folder's weights do not fit its config, or the encoder has no dropout before its head.
    """
    torch.manual_seed(seed)  # transformers initialises a head that the folder lacks, or that has other classes.
    model = _load(folder, labels, has_head=False, classifier_dropout=dropout)
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        was_fine_tuned = f"{HEAD}.weight" in weights.keys()  # noqa: SIM118
    if was_fine_tuned:
        torch.manual_seed(seed)
        head = model.get_submodule(HEAD)
        assert isinstance(head, nn.Linear)
        nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
        nn.init.zeros_(head.bias)
    # Some encoders ignore classifier_dropout in their config, and the layer has one of two names.
    layers = [layer for name in ("dropout", "drop") if (layer := getattr(model, name, None))]
    if not layers:
        raise UserError(
            f"{folder}: {type(model).__name__} has no dropout before its head; choose an encoder of BERT's kind"
        )
    layers[0].p = dropout
    return model


def add_lora(model: transformers.PreTrainedModel, params: LoraParams, seed: int) -> PeftModel:
    """Freeze `model` and add adapters to `target_modules`; the head stays trainable and is saved with them.

    Raises:
        UserError: a target names no linear layer of the model, or PEFT refuses the parameters.
    """
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear.discard(HEAD)
    targets = linear if params.target_modules == "all-linear" else set(params.target_modules)
    if unknown := sorted(targets - linear):
        raise UserError(
            f"lora.target_modules: the base model has no linear layer {', '.join(unknown)}; "
            f"it has {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=params.r,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # PEFT scales by any number
        lora_dropout=params.dropout,
        target_modules=sorted(targets),
        use_rslora=params.rslora,
        use_dora=params.dora,
        init_lora_weights=True if params.init == "kaiming" else params.init,
        modules_to_save=[HEAD],
        bias="none",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # an odd rank with orthogonal initialisation
        raise UserError(f"lora: {error}") from error


class ParameterCounts(NamedTuple):
    """Numbers of weights, in which a tensor that two layers share counts once."""

    trainable: int
    total: int


def count_parameters(model: Model) -> ParameterCounts:
    """Count the weights of a model.

    PEFT keeps a frozen copy of the head beside the trained one. It takes part in nothing and is not counted.
    """
    parameters = {id(p): p for name, p in model.named_parameters() if ".original_module." not in name}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return ParameterCounts(trainable, total=sum(p.numel() for p in parameters))


def base_model_reference(base_model: BaseModelSource) -> dict[str, str | None]:
    """What PEFT's config calls a base model: id and revision on the hub, or a path.

    A relative path starts with `./`, or PEFT would look for the id `data/kobert-mini` on the hub, for 50 s without a
    network.
    """
    name, revision = base_model.name, base_model.revision
    is_relative = not revision and not Path(name).is_absolute()
    return {"base_model_name_or_path": f"./{name}" if is_relative else name, "revision": revision}


def save_checkpoint(
    model: Model, folder: Path, base_model: BaseModelSource, tokenizer_files: Iterable[Path] = ()
) -> None:
    """Write weights, config, and copies of `tokenizer_files`.

    Of a model with adapters only these and the head are written: the rest, tokenizer included, is in its base model.
    """
    has_adapters = isinstance(model, PeftModel)
    model.save_pretrained(folder, **({"save_embedding_layers": False} if has_adapters else {}))
    for path in () if has_adapters else tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    if has_adapters:
        values = read_json(folder / "adapter_config.json") | base_model_reference(base_model)
        # PEFT writes a set, whose order differs from process to process.
        values["target_modules"] = sorted(values["target_modules"])
        write_json(folder / "adapter_config.json", values)
        hashes = "\n".join(f"- `{name}`: `{value}`" for name, value in base_model.sha256.items())
        text = ADAPTER_README.format(name=base_model.name, revision=base_model.revision, hashes=hashes)
        (folder / "README.md").write_text(text, encoding="utf-8")


def load_checkpoint(folder: Path, labels: Sequence[str], base_model: Path) -> Model:
    """Load the classifier in `folder` for the classes `labels`; one that holds adapters alone is put on `base_model`.

    Raises:
        UserError: the folder holds no complete checkpoint, or adapters of another base model.
    """
    if (folder / "adapter_config.json").is_file():
        return _load_adapters(folder, build_classifier(base_model, labels, dropout=0.0, seed=0))
    if not (weights := folder / "model.safetensors").is_file():
        raise UserError(f"{weights}: no such file; run `dvc repro` to make it")
    return _load(folder, labels, has_head=True)


def _load_adapters(folder: Path, model: transformers.PreTrainedModel) -> PeftModel:
    """Put adapters on `model`. Of their config no more is read than what `LoraParams` checks."""
    config, path = read_json(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    try:
        values = {name: config[key] for name, key in zip(LORA_FIELDS, PEFT_KEYS, strict=True)}
        params = LoraParams.model_validate({**values, "init": "kaiming", "learning_rates": [0.1]})  # of use in training
        adapters, weights = add_lora(model, params, seed=0), load_file(path)
        expected = get_peft_model_state_dict(adapters, save_embedding_layers=False)
        if weights.keys() == expected.keys():
            set_peft_model_state_dict(adapters, weights)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error!r}; run `dvc repro` to make it") from error
    _check_weights(adapters, path, expected.keys() - weights.keys(), weights.keys() - expected.keys())
    return adapters.requires_grad_(False)
