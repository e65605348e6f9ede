"""How many of the sample's planted wrong labels the audit finds, and what it changes to leave out what it found.

    dvc repro && python -m tests.benchmarks.audit [--output FILE] [--before DIR]

--output writes the ids of the first rows of plots/label_issues.csv, as many as there are planted wrong labels, for
`data.exclude`. --before names another clone of this project, and compares macro-F1 on the test rows here, where these
ids are left out, with that there.
"""

import argparse
import csv
import importlib
import random
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.artifacts.arrow import get_class_names, read_table
from stages.common.artifacts.files import read_json
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import METHODS
from stages.common.evaluation.comparison import BootstrapEstimates
from stages.common.evaluation.vectorized_metrics import per_example_statistics
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import LABEL_ISSUES, RUNS, SELECTION, TEST, TRAIN, VALIDATION


def planted() -> set[str]:
    """Ids of the records whose label the generator of the sample replaced by another one."""
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
    """Print precision and recall of the first and of the suspected rows."""
    training_side = {index for path in (TRAIN, VALIDATION) for index in read_table(path)["Index"].to_pylist()}
    wrong = planted()
    with LABEL_ISSUES.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    first = [row["Index"] for row in rows[: len(wrong)]]
    suspected = [row["Index"] for row in rows if row["suspected"]]
    print(f"{len(wrong)} wrong labels, {len(wrong & training_side)} on the training side")
    for name, listed in (("first rows", first), ("suspected rows", suspected)):
        found = len(wrong & set(listed))
        precision, recall = found / len(listed), found / len(wrong & training_side)
        print(f"{len(listed)} {name}: precision {precision:.2f}, recall {recall:.2f}")
    if output:
        output.write_text("\n".join(first) + "\n", encoding="utf-8")


def statistics_of_runs(project: Path) -> dict[str, np.ndarray]:
    """By method, `per_example_statistics` (rows, runs, columns) of the selected runs of a project on the test rows."""
    table = read_table(project / TEST)
    labels, num_classes = table["labels"].to_numpy(), len(get_class_names(table.schema))
    statistics = {}
    for method in METHODS:
        runs = read_json(project / SELECTION)[method]["runs"]
        logits = [
            read_logits(project / RUNS / method / run / "logits.safetensors", num_classes)["test"] for run in runs
        ]
        statistics[method] = np.stack([per_example_statistics(values, labels, 1.0) for values in logits], axis=1)
    return statistics


def compare_projects(before: Path) -> None:
    """Print what macro-F1 of each method is here minus what it is in `before`, with its 95% interval."""
    table = read_table(TEST)
    if table["Index"] != read_table(before / TEST)["Index"]:
        raise SystemExit(f"{before}: has other test rows")
    texts, names, params = table["text"].to_pylist(), get_class_names(table.schema), load_params().compare
    there, here = statistics_of_runs(before), statistics_of_runs(Path())
    for method in METHODS:
        # The interval is that of two methods, here one method with two sets of training rows.
        pair = dict(zip(METHODS, (there[method], here[method]), strict=True))
        estimates = BootstrapEstimates.collect(pair, texts, names, params)
        result = estimates.difference(METHODS[1], METHODS[0], params.margin)
        low, high = result["interval"]
        scores = [estimates.point_estimates[name]["macro_f1"] for name in METHODS]
        means = " to ".join(f"{values.mean():.4f}" for values in scores)
        print(
            f"{method}: {means}, difference {result['macro_f1']:+.4f} [{low:+.4f}, {high:+.4f}], {len(scores[0])} seeds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--before", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.before:
        compare_projects(arguments.before)
    else:
        measure_audit(arguments.output)


if __name__ == "__main__":
    main()
