"""Measure how many of the sample's planted wrong labels the audit finds, and what excluding them changes.

    dvc repro && python -m tests.benchmarks.audit [--output FILE] [--before DIR]

--output writes the ids of the first rows of plots/label_issues.csv to a file for `data.exclude`. It has as many ids as
there are planted wrong labels. --before names another clone of this project, whose runs did not exclude these ids, and
compares macro-F1 on the test rows between this clone and that one.
"""

import argparse
import csv
import importlib
import random
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp
from statsmodels.stats.proportion import proportion_confint

from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.predictions import read_tested_rows
from stages.common.evaluation.result import read_comparison
from stages.common.runtime.paths import COMPARE_DETAILS, LABEL_ISSUES


def planted() -> set[str]:
    """Return the ids of the records whose label the generator of the sample replaced by a wrong one."""
    generate = importlib.import_module("data.sample.generate")
    samples: list[Any] = []

    class RecordingRandom(random.Random):
        def sample(self, population: Any, k: int, **options: Any) -> Any:
            samples.append(super().sample(population, k, **options))
            return samples[-1]

    with unittest.mock.patch.object(random, "Random", RecordingRandom):
        records = generate.build()
    (wrong,) = [sample for sample in samples if len(sample) == round(generate.NOISE * generate.VALID)]
    pairs = {(record["RawText"], record["GeneralPolarity"]) for record in wrong}
    return {record["Index"] for record in records if (record["RawText"], record.get("GeneralPolarity")) in pairs}


def measure_audit(output: Path | None) -> None:
    """Print precision and recall of the first rows and of the suspected rows, with 95% binomial intervals.

    Args:
        output: File to which the ids of the first rows are written; None writes no file.
    """
    tested = set(read_tested_rows(read_comparison().folds).table["Index"].to_pylist())
    wrong = planted() & tested
    with LABEL_ISSUES.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    first = [row["Index"] for row in rows[: len(wrong)]]
    suspected = [row["Index"] for row in rows if row["suspected"]]
    print(f"{len(wrong)} of the {len(tested)} audited labels are wrong")
    for name, listed in (("first rows", first), ("suspected rows", suspected)):
        found, measures = len(wrong & set(listed)), []
        for measure, total in (("precision", len(listed)), ("recall", len(wrong))):
            low, high = proportion_confint(found, max(total, 1), method="wilson")
            measures.append(f"{measure} {found / max(total, 1):.2f} [{low:.2f}, {high:.2f}]")
        print(f"{len(listed)} {name}: {', '.join(measures)}")
    if output:
        output.write_text("\n".join(first) + "\n", encoding="utf-8")


def compare_projects(before: Path) -> None:
    """Print macro-F1 here minus macro-F1 in the clone `before` for each method, with its 95% paired t interval."""
    here, there = read_comparison(), read_comparison(before / COMPARE_DETAILS)
    for method in METHODS:
        pairs = zip(here.method(method).runs, there.method(method).runs, strict=True)
        differences = np.array([now.macro_f1 - then.macro_f1 for now, then in pairs])
        low, high = ttest_1samp(differences, 0).confidence_interval()
        print(f"{method}: {differences.mean():+.4f} [{low:+.4f}, {high:+.4f}], {len(differences)} folds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="file for the ids of the first rows")
    parser.add_argument("--before", type=Path, metavar="DIR", help="another clone, with whose scores to compare")
    arguments = parser.parse_args()
    if arguments.before:
        compare_projects(arguments.before)
    else:
        measure_audit(arguments.output)


if __name__ == "__main__":
    main()
