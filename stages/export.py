"""A trained model as a folder that stock transformers or onnxruntime loads, without code of ours."""

import argparse
import logging
import warnings
from pathlib import Path

import torch
import transformers
from jinja2 import Template
from peft import PeftModel
from tokenizers import Regex, Tokenizer, normalizers
from torch import nn

from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import atomic_write
from stages.common.core.labels import LABELS
from stages.common.core.params import CleanParams
from stages.common.corpus.cleaning import WHITE_SPACE, patterns
from stages.common.modeling.types import Model
from stages.common.serving.text_classifier import TextClassifier, load_text_classifier

FORMATS = ("safetensors", "onnx")
TEMPLATE = Path(__file__).parent / "common/serving/model_card.md"


class ClsLogits(nn.Module):
    """`input_ids` and `attention_mask` (texts, tokens) to logits (texts, classes) at token 0."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]


def with_cleaning(tokenizer: Tokenizer, params: CleanParams) -> Tokenizer:
    """`tokenizer`, changed so that it cleans a text before anything else.

    Raises:
        UserError: `params.keep` means something else to the regular expressions of the tokenizers library.
    """
    try:
        rules = [normalizers.Replace(Regex(pattern), " ") for pattern in patterns(params)]
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"clean.keep: {params.keep!r} cannot be put into a tokenizer.json: {error}") from error
    ends = [normalizers.Replace(Regex(rf"\A[{WHITE_SPACE}]+|[{WHITE_SPACE}]+\z"), "")]
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*rules, *ends, *own])
    return tokenizer


def save_tokenizer(classifier: TextClassifier, folder: Path) -> None:
    """Write a tokenizer that transformers' AutoTokenizer loads and that takes raw reviews."""
    fast = with_cleaning(classifier.tokenizer.to_fast(), classifier.preprocessing.clean)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token=fast.id_to_token(classifier.model.config.pad_token_id),
        model_max_length=classifier.preprocessing.max_length,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def save_onnx(model: Model, path: Path) -> None:
    """Write `model` as one ONNX file, for any number of reviews of any length.

    Raises:
        UserError: the packages that this takes are not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--format onnx needs a package more: {error}; install the packages that requirements.txt names"
        ) from error
    model.set_attn_implementation("eager")
    example = torch.full((2, 7), model.config.pad_token_id + 1)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision, of no use here, is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of things within torch and transformers
        torch.onnx.export(
            ClsLogits(model).eval(),
            (example, torch.ones_like(example)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(dynamic, dynamic),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def export(classifier: TextClassifier, file_format: str, output: Path) -> None:
    """Merge adapters, if there are any, and write model, tokenizer and a README to the folder `output`."""
    model: Model = classifier.model.merge_and_unload() if isinstance(classifier.model, PeftModel) else classifier.model
    template = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, keep_trailing_newline=True)
    text = template.render(labels=LABELS, onnx=file_format == "onnx", max_length=classifier.preprocessing.max_length)
    with atomic_write(output) as folder:
        folder.mkdir()
        if file_format == "onnx":
            save_onnx(model, folder / "model.onnx")
            model.config.save_pretrained(folder)  # AutoTokenizer asks it
        else:
            model.save_pretrained(folder)
        save_tokenizer(classifier, folder)
        (folder / "README.md").write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.export", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="data/models/lora, for instance")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="of adapters, where it is not the one they name")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--format", choices=FORMATS, default="safetensors")
    return parser.parse_args()


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    output = arguments.output.absolute()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{arguments.output}: is there already, and not an empty folder")
    export(load_text_classifier(arguments.model, arguments.base_model), arguments.format, output)


if __name__ == "__main__":
    main()
