"""The comparison as sentences and tables, with no more digits than the width of an interval justifies."""

import math
from pathlib import Path
from statistics import fmean, stdev

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.result import Comparison, Estimate

DISPLAY_NAMES = {
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "linear_probe": "Linear probe (frozen base model)",
    "tfidf": "TF-IDF + logistic regression",
    "majority": "Majority class",
}
PLACES_WITHOUT_INTERVAL = 3


def decimal_places(estimate: Estimate) -> int:
    """Count the decimal places up to the first significant digit of half the interval's width, at most 4."""
    if estimate.low is None or estimate.high is None:
        return PLACES_WITHOUT_INTERVAL
    half_width = (estimate.high - estimate.low) / 2
    return min(4, max(0, -math.floor(math.log10(half_width)))) if half_width > 1e-9 else 2


def format_value(estimate: Estimate) -> str:
    """Format the value alone, rounded by its interval: `0.80`."""
    return f"{estimate.value:.{decimal_places(estimate)}f}"


def format_interval(estimate: Estimate) -> str:
    """Format a value with its interval: `0.80 [0.77, 0.83]`."""
    places = decimal_places(estimate)
    return f"{estimate.value:.{places}f} [{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def format_difference(estimate: Estimate) -> str:
    """Format a difference: `-0.16 [-0.19, -0.12]`.

    It has more digits where an end would read 0.00, which hides on which side of 0 it lies.
    """
    places, ends = decimal_places(estimate), (estimate.low or 0.0, estimate.high or 0.0)
    while places < 4 and any(end and not round(end, places) for end in ends):
        places += 1
    return f"{estimate.value:+.{places}f} [{ends[0]:+.{places}f}, {ends[1]:+.{places}f}]"


def format_p_value(p: float) -> str:
    """Format a p-value: `p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(),  # in HTML only
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"value": format_value, "interval": format_interval, "difference": format_difference}
TEMPLATES.filters |= {"p_value": format_p_value, "rate": "{:g}".format, "mean": fmean, "stdev": stdev}
TEMPLATES.globals |= {"methods": METHODS, "names": DISPLAY_NAMES}


def verdict_sentences(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Say what the comparison shows and what it cannot show: pairs of sentences in English and in Korean."""
    return {
        part: [line.split(" | ") for line in TEMPLATES.get_template(f"{part}.txt").render(c=comparison).splitlines()]
        for part in ("findings", "limits")
    }
