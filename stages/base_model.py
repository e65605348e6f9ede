"""Copy the base model from a folder or a commit on the hub to `data/base_model`, which all later stages read."""

import shutil
from collections.abc import Collection
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects
from safetensors import SafetensorError, safe_open

from stages.common.artifacts.files import atomic_write, read_json, sha256, write_json
from stages.common.pretrained.hub import download, list_files
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import BaseModelParams, load_params
from stages.common.runtime.paths import BASE_MODEL

CONFIG, WEIGHTS, PICKLED_WEIGHTS = "config.json", "model.safetensors", "pytorch_model.bin"
PROBE_TEXTS = ["", "최고", "a 1"]
LFS_POINTER = b"version https://git-lfs.github.com/"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "*.model", TOKENIZER_CONFIG, "special_tokens_map.json"]


def select_files(names: Collection[str], source: str) -> list[str]:
    """Select the files that the pipeline reads: the config, one set of weights and the tokenizer, but never code.

    Raises:
        UserError: The config or the weights of `source` are missing.
    """
    weights = next((name for name in (WEIGHTS, PICKLED_WEIGHTS) if name in names), None)
    if weights is None and (index := next((name for name in names if name.endswith(".index.json")), None)):
        raise UserError(
            f"{source}: weights in several files ({index}) are not supported; save them as one file with "
            "AutoModel.from_pretrained(...).save_pretrained(DIR, max_shard_size='100GB') of transformers"
        )
    if CONFIG not in names or weights is None:
        raise UserError(f"{source} lacks {CONFIG} or weights ({WEIGHTS} or {PICKLED_WEIGHTS})")
    return [CONFIG, weights, *sorted(filter_repo_objects(names, allow_patterns=TOKENIZER_FILES))]


def fetch(params: BaseModelParams, folder: Path) -> None:
    """Download or copy the selected files into `folder`."""
    source = Path(params.folder)
    if params.hub_id:
        names = select_files(list_files(params.hub_id, params.revision), f"base_model.hub_id: {params.hub_id}")
        download(params.hub_id, params.revision, names, folder)
    elif source.is_dir():
        if params.revision:
            warn("base_model.revision is not used, because base_model.hub_id is empty")
        names = [path.name for path in source.iterdir() if path.is_file()]
        for name in select_files(names, f"base_model.folder: {source}"):
            shutil.copyfile(source / name, folder / name)
    else:
        raise UserError(f"base_model.folder: {source} is not a folder; a model of the hub goes into base_model.hub_id")


def check_whole(folder: Path) -> None:
    """Refuse Git LFS pointers, the small text files that a clone has if Git LFS did not fetch the large files."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path}: is a Git LFS pointer instead of the file; run `git lfs pull` in the clone")


def convert_pickled_weights(folder: Path) -> None:
    """Convert pytorch_model.bin to model.safetensors without running code that a pickle may contain."""
    import torch  # Imported only here, because it takes seconds and almost every model has safetensors.
    from safetensors.torch import save_file

    path = folder / PICKLED_WEIGHTS
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if sum(tensor.nbytes for tensor in weights.values()) > 2 * path.stat().st_size:  # Tied weights are stored once.
            raise ValueError("the tensors are much larger than the file")
        # Tied weights share memory, which safetensors refuses, so each tensor is copied.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    except Exception as error:  # PyTorch raises errors of many kinds; some messages recommend an unsafe option.
        raise UserError(f"{path}: is damaged, or holds more than tensors and could run code; not loaded") from error
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    path.unlink()


def strip_auto_map(folder: Path) -> None:
    """Remove `auto_map` from the configs; it names code of the repository, which is neither copied nor run."""
    for path in (folder / CONFIG, folder / TOKENIZER_CONFIG):
        config = read_json(path) if path.is_file() else {}
        if isinstance(config, dict) and config.pop("auto_map", None):
            write_json(path, config)


def check_base_model(folder: Path) -> None:
    """Check that the files of a base model are not damaged and that the tokenizer fits the config.

    Raises:
        UserError: A file is damaged, or the model cannot be used.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / CONFIG}: has no model_type")
    try:
        safe_open(folder / WEIGHTS, framework="numpy")  # This checks the header and the length.
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: is damaged, or not a safetensors file: {error}") from error
    tokenizer = load_tokenizer(folder)
    size, vocab_size = tokenizer.vocab_size, config.get("vocab_size")
    if not isinstance(vocab_size, int) or size > vocab_size:
        raise UserError(f"{folder}: the tokenizer has {size} tokens, but vocab_size in config.json is {vocab_size}")
    first = {(*row, None)[0] for row in tokenizer.encode(PROBE_TEXTS, max_length=8).input_ids.to_pylist()}
    if len(first) > 1 or None in first:
        raise UserError(
            f"{folder}: the tokenizer does not begin a text with a special token such as [CLS] or <s>, from which the "
            "classifier reads the text; choose an encoder like BERT"
        )


@report_user_errors
def main() -> None:
    params = load_params().base_model
    name = params.hub_id or params.folder
    with atomic_write(BASE_MODEL) as temporary:
        temporary.mkdir()
        fetch(params, temporary)
        try:
            check_whole(temporary)
            if (temporary / PICKLED_WEIGHTS).is_file():
                convert_pickled_weights(temporary)
            strip_auto_map(temporary)
            check_base_model(temporary)
        except UserError as error:  # The message names the temporary folder, which the user does not know.
            raise UserError(str(error).replace(str(temporary), name)) from error
        hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        source = {"name": name, "revision": params.revision if params.hub_id else None}
        write_json(temporary / "base_model.json", {**source, "sha256": hashes})


if __name__ == "__main__":
    main()
