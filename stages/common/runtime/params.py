"""The schema of params.yaml, which is checked as a whole before a stage does any work.

The descriptions of the fields are also the comments of params.yaml and the table in stages/README.md. Run
`python -m tests.support.parameter_table` to copy them there.
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
    # DVC writes 3e-5 as 3e-05. PyYAML, which implements YAML 1.1, reads this as a string because it has no dot.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _check_character_class(value: str) -> str:
    try:
        # Other libraries of regular expressions read && as an intersection.
        if not re.fullmatch(r"(\\.|&(?!&)|[^\\\[\]&])*", value, re.DOTALL):
            raise re.error("write [ and ] as \\[ and \\], and & once")
        re.compile(f"[^{value}]" if value else "")
    except re.error as error:
        raise ValueError(f"cannot stand between [ and ] in a regular expression: {error}") from error
    return value


def _check_distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names a value twice")
    return values


def _parse_yaml(value: Any) -> Any:
    # `dvc exp run -S` can neither replace a mapping nor write a Korean key, but it can set a string that contains one.
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
LabelValue = Annotated[str, Field(pattern=r"\S")] | bool | int | Float  # An empty cell stands for no class.
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
    """A section of params.yaml, with exact types and without unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RunParams(Section):
    """What is run, and how. None of it changes the result of a run that has been trained already."""

    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_check_distinct)] = (
        _described(
            "Folds that are run, numbered from 0. Each method is trained once for each fold and learning rate. A "
            "verdict takes at least three folds; more folds make the confidence interval narrower."
        )
    )
    launcher: Annotated[str, Field(pattern=r"^(python|torchrun|accelerate launch)( [\w./:=,-]+)*$")] = _described(
        "Command that starts a training stage. python trains in one process; 'accelerate launch --multi_gpu "
        "--num_processes 8' trains on eight GPUs."
    )
    parallel: Literal["auto"] | PositiveInt = _described(
        "Upper bound on the runs that are trained at the same time. auto trains as many as the processor's "
        "cores and the memory allow, and one at a time on a GPU."
    )
    save_interval_seconds: Annotated[Float, Field(ge=0)] = _described(
        "Seconds between the checkpoints from which an interrupted training resumes. 0 saves a checkpoint "
        "only when a signal stops the training."
    )


class DataParams(Section):
    """Where the reviews are, and which columns are read."""

    source: NonEmptyString = _described(
        "Folder, which is read recursively, or single file with the reviews: JSON in AI Hub's layout, .jsonl,"
        " .csv, .tsv, .parquet or .xlsx."
    )
    test_source: NonEmptyString = _described(
        "Folder or file with the test rows of a corpus that is published with a split. data/none takes the "
        "test rows from data.source."
    )
    on_error: Literal["stop", "skip"] = _described(
        "What happens at a broken file or row. stop ends the pipeline and names it; skip leaves it out, keeps"
        " every valid row and counts the others."
    )
    encoding: Literal["utf-8", "cp949"] = _described(
        "Each file is read as UTF-8, UTF-16 or CP949 by its own bytes; this encoding, utf-8 or cp949, is assumed for a "
        "file that holds wrong bytes."
    )
    columns: Annotated[list[NonEmptyString], AfterValidator(_check_distinct)] = _described(
        "Names of all columns, in order, for tables whose rows do not name them; [] looks for the names in the tables."
    )
    text_column: NonEmptyString = _described("Column, or key of a JSON object, that holds the text.")
    label_column: NonEmptyString = _described("Column that holds the class.")
    id_column: NonEmptyString = _described(
        "Column that identifies a row. It need not exist; rows without it are numbered."
    )
    category_column: NonEmptyString = _described(
        "Optional column by whose values the report breaks down the results, such as a product category."
    )
    labels: Labels = _described(
        "Names of the classes, 2 to 50 in order, each with the values of data.label_column that stand for it."
    )
    exclude: NonEmptyString = _described(
        "File with the ids of rows that are left out of training and validation, one id a line, or a table "
        "with the column Index. The rows remain test rows. data/none leaves out nothing."
    )


class BaseModelParams(Section):
    """The encoder that is fine-tuned."""

    folder: NonEmptyString = _described("Folder of the model: config.json, weights and the tokenizer's files.")
    hub_id: str = _described(
        "Id of a model on the Hugging Face hub, such as monologg/kobert. An empty id takes the model from "
        "base_model.folder."
    )
    revision: str = _described("Commit of base_model.hub_id, as its full 40-character hash.")


class CleanParams(Section):
    """The notebook's three cleaning rules, in its order. Rule 3, which makes one space of white space, is always on."""

    strip_tags: bool | Literal["html"] = _described(
        "Rule 1 replaces everything between < and > by a space. html replaces HTML tags alone, so that texts "
        "such as <3 최고 >_< stay as they are."
    )
    keep: Annotated[str, AfterValidator(_check_character_class)] = _described(
        "Rule 2 replaces each run of characters other than these by a space. An empty string keeps all characters."
    )
    keep_jamo: bool = _described("Whether rule 2 keeps single jamo as well, such as ㅋㅋ and ㅠㅠ.")


class TokenizeParams(Section):
    """How texts become token ids."""

    max_length: Annotated[int, Field(ge=3, lt=2**31)] = _described(
        "Upper bound on the tokens of a text, [CLS] and [SEP] included. Longer texts are truncated."
    )
    max_unk_rate: Annotated[Float, Field(ge=0, le=1)] = _described(
        "Upper bound on the fraction of [UNK] among all tokens. A larger fraction stops the pipeline, because"
        " the tokenizer does not know the language."
    )


class Preprocessing(Section):
    """How a checkpoint's texts were cleaned and tokenized."""

    clean: CleanParams
    max_length: Annotated[int, Field(ge=3)]  # Upper bound on the tokens, special tokens included.

    @field_validator("clean", mode="before")
    @classmethod
    def _accept_former_rule(cls, clean: Any) -> Any:
        # Older checkpoints store whether rule 3 was on. It is always on now, so other values than `true` are errors.
        if isinstance(clean, dict) and clean.get("collapse_spaces") is True:
            return {key: value for key, value in clean.items() if key != "collapse_spaces"}
        return clean


class SplitParams(Section):
    """The folds, each with training, validation and test rows."""

    folds: Annotated[int, Field(ge=2, le=1000)] = _described(
        "Number of disjoint test folds. Each row is a test row of one fold, unless data.test_source names the"
        " test rows."
    )
    validation_size: Fraction = _described(
        "Fraction of the rows outside the test fold that is used for validation. 0 selects epochs on the test"
        " rows, as the notebook does."
    )
    train_fraction: Annotated[Float, Field(gt=0, le=1)] = _described(
        "Fraction of the training rows that is used, for learning curves. Smaller fractions are subsets of "
        "larger ones; validation and test rows stay the same."
    )
    group_near_duplicates: bool = _described(
        "Whether near-duplicates stay in the same part of a fold: texts that differ only in case, spaces, "
        "punctuation or repeated characters."
    )
    seed: Seed = _described("Seed of the folds and of their validation rows.")


class TrainParams(Section):
    """Training parameters that both methods share."""

    seed: Seed = _described("Seed of training. Fold k is trained with seed + k.")
    epochs: PositiveInt = _described("Number of epochs of a run, unless train.patience ends it earlier.")
    select_by: Literal["macro_f1", "loss"] = _described(
        "Validation score that selects the epoch, the learning rate and the run: macro_f1 or loss."
    )
    batch_size: PositiveInt = _described("Training examples per batch, summed over all processes.")
    eval_batch_size: PositiveInt = _described("Examples per batch in validation and testing.")
    gradient_accumulation_steps: PositiveInt = _described(
        "Batches whose gradients are summed before an optimizer step. Larger values with a smaller "
        "train.batch_size save memory."
    )
    patience: Annotated[int, Field(ge=0, lt=2**31)] = _described(
        "Epochs without a better validation score after which a run ends. 0 never ends a run early."
    )
    dropout: Fraction = _described(
        "Dropout probability before the classification head. Within the encoder the model's own config decides."
    )
    class_weights: Literal["none", "balanced"] = _described(
        "Weights of the classes in the training loss. balanced weights a class in inverse proportion to its "
        "rows; none weights all rows equally."
    )
    weight_decay: Annotated[Float, Field(ge=0)] = _described(
        "Weight decay of AdamW. Biases and LayerNorm weights are not decayed."
    )
    warmup_ratio: Fraction = _described("Fraction of all steps during which the learning rate rises from 0.")
    schedule: Literal["constant", "linear", "cosine"] = _described(
        "Schedule of the learning rate after the warmup: constant, linear or cosine."
    )
    packing: bool = _described(
        "Whether batches are computed without padding, which is faster. The batches and, up to rounding, the "
        "losses are the same."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _described(
        "Precision of matrix products in training: fp32, bf16, fp16, or auto. auto takes bf16 where the CPU or GPU "
        "multiplies it natively (a GPU from compute capability 8.0 on), fp16 on a GPU of 7.x, such as a T4, else fp32."
    )


class FullParams(Section):
    """Full fine-tuning."""

    learning_rates: LearningRates = _described(
        "Learning rates that are tried; the validation rows select one. The default suits the embedded base "
        "model. For KoBERT try [2e-5, 5e-5, 1e-4]."
    )


class LoraParams(Section):
    """Low-rank adapters."""

    learning_rates: LearningRates = _described(
        "Learning rates of adapters and head that are tried; the validation rows select one. The default "
        "suits the embedded base model. For KoBERT try [2e-4, 5e-4, 1e-3]."
    )
    r: Annotated[int, Field(ge=1, le=4096)] = _described("Rank of the adapters.")
    alpha: Annotated[Float, Field(gt=0, le=1e6)] = _described(
        "Numerator of the adapters' scale: their output is multiplied by alpha / r."
    )
    dropout: Fraction = _described("Dropout probability of the adapters' input.")
    target_modules: Literal["all-linear"] | Annotated[list[NonEmptyString], Field(min_length=1)] = _described(
        "Linear layers that get adapters: all-linear, or a list of the last parts of their names, such as "
        "[query, value]."
    )
    rslora: bool = _described("Whether the adapters' output is scaled by alpha / sqrt(r) instead (Kalajdzievski 2023).")
    dora: bool = _described(
        "Whether the magnitude of the weights is trained apart from their direction (Liu et al. 2024). Steps "
        "take longer."
    )
    init: Literal["kaiming", "gaussian", "orthogonal"] = _described(
        "Initialisation of the adapters: kaiming, gaussian, or orthogonal, which takes an even rank."
    )


class CompareParams(Section):
    """The comparison on the test rows."""

    bootstrap_samples: Annotated[int, Field(ge=100, lt=2**31)] = _described(
        "Number of bootstrap resamples, and of permutations."
    )
    seed: Seed = _described("Seed of the bootstrap and the permutation test.")
    margin: PositiveFraction = _described(
        "Equivalence margin of macro-F1, chosen before training. A smaller difference does not matter in practice."
    )


class Params(Section):
    """All parameters of params.yaml."""

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
                f"run.folds names fold {max(self.run.folds)}, but split.folds is {self.split.folds}; choose folds from "
                f"0 to {self.split.folds - 1}"
            )
        return self


def _format_error(error: Any) -> str:
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
    """Read and check params.yaml.

    Raises:
        UserError: The file is not valid. The message names all errors at once.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # 2024-99-99 leads to a ValueError.
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(map(_format_error, error.errors()))}") from None
