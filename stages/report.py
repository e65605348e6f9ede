"""Everything that people read: sentences and tables, pictures, misclassified rows, and one page to mail."""

import base64
import platform
import string
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common.artifacts.files import atomic_write, read_json
from stages.common.artifacts.methods import METHODS
from stages.common.artifacts.selection import read_selection
from stages.common.runtime import paths
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import Params, load_params

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from stages.common.evaluation.result import Comparison

NUM_SHOWN = 30  # misclassified rows on the page
NAMED_COLUMNS = ["Index", "text", "label"]  # of them
PACKAGES = ("dvc", "evaluate", "numpy", "peft", "scikit-learn", "scipy", "torch", "transformers")
Sentences = dict[str, list[list[str]]]


def draw(comparison: "Comparison", headline: str) -> dict[str, "Figure"]:
    """Draw all pictures, by the names of their files."""
    from stages.common.reporting import plots

    plots.use_style()
    histories = {method: read_json(paths.PLOTS / f"{method}.json") for method in METHODS}
    confusion = {method: read_json(paths.PLOTS / f"confusion_{method}.json") for method in METHODS}
    return {
        "difference": plots.plot_difference(comparison, headline),
        "f1": plots.plot_f1(comparison),
        "curves": plots.plot_curves(histories, comparison),
        "confusion": plots.plot_confusion(confusion),
        "reliability": plots.plot_reliability(read_json(paths.PLOTS / "reliability.json"), comparison),
        "cost": plots.plot_cost(comparison),
        "learning_rates": plots.plot_learning_rates(comparison),
    }


def render_page(
    comparison: "Comparison", sentences: Sentences, errors: "pd.DataFrame", pictures: dict[str, bytes], params: Params
) -> str:
    """Render the page, with its pictures and its font inside."""
    import pandas as pd

    from stages.common.reporting import formatting, plots
    from stages.common.reporting.provenance import git_revision

    def flatten(values: dict[str, Any]) -> dict[str, Any]:
        return pd.json_normalize(values).iloc[0].to_dict()

    # The probabilities of many classes would be wider than the page.
    shown = errors
    if len(comparison.labels) > plots.MAX_CLASSES_WITH_NUMBERS:
        shown = errors[[*NAMED_COLUMNS, *METHODS]]
    metrics = {"filter": paths.FILTER_METRICS, "split": paths.SPLIT_METRICS, "tokens": paths.TOKEN_METRICS}
    counts = {name: read_json(path) for name, path in metrics.items()}
    page = formatting.TEMPLATES.get_template("report.html").render(
        sentences=sentences,
        c=comparison,
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        errors=shown.head(NUM_SHOWN).fillna("").to_dict("records"),
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
    from stages.common.spreadsheet import write_spreadsheet

    comparison, selection = read_comparison(), read_selection()
    sentences = formatting.verdict_sentences(comparison)
    table = formatting.TEMPLATES.get_template("compare.md").render(sentences=sentences, c=comparison)
    write_text(paths.COMPARE_TABLE, table)
    tested = read_tested_rows(comparison.folds)
    errors = misclassified(tested, read_predictions(tested, selection)).to_pandas()
    write_spreadsheet(paths.ERRORS, errors)
    pictures = {}
    for name, picture in draw(comparison, headline=sentences["findings"][0][0]).items():
        path = paths.PLOTS / f"{name}.png"
        plots.save_png(picture, path)
        pictures[name] = path.read_bytes()
    write_text(paths.PLOTS / "report.html", render_page(comparison, sentences, errors, pictures, params))
    for part, pairs in sentences.items():
        print(part, *(f"  {sentence}" for language in zip(*pairs, strict=True) for sentence in language), sep="\n")


if __name__ == "__main__":
    main()
