"""How many of the sample's planted wrong labels the audit finds.

    dvc repro audit && python -m tests.benchmarks.audit [--output FILE]

--output writes the ids of the first rows of plots/label_issues.csv, as many as there are planted wrong
labels, for `data.exclude`.
"""

import argparse
import csv
import importlib
import random
from pathlib import Path
from typing import Any

from stages.common.artifacts.arrow import read_table
from stages.common.core.paths import LABEL_ISSUES, TRAIN, VALIDATION


def planted() -> set[str]:
    """Ids of the records whose label the generator of the sample replaced by another one."""
    generate = importlib.import_module("data.sample.generate")
    samples: list[Any] = []

    class RecordingRandom(random.Random):
        def sample(self, population: Any, k: int, **options: Any) -> Any:
            samples.append(super().sample(population, k, **options))
            return samples[-1]

    generate.random.Random, original = RecordingRandom, random.Random
    try:
        records = generate.build()
    finally:
        random.Random = original
    (wrong,) = [sample for sample in samples if len(sample) == round(generate.NOISE * generate.VALID)]
    pairs = {(record["RawText"], record["GeneralPolarity"]) for record in wrong}
    return {record["Index"] for record in records if (record["RawText"], record.get("GeneralPolarity")) in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE")
    arguments = parser.parse_args()
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
    if arguments.output:
        arguments.output.write_text("\n".join(first) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
