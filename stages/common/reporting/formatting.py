"""Numbers as text, and what the comparison shows as sentences in English and Korean."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.result import Comparison, Estimate


class Text(NamedTuple):
    """The same text in two languages."""

    english: str
    korean: str


NAMES = {
    "full": Text("Full fine-tuning", "전체 미세조정"),
    "lora": Text("LoRA", "LoRA"),
    "linear_probe": Text("Linear probe (frozen base model)", "선형 프로브(고정된 사전학습 모델)"),
    "tfidf": Text("TF-IDF + logistic regression", "TF-IDF + 로지스틱 회귀"),
    "majority": Text("Majority class", "다수 클래스"),
}
DISPLAY_NAMES = {name: text.english for name, text in NAMES.items()}


def decimal_places(estimate: Estimate) -> int:
    """Count the decimal places up to the first significant digit of half the interval's width: 2 to 4.

    A value without an interval has three.
    """
    if estimate.low is None or estimate.high is None:
        return 3
    half_width = (estimate.high - estimate.low) / 2
    return min(4, max(2, -math.floor(math.log10(half_width)))) if half_width > 1e-9 else 2


def format_score(value: float) -> str:
    """Format a score that has no interval: `0.804`."""
    return f"{value:.3f}"


def format_value(estimate: Estimate) -> str:
    """Format the value alone, rounded by its interval: `0.80`."""
    return f"{estimate.value:.{decimal_places(estimate)}f}"


def format_interval(estimate: Estimate) -> str:
    """Format a value with its interval: `0.80 [0.77, 0.83]`."""
    places = decimal_places(estimate)
    return f"{estimate.value:.{places}f} [{estimate.low:.{places}f}, {estimate.high:.{places}f}]"


def format_difference(estimate: Estimate) -> str:
    """Format a difference: `-0.160 [-0.192, -0.118]`.

    It has at least three digits, since it is compared with a margin of hundredths, and more if an end would otherwise
    read 0.000, which hides on which side of 0 the end lies.
    """
    places, ends = max(3, decimal_places(estimate)), (estimate.low or 0.0, estimate.high or 0.0)
    while places < 4 and any(end and not round(end, places) for end in ends):
        places += 1
    return f"{estimate.value:+.{places}f} [{ends[0]:+.{places}f}, {ends[1]:+.{places}f}]"


def format_part(estimate: Estimate) -> str:
    """Format the difference on a class or another part of the rows, which is descriptive, with two digits."""
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def format_ece(comparison: Comparison, name: str, scaled: bool) -> str:
    """Format the calibration error of a method, with the error that exact probabilities show by chance in brackets."""
    scores = comparison.scores(name)
    ece = format_value(scores.scaled_ece if scaled else scores.ece)
    if name not in METHODS:
        return ece
    method = comparison.method(name)
    return f"{ece} ({format_score(method.scaled_ece_if_calibrated if scaled else method.ece_if_calibrated)})"


def format_p_value(p: float) -> str:
    """Format a p-value: `p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.1 else 3}f}"


def mark_code(text: str) -> Markup:
    """Turn what stands between backticks into HTML's <code>."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(),  # in HTML only
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"difference": format_difference, "p_value": format_p_value, "score": format_score}
TEMPLATES.filters |= {"code": mark_code, "rate": "{:g}".format, "thousands": "{:,}".format}
TEMPLATES.globals |= {"methods": METHODS, "names": NAMES}


def sentences(comparison: Comparison) -> dict[str, list[Text]]:
    """Say what the comparison shows: `headline` is the answer with what casts doubt on it, before any detail."""
    return {
        part: [
            Text(*line.split(" | ")) for line in TEMPLATES.get_template(f"{part}.txt").render(c=comparison).splitlines()
        ]
        for part in ("headline", "findings", "limits")
    }
