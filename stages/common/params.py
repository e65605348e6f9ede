"""params.yaml, typed and checked as a whole before any stage does any work."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.common.errors import UserError
from stages.common.paths import PARAMS


def _number(value: Any) -> Any:
    # YAML 1.1 reads 5e-5, and DVC writes 3e-5 as 3e-05, without a dot: a string to PyYAML.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _character_class(value: str) -> str:
    try:
        re.compile(f"[^{value}]" if value else "")
    except re.error as error:
        raise ValueError(f"not the inside of a regular expression's [...]: {error}") from error
    return value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Rate = Annotated[Float, Field(gt=0, lt=1)]
Share = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("names a seed twice")
    return values


class Section(BaseModel):
    """A section of params.yaml: exact types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DataParams(Section):
    source: Name  # folder of AI Hub JSON files, read recursively
    on_error: Literal["stop", "skip"]  # at a broken file or record


class BaseModelParams(Section):
    name: Name  # folder with config.json, weights and the tokenizer's files, or a model id of the hub
    revision: str  # of a model of the hub: a full commit hash, checked by the stage, which can name the right one


class CleanParams(Section):
    strip_tags: bool  # rule 1: <...> to a space
    keep: Annotated[str, AfterValidator(_character_class)]  # rule 2: runs of other characters to a space; "" keeps all
    keep_jamo: bool  # rule 2 spares lone jamo too: ㅋㅋ, ㅠㅠ
    collapse_spaces: bool  # rule 3: runs of white space to one space


class TokenizeParams(Section):
    max_length: Annotated[int, Field(ge=3)]  # tokens, special tokens included
    max_unk_rate: Annotated[Float, Field(ge=0, le=1)]  # share of [UNK] in all tokens but the special ones; 1: any


class Preprocessing(Section):
    """What a checkpoint remembers of the way from a raw review to its tokens."""

    clean: CleanParams
    max_length: Annotated[int, Field(ge=3)]  # tokens, special tokens included


class SplitParams(Section):
    test_size: Rate  # share of all rows
    validation_size: Share  # share of the rows outside the test split; 0: validate on the test split
    seed: Seed


class TrainParams(Section):
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]  # each method trains once a seed
    epochs: Count
    batch_size: Count  # reviews, over all processes
    gradient_accumulation_steps: Count  # batches whose gradients are added up before the weights move
    patience: Annotated[int, Field(ge=0)]  # epochs without a better validation macro-F1 before stopping; 0: never stop
    dropout: Share  # before the classification head; within the encoder its own config decides
    weight_decay: Annotated[Float, Field(ge=0)]
    warmup_ratio: Share  # share of all steps
    schedule: Literal["constant", "linear", "cosine"]
    packing: bool  # compute on real tokens only; same batches, same losses
    group_by_length: bool  # batches of reviews of like length
    precision: Literal["auto", "fp32", "bf16"]  # auto: bf16 on a GPU that has it, else fp32
    launcher: Annotated[str, Field(pattern=r"^(python|torchrun|accelerate launch)( [\w$./:=,-]+)*$")]  # before -m
    save_every: Annotated[Float, Field(ge=0)]  # seconds between saved points; 0: only when a signal stops the run

    def run(self, seed: int) -> "RunParams":
        """The parameters of one of the runs."""
        return RunParams(**self.model_dump(), seed=seed)


class RunParams(TrainParams):
    """What one training run is told."""

    seed: Seed


class FullParams(Section):
    learning_rate: Rate


class LoraParams(Section):
    learning_rate: Rate
    r: Annotated[int, Field(ge=1, le=4096)]  # rank
    alpha: Annotated[Float, Field(gt=0)]
    dropout: Share
    target_modules: Annotated[list[Name], Field(min_length=1)]  # last part of the names of linear layers


class CompareParams(Section):
    batch_size: Count  # reviews
    bootstrap_samples: Annotated[int, Field(ge=100)]  # of the permutation test too
    seed: Seed
    margin: Rate  # of macro-F1: what is smaller makes no difference in practice


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    base_model: BaseModelParams
    clean: CleanParams
    tokenize: TokenizeParams
    split: SplitParams
    train: TrainParams
    full: FullParams
    lora: LoraParams
    compare: CompareParams


def _fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"])) or "the file"
    match error["type"]:
        case "extra_forbidden":
            return f"{key} is not a known key"
        case "missing":
            return f"{key} is missing"
        case _:
            return f"{key} is {error['input']!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: names every fault of the file at once.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise UserError(f"{path}: {faults}") from None
