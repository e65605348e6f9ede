"""Everything that people read: sentences and tables, pictures, misclassified rows, and one page to mail."""

import base64
import platform
import string
from importlib.metadata import version

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.files import atomic_write, read_json
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import METHODS
from stages.common.runtime import paths
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params

NUM_SHOWN = 30  # misclassified rows on the page
NAMED_COLUMNS = ("Index", "text", "label")  # of them
PACKAGES = ("dvc", "evaluate", "numpy", "peft", "scikit-learn", "scipy", "torch", "transformers")


@report_user_errors
def main() -> None:
    params = load_params()
    # pandas and matplotlib take seconds to import; a fault in params.yaml is reported before that.
    import pandas as pd

    from stages.common.evaluation.error_analysis import misclassified
    from stages.common.reporting import formatting, plots
    from stages.common.reporting.provenance import git_revision
    from stages.common.spreadsheet import write_spreadsheet

    details, selection = read_json(paths.COMPARE_DETAILS), read_json(paths.SELECTION)
    sentences = formatting.verdict_sentences(details)
    with atomic_write(paths.COMPARE_TABLE) as temporary:
        table = formatting.TEMPLATES.get_template("compare.md").render(sentences=sentences, details=details)
        temporary.write_text(table, encoding="utf-8")

    best_runs = {method: paths.RUNS / method / selection[method]["best_run"] for method in METHODS}
    num_classes = len(details["labels"])
    best_logits = {
        method: read_logits(run / "logits.safetensors", num_classes)["test"] for method, run in best_runs.items()
    }
    errors = misclassified(read_table(paths.TEST), best_logits).to_pandas()
    write_spreadsheet(paths.ERRORS, errors)
    # The probabilities of many classes would be wider than the page.
    shown = errors if num_classes <= plots.MAX_CLASSES_WITH_NUMBERS else errors[[*NAMED_COLUMNS, *METHODS]]

    plots.use_style()
    histories = {method: read_json(paths.PLOTS / f"{method}.json") for method in METHODS}
    pictures = {
        "f1": plots.plot_f1(details, sentences["findings"][0][0].rstrip(".")),
        "curves": plots.plot_curves(histories, details),
        "confusion": plots.plot_confusion({m: read_json(paths.PLOTS / f"confusion_{m}.json") for m in METHODS}),
        "reliability": plots.plot_reliability(read_json(paths.PLOTS / "reliability.json"), details),
        "cost": plots.plot_cost(details),
        "learning_rates": plots.plot_learning_rates(details),
        "expected_best": plots.plot_expected_best(details),
    }
    for name, picture in pictures.items():
        plots.save_png(picture, paths.PLOTS / f"{name}.png")
    counts = {"filter": paths.FILTER_METRICS, "split": paths.SPLIT_METRICS, "tokens": paths.TOKEN_METRICS}
    page = formatting.TEMPLATES.get_template("report.html").render(
        sentences=sentences,
        details=details,
        pictures={name: base64.b64encode((paths.PLOTS / f"{name}.png").read_bytes()).decode() for name in pictures},
        errors=shown.head(NUM_SHOWN).fillna("").to_dict("records"),
        num_errors=len(errors),
        label_noise=read_json(paths.LABEL_NOISE)[:NUM_SHOWN],
        audit=read_json(paths.AUDIT_METRICS),
        params=pd.json_normalize(params.model_dump()).iloc[0].to_dict(),
        counts=pd.json_normalize({name: read_json(path) for name, path in counts.items()}).iloc[0].to_dict(),
        revision=git_revision(),
        versions={"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    )
    with atomic_write(paths.PLOTS / "report.html") as temporary:
        page = page.replace("EMBEDDED_FONT", plots.embedded_font(string.printable + page), 1)
        temporary.write_text(page, encoding="utf-8")
    for part, pairs in sentences.items():
        print(part, *(f"  {sentence}" for language in zip(*pairs, strict=True) for sentence in language), sep="\n")


if __name__ == "__main__":
    main()
