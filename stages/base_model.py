"""A local folder or a pinned hub revision -> `data/base_model/`, the one base model that every later stage reads."""

import shutil
from collections.abc import Collection
from pathlib import Path

import safetensors
from huggingface_hub.utils import filter_repo_objects

from stages.common.core.console import warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import atomic_write, read_json, sha256, write_json
from stages.common.core.params import BaseModelParams, load_params
from stages.common.core.paths import BASE_MODEL
from stages.common.pretrained.hub import download, find_files
from stages.common.pretrained.tokenizer import load_tokenizer

CONFIG, WEIGHTS, PICKLED_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "*.model", TOKENIZER_CONFIG, "special_tokens_map.json"]


def needed(names: Collection[str], source: str) -> list[str]:
    """Of the files of a folder or repository those that the pipeline reads: never code, and one set of weights.

    Raises:
        UserError: the config or the weights are not among them.
    """
    weights = next((name for name in (WEIGHTS, PICKLED_WEIGHTS) if name in names), None)
    if CONFIG not in names:
        raise UserError(f"base_model.name: {source} has no {CONFIG}")
    if weights is None:
        raise UserError(f"base_model.name: {source} has neither {WEIGHTS} nor {PICKLED_WEIGHTS}")
    return [CONFIG, weights, *sorted(filter_repo_objects(names, allow_patterns=TOKENIZER_FILES))]


def fetch(params: BaseModelParams, folder: Path) -> None:
    """Copy or download the needed files into `folder`."""
    source = Path(params.name)
    if source.is_dir():
        if params.revision:
            warn(f"base_model.revision is not used: {source} is a folder")
        for name in needed({path.name for path in source.iterdir() if path.is_file()}, params.name):
            shutil.copyfile(source / name, folder / name)
    else:
        files = find_files(params.name, params.revision)
        download(params.name, params.revision, [files[name] for name in needed(files, params.name)], folder)


def rewrite_pickled_weights(folder: Path) -> None:
    """Turn pytorch_model.bin into model.safetensors without running what a pickle may ask for.

    Raises:
        UserError: it holds anything but tensors, or is damaged.
    """
    import torch  # takes seconds, and almost every model has safetensors
    from safetensors.torch import save_file

    path = folder / PICKLED_WEIGHTS
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if any(not isinstance(tensor, torch.Tensor) for tensor in weights.values()):
            raise TypeError
        # Safetensors refuses tensors that share memory, as tied weights do.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    except Exception as error:  # PyTorch's own text advises to load it unsafely
        raise UserError(f"{path}: damaged, or not tensors alone; not loaded, because it could run code") from error
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    path.unlink()


def drop_remote_code(folder: Path) -> None:
    """Take `auto_map` out of the configs: it names code of the repository, which is not here and is never run."""
    for path in (folder / CONFIG, folder / TOKENIZER_CONFIG):
        config = read_json(path) if path.is_file() else {}
        if isinstance(config, dict) and "auto_map" in config:
            write_json(path, {key: value for key, value in config.items() if key != "auto_map"})


def check_base_model(folder: Path) -> None:
    """Refuse a folder that a later stage would stumble over.

    Raises:
        UserError: a file is missing or damaged, or the config and the tokenizer contradict each other.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / CONFIG}: has no model_type")
    try:
        with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as weights:
            weights.keys()
    except Exception as error:  # the library has an exception class of its own for each fault
        raise UserError(f"{folder / WEIGHTS}: not a whole safetensors file: {error}") from error
    size, vocab_size = load_tokenizer(folder).vocab_size, config.get("vocab_size")
    if not isinstance(vocab_size, int) or size > vocab_size:
        raise UserError(f"{folder}: the tokenizer has {size} tokens, config.json a vocab_size of {vocab_size}")


def normalize(folder: Path, params: BaseModelParams) -> None:
    """Give fetched files their final form, check it, and add a record of where they come from and of their hashes."""
    if (folder / PICKLED_WEIGHTS).is_file():
        rewrite_pickled_weights(folder)
    drop_remote_code(folder)
    check_base_model(folder)
    source = {"name": params.name, "revision": None if Path(params.name).is_dir() else params.revision}
    hashes = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    write_json(folder / "base_model.json", {**source, "sha256": hashes})


@report_user_errors
def main() -> None:
    params = load_params().base_model
    with atomic_write(BASE_MODEL) as temporary:
        temporary.mkdir()
        fetch(params, temporary)
        try:
            normalize(temporary, params)
        except UserError as error:  # names the temporary folder, which nobody knows
            raise UserError(str(error).replace(str(temporary), params.name)) from error


if __name__ == "__main__":
    main()
