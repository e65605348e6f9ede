"""Compare the validation scores of both methods between experiments that differ in one parameter.

dvc exp run --queue -S 'lora.r=1,4,16,64' && dvc queue start
python -m stages.sweep lora.r
"""

import argparse
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t

from stages.common.artifacts.files import atomic_write
from stages.common.artifacts.methods import METHODS
from stages.common.runtime.console import warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.paths import COMPARE_METRICS, PARAMS, PLOTS, VALIDATION_METRICS

OTHERS, SCORES = "other parameters", "scores of each fold"  # Columns that are not shown.
WHY_NO_TEST_SCORES = (
    "Test scores are not shown. The test score of the experiment with the best test score is too high: of six equal "
    "configurations, one is falsely 'better' in 9 to 30% of cases. Select an experiment by its validation score, then "
    "read the test score of that experiment only. --test-scores shows all test scores."
)


def show_experiments() -> list[dict[str, Any]]:
    """Return the revisions of `dvc exp show`: the current commit and its experiments.

    Raises:
        UserError: DVC fails.
    """
    result = subprocess.run(["dvc", "exp", "show", "--json"], capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"dvc exp show: {result.stderr.strip() or 'failed'}")
    revisions = []
    for baseline in json.loads(result.stdout):
        experiments = [revision for experiment in baseline["experiments"] or [] for revision in experiment["revs"]]
        revisions += [baseline, *experiments] if baseline["rev"] != "workspace" else []
    return revisions


def _read(files: dict[str, Any] | None, path: Path) -> dict[str, Any]:
    """Return the values of a file of parameters or metrics by their dotted names."""
    data = ((files or {}).get(str(path)) or {}).get("data") or {}
    return pd.json_normalize(data).to_dict("records")[0] if data else {}


def experiments_table(revisions: list[dict[str, Any]], parameter: str, test_scores: bool) -> pd.DataFrame:
    """Make a table with a row for each finished experiment: its name, the parameter, and the scores of each method.

    Experiments may also differ in other parameters. The table then has the largest group that differs in `parameter`
    only. The experiment with the smallest value is the reference. `METHOD change` is the mean difference from the
    reference over the folds that both have run. `METHOD +-` is half the width of its 95% paired t interval, which is
    empty for fewer than three folds. The interval is descriptive, since the validation rows of folds may overlap.

    Args:
        revisions: The experiments, as `show_experiments` returns them.
        parameter: Dotted name of the parameter.
        test_scores: Whether the table has the test scores too.

    Raises:
        UserError: No finished experiment has the parameter.
    """
    rows = []
    for revision in revisions:
        data = revision.get("data") or {}
        params = _read(data.get("params"), PARAMS)
        validation = _read(data.get("metrics"), VALIDATION_METRICS)
        if parameter not in params or not validation:
            continue
        row = {"experiment": revision.get("name") or revision["rev"][:7], parameter: params[parameter]}
        row[OTHERS] = json.dumps({**params, parameter: None}, sort_keys=True, default=str)
        row[SCORES] = {
            method: {key: value for key, value in validation.items() if key.startswith(f"{method}.fold_")}
            for method in METHODS
        }
        for method in METHODS:
            row[f"{method} val F1"] = validation[f"{method}.val_f1"]
            if test_scores:
                row[f"{method} test F1"] = _read(data["metrics"], COMPARE_METRICS)[f"{method}.macro_f1"]
        rows.append(row)
    if not rows:
        raise UserError(f"{parameter}: no finished experiment has this parameter; see `dvc exp show`")
    table = pd.DataFrame(rows)
    values = table[parameter].map(str).groupby(table[OTHERS], sort=False).nunique()
    table = table[table[OTHERS] == values.idxmax()].drop(columns=OTHERS)
    if left_out := len(rows) - len(table):
        warn(f"{left_out} experiments are left out, because they differ in other parameters as well")
    if table[parameter].map(lambda value: isinstance(value, list | str | bool)).any():
        table[parameter] = table[parameter].map(str)
    table = table.sort_values([parameter, "experiment"], ignore_index=True)
    scores = table.pop(SCORES)
    for method in METHODS:
        changes = [paired_change(each[method], scores[0][method]) for each in scores]
        table[f"{method} change"], table[f"{method} +-"] = zip(*changes, strict=True)
    return table


def paired_change(scores: dict[str, float], reference: dict[str, float]) -> tuple[float, float]:
    """Compute the mean difference over the common folds, and half the width of its 95% paired t interval."""
    differences = pd.Series({fold: scores[fold] - reference[fold] for fold in scores.keys() & reference.keys()})
    if len(differences) < 3:
        return differences.mean(), math.nan
    return differences.mean(), float(t.ppf(0.975, len(differences) - 1) * differences.sem())


def plot_sweep(table: pd.DataFrame, parameter: str, path: Path) -> None:
    """Draw how validation macro-F1 of each method changes from the first value, with 95% paired t intervals."""
    from matplotlib.figure import Figure

    from stages.common.reporting.formatting import DISPLAY_NAMES
    from stages.common.reporting.plots import COLORS, LINE_STYLES, MARKERS, save_png, use_style

    use_style()
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color="black", linewidth=0.8)
    numeric = pd.api.types.is_numeric_dtype(table[parameter])
    values = table[parameter] if numeric else pd.Series(pd.factorize(table[parameter])[0])
    for number, method in enumerate(METHODS):
        # The intervals of the methods are drawn side by side.
        x = values * (1 + 0.03 * number) if numeric else values + 0.1 * number
        style: dict[str, Any] = {"color": COLORS[method], "marker": MARKERS[method], "linestyle": LINE_STYLES[method]}
        changes, half_widths = table[f"{method} change"], table[f"{method} +-"].fillna(0)
        axis.errorbar(x, changes, half_widths, capsize=4, label=DISPLAY_NAMES[method], **style)
    if not numeric:
        axis.set_xticks(range(table[parameter].nunique()), table[parameter].unique())
    elif values.min() > 0 and values.max() / values.min() >= 10:
        axis.set_xscale("log")
        axis.set_xticks(sorted(values.unique()), [f"{value:g}" for value in sorted(values.unique())], minor=False)
        axis.minorticks_off()
    first = table[parameter][0]
    axis.set(
        xlabel=parameter,
        ylabel=f"change from {first}",
        title=f"Validation macro-F1 by {parameter}: paired differences over the folds, with 95% intervals",
    )
    axis.legend()
    save_png(figure, path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parameter", help="key of params.yaml, such as lora.r, split.train_fraction or clean.keep_jamo")
    parser.add_argument(
        "--test-scores", action="store_true", help="show test scores too, by which no experiment should be selected"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=PLOTS / "sweeps",
        metavar="DIR",
        help="folder of the picture and the table (default: plots/sweeps)",
    )
    return parser.parse_args()


@report_user_errors
def main() -> None:
    arguments = parse_arguments()
    table = experiments_table(show_experiments(), arguments.parameter, arguments.test_scores)
    with atomic_write(arguments.output / f"{arguments.parameter}.csv") as temporary:
        table.to_csv(temporary, index=False)
    plot_sweep(table, arguments.parameter, arguments.output / f"{arguments.parameter}.png")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"{arguments.output / arguments.parameter}.csv and .png contain this table and its picture.")
    if not arguments.test_scores:
        print(WHY_NO_TEST_SCORES)


if __name__ == "__main__":
    main()
