"""A trained model as a folder that transformers, PEFT or onnxruntime loads without code of this project."""

import argparse
import os
from pathlib import Path

from peft import PeftModel

from stages.common.artifacts.files import atomic_write
from stages.common.modeling.classifier import base_model_reference
from stages.common.reporting.provenance import git_revision
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.serving.fast_tokenizer import save_fast_tokenizer
from stages.common.serving.model_card import PipelineResults, find_results, render_model_card
from stages.common.serving.onnx_export import check_onnx_packages, save_onnx
from stages.common.serving.sequence_classifier import to_sequence_adapter, to_sequence_classifier
from stages.common.serving.text_classifier import TextClassifier, load_text_classifier


def export(
    classifier: TextClassifier,
    checkpoint: Path,
    kind: str,
    int8: bool,
    output: Path,
    results: PipelineResults | None = None,
    language: str = "ko",
    licence: str | None = None,
) -> None:
    """Write model, tokenizer and model card to the folder `output`.

    Args:
        checkpoint: the folder that `classifier` was loaded from.
        kind: "sequence", "token", "adapter" or "onnx".
        int8: of "onnx": quantised.
        results: what the model card tells of the checkpoint.
        language, licence: see `render_model_card`.

    Raises:
        UserError: the model cannot take this form.
    """
    model = classifier.model
    with atomic_write(output) as folder:
        folder.mkdir()
        if kind == "adapter":
            if not isinstance(model, PeftModel):
                raise UserError(f"{checkpoint}: has no adapter; leave out --adapter")
            adapter = to_sequence_adapter(model)
            for name, value in base_model_reference(classifier.metadata.base_model).items():
                setattr(adapter.active_peft_config, name, value)
            adapter.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
            if kind == "onnx":
                save_onnx(merged, folder / "model.onnx", int8)
                merged.config.save_pretrained(folder)
            else:
                (to_sequence_classifier(merged) if kind == "sequence" else merged).save_pretrained(folder)
        save_fast_tokenizer(classifier, folder)
        card = render_model_card(classifier, results, kind, git_revision(), language, licence)
        (folder / "README.md").write_text(card, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.export", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="data/models/lora, for instance")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="of an adapter, if not the one that it names")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument(
        "--head",
        choices=("sequence", "token"),
        help="sequence (default): what pipeline('text-classification') loads; token: for encoders that refuse it, and "
        "for further training where a warning says that the sequence classifier does not allow it",
    )
    parser.add_argument("--adapter", action="store_true", help="do not merge a LoRA adapter into its base model")
    parser.add_argument("--format", choices=("safetensors", "onnx"), default="safetensors")
    parser.add_argument("--language", default="ko", metavar="CODE", help="language of the texts, for the model card")
    parser.add_argument("--license", metavar="ID", help="licence for the model card: apache-2.0, for instance")
    parser.add_argument("--int8", action="store_true", help="of --format onnx: quantise to 8 bits")
    arguments = parser.parse_args()
    if arguments.format == "onnx" and (arguments.head or arguments.adapter):
        parser.error("--head and --adapter go with --format safetensors")
    if arguments.adapter and arguments.head:
        parser.error("--adapter has the head of a sequence classifier; leave out --head")
    if arguments.int8 and arguments.format != "onnx":
        parser.error("--int8 goes with --format onnx")
    return arguments


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    output = arguments.output.resolve()  # A link stays, and its target is written.
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{arguments.output}: is there already, and not an empty folder")
    if os.fsencode(output).decode(errors="ignore") != str(output):
        raise UserError(f"{arguments.output}: is not UTF-8, which the libraries that write models need")
    if arguments.format == "onnx":
        check_onnx_packages()
        kind = "onnx"
    else:
        kind = "adapter" if arguments.adapter else arguments.head or "sequence"
    results = find_results(arguments.model)  # First, since a damaged dvc.lock shows within a second.
    classifier = load_text_classifier(arguments.model, arguments.base_model)
    export(classifier, arguments.model, kind, arguments.int8, output, results, arguments.language, arguments.license)


if __name__ == "__main__":
    main()
