"""Label and probabilities of texts, or of every row of a table, from a trained model."""

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.labels import LABELS

if TYPE_CHECKING:
    from stages.common.serving.text_classifier import TextClassifier

NEW_COLUMNS = ("label", *(f"p_{label}" for label in LABELS))
DIGITS = 6  # of a probability in a table


def load_model(arguments: argparse.Namespace) -> "TextClassifier":
    """Load the model of the command line. The import takes seconds, so all else is checked before."""
    from stages.common.serving.text_classifier import load_text_classifier

    return load_text_classifier(arguments.model, arguments.base_model)


def format_prediction(text: str, probabilities: np.ndarray) -> str:
    """One line for people: label, probabilities, text."""
    text = " ".join(text.split())
    if np.isnan(probabilities[0]):
        return f"-     nothing to classify: no text is left after cleaning  {text}".rstrip()
    formatted = " ".join(f"{label} {probability:.2f}" for label, probability in zip(LABELS, probabilities, strict=True))
    return f"{LABELS[int(probabilities.argmax())]}  {formatted}  {text}"


def predict_texts(arguments: argparse.Namespace) -> None:
    """Print a line for each text of the command line."""
    for text in arguments.texts:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{text!a}: not UTF-8")
    for text, probabilities in zip(arguments.texts, load_model(arguments).predict_proba(arguments.texts), strict=True):
        print(format_prediction(text, probabilities))


def predict_table(arguments: argparse.Namespace) -> None:
    """Write the rows of --input with `NEW_COLUMNS`, which are null where cleaning leaves no text, to --output."""
    import pandas as pd

    from stages.common.serving.table_io import add_columns

    model = functools.cache(lambda: load_model(arguments))  # loaded when the first rows have been read

    def predict(texts: pd.Series) -> pd.DataFrame:
        probabilities = model().predict_proba(texts)
        frame = pd.DataFrame(probabilities.round(DIGITS), columns=NEW_COLUMNS[1:])
        labels = pd.Series(np.array(LABELS, dtype=object)[probabilities.argmax(1)])
        frame.insert(0, NEW_COLUMNS[0], labels.where(~np.isnan(probabilities[:, 0]), None))
        return frame

    add_columns(arguments.input, arguments.output, arguments.text_column, NEW_COLUMNS, predict)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=__doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify, each printed on a line")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="data/models/lora, for instance")
    parser.add_argument("--base-model", type=Path, metavar="DIR", help="of an adapter, if not the one that it names")
    parser.add_argument("--input", type=Path, metavar="FILE", help="a table: .csv, .jsonl or .parquet")
    parser.add_argument("--text-column", metavar="NAME", help="column of --input that holds the texts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it: .csv, .jsonl or .parquet")
    arguments = parser.parse_args()
    for_table = (arguments.input, arguments.text_column, arguments.output)
    if any(value is not None for value in for_table) == bool(arguments.texts):
        parser.error("give texts, or --input, --text-column and --output")
    if not arguments.texts and None in for_table:
        parser.error("--input, --text-column and --output go together")
    return arguments


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    (predict_table if arguments.input else predict_texts)(arguments)


if __name__ == "__main__":
    main()
