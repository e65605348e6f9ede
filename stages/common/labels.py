"""Matching of values of the label column with those of `data.labels`."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# The spellings of a boolean in YAML.
BOOLEANS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


def normalize_label(value: str) -> str:
    """Convert a label to a form that is the same for all its spellings.

    These are the spellings of a number, such as "-1" and "-1.0", those of a boolean in YAML, such as "yes" and "True",
    and the Unicode forms of a Hangul text. Blanks at the ends are removed; any other text stays as it is.
    """
    value = unicodedata.normalize("NFC", value.strip())
    if boolean := BOOLEANS.get(value.lower()):
        return boolean
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", value):
        return value
    number = value.rstrip("0").rstrip(".") if "." in value else value
    return number.removeprefix("-") if not number.strip("-0") else number


def label_index(labels: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Map each normalized value in `data.labels` to the index of its class."""
    texts = [[value if isinstance(value, str) else json.dumps(value) for value in values] for values in labels.values()]
    return {normalize_label(text): index for index, values in enumerate(texts) for text in values}
