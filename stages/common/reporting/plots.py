"""The pictures: the same bytes every time, Korean from a packaged font, legible in grey and to the colour-blind.

Every method has a colour of the palette by Okabe and Ito (2008), and a marker and a line style of its own.
"""

import base64
import io
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
from stages.common.reporting.formatting import DISPLAY_NAMES, Details, format_metric, get_with_interval

COLORS = {"full": "#0072b2", "lora": "#d55e00", "linear_probe": "#cc79a7", "tfidf": "#009e73", "majority": "#555555"}
MARKERS = {"full": "o", "lora": "s", "linear_probe": "v", "tfidf": "^", "majority": "D"}
LINE_STYLES = {"full": "-", "lora": "--", "linear_probe": (0, (5, 1, 1, 1, 1, 1)), "tfidf": "-.", "majority": ":"}
COSTS = {"trainable_parameters": "trainable parameters", "checkpoint_bytes": "bytes of weights"}
MAX_CLASSES_WITH_NUMBERS = 5  # more would overlap
Rows = list[dict[str, Any]]


def _font_file(name: str) -> Path:
    """A file of Nanum Gothic. The package that holds it is not imported: from Python 3.12 on, that fails."""
    return Path(str(distribution("koreanize-matplotlib").locate_file(f"koreanize_matplotlib/fonts/{name}")))


def use_style() -> None:
    """Take fonts and lines from templates/plots.mplstyle: Korean, whatever fonts the machine has."""
    for name in ("NanumGothic.ttf", "NanumGothicBold.ttf"):
        font_manager.fontManager.addfont(_font_file(name))
    matplotlib.style.use(Path(__file__).with_name("templates") / "plots.mplstyle")


def embedded_font(text: str) -> str:
    """A font for pages, in base64, that holds the characters of `text` alone."""
    options = subset.Options(notdef_outline=True, layout_features=[])
    options.drop_tables += ["TSI0", "TSI1", "TSI2", "TSI3", "TSI5"]  # sources of hints; fontTools warns of them
    font = subset.load_font(_font_file("NanumGothic.ttf"), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=text)
    subsetter.subset(font)
    subset.save_font(font, file := io.BytesIO(), options)
    return base64.b64encode(file.getvalue()).decode()


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG without the version of matplotlib in it."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _subplots(height: float, columns: int, title: str, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    figure.suptitle(title, weight="semibold")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **options)))


def _style(method: str) -> dict[str, Any]:
    return {"color": COLORS[method], "marker": MARKERS[method], "linestyle": LINE_STYLES[method]}


def _mark(axis: Axes, x: float, y: float, method: str, marker: str, label: str = "") -> None:
    axis.plot(x, y, marker, markersize=12, color=COLORS[method], markeredgecolor="black", label=label)


def plot_curves(histories: Mapping[str, Rows], details: Details) -> Figure:
    """Losses and macro-F1 by epoch: mean and standard deviation over runs, best epochs of the best run."""
    figure, axes = _subplots(4.2, 3, "Training: loss and macro-F1 by epoch")

    def plot_mean(axis: Axes, rows: Rows, metric: str, label: str, **style: Any) -> None:
        epochs, means = np.array([[row["epoch"], row[metric]] for row in rows]).T
        sd = np.array([row[f"{metric}_sd"] or 0 for row in rows])
        axis.plot(epochs, means, label=label, markersize=4, **style)
        axis.fill_between(epochs, means - sd, means + sd, color=style["color"], alpha=0.15, linewidth=0)

    for axis, method in zip(axes, METHODS, strict=False):
        rows, values = histories[method], details[method]
        plot_mean(axis, rows, "train_loss", "training loss", color="#555555", linestyle=":")
        plot_mean(axis, rows, "validation_loss", "validation loss", **_style(method))
        plot_mean(axes[2], rows, "macro_f1", DISPLAY_NAMES[method], **_style(method))
        axis.set(title=DISPLAY_NAMES[method], ylabel="cross-entropy")
        for criterion, marker, key in (("macro-F1", "*", "best_epoch_by_f1"), ("loss", "v", "best_epoch_by_loss")):
            epoch = values["overfitting"][key]
            row, seed = rows[epoch - 1], values["best_seed"]
            _mark(axis, epoch, row[f"validation_loss_{seed}"], method, marker, f"best epoch by {criterion}: {epoch}")
            _mark(axes[2], epoch, row[f"macro_f1_{seed}"], method, marker)
    axes[2].set(title="validation rows", ylabel="macro-F1")
    axes[1].sharey(axes[0])
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
    return figure


def plot_learning_rates(details: Details) -> Figure:
    """Validation macro-F1 by learning rate: one point per seed, a line through the means, the selected rate marked."""
    figure, (axis,) = _subplots(4.2, 1, "Tuning: macro-F1 on the validation rows, by learning rate")
    for method in METHODS:
        tuning, style = details[method]["tuning"], _style(method)
        trials = {trial["learning_rate"]: trial["macro_f1"] for trial in tuning["trials"]}
        for rate, scores in trials.items():
            axis.plot([rate] * len(scores), scores, alpha=0.5, **style | {"linestyle": ""})
        means = [fmean(scores) for scores in trials.values()]
        axis.plot(list(trials), means, label=f"{DISPLAY_NAMES[method]}: mean over seeds", **style | {"marker": ""})
        selected = tuning["learning_rate"]
        _mark(axis, selected, fmean(trials[selected]), method, "*", f"selected: {selected:g}")
    rates = sorted({trial["learning_rate"] for method in METHODS for trial in details[method]["tuning"]["trials"]})
    axis.set(xscale="log", xlabel="learning rate (log)", ylabel="macro-F1")
    axis.set_xticks(rates, map("{:g}".format, rates))
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_expected_best(details: Details) -> Figure:
    """Expected best validation macro-F1 against the number of trials, each a learning rate and a seed."""
    figure, (axis,) = _subplots(4.2, 1, "Expected best macro-F1 on the validation rows, by number of trials")
    for method in METHODS:
        tuning = details[method]["tuning"]
        expected = tuning["expected_best"]
        label = DISPLAY_NAMES[method] + ("" if expected else f": {tuning['num_runs']} trials, a curve takes 3")
        axis.plot(range(1, len(expected) + 1), expected, label=label, **_style(method))
    axis.set(xlabel="trials (a learning rate and a seed each)", ylabel="macro-F1")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend()
    return figure


def plot_confusion(counts: Mapping[str, Rows]) -> Figure:
    """One confusion matrix per method, from its cells; each matrix row adds up to 100%. Few classes have numbers."""
    labels = list(dict.fromkeys(cell["actual"] for cell in counts[METHODS[0]]))
    few = len(labels) <= MAX_CLASSES_WITH_NUMBERS
    content = "percent of the actual class" + (", and number of rows" if few else "; dark: all of it")
    figure, axes = _subplots(4.6 if few else 7.0, 2, f"Confusion on the test rows: {content}")
    for axis, (method, cells) in zip(axes, counts.items(), strict=True):
        matrix = np.reshape([cell["count"] for cell in cells], (len(labels), len(labels)))
        fractions = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
        display = ConfusionMatrixDisplay(fractions, display_labels=labels)
        options: dict[str, Any] = {} if few else {"include_values": False, "xticks_rotation": "vertical"}
        display.plot(ax=axis, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, **options)
        for index, text in np.ndenumerate(display.text_) if few else ():
            text.set_text(f"{fractions[index]:.0%}\n({matrix[index]})")
        axis.tick_params(labelsize="medium" if few else 6)
        axis.set(title=DISPLAY_NAMES[method], xlabel="predicted", ylabel="actual")
        axis.grid(False)
    return figure


def plot_reliability(bins: Rows, details: Details) -> Figure:
    """Accuracy against confidence before and after temperature scaling; larger marks hold more rows."""
    figure, axes = _subplots(
        4.8, 2, "Reliability on the test rows: accuracy at each confidence", sharex=True, sharey=True
    )
    for axis, method in zip(axes, METHODS, strict=True):
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfectly calibrated")
        for scaled, color, marker, line_style in ((False, COLORS[method], "o", "-"), (True, "#555555", "s", "--")):
            rows = [row for row in bins if row["method"] == method and row["scaled"] is scaled]
            x, y, sizes = (np.array([row[name] for row in rows]) for name in ("confidence", "accuracy", "rows"))
            ece = (sizes * abs(x - y)).sum() / sizes.sum()
            by_chance = details[method]["calibration"]["scaled_ece_if_calibrated" if scaled else "ece_if_calibrated"]
            label = f"{'scaled' if scaled else 'not scaled'}: ECE {ece:.3f} (if calibrated: {by_chance:.3f})"
            axis.plot(x, y, color=color, linestyle=line_style, label=label, marker=marker, markersize=3)
            area, fill = 12 + 300 * sizes / sizes.sum(), "none" if scaled else color
            axis.scatter(x, y, area, facecolor=fill, edgecolor=color, marker=marker, alpha=0.7)
        axis.set(title=DISPLAY_NAMES[method], xlabel="confidence", ylabel="accuracy")
        axis.legend(loc="lower right")
    axes[0].set(xlim=(1 / len(details["labels"]) - 0.03, 1.02), ylim=(-0.02, 1.02))
    return figure


def _plot_with_interval(axis: Axes, x: float, method: str, values: tuple[float, float, float], label: str) -> None:
    value, low, high = values
    lengths = np.maximum(0, [[value - low], [high - value]])  # the interval of a skewed metric may exclude its value
    axis.errorbar(x, value, lengths, fmt=MARKERS[method], color=COLORS[method], capsize=4, label=label)


def plot_f1(details: Details, verdict: str) -> Figure:
    """Macro-F1 and the F1 of each class, with 95% intervals, of both methods and the baselines.

    Of many classes the baselines are left out, and so are the numbers: the report's table has them.
    """
    figure, (axis,) = _subplots(4.6, 1, f"{verdict}\nF1 on {details['rows']:,} test rows, with 95% intervals")
    labels = details["labels"]
    few = len(labels) <= MAX_CLASSES_WITH_NUMBERS
    for index, (method, name) in enumerate(DISPLAY_NAMES.items()):
        of_classes = labels if few or method in METHODS else []
        for group, metric in enumerate(("macro_f1", *(f"per_class.{label}.f1" for label in of_classes))):
            x = group + 0.17 * (index - (len(DISPLAY_NAMES) - 1) / 2)
            score, low, high = get_with_interval(details[method], metric)
            _plot_with_interval(axis, x, method, (score, low, high), "" if group else name)
            if few:
                text = format_metric(details[method], metric)
                axis.annotate(text, (x, high), (0, 7), textcoords="offset points", ha="center", fontsize="small")
    axis.set_xticks(
        range(len(labels) + 1), ["macro-F1", *labels], rotation=0 if few else 90, fontsize="medium" if few else 7
    )
    axis.set(ylabel="F1", ylim=(-0.03, 1.1))
    if few:
        axis.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    else:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_cost(details: Details) -> Figure:
    """Macro-F1 with its interval against each of `COSTS`, by method."""
    figure, axes = _subplots(4.2, 2, "Cost against quality, test rows", sharey=True)
    for axis, (cost, axis_label) in zip(axes, COSTS.items(), strict=True):
        for method, name in DISPLAY_NAMES.items():
            values = get_with_interval(details[method], "macro_f1")
            label = f"{name}: {format_metric(details[method], 'macro_f1', interval=True)}"
            if method in METHODS:
                _plot_with_interval(axis, details[method][cost], method, values, label)
            else:
                axis.axhline(values[0], linestyle=LINE_STYLES[method], color=COLORS[method], label=label)
        axis.set(xscale="log", xlabel=f"{axis_label} (log)", ylabel="macro-F1", ylim=(0, 1))
        low, high = sorted(details[method][cost] for method in METHODS)
        axis.set_xlim(low / 3, 3 * high)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
