"""The stages that run again in a clone after an edit of the code or with a new parameter."""

import re
from pathlib import Path

import pytest

from tests.support.dvc import DVC, ran, status
from tests.support.project import run

TRAINING = {"train_full@0-0.001", "train_lora@0-0.01"}


@pytest.mark.parametrize(
    "edited, expected",
    [
        ("stages/common/runtime/params.py", set()),
        ("stages/common/runtime/paths.py", set()),
        ("stages/common/runtime/console.py", set()),
        ("stages/common/serving/text_classifier.py", set()),
        ("stages/predict.py", set()),
        ("stages/baselines.py", {"baselines@0"}),
        ("stages/report.py", {"report"}),
        ("stages/common/reporting/plots.py", {"report"}),
        ("stages/common/evaluation/metrics.py", {"audit", "compare", "report"}),
        ("stages/common/labels.py", {"filter"}),
        ("stages/common/cleaning.py", {"clean_and_tokenize"}),
        ("stages/common/training/trainer.py", TRAINING),
    ],
)
def test_an_edit_runs_again_what_it_shapes_and_nothing_else(repro, edited, expected):
    with (repro / edited).open("a", encoding="utf-8") as file:
        file.write("\n# A comment.\n")
    assert status(repro) == expected


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_new_parameter_runs_again_the_stages_that_read_its_section_and_no_others(repro):
    replace(
        repro / "stages/common/runtime/params.py",
        "    margin: PositiveFraction",
        "    decimals: PositiveInt\n    margin: PositiveFraction",
    )
    replace(repro / "params.yaml", "compare:\n", "compare:\n  decimals: 4\n")
    result = run(*DVC, "repro", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {"compare", "report"}


STAGE = '''"""Count the characters of all texts."""

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.files import write_json
from stages.common.runtime.exceptions import report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import CHARACTERS, TOKENIZED


@report_user_errors
def main() -> None:
    load_params()
    write_json(CHARACTERS, {"characters": sum(map(len, read_table(TOKENIZED)["text"].to_pylist()))})


if __name__ == "__main__":
    main()
'''
STAGE_IN_DAG = """
  characters:
    cmd: python -m stages.characters
    deps:
      - data/tokenized.arrow
      - stages/characters.py
      - stages/common/artifacts
    metrics:
      - metrics/characters.json: {cache: false}
"""


def test_a_new_stage_runs_alone(repro):
    (repro / "stages/characters.py").write_text(STAGE, encoding="utf-8")
    with (repro / "stages/common/runtime/paths.py").open("a", encoding="utf-8") as file:
        file.write('CHARACTERS = Path("metrics/characters.json")\n')
    dag = repro / "dvc.yaml"
    dag.write_text(re.sub(r"\n(?=artifacts:)", STAGE_IN_DAG + "\n", dag.read_text(encoding="utf-8")), encoding="utf-8")
    result = run(*DVC, "repro", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {"characters"}
