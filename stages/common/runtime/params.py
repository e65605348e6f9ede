"""params.yaml: typed, and checked as a whole before any stage does any work.

The descriptions of the fields are the comments of params.yaml and the table in stages/README.md; a test compares them.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stages.common.labels import label_index
from stages.common.runtime.console import short_repr
from stages.common.runtime.exceptions import UserError
from stages.common.runtime.paths import PARAMS


def _parse_exponent(value: Any) -> Any:
    # DVC writes 3e-5 as 3e-05, which YAML 1.1, and so PyYAML, reads as a string: it has no dot.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _check_character_class(value: str) -> str:
    try:
        if not re.fullmatch(r"(\\.|&(?!&)|[^\\\[\]&])*", value, re.DOTALL):  # && means something to other libraries
            raise re.error("write [ and ] as \\[ and \\], and & once")
        re.compile(f"[^{value}]" if value else "")
    except re.error as error:
        raise ValueError(f"not the inside of a regular expression's [...]: {error}") from error
    return value


def _check_distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names a value twice")
    return values


def _parse_yaml(value: Any) -> Any:
    # `dvc exp run -S` cannot replace a mapping, nor write a Korean key; it can set a text that holds one.
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError("not a mapping in YAML, such as {부정: [0], 긍정: [1]}") from error


def _check_labels(labels: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if len(label_index(labels)) < sum(map(len, labels.values())):
        raise ValueError("names a value twice")
    return labels


Float = Annotated[float, BeforeValidator(_parse_exponent), Field(allow_inf_nan=False)]
PositiveFraction = Annotated[Float, Field(gt=0, lt=1)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LearningRates = Annotated[list[PositiveFraction], Field(min_length=1), AfterValidator(_check_distinct)]
NonEmptyString = Annotated[str, Field(min_length=1)]
ClassName = Annotated[str, Field(pattern=r"^[^\x00-\x1f|]{1,50}$")]
LabelValue = Annotated[str, Field(pattern=r"\S")] | bool | int | Float  # an empty cell stands for no class
LabelValues = Annotated[list[LabelValue], Field(min_length=1)]
Labels = Annotated[
    dict[ClassName, LabelValues],
    Field(min_length=2, max_length=50),
    BeforeValidator(_parse_yaml),
    AfterValidator(_check_labels),
]


def _described(text: str) -> Any:
    return Field(description=text)


class Section(BaseModel):
    """A section of params.yaml: exact types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RunParams(Section):
    """What is run, and how; none of it changes the result of a run that is there already."""

    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_check_distinct)] = (
        _described(
            "Folds that are run, numbered from 0: each method trains once for each fold and learning rate. A verdict "
            "takes at least three; more make the interval narrower."
        )
    )
    launcher: Annotated[str, Field(pattern=r"^(python|torchrun|accelerate launch)( [\w./:=,-]+)*$")] = _described(
        "starts a training stage: python, or several processes: accelerate launch --multi_gpu --num_processes 8"
    )
    parallel: Literal["auto"] | PositiveInt = _described(
        "Upper bound on the runs that are trained at the same time. auto: as many as the processor's cores and the "
        "memory allow, and one on a GPU."
    )
    save_interval_seconds: Annotated[Float, Field(ge=0)] = _described(
        "between the checkpoints from which a killed training resumes; 0: only when a signal stops it"
    )


class DataParams(Section):
    """Where the reviews come from, and what is read of them."""

    source: NonEmptyString = _described(
        "a folder, read recursively, or one file: AI Hub's JSON, or .csv, .tsv, .jsonl, .parquet, .xlsx"
    )
    test_source: NonEmptyString = _described("the same, with the test rows of a published split; data/none: split here")
    on_error: Literal["stop", "skip"] = _described(
        "at a broken file or record: stop, or skip it, keep all that is valid and count the rest"
    )
    encoding: Literal["utf-8", "cp949"] = _described(
        "Each file is read as UTF-8, UTF-16 or CP949 by its own bytes; this encoding, utf-8 or cp949, is assumed for a "
        "file that holds wrong bytes."
    )
    columns: Annotated[list[NonEmptyString], AfterValidator(_check_distinct)] = _described(
        "Names of all columns, in order, for tables whose rows do not name them; [] looks for the names in the tables."
    )
    text_column: NonEmptyString = _described("the column, or key of a JSON object, that holds the text")
    label_column: NonEmptyString = _described("the one that holds the class")
    id_column: NonEmptyString = _described(
        "the one that holds a name for the row; rows of a table without it are numbered"
    )
    category_column: NonEmptyString = _described("the one by which the report tells results apart; need not exist")
    labels: Labels = _described("the classes, 2 to 50, in order, each with the values that stand for it")
    exclude: NonEmptyString = _described(
        "file of ids (one per line, or the column Index of a table) of rows to leave out of training and validation; "
        "they remain test rows"
    )


class BaseModelParams(Section):
    """The encoder that is fine-tuned."""

    folder: NonEmptyString = _described("a folder with config.json, weights and the tokenizer's files")
    hub_id: str = _described("of a model on the Hugging Face hub, used in place of the folder: monologg/kobert")
    revision: str = _described("of hub_id: the full hash of a commit")


class CleanParams(Section):
    """The notebook's cleaning rules, in its order; rule 3, runs of white space to one space, always holds."""

    strip_tags: bool | Literal["html"] = _described(
        "Rule 1 replaces <...> by a space. With html it leaves all but tags as they are: <3 최고 >_<, for example."
    )
    keep: Annotated[str, AfterValidator(_check_character_class)] = _described(
        "rule 2: runs of any other character to a space; '' keeps all"
    )
    keep_jamo: bool = _described("rule 2 keeps lone jamo too: ㅋㅋ, ㅠㅠ")


class TokenizeParams(Section):
    """How texts become input_ids."""

    max_length: Annotated[int, Field(ge=3, lt=2**31)] = _described(
        "in tokens, [CLS] and [SEP] included; the rest is truncated"
    )
    max_unk_rate: Annotated[Float, Field(ge=0, le=1)] = _described(
        "a larger fraction of [UNK] among the tokens stops the pipeline: the tokenizer does not know the language"
    )


class Preprocessing(Section):
    """What a checkpoint stores of the way from a raw review to its tokens."""

    clean: CleanParams
    max_length: Annotated[int, Field(ge=3)]  # in tokens, special tokens included

    @field_validator("clean", mode="before")
    @classmethod
    def _accept_former_rule(cls, clean: Any) -> Any:
        # Older checkpoints store whether rule 3 was on. Now it always is, so that only `true` means the same texts.
        if isinstance(clean, dict) and clean.get("collapse_spaces") is True:
            return {key: value for key, value in clean.items() if key != "collapse_spaces"}
        return clean


class SplitParams(Section):
    """The folds, each with training, validation and test rows."""

    folds: Annotated[int, Field(ge=2, le=1000)] = _described(
        "number of disjoint test folds; each row is a test row of one fold, unless data.test_source names the test rows"
    )
    validation_size: Fraction = _described(
        "fraction of the rows outside the test fold; 0: select epochs on the test rows, as the notebook does"
    )
    train_fraction: Annotated[Float, Field(gt=0, le=1)] = _described(
        "fraction of the training rows that is used: nested, stratified subsets; validation and test rows stay the same"
    )
    group_near_duplicates: bool = _described(
        "texts that differ only in case, spaces, punctuation and runs of one character stay in the same part of a fold"
    )
    seed: Seed = _described("seed of the random folds and of their validation rows")


class TrainParams(Section):
    """What both methods share."""

    seed: Seed = _described("Seed of the runs: fold k is trained with seed + k.")
    epochs: PositiveInt = _described("of every run, unless patience ends it")
    select_by: Literal["macro_f1", "loss"] = _described(
        "on the validation rows, selects the epoch, the learning rate and the run: macro_f1 or loss"
    )
    batch_size: PositiveInt = _described("examples, over all processes")
    eval_batch_size: PositiveInt = _described("examples, for validation and test")
    gradient_accumulation_steps: PositiveInt = _described(
        "batches whose gradients are added up before an optimizer step"
    )
    patience: Annotated[int, Field(ge=0, lt=2**31)] = _described(
        "epochs without a better validation score before training stops; 0: never stop early"
    )
    dropout: Fraction = _described("dropout before the classification head; within the encoder its own config decides")
    class_weights: Literal["none", "balanced"] = _described(
        "of the training loss: none, or balanced: rows of a class count in inverse proportion to their number"
    )
    weight_decay: Annotated[Float, Field(ge=0)] = _described("of the optimizer, AdamW")
    warmup_ratio: Fraction = _described("fraction of all steps in which the learning rate rises")
    schedule: Literal["constant", "linear", "cosine"] = _described("of the learning rate: constant, linear or cosine")
    packing: bool = _described("compute on real tokens only: same batches, same losses, no padding")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _described(
        "Precision of matrix products in training: fp32, bf16, fp16, or auto. auto takes bf16 where the CPU or GPU "
        "multiplies it natively (a GPU from compute capability 8.0 on), fp16 on a GPU of 7.x, such as a T4, else fp32."
    )


class FullParams(Section):
    """Full fine-tuning."""

    learning_rates: LearningRates = _described(
        "Learning rates that are tried; the validation rows select one. The default suits the embedded base model; for "
        "KoBERT try [2e-5, 5e-5, 1e-4]."
    )


class LoraParams(Section):
    """Low-rank adapters."""

    learning_rates: LearningRates = _described(
        "Learning rates of adapters and head that are tried; the validation rows select one. The default suits the "
        "embedded base model; for KoBERT try [2e-4, 5e-4, 1e-3]."
    )
    r: Annotated[int, Field(ge=1, le=4096)] = _described("rank of the adapters")
    alpha: Annotated[Float, Field(gt=0)] = _described("the adapters' output is scaled by alpha / r")
    dropout: Fraction = _described("dropout before the adapters")
    target_modules: Literal["all-linear"] | Annotated[list[NonEmptyString], Field(min_length=1)] = _described(
        "layers that get adapters: all-linear, or the last parts of the names of linear layers: [query, value]"
    )
    rslora: bool = _described("scale by alpha / sqrt(r) instead (Kalajdzievski 2023)")
    dora: bool = _described("train the magnitude of the weights apart from their direction (Liu et al. 2024)")
    init: Literal["kaiming", "gaussian", "orthogonal"] = _described(
        "of the adapters: kaiming, gaussian or orthogonal (orthogonal: r must be even)"
    )


class CompareParams(Section):
    """The comparison on the test rows."""

    bootstrap_samples: Annotated[int, Field(ge=100, lt=2**31)] = _described(
        "resamples of the bootstrap, and permutations"
    )
    seed: Seed = _described("of the bootstrap and the permutations")
    margin: PositiveFraction = _described(
        "of macro-F1, named beforehand: a smaller difference makes no difference in practice"
    )


class Params(Section):
    """All of params.yaml."""

    run: RunParams
    data: DataParams
    base_model: BaseModelParams
    clean: CleanParams
    tokenize: TokenizeParams
    split: SplitParams
    train: TrainParams
    full: FullParams
    lora: LoraParams
    compare: CompareParams

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if max(self.run.folds) >= self.split.folds:
            raise ValueError(
                f"run.folds names fold {max(self.run.folds)}, but split.folds is {self.split.folds}, so that folds are "
                f"numbered from 0 to {self.split.folds - 1}"
            )
        return self


def _format_fault(error: Any) -> str:
    key = ".".join(map(str, error["loc"])) or "the file"
    match error["type"]:
        case "extra_forbidden":
            return f"{key} is not a known key"
        case "missing":
            return f"{key} is missing"
        case "value_error" if not error["loc"]:
            return error["msg"].removeprefix("Value error, ")
        case _:
            return f"{key} is {short_repr(error['input'])}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def load_params(path: Path = PARAMS) -> Params:
    """Read and check params.yaml; a UserError names every fault of the file at once."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: 2024-99-99 is no date
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_format_fault(fault) for fault in error.errors())
        raise UserError(f"{path}: {faults}") from None
