"""A local folder -> `data/base_model/`, the one base model that every later stage reads."""

import hashlib
import shutil
from pathlib import Path

from stages.common.errors import UserError, one_line
from stages.common.files import read_json, replacing, write_json
from stages.common.params import load_params
from stages.common.paths import BASE_MODEL
from stages.common.tokenizer import load_tokenizer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "*.model", "tokenizer_config.json", "special_tokens_map.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_base_model(folder: Path) -> None:
    """Refuse a folder that a later stage would stumble over.

    Raises:
        UserError: a file is missing or damaged, or the config and the tokenizer contradict each other.
    """
    import safetensors

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"base_model.name: {folder} has no {name}")
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


def copy_base_model(source: Path, target: Path) -> None:
    """Copy what the pipeline reads, and nothing else, with a record of name and sha256 of each file."""
    found = sorted({path for pattern in TOKENIZER_FILES for path in source.glob(pattern) if path.is_file()})
    with replacing(target) as temporary:
        temporary.mkdir()
        for path in [source / CONFIG, source / WEIGHTS, *found]:
            shutil.copyfile(path, temporary / path.name)
        hashes = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "base_model.json", {"name": source.as_posix(), "sha256": hashes})


@one_line
def main() -> None:
    source = Path(load_params().base_model.name)
    if not source.is_dir():
        raise UserError(f"base_model.name: {source} is not a folder")
    check_base_model(source)
    copy_base_model(source, BASE_MODEL)


if __name__ == "__main__":
    main()
