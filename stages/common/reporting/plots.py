"""Figures as PNG: the same bytes every time, Korean from a packaged font, legible in grey and for the colour-blind.

Every method has a colour of Okabe and Ito's palette, and a marker and a line of its own.
"""

import base64
import io
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from fontTools import subset
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stages.common import paths
from stages.common.core.files import atomic_write
from stages.common.core.labels import LABELS
from stages.common.reporting.formatting import METHODS, VERDICTS, Figures, decimals, rounded, with_interval

COLOURS = {"full": "#0072b2", "lora": "#d55e00", "tfidf": "#009e73", "majority": "#555555"}
MARKERS = {"full": "o", "lora": "s", "tfidf": "^", "majority": "D"}
LINES = {"full": "-", "lora": "--", "tfidf": "-.", "majority": ":"}
Rows = list[dict[str, Any]]


def _font_file(name: str) -> Path:
    """Of Nanum Gothic. The package that holds it is not imported: from Python 3.12 on, that fails."""
    return Path(str(distribution("koreanize-matplotlib").locate_file(f"koreanize_matplotlib/fonts/{name}")))


def use_korean_font() -> None:
    """Let every figure write Korean, whatever fonts the machine has."""
    for name in ("NanumGothic.ttf", "NanumGothicBold.ttf"):
        font_manager.fontManager.addfont(_font_file(name))
    matplotlib.rcParams.update(
        {
            "font.family": "NanumGothic",
            "axes.unicode_minus": False,  # the font has no such sign
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "axes.axisbelow": True,
            "legend.frameon": False,
            "legend.fontsize": "small",
        }
    )


def embedded_font(text: str) -> str:
    """Base64 of a font with the characters of `text` alone, for pages."""
    options = subset.Options(notdef_outline=True, layout_features=[])
    options.drop_tables += ["TSI0", "TSI1", "TSI2", "TSI3", "TSI5"]  # sources of hints, of which it would warn
    font = subset.load_font(_font_file("NanumGothic.ttf"), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=text)
    subsetter.subset(font)
    subset.save_font(font, file := io.BytesIO(), options)
    return base64.b64encode(file.getvalue()).decode()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that names neither a version nor a time."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _canvas(height: float, columns: int, title: str, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    figure.suptitle(title, weight="semibold")
    return figure, list(np.atleast_1d(figure.subplots(1, columns, **options)))


def curves(histories: Mapping[str, Rows], figures: Figures) -> Figure:
    """Losses and macro-F1 by epoch, of several runs mean and standard deviation; the best epochs are the kept run's."""
    figure, axes = _canvas(4.2, 3, "Training: loss and macro-F1 by epoch")

    def draw(axis: Axes, method: str, name: str, label: str, **style: Any) -> None:
        rows = histories[method]
        epochs, means = np.array([[row["epoch"], row[name]] for row in rows]).T
        spread = np.array([row[f"{name}_sd"] or 0 for row in rows])
        axis.plot(epochs, means, label=label, markersize=4, **style)
        if spread.any():
            axis.fill_between(epochs, means - spread, means + spread, color=style["color"], alpha=0.15, linewidth=0)

    for axis, method in zip(axes, paths.METHODS, strict=False):
        look = {"color": COLOURS[method], "marker": MARKERS[method], "linestyle": LINES[method]}
        draw(axis, method, "train_loss", "training loss", color="#555555", linestyle=":")
        draw(axis, method, "validation_loss", "validation loss", **look)
        draw(axes[2], method, "macro_f1", METHODS[method], **look)
        axis.set(title=METHODS[method], ylabel="cross-entropy")
        values = figures[method]
        for where, name in ((axis, "validation_loss"), (axes[2], "macro_f1")):
            for epoch, marker, what in (
                (values["best_epoch"], "*", "best by macro-F1"),
                (values["overfitting"]["best_epoch_by_loss"], "v", "best by loss"),
            ):
                label = f"{what}: epoch {epoch}" if where is axis else None
                best = histories[method][epoch - 1][f"{name}_{values['best_seed']}"]
                style: dict[str, Any] = {
                    "markersize": 13 if marker == "*" else 9,
                    "markeredgecolor": "black",
                    "linestyle": "",
                }
                where.plot(epoch, best, marker=marker, color=COLOURS[method], label=label, zorder=3, **style)
    axes[2].set(title="validation rows", ylabel="macro-F1")
    axes[1].sharey(axes[0])
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
    return figure


def confusion(pairs: Mapping[str, Rows]) -> Figure:
    """A matrix a method, each row of which adds up to 100%."""
    figure, axes = _canvas(4.6, 2, "Confusion on the test rows: share of the actual class (each row adds up to 100%)")
    for axis, (method, rows) in zip(axes, pairs.items(), strict=True):
        counts = np.zeros((len(LABELS), len(LABELS)), dtype=int)
        for row in rows:
            counts[LABELS.index(row["actual"]), LABELS.index(row["predicted"])] += 1
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            text = f"{share:.0%}\n({counts[i, j]})"
            axis.text(j, i, text, ha="center", va="center", color="white" if share > 0.65 else "black")
        axis.set(title=METHODS[method], xlabel="predicted", ylabel="actual")
        axis.set_xticks(range(len(LABELS)), LABELS)
        axis.set_yticks(range(len(LABELS)), LABELS)
        axis.grid(False)
    figure.colorbar(image, ax=axes, format=PercentFormatter(1), shrink=0.8)
    return figure


def reliability(bins: Rows, figures: Figures) -> Figure:
    """Accuracy against confidence before and after temperature scaling; larger marks hold more rows."""
    figure, axes = _canvas(4.8, 2, "Reliability on the test rows: does 80% sure mean right in 80%?", sharey=True)
    for axis, method in zip(axes, paths.METHODS, strict=True):
        axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":", label="perfect")
        for scaled, colour, marker, line in ((False, COLOURS[method], "o", "-"), (True, "#555555", "s", "--")):
            rows = [row for row in bins if row["method"] == method and row["scaled"] is scaled]
            x, y, sizes = (np.array([row[name] for row in rows]) for name in ("confidence", "accuracy", "rows"))
            name = "scaled.ece" if scaled else "ece"
            label = f"{'scaled' if scaled else 'as trained'}, ECE {rounded(figures[method], name)}"
            axis.plot(x, y, color=colour, linestyle=line, label=label, marker=marker, markersize=3)
            fill = "none" if scaled else colour
            axis.scatter(
                x, y, 12 + 300 * sizes / sizes.sum(), facecolor=fill, edgecolor=colour, marker=marker, alpha=0.7
            )
        axis.set(title=METHODS[method], xlabel="confidence", ylabel="accuracy", xlim=(0.3, 1.02), ylim=(-0.02, 1.02))
        axis.legend(loc="lower right")
    return figure


def _errorbar(axis: Axes, x: float, method: str, value: float, span: list[float], label: str) -> None:
    around = np.maximum(0, [[value - span[0]], [span[1] - value]])  # a skewed interval may leave its value out
    axis.errorbar(x, value, around, fmt=MARKERS[method], color=COLOURS[method], capsize=4, label=label)


def f1(figures: Figures) -> Figure:
    """Macro-F1 and the F1 of each class, with 95% intervals, of both methods and the baselines."""
    verdict = VERDICTS[figures["difference"]["verdict"]][0]
    figure, (axis,) = _canvas(4.6, 1, f"{verdict}\nF1 on {figures['rows']:,} test rows, with 95% intervals")
    for number, method in enumerate(METHODS):
        values, spans = figures[method], figures[method]["interval"]
        by_class = [(values["per_class"][label]["f1"], spans["per_class"][label]["f1"]) for label in LABELS]
        for place, (value, span) in enumerate([(values["macro_f1"], spans["macro_f1"]), *by_class]):
            x = place + 0.2 * (number - 1.5)
            _errorbar(axis, x, method, value, span, "" if place else METHODS[method])
            text = f"{value:.{decimals(*span)}f}"
            axis.annotate(text, (x, span[1]), (0, 7), textcoords="offset points", ha="center", fontsize="small")
    axis.set_xticks(range(len(LABELS) + 1), ["macro-F1", *LABELS])
    axis.set(ylabel="F1", ylim=(-0.03, 1.1))
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def cost(figures: Figures) -> Figure:
    """Macro-F1 with its interval against what a method trains and what it leaves on the disk."""
    figure, axes = _canvas(4.2, 2, "Cost against quality, test rows", sharey=True)
    names = {"trainable_parameters": "trainable parameters (log)", "checkpoint_bytes": "bytes of weights (log)"}
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        for method, text in METHODS.items():
            values, span = figures[method], figures[method]["interval"]["macro_f1"]
            score = values["macro_f1"]
            text += f": {with_interval(score, *span)}"
            if method in paths.METHODS:
                _errorbar(axis, values[name], method, score, span, text)
            else:
                axis.axhline(score, linestyle=LINES[method], color=COLOURS[method], label=text)
        axis.set(xscale="log", xlabel=label, ylabel="macro-F1", ylim=(0, 1))
        axis.margins(x=0.4)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
