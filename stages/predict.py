"""Label and probabilities of texts, or of every row of a file, from a trained model."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.labels import LABELS
from stages.common.serving.table_io import check_suffix, open_source, open_target

if TYPE_CHECKING:
    from stages.common.serving.text_classifier import Trained

ADDED = pa.schema([("label", pa.string()), *((f"p_{label}", pa.float64()) for label in LABELS)])
DIGITS = 6  # of a probability in a file


def load(model: Path, base_model: Path | None) -> "Trained":
    """`load_trained`, whose import takes seconds: call it when all else is known to be right."""
    from stages.common.serving.text_classifier import load_trained

    return load_trained(model, base_model)


def describe(text: str, probabilities: np.ndarray) -> str:
    """One line for people: label, probabilities, text."""
    text = " ".join(text.split())
    if math.isnan(probabilities[0]):
        return f"-     nothing to classify: no text is left after cleaning  {text}".rstrip()
    shares = " ".join(f"{label} {share:.2f}" for label, share in zip(LABELS, probabilities, strict=True))
    return f"{LABELS[int(probabilities.argmax())]}  {shares}  {text}"


def columns(probabilities: np.ndarray) -> list[pa.Array]:
    """The columns `ADDED`; null where nothing was classified."""
    nothing = np.isnan(probabilities[:, 0])
    labels = pa.array(np.array(LABELS)[probabilities.argmax(1)], pa.string(), mask=nothing)
    return [labels, *(pa.array(column.round(DIGITS), mask=nothing) for column in probabilities.T)]


def predict_file(path: Path, column: str, output: Path, model: Path, base_model: Path | None) -> None:
    """Write the rows of `path`, in their order and with the columns `ADDED`, to `output`; memory holds a chunk.

    Raises:
        UserError: see `open_source`, `open_target` and `load_trained`; `output` is as it was.
    """
    schema, chunks = open_source(path, column, ADDED.names, keep_lines=check_suffix(output) == ".jsonl")
    with (
        open_target(output, schema, ADDED) as write,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="predict", disable=None) as progress,
    ):
        classifier = load(model, base_model)
        for chunk in chunks:
            write([*chunk.rows, *columns(classifier.probabilities(chunk.texts))])
            progress.update(chunk.done - progress.n)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify, each printed on a line")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="data/models/lora, for instance")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="of adapters, where it is not the one they name")
    parser.add_argument("--input", type=Path, metavar="FILE", help="a table: .csv, .jsonl or .parquet")
    parser.add_argument("--text-column", metavar="NAME", help="column of --input that holds the texts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it: .csv, .jsonl or .parquet")
    arguments = parser.parse_args()
    of_a_file = (arguments.input, arguments.text_column, arguments.output)
    if any(value is not None for value in of_a_file) == bool(arguments.texts):
        parser.error("give texts, or --input, --text-column and --output")
    if not arguments.texts and None in of_a_file:
        parser.error("--input, --text-column and --output go together")
    return arguments


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    model = arguments.model, arguments.base_model
    if arguments.input:
        predict_file(arguments.input, arguments.text_column, arguments.output, *model)
        return
    for text in arguments.texts:
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{text!a}: not UTF-8")
    shares = load(*model).probabilities(arguments.texts)
    for text, probabilities in zip(arguments.texts, shares, strict=True):
        print(describe(text, probabilities))


if __name__ == "__main__":
    main()
