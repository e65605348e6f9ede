"""The pictures: the same bytes every time, Korean from a packaged font, legible in grey and to the colour-blind.

Every method has its own colour of the palette by Okabe and Ito (2008), its own marker and its own line style.
"""

import base64
import io
import math
import textwrap
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.style
import numpy as np
from fontTools import subset
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay

from stages.common.artifacts.files import atomic_write
from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.result import Comparison, Estimate
from stages.common.reporting.formatting import DISPLAY_NAMES, format_difference, format_ece, format_part, format_value

COLORS = {"full": "#0072b2", "lora": "#d55e00", "linear_probe": "#cc79a7", "tfidf": "#009e73", "majority": "#555555"}
MARKERS = {"full": "o", "lora": "s", "linear_probe": "v", "tfidf": "^", "majority": "D"}
LINE_STYLES = {"full": "-", "lora": "--", "linear_probe": (0, (5, 1, 1, 1, 1, 1)), "tfidf": "-.", "majority": ":"}
MAX_CLASSES_WITH_NUMBERS = 5  # The numbers of more classes would overlap.
MIN_POINTS = 3  # Fewer points make no curve.
MAX_LABEL = 24  # Characters of a long name that are shown.
Rows = list[dict[str, Any]]


def _font_file(name: str) -> Path:
    """Find a file of Nanum Gothic. The package that holds it is not imported, since that fails from Python 3.12 on."""
    return Path(str(distribution("koreanize-matplotlib").locate_file(f"koreanize_matplotlib/fonts/{name}")))


def use_style() -> None:
    """Use the fonts and lines of templates/plots.mplstyle, so that Korean is drawn whatever fonts the machine has."""
    for name in ("NanumGothic.ttf", "NanumGothicBold.ttf"):
        font_manager.fontManager.addfont(_font_file(name))
    matplotlib.style.use(Path(__file__).with_name("templates") / "plots.mplstyle")


def embedded_font(text: str) -> str:
    """Make a font for a page, in base64, that holds only the characters of `text`."""
    options = subset.Options(notdef_outline=True, layout_features=[])
    options.drop_tables += ["TSI0", "TSI1", "TSI2", "TSI3", "TSI5"]  # Sources of hints, of which fontTools would warn.
    font = subset.load_font(_font_file("NanumGothic.ttf"), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=text)
    subsetter.subset(font)
    subset.save_font(font, file := io.BytesIO(), options)
    return base64.b64encode(file.getvalue()).decode()


def to_png(figure: Figure) -> bytes:
    """Render a PNG without the version of matplotlib in it."""
    figure.savefig(file := io.BytesIO(), format="png", metadata={"Software": None})
    return file.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG as a whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_png(figure))


def _subplots(height: float, columns: int, title: str, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    figure.suptitle(title, weight="semibold")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **options)))


def _style(method: str) -> dict[str, Any]:
    return {"color": COLORS[method], "marker": MARKERS[method], "linestyle": LINE_STYLES[method]}


def _mark(axis: Axes, x: float, y: float, method: str, marker: str, label: str = "") -> None:
    axis.plot(x, y, marker, markersize=12, color=COLORS[method], markeredgecolor="black", label=label)


def plot_difference(comparison: Comparison, headline: str) -> Figure:
    """Draw the answer: macro-F1 of LoRA minus full fine-tuning with its interval, each fold, zero and the margin.

    The picture is small, so that it can be read on a phone.
    """
    difference, margin = comparison.difference, comparison.margin
    figure = Figure(figsize=(5.2, 2.9), dpi=170, layout="constrained")
    figure.suptitle(textwrap.fill(headline, 50, break_on_hyphens=False), weight="semibold", fontsize="medium")
    axis = figure.subplots()
    axis.axvspan(-margin, margin, color="#999999", alpha=0.25, linewidth=0, label=f"margin: ±{margin:g}")
    axis.axvline(0, color="black", linewidth=1)
    value, lengths = _with_lengths(difference.macro_f1)
    style: dict[str, Any] = {"color": COLORS["lora"], "capsize": 6, "linewidth": 2, "markersize": 9}
    axis.errorbar(value, 0, xerr=lengths, fmt="D", label="difference with its 95% interval", **style)
    axis.annotate(format_difference(difference.macro_f1), (value, 0), (0, 12), textcoords="offset points", ha="center")
    folds = difference.by_fold
    axis.plot(folds, np.full(len(folds), -0.45), "|", markersize=12, color=COLORS["full"], label="each fold")
    axis.set(xlabel="macro-F1 of LoRA minus full fine-tuning\n(to the right of 0: LoRA is better)", ylim=(-0.8, 0.8))
    axis.set_yticks([])
    figure.legend(loc="outside lower center", ncols=3, columnspacing=1, handletextpad=0.4)
    return figure


def _shorten(name: str) -> str:
    """Cut a long name of a class or category."""
    return name if len(name) <= MAX_LABEL else f"{name[:MAX_LABEL]}…"


def plot_breakdown(comparison: Comparison) -> Figure:
    """Draw LoRA minus full fine-tuning by class, length and category: F1 of a class, accuracy of the other slices."""
    full, lora = (comparison.method(method).scores.classes for method in METHODS)
    groups = {
        "F1 by class": [
            (_shorten(label), format_value(full[label].f1), format_value(lora[label].f1), difference)
            for label, difference in comparison.class_differences.items()
        ]
    }
    titles = {"length": "accuracy by length in characters", "category": "accuracy by category"}
    for each in comparison.slices:
        name = f"{_shorten(each.name)}  ({each.rows:,})"
        row = (name, f"{each.full.accuracy:.2f}", f"{each.lora.accuracy:.2f}", each.accuracy_difference)
        groups.setdefault(titles[each.kind], []).append(row)
    groups = {title: rows for title, rows in groups.items() if len(rows) > 1}  # A single slice holds all rows.
    counts = [len(rows) for rows in groups.values()]
    figure = Figure(figsize=(9.5, 1.4 + 0.75 * len(groups) + 0.3 * sum(counts)), dpi=120, layout="constrained")
    figure.suptitle("LoRA minus full fine-tuning, with 95% intervals (descriptive)", weight="semibold")
    ratios = [count + 1 for count in counts]
    axes = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True, height_ratios=ratios))
    for axis, (title, rows) in zip(axes, groups.items(), strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for index, (_, of_full, of_lora, difference) in enumerate(rows):
            value, lengths = _with_lengths(difference)
            axis.errorbar(value, index, xerr=lengths, fmt="o", color=COLORS["lora"], capsize=3, markersize=5)
            numbers = f"{of_full}   {of_lora}   {format_part(difference)}"
            axis.annotate(numbers, (1.02, index), xycoords=("axes fraction", "data"), va="center", fontsize="small")
        axis.annotate("full   LoRA   LoRA - full", (1.02, 1.02), xycoords="axes fraction", fontsize="small")
        axis.set_yticks(range(len(rows)), [name for name, *_ in rows], parse_math=False)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_title(title, loc="left", fontsize="medium")
    axes[-1].set_xlabel("difference (to the right of 0: LoRA is better)")
    return figure


def plot_curves(histories: Mapping[str, Rows], comparison: Comparison) -> Figure | None:
    """Draw losses and macro-F1 by epoch: mean and standard deviation over the folds, and best epochs of the best run.

    Returns:
        None if there are too few epochs for a curve.
    """
    if max(map(len, histories.values())) < MIN_POINTS:
        return None
    figure, axes = _subplots(4.2, 3, "Training: loss and macro-F1 by epoch")

    def plot_mean(axis: Axes, rows: Rows, metric: str, label: str, **style: Any) -> None:
        epochs, means = np.array([[row["epoch"], row[metric]] for row in rows]).T
        sd = np.array([row[f"{metric}_sd"] or 0 for row in rows])
        axis.plot(epochs, means, label=label, markersize=4, **style)
        axis.fill_between(epochs, means - sd, means + sd, color=style["color"], alpha=0.15, linewidth=0)

    for axis, method in zip(axes, METHODS, strict=False):
        rows, result = histories[method], comparison.method(method)
        plot_mean(axis, rows, "train_loss", "training loss", color="#555555", linestyle=":")
        plot_mean(axis, rows, "validation_loss", "validation loss", **_style(method))
        plot_mean(axes[2], rows, "macro_f1", DISPLAY_NAMES[method], **_style(method))
        axis.set(title=DISPLAY_NAMES[method], ylabel="cross-entropy")
        (best,) = (run for run in result.runs if run.fold == result.best_fold)
        by_criterion = {"macro-F1": ("*", best.epochs.best_epoch_by_f1), "loss": ("v", best.epochs.best_epoch_by_loss)}
        for criterion, (marker, epoch) in by_criterion.items():
            row, fold = rows[epoch - 1], f"fold_{best.fold}"
            _mark(axis, epoch, row[f"validation_loss_{fold}"], method, marker, f"best epoch by {criterion}: {epoch}")
            _mark(axes[2], epoch, row[f"macro_f1_{fold}"], method, marker)
    axes[2].set(title="validation rows", ylabel="macro-F1")
    axes[1].sharey(axes[0])
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
    return figure


def plot_learning_rates(comparison: Comparison) -> Figure | None:
    """Draw validation macro-F1 by learning rate: a point for each fold, the mean, and a mark at the selected rate.

    Returns:
        None if no method has enough learning rates for a curve; the table of the report holds the scores.
    """
    tunings = {method: comparison.method(method).tuning for method in METHODS}
    if max(tuning.num_rates for tuning in tunings.values()) < MIN_POINTS:
        return None
    figure, (axis,) = _subplots(4.2, 1, "Tuning: macro-F1 on the validation rows, by learning rate")
    for method, tuning in tunings.items():
        style = _style(method)
        trials = {trial.learning_rate: trial.macro_f1 for trial in tuning.trials}
        for rate, scores in trials.items():
            axis.plot([rate] * len(scores), scores, alpha=0.5, **style | {"linestyle": ""})
        means = [fmean(scores) for scores in trials.values()]
        axis.plot(list(trials), means, label=f"{DISPLAY_NAMES[method]}: mean over folds", **style | {"marker": ""})
        selected = tuning.learning_rate
        _mark(axis, selected, fmean(trials[selected]), method, "*", f"selected: {selected:g}")
    rates = sorted({trial.learning_rate for tuning in tunings.values() for trial in tuning.trials})
    axis.set(xscale="log", xlabel="learning rate (log)", ylabel="macro-F1")
    axis.set_xticks(rates, map("{:g}".format, rates))
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_confusion(counts: Mapping[str, Rows]) -> Figure:
    """Draw the confusion matrix of each method from its cells; each row of it adds up to 100%."""
    labels = list(dict.fromkeys(cell["actual"] for cell in counts[METHODS[0]]))
    few = len(labels) <= MAX_CLASSES_WITH_NUMBERS
    content = "percent of the actual class" + (", and number of rows" if few else "; dark: all of it")
    figure, axes = _subplots(4.6 if few else 6.2, 2, f"Confusion on the test rows: {content}")
    for axis, (method, cells) in zip(axes, counts.items(), strict=True):
        matrix = np.reshape([cell["count"] for cell in cells], (len(labels), len(labels)))
        fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        display = ConfusionMatrixDisplay(fractions, display_labels=labels)
        options: dict[str, Any] = {} if few else {"include_values": False, "xticks_rotation": "vertical"}
        display.plot(ax=axis, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, **options)
        for index, text in np.ndenumerate(display.text_) if few else ():
            color = "white" if fractions[index] > 0.5 else "black"
            text.set(text=f"{fractions[index]:.0%}\n({matrix[index]})", color=color)
        axis.tick_params(labelsize="medium" if few else 6)
        axis.set(title=DISPLAY_NAMES[method], xlabel="predicted", ylabel="actual")
        axis.grid(False)
    return figure


def plot_reliability(bins: Rows, comparison: Comparison) -> Figure:
    """Draw accuracy against confidence before and after temperature scaling; larger marks stand for more rows."""
    title = "Reliability on the test rows: accuracy at each confidence"
    figure, axes = _subplots(4.8, 2, title, sharex=True, sharey=True)
    for axis, method in zip(axes, METHODS, strict=True):
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfectly calibrated")
        for scaled, color, marker, line_style in ((False, COLORS[method], "o", "-"), (True, "#555555", "s", "--")):
            rows = [row for row in bins if row["method"] == method and row["scaled"] is scaled]
            x, y, sizes = (np.array([row[name] for row in rows]) for name in ("confidence", "accuracy", "rows"))
            label = f"{'scaled' if scaled else 'not scaled'}: ECE {format_ece(comparison, method, scaled)}"
            axis.plot(x, y, color=color, linestyle=line_style, label=label, marker=marker, markersize=3)
            area, fill = 12 + 300 * sizes / sizes.sum(), "none" if scaled else color
            axis.scatter(x, y, area, facecolor=fill, edgecolor=color, marker=marker, alpha=0.7)
        axis.set(title=DISPLAY_NAMES[method], xlabel="confidence", ylabel="accuracy")
        axis.legend(loc="lower right")
    axes[0].set(xlim=(1 / len(comparison.labels) - 0.03, 1.02), ylim=(-0.02, 1.02))
    return figure


def _with_lengths(estimate: Estimate) -> tuple[float, np.ndarray]:
    """Return a value and the lengths of its error bar, (2, 1)."""
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return estimate.value, np.maximum(0, [[estimate.value - low], [high - estimate.value]])


def _plot_with_interval(axis: Axes, x: float, method: str, estimate: Estimate, label: str) -> None:
    value, lengths = _with_lengths(estimate)
    axis.errorbar(x, value, lengths, fmt=MARKERS[method], color=COLORS[method], capsize=4, label=label)


def plot_f1(comparison: Comparison) -> Figure:
    """Draw macro-F1 and the F1 of each class, with 95% intervals, of both methods and the baselines.

    With many classes, the numbers and the baselines' F1 by class are left out; the table of the report holds them.
    """
    figure, (axis,) = _subplots(4.6, 1, f"F1 on {comparison.rows:,} test rows, with 95% intervals")
    labels = comparison.labels
    few = len(labels) <= MAX_CLASSES_WITH_NUMBERS
    for index, (method, name) in enumerate(DISPLAY_NAMES.items()):
        scores = comparison.scores(method)
        of_classes = labels if few or method in METHODS else []
        for group, score in enumerate((scores.macro_f1, *(scores.classes[label].f1 for label in of_classes))):
            x = group + 0.17 * (index - (len(DISPLAY_NAMES) - 1) / 2)
            _plot_with_interval(axis, x, method, score, "" if group else name)
            if few:
                top = score.value if score.high is None else score.high
                axis.annotate(
                    format_value(score), (x, top), (0, 7), textcoords="offset points", ha="center", fontsize="small"
                )
    axis.set_xticks(
        range(len(labels) + 1), ["macro-F1", *labels], rotation=0 if few else 90, fontsize="medium" if few else 7
    )
    axis.set(ylabel="F1", ylim=(-0.03, 1.1))
    if few:
        axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    else:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_cost(costs: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw what a run of each method costs, in a panel for each quantity.

    Args:
        costs: The cost of each method, by quantity.
    """
    figure, axes = _subplots(2.8, len(costs), "What one run costs")
    for axis, (quantity, values) in zip(axes, costs.items(), strict=True):
        names, numbers = [DISPLAY_NAMES[method] for method in METHODS], [values[method] for method in METHODS]
        bars = axis.barh(names, numbers, color=[COLORS[method] for method in METHODS], height=0.6)
        axis.bar_label(bars, [f"{each:,.0f}" if each == int(each) else f"{each:,.2f}" for each in numbers], padding=3)
        ratio = values["lora"] / values["full"] if values["full"] else math.nan
        axis.set(title=quantity, xlabel=f"LoRA: {ratio:.0%} of full fine-tuning")
        axis.set(xlim=(0, 1.45 * max(numbers)), xticks=[])
        axis.invert_yaxis()
        axis.grid(False)
        if axis is not axes[0]:
            axis.set_yticks([])
    return figure
