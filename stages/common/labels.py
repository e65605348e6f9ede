"""How the value of a label column is matched with the values of `data.labels`."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


def normalize_label(value: str) -> str:
    """Give all spellings of one number, such as -1, "-1" and "-1.0", one form; return any other text unchanged."""
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", value):
        return value
    number = value.rstrip("0").rstrip(".") if "." in value else value
    return number.removeprefix("-") if not number.strip("-0") else number


def label_index(labels: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """Map the normalized form of each value in `data.labels` to the index of its class."""
    texts = [[value if isinstance(value, str) else json.dumps(value) for value in values] for values in labels.values()]
    return {normalize_label(text): index for index, values in enumerate(texts) for text in values}
