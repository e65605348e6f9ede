"""Build, count, save and load the classifier, with LoRA adapters or without.

The classifier is the token classifier of transformers: encoder, dropout and one linear layer. The logits of a text are
those of its token 0. A checkpoint can therefore be loaded without code of this project.
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
# Fields of `LoraParams`, and the keys of adapter_config.json that correspond to them.
LORA_FIELDS = ("r", "alpha", "dropout", "target_modules", "rslora", "dora")
PEFT_KEYS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
ADAPTER_README = """# LoRA adapters and head of a text classifier

Their base model is `{name}`, revision `{revision}`. Its files have these SHA-256 hashes:

{hashes}

`python -m stages.export --adapter` converts them to an adapter for `AutoPeftModelForSequenceClassification`.
`python -m stages.predict` expects the base model in `data/base_model`, or in the folder that `--base-model` names.
"""


def _load(folder: Path, labels: Sequence[str], has_head: bool, **config_values: Any) -> transformers.PreTrainedModel:
    """Load the token classifier in `folder` without running any code that the folder contains.

    Args:
        folder: The folder with config.json and model.safetensors.
        labels: Names of the classes.
        has_head: Whether the head is loaded too. If not, it is initialised anew.
        config_values: Values that replace those of config.json.

    Raises:
        UserError: The folder is damaged, is no encoder, or needs code of its own, a quantizer or an adapter.
    """
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    values = read_json(config_file)
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type not in list(transformers.CONFIG_MAPPING):
        raise UserError(
            f"{config_file}: transformers has no model_type {model_type!r}, and code that comes with a model is not "
            "run; choose an encoder such as BERT"
        )
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or values.get("is_decoder"):
        raise UserError(
            f"{config_file}: {model_type!r} is a decoder, or no model of texts; choose an encoder such as BERT"
        )
    if values.get("quantization_config") or (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: the model is quantized or has an adapter beside it; neither is supported")
    config_values |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
    config_values["label2id"] = {label: index for index, label in enumerate(labels)}
    transformers.utils.logging.disable_progress_bar()  # Loading takes a moment only.
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **config_values
        )
        config._attn_implementation = None  # A config can name a kernel on the hub, which is code.
        model, loading = transformers.AutoModelForTokenClassification.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=not has_head,  # An old head may have another number of classes.
        )
    except Exception as error:  # An unusual config can lead to any type of error in transformers.
        raise UserError(f"{folder}: the model cannot be loaded: {error!r}") from error
    if config.pad_token_id is None:
        raise UserError(f"{config_file}: the key pad_token_id is missing")
    mismatched = [name for name, *_ in loading["mismatched_keys"] if not name.startswith(f"{HEAD}.")]
    if mismatched:
        raise UserError(
            f"{weights}: {len(mismatched)} weights have a shape that config.json does not allow, such as "
            f"{mismatched[0]!r}; make the folder anew"
        )
    missing = {name for name in loading["missing_keys"] if has_head or not name.startswith(f"{HEAD}.")}
    _check_weights(model, weights, missing, loading["unexpected_keys"] if has_head else ())
    return model


def _check_weights(model: Model, path: Path, missing: Collection[str], unexpected: Collection[str]) -> None:
    if names := sorted(missing) or sorted(unexpected):
        state = "are missing" if missing else "are not in the model"
        raise UserError(f"{path}: {len(names)} weights {state}, such as {names[0]!r}; make the folder anew")
    if damaged := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"{path}: the weight {damaged[0]!r} contains NaN or infinity; make the folder anew")


def build_classifier(folder: Path, labels: Sequence[str], dropout: float, seed: int) -> transformers.PreTrainedModel:
    """Load the base model in `folder` and add a new head for the classes `labels`, initialised from `seed`.

    Raises:
        UserError: The folder's weights do not fit its config, or the encoder has no dropout before its head.
    """
    torch.manual_seed(seed)  # transformers initialises the head if the folder has none, or one for other classes.
    model = _load(folder, labels, has_head=False, classifier_dropout=dropout)
    with safe_open(folder / "model.safetensors", framework="numpy") as weights:
        was_fine_tuned = f"{HEAD}.weight" in weights.keys()  # noqa: SIM118
    if was_fine_tuned:
        torch.manual_seed(seed)
        head = model.get_submodule(HEAD)
        assert isinstance(head, nn.Linear)
        nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", 0.02))
        nn.init.zeros_(head.bias)
    # Some encoders ignore `classifier_dropout` in their config. The layer has one of two names.
    layers = [layer for name in ("dropout", "drop") if (layer := getattr(model, name, None))]
    if not layers:
        raise UserError(
            f"{folder}: {type(model).__name__} has no dropout before its head; choose an encoder such as BERT"
        )
    layers[0].p = dropout
    return model


def add_lora(model: transformers.PreTrainedModel, params: LoraParams, seed: int) -> PeftModel:
    """Freeze `model` and add LoRA adapters. The head stays trainable and is saved with the adapters.

    Args:
        model: A token classifier.
        params: The parameters of the section `lora`.
        seed: Seed of the adapters' initial weights.

    Raises:
        UserError: A target module is no linear layer of the model, or PEFT refuses the parameters.
    """
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear.discard(HEAD)
    targets = linear if params.target_modules == "all-linear" else set(params.target_modules)
    if unknown := sorted(targets - linear):
        raise UserError(
            f"lora.target_modules: the base model has no linear layer {', '.join(map(repr, unknown))}; choose from "
            f"{', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS,
        r=params.r,
        lora_alpha=params.alpha,  # type: ignore[arg-type]  # PEFT accepts floats too.
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
    except ValueError as error:  # For instance, orthogonal initialisation needs an even rank.
        raise UserError(f"lora: {error}") from error


class ParameterCounts(NamedTuple):
    """Numbers of parameters. A tensor that two layers share is counted once."""

    trainable: int
    total: int


def count_parameters(model: Model) -> ParameterCounts:
    """Count the parameters of a model.

    PEFT keeps a frozen copy of the original head, which is never used and not counted.
    """
    parameters = {id(p): p for name, p in model.named_parameters() if ".original_module." not in name}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return ParameterCounts(trainable, total=sum(p.numel() for p in parameters))


def base_model_reference(base_model: BaseModelSource) -> dict[str, str | None]:
    """Return the values of adapter_config.json that identify a base model: its id and revision, or its path.

    A relative path begins with `./`. Otherwise PEFT would take a path such as `data/kobert-mini` for an id on the hub,
    and without a network it would try for 50 seconds to reach the hub.
    """
    name, revision = base_model.name, base_model.revision
    is_relative = not revision and not Path(name).is_absolute()
    return {"base_model_name_or_path": f"./{name}" if is_relative else name, "revision": revision}


def save_checkpoint(
    model: Model, folder: Path, base_model: BaseModelSource, tokenizer_files: Iterable[Path] = ()
) -> None:
    """Write weights and config of a model, and copies of `tokenizer_files`, to `folder`.

    If the model has adapters, only the adapters and the head are written, since the base model contains the rest,
    including the tokenizer.
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
    """Load the classifier in `folder`.

    Args:
        folder: The folder of a checkpoint.
        labels: Names of the classes.
        base_model: Folder of the base model, to which the adapters are added if the checkpoint has adapters.

    Raises:
        UserError: The checkpoint is not complete, or its adapters do not fit the base model.
    """
    if (folder / "adapter_config.json").is_file():
        return _load_adapters(folder, build_classifier(base_model, labels, dropout=0.0, seed=0))
    if not (weights := folder / "model.safetensors").is_file():
        raise UserError(f"{weights}: the file does not exist; run `dvc repro` to make it")
    return _load(folder, labels, has_head=True)


def _load_adapters(folder: Path, model: transformers.PreTrainedModel) -> PeftModel:
    """Add the adapters in `folder` to `model`. Only those keys of their config are read that `LoraParams` checks."""
    config, path = read_json(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    try:
        values = {name: config[key] for name, key in zip(LORA_FIELDS, PEFT_KEYS, strict=True)}
        # Loading uses neither the initialisation nor the learning rates.
        params = LoraParams.model_validate({**values, "init": "kaiming", "learning_rates": [0.1]})
        adapters, weights = add_lora(model, params, seed=0), load_file(path)
        expected = get_peft_model_state_dict(adapters, save_embedding_layers=False)
        if weights.keys() == expected.keys():
            set_peft_model_state_dict(adapters, weights)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: the adapter cannot be loaded: {error!r}; run `dvc repro` to make it") from error
    _check_weights(adapters, path, expected.keys() - weights.keys(), weights.keys() - expected.keys())
    return adapters.requires_grad_(False)
