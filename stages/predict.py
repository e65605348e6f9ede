"""Classify texts, or every row of a table, with a trained model."""

import argparse
import functools
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.common.artifacts.training_metadata import read_training_metadata
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError, report_user_errors

if TYPE_CHECKING:
    from stages.common.serving.text_classifier import TextClassifier

STANDARD_INPUT = "-"
DIGITS = 6  # Decimal places of a probability in a table.
MAX_LABELS_SHOWN = 5  # Upper bound on the classes in a line of text.


def load_model(arguments: argparse.Namespace) -> "TextClassifier":
    """Load the model that the command line names. The import takes seconds, so all arguments are checked before."""
    from stages.common.serving.text_classifier import load_text_classifier

    return load_text_classifier(arguments.model, arguments.base_model)


def format_as_text(text: str, labels: Sequence[str], probabilities: np.ndarray) -> str:
    """Format a prediction for people, as one line with label, probabilities and text.

    If there are more than `MAX_LABELS_SHOWN` classes, the line has the highest probabilities.

    Args:
        text: The text.
        labels: Names of the classes.
        probabilities: Probability of each class, (classes,); NaN if cleaning leaves no text.
    """
    text = " ".join(text.split())
    if np.isnan(probabilities[0]):
        return f"-     nothing to classify: no text is left after cleaning  {text}".rstrip()
    best = np.argsort(-probabilities, kind="stable")
    shown = range(len(labels)) if len(labels) <= MAX_LABELS_SHOWN else best[:MAX_LABELS_SHOWN]
    formatted = " ".join(f"{labels[index]} {probabilities[index]:.2f}" for index in shown)
    return f"{labels[best[0]]}  {formatted}  {text}"


def format_as_json(text: str, labels: Sequence[str], probabilities: np.ndarray) -> str:
    """Format a prediction as a JSON object. Label and probabilities are null if cleaning leaves no text."""
    nothing = np.isnan(probabilities[0])
    label = None if nothing else labels[int(probabilities.argmax())]
    values = [None] * len(labels) if nothing else probabilities.round(DIGITS).tolist()
    named = {f"p_{name}": value for name, value in zip(labels, values, strict=True)}
    return json.dumps(
        {"text": text, "label": label, **named}, ensure_ascii=not sys.stdout.encoding.lower().startswith("utf")
    )


FORMATS = {"text": format_as_text, "jsonl": format_as_json}


def read_available_lines() -> Iterator[list[bytes]]:
    """Yield all available lines of standard input, as soon as there is at least one."""
    pieces: list[bytes] = []  # Parts of a line whose end has not been read yet.
    while data := os.read(sys.stdin.fileno(), 2**16):
        first, *others = data.split(b"\n")
        pieces.append(first)
        if others:
            yield [b"".join(pieces), *others[:-1]]
            pieces = [others[-1]]
    if rest := b"".join(pieces):
        yield [rest]


def predict_texts(arguments: argparse.Namespace) -> None:
    """Print a line for each text of the command line or of standard input."""
    given = iter([list(map(os.fsencode, arguments.texts))])
    model = functools.cache(lambda: load_model(arguments))  # The model is loaded when the first texts are available.
    numbers = itertools.count(1)
    for batch in read_available_lines() if arguments.texts == [STANDARD_INPUT] else given:
        texts = []
        for encoded, number in zip(batch, numbers, strict=False):
            try:
                texts.append(encoded.rstrip(b"\r").decode(arguments.encoding))
            except UnicodeDecodeError as error:
                raise UserError(f"text {number}: this is not {arguments.encoding.upper()}; see --encoding") from error
        for text, probabilities in zip(texts, model().predict_proba(texts), strict=True):
            print(FORMATS[arguments.format](text, model().labels, probabilities))
        sys.stdout.flush()


def predict_table(arguments: argparse.Namespace) -> None:
    """Write the rows of --input to --output, with columns for label and probabilities.

    Label and probabilities are null if cleaning leaves no text.
    """
    import pandas as pd

    from stages.common.serving.table_io import add_columns

    model = functools.cache(lambda: load_model(arguments))  # The model is loaded when the first rows have been read.
    class_names = read_training_metadata(arguments.model).labels
    columns = [arguments.prefix + name for name in ("label", *(f"p_{name}" for name in class_names))]

    rows: Counter[str] = Counter()

    def predict(texts: pd.Series) -> pd.DataFrame:
        probabilities = model().predict_proba(texts)
        rows.update(read=len(texts), empty=int(np.isnan(probabilities[:, 0]).sum()))
        frame = pd.DataFrame(probabilities.round(DIGITS), columns=columns[1:])
        labels = pd.Series(np.array(class_names, dtype=object)[probabilities.argmax(1)])
        frame.insert(0, columns[0], labels.where(~np.isnan(probabilities[:, 0]), None))
        return frame

    output = arguments.output.resolve()  # If this is a link, its target is replaced.
    add_columns(arguments.input, output, arguments.text_column, columns, predict, arguments.encoding, arguments.columns)
    if rows["empty"]:
        warn(f"{rows['empty']} of {rows['read']} rows have no label, because cleaning leaves no text")


def parse_arguments() -> argparse.Namespace:
    formats = ".csv, .tsv, .xlsx, .jsonl or .parquet"
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify; - reads them from standard input")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder of the model, such as data/models/lora"
    )
    parser.add_argument(
        "--base-model", type=Path, metavar="DIR", help="base model of a LoRA adapter (default: data/base_model)"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="output format for texts (default: text)")
    parser.add_argument("--input", type=Path, metavar="FILE", help=f"table to read ({formats}), or a .txt file")
    parser.add_argument(
        "--text-column",
        metavar="NAME",
        help="column of --input with the texts; may be omitted for a .txt file with one text per line",
    )
    parser.add_argument(
        "--columns",
        type=lambda names: names.split(","),
        default=(),
        metavar="NAME,NAME",
        help="names of all columns of --input, in order, if none of its rows names them",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"table to write ({formats})")
    parser.add_argument("--prefix", default="", metavar="NAME", help="text before the names of the new columns")
    parser.add_argument(
        "--encoding",
        choices=("utf-8", "cp949"),
        default="utf-8",
        help="encoding of standard input, and of an --input with lines that are not UTF-8 (default: utf-8)",
    )
    arguments, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; write -- before texts that begin with -: -- {unknown[0]!r}")
    is_text = arguments.input and arguments.input.suffix.lower() == ".txt"
    for_table = (arguments.input, is_text or arguments.text_column, arguments.output)
    if any(for_table) == bool(arguments.texts):
        parser.error("give either texts, or --input, --text-column and --output")
    if arguments.columns and not arguments.text_column:
        parser.error("--columns needs --text-column")
    if not arguments.texts and not all(for_table):
        parser.error("--input, --text-column and --output need each other")
    return arguments


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    try:
        (predict_table if arguments.input else predict_texts)(arguments)
    except BrokenPipeError:  # The reader of the output, such as `head`, has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
