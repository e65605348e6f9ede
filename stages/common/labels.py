"""How the value of a label column is matched with the values of `data.labels`."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

BOOLEANS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}  # YAML's


def normalize_label(value: str) -> str:
    """Return what a label means, without blanks at its ends.

    All spellings of one number, such as -1, "-1" and "-1.0", have one form; so have those of a boolean in YAML, such as
    yes and True, and the forms of a Hangul text. Any other text stays as it is.
    """
    value = unicodedata.normalize("NFC", value.strip())
    if boolean := BOOLEANS.get(value.lower()):
        return boolean
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", value):
        return value
    number = value.rstrip("0").rstrip(".") if "." in value else value
    return number.removeprefix("-") if not number.strip("-0") else number


def label_index(labels: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Map the normalized form of each value in `data.labels` to the index of its class."""
    texts = [[value if isinstance(value, str) else json.dumps(value) for value in values] for values in labels.values()]
    return {normalize_label(text): index for index, values in enumerate(texts) for text in values}
