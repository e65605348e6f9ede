"""The comparison as sentences and tables, with no more digits than the width of an interval justifies."""

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages.common.artifacts.methods import METHODS

Details = dict[str, Any]  # metrics/compare_details.json
DISPLAY_NAMES = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "linear_probe": "Linear probe (frozen base model)",
    "tfidf": "TF-IDF + logistic regression",
    "majority": "Majority class",
}


def decimal_places(low: float, high: float) -> int:
    """Up to the first significant digit of half the interval's width, at most 4."""
    width = (high - low) / 2
    return min(4, max(0, -math.floor(math.log10(width)))) if width > 0 else 2


def format_with_interval(value: float, low: float, high: float) -> str:
    """`0.80 [0.77, 0.83]`."""
    places = decimal_places(low, high)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def format_difference(value: float, low: float, high: float) -> str:
    """`-0.16 [-0.19, -0.12]`; with more digits where an end would read 0.00, which hides on which side of 0 it lies."""
    places = decimal_places(low, high)
    while places < 4 and any(end and not round(end, places) for end in (low, high)):
        places += 1
    return f"{value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def get_with_interval(values: Details, name: str) -> tuple[float, float, float]:
    """A metric of one method and both ends of its interval."""
    return values[name], *values["interval"][name]


def format_metric(values: Details, name: str, interval: bool = False) -> str:
    """A metric of one method, rounded by its interval, which is shown or not."""
    value, low, high = get_with_interval(values, name)
    return format_with_interval(value, low, high) if interval else f"{value:.{decimal_places(low, high)}f}"


def format_p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(),  # in HTML only
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"metric": format_metric, "interval": format_with_interval, "difference": format_difference}
TEMPLATES.filters |= {"p_value": format_p_value, "rate": "{:g}".format, "mean": fmean, "stdev": stdev}
TEMPLATES.globals |= {"methods": METHODS, "names": DISPLAY_NAMES, "decimal_places": decimal_places}


def verdict_sentences(details: Details) -> dict[str, list[list[str]]]:
    """What the comparison shows and what it cannot show, each sentence in English and in Korean, the verdict first."""
    return {
        part: [line.split(" | ") for line in TEMPLATES.get_template(f"{part}.txt").render(details=details).splitlines()]
        for part in ("findings", "limits")
    }
