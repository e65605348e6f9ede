"""Make everything that people read: sentences and tables, pictures, misclassified rows, and one page to mail.

The page also shows what the runs cost on this machine, from data/timings/, on which no stage depends.
"""

import base64
import math
import platform
import string
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stages.common.artifacts.files import atomic_write, read_json
from stages.common.artifacts.methods import METHODS
from stages.common.artifacts.selection import Selection, read_selection
from stages.common.runtime import paths
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import Params, load_params
from stages.common.runtime.timings import read_timing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from stages.common.evaluation.result import Comparison
    from stages.common.reporting.formatting import Text
    from stages.common.reporting.tables import Table

NUM_SHOWN = 15  # Misclassified rows of each kind, and pairs of labels, on the page.
PACKAGES = ("dvc", "evaluate", "numpy", "peft", "scikit-learn", "scipy", "torch", "transformers")
TRACKED_PICTURES = ("difference", "f1", "breakdown", "reliability")  # The page alone has the others.
TIMINGS = {"seconds": "seconds of training", "peak_memory_mib": "peak memory, MiB"}


def read_costs(comparison: "Comparison", selection: Selection) -> dict[str, dict[str, float]]:
    """Read what a run of each method costs, by quantity; quantities that are not known of every run are left out."""
    results = {method: comparison.method(method) for method in METHODS}
    costs = {
        "trainable parameters": {method: float(each.trainable_parameters) for method, each in results.items()},
        "weights on disk, MB": {method: each.checkpoint_bytes / 1e6 for method, each in results.items()},
    }
    timings = {
        method: [read_timing(paths.RUNS / method / name / "checkpoint") for name in selection[method].runs]
        for method in METHODS
    }
    for key, quantity in TIMINGS.items():
        if all(key in timing for of_method in timings.values() for timing in of_method):
            # Whole numbers, since times vary by far more from one machine, or one day, to another.
            costs[quantity] = {method: math.ceil(fmean(t[key] for t in timings[method])) for method in METHODS}
    return costs


def draw(comparison: "Comparison", selection: Selection, headline: str) -> dict[str, "Figure"]:
    """Draw the pictures, by name; a curve of too few points is left out."""
    from stages.common.reporting import plots

    plots.use_style()
    histories = {method: read_json(paths.PLOTS / f"{method}.json") for method in METHODS}
    confusion = {method: read_json(paths.PLOTS / f"confusion_{method}.json") for method in METHODS}
    pictures = {
        "difference": plots.plot_difference(comparison, headline),
        "f1": plots.plot_f1(comparison),
        "breakdown": plots.plot_breakdown(comparison),
        "cost": plots.plot_cost(read_costs(comparison, selection)),
        "learning_rates": plots.plot_learning_rates(comparison),
        "curves": plots.plot_curves(histories, comparison),
        "confusion": plots.plot_confusion(confusion),
        "reliability": plots.plot_reliability(read_json(paths.PLOTS / "reliability.json"), comparison),
    }
    return {name: picture for name, picture in pictures.items() if picture}


def errors_to_show(errors: "pd.DataFrame") -> dict[str, list[dict[str, str]]]:
    """Take the first rows of each kind of error, each text once and each prediction with its probability."""
    shown = errors.drop_duplicates("text").astype(str).copy()
    for method in METHODS:
        probabilities = [row[f"{method}_{row[method]}"] for row in errors.loc[shown.index].to_dict("records")]
        shown[method] = [f"{label} {each:.2f}" for label, each in zip(shown[method], probabilities, strict=True)]
    kinds = {
        "The methods disagree · 두 방법의 예측이 다름": shown["disagree"] == "yes",
        "Both methods make the same mistake · 두 방법이 똑같이 틀림": shown["disagree"] == "",
    }
    return {title: shown[rows].head(NUM_SHOWN).to_dict("records") for title, rows in kinds.items() if rows.any()}


def render_page(
    sentences: "dict[str, list[Text]]",
    tables: "dict[str, Table]",
    errors: "pd.DataFrame",
    pictures: dict[str, bytes],
    params: Params,
) -> str:
    """Render the page, with its pictures and its font inside."""
    import pandas as pd

    from stages.common.reporting import formatting, plots
    from stages.common.reporting.provenance import git_revision

    def flatten(values: dict[str, Any]) -> dict[str, Any]:
        return pd.json_normalize(values).iloc[0].to_dict()

    metrics = {"filter": paths.FILTER_METRICS, "split": paths.SPLIT_METRICS, "tokens": paths.TOKEN_METRICS}
    counts = {name: read_json(path) for name, path in metrics.items()}
    page = formatting.TEMPLATES.get_template("report.html").render(
        sentences=sentences,
        tables=tables,
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        errors=errors_to_show(errors),
        num_errors=len(errors),
        label_noise=read_json(paths.LABEL_NOISE)[:NUM_SHOWN],
        audit=read_json(paths.AUDIT_METRICS),
        params=flatten(params.model_dump()),
        counts={key: value for key, value in flatten(counts).items() if not isinstance(value, list)},
        revision=git_revision(),
        versions={"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    return page.replace("EMBEDDED_FONT", plots.embedded_font(string.printable + page), 1)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@report_user_errors
def main() -> None:
    params = load_params()
    # pandas and matplotlib take seconds to import; an error in params.yaml is reported before that.
    from stages.common.evaluation.error_analysis import misclassified
    from stages.common.evaluation.predictions import read_predictions, read_tested_rows
    from stages.common.evaluation.result import read_comparison
    from stages.common.reporting import formatting, plots
    from stages.common.reporting.tables import make_tables
    from stages.common.spreadsheet import write_spreadsheet

    comparison, selection = read_comparison(), read_selection()
    sentences, tables = formatting.sentences(comparison), make_tables(comparison)
    table = formatting.TEMPLATES.get_template("compare.md").render(sentences=sentences, tables=tables)
    write_text(paths.COMPARE_TABLE, table)
    tested = read_tested_rows(comparison.folds)
    errors = misclassified(tested, read_predictions(tested, selection)).to_pandas()
    write_spreadsheet(paths.ERRORS, errors)
    figures = draw(comparison, selection, headline=sentences["headline"][0].english)
    for name in TRACKED_PICTURES:
        plots.save_png(figures[name], paths.PLOTS / f"{name}.png")
    pictures = {name: plots.to_png(figure) for name, figure in figures.items()}
    write_text(paths.PLOTS / "report.html", render_page(sentences, tables, errors, pictures, params))
    for part, texts in sentences.items():
        print(part, *(f"  {text}" for language in zip(*texts, strict=True) for text in language), sep="\n")


if __name__ == "__main__":
    main()
