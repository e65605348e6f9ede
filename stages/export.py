"""Export a trained model as a folder that transformers, PEFT or onnxruntime loads without code of this project."""

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
        classifier: The model.
        checkpoint: The folder from which `classifier` was loaded.
        kind: "sequence", "token", "adapter" or "onnx".
        int8: Whether a model of kind "onnx" is quantised to 8 bits.
        output: The folder to write.
        results: Results of the checkpoint for the model card.
        language: Code of the language of the texts, for the model card.
        licence: Identifier of the licence, for the model card.

    Raises:
        UserError: The model cannot be exported as this kind.
    """
    model = classifier.model
    with atomic_write(output) as folder:
        folder.mkdir()
        if kind == "adapter":
            if not isinstance(model, PeftModel):
                raise UserError(f"{checkpoint}: this model has no adapter; omit --adapter")
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
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder of the model, such as data/models/lora"
    )
    parser.add_argument(
        "--base-model", type=Path, metavar="DIR", help="base model of a LoRA adapter (default: data/base_model)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write, which must be new or empty"
    )
    parser.add_argument(
        "--head",
        choices=("sequence", "token"),
        help="sequence (default) writes a model for pipeline('text-classification'); token writes a token classifier, "
        "for encoders without a suitable sequence classifier, and to train a model further if a warning asks for it",
    )
    parser.add_argument("--adapter", action="store_true", help="write a LoRA adapter without merging it with its base")
    parser.add_argument(
        "--format", choices=("safetensors", "onnx"), default="safetensors", help="file format (default: safetensors)"
    )
    parser.add_argument(
        "--language", default="ko", metavar="CODE", help="language of the texts, for the model card (default: ko)"
    )
    parser.add_argument("--license", metavar="ID", help="licence for the model card, such as apache-2.0")
    parser.add_argument("--int8", action="store_true", help="quantise the model to 8 bits; needs --format onnx")
    arguments = parser.parse_args()
    if arguments.format == "onnx" and (arguments.head or arguments.adapter):
        parser.error("--head and --adapter need --format safetensors")
    if arguments.adapter and arguments.head:
        parser.error("--adapter always writes the head of a sequence classifier; omit --head")
    if arguments.int8 and arguments.format != "onnx":
        parser.error("--int8 needs --format onnx")
    return arguments


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    output = arguments.output.resolve()  # If this is a link, its target is replaced.
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{arguments.output}: this exists and is not an empty folder; choose another --output")
    if os.fsencode(output).decode(errors="ignore") != str(output):
        raise UserError(f"{arguments.output}: the libraries that write models need a path in UTF-8; rename the folder")
    if arguments.format == "onnx":
        check_onnx_packages()
        kind = "onnx"
    else:
        kind = "adapter" if arguments.adapter else arguments.head or "sequence"
    results = find_results(arguments.model)  # Loading takes longer, so errors in dvc.lock are reported first.
    classifier = load_text_classifier(arguments.model, arguments.base_model)
    export(classifier, arguments.model, kind, arguments.int8, output, results, arguments.language, arguments.license)


if __name__ == "__main__":
    main()
