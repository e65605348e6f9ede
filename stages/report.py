"""What `compare` found as pictures, and as one page that a person can mail."""

import base64
import csv
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, StrictUndefined

from stages.common import paths, plotting
from stages.common.core.exceptions import report_user_errors
from stages.common.core.files import atomic_write, read_json
from stages.common.core.params import load_params
from stages.common.core.paths import METHODS, PLOTS
from stages.common.reporting.formatting import by_rows, class_table, seed_table, table, verdicts

MISTAKES = 30  # shown of plots/errors.csv
SHARES = 6  # the column of errors.csv from which on there are probabilities
TOOLS = ("datasets", "dvc", "evaluate", "matplotlib", "numpy", "peft", "scikit-learn", "scipy", "torch", "transformers")
INPUTS = ("stages", "params.yaml", "data/sample", "data/kobert-mini")


def flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Leaves of nested dictionaries by their dotted names."""
    if not isinstance(values, dict):
        return {prefix: str(values)}
    return {k: v for key, value in values.items() for k, v in flat(value, f"{prefix}.{key}".strip(".")).items()}


def versions() -> dict[str, str]:
    """Python's and those of the libraries behind the figures."""
    found = {"Python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


def revision() -> str:
    """The commit that last changed code, parameters or embedded data, so that committing results does not change it."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments, "--", *INPUTS], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain")
        return git("log", "-1", "--format=%H") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@report_user_errors
def main() -> None:
    params = load_params()
    figures = read_json(paths.COMPARE_METRICS)
    histories, pairs = (
        {name: read_json(PLOTS / f"{kind}{name}.json") for name in METHODS} for kind in ("", "confusion_")
    )
    plotting.use_korean_font()
    pictures = {
        "f1": plotting.f1(figures),
        "curves": plotting.curves(histories, figures),
        "confusion": plotting.confusion(pairs),
        "reliability": plotting.reliability(read_json(PLOTS / "reliability.json"), figures),
        "cost": plotting.cost(figures),
    }
    for name, picture in pictures.items():
        plotting.save(picture, PLOTS / f"{name}.png")
    with (PLOTS / "errors.csv").open(encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(sys.maxsize)  # a review may be longer than csv's 131,072 characters
        header, *mistakes = csv.reader(file)
    counts = {"filter": paths.FILTER_METRICS, "split": paths.SPLIT_METRICS, "tokens": paths.TOKEN_METRICS}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = paths.REPORT_TEMPLATE.read_text(encoding="utf-8")
    shown = [
        [f"{float(cell):.2f}" if number >= SHARES else cell for number, cell in enumerate(row)] for row in mistakes
    ]
    values = {
        "verdicts": list(verdicts(figures)),
        "mistakes": [header, *shown[:MISTAKES]],
        "groups": read_json(paths.GROUPS),
        "params": flat(params.model_dump()),
        "counts": flat({name: read_json(path) for name, path in counts.items()}),
    }
    text = environment.from_string(template).render(
        **values,
        by_rows=by_rows,
        font=plotting.embedded_font(f"{template}{values}{list(map(chr, range(32, 127)))}"),
        tables={"methods": table(figures), "seeds": seed_table(figures), "classes": class_table(figures)},
        pictures={name: base64.b64encode((PLOTS / f"{name}.png").read_bytes()).decode() for name in pictures},
        mistakes_in_all=len(mistakes),
        revision=revision(),
        versions=versions(),
    )
    with atomic_write(PLOTS / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
