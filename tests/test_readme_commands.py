"""The commands for finished models in the README work as they are written there."""

import re
import shlex
import shutil
from pathlib import Path

import openpyxl
import pytest

from tests.support.project import ROOT, run, run_tool

SECTION = re.compile(r"\n## Inference and export\n.*?```sh\n(.*?)```", re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in SECTION.search((ROOT / "README.md").read_text(encoding="utf-8"))[1].splitlines()
    if "stages.predict" in line or "stages.export" in line
]


@pytest.fixture(scope="module")
def models(trained_project, tmp_path_factory) -> Path:
    """Make a folder with trained models and the files that the commands name."""
    folder = shutil.copytree(trained_project, tmp_path_factory.mktemp("readme") / "project")
    (folder / "reviews.txt").write_text("배터리 최고\n화면 별로\n", encoding="utf-8")
    workbook = openpyxl.Workbook()
    for row in (["번호", "리뷰"], [1, "배터리 최고"], [2, "화면 별로"]):
        workbook.active.append(row)
    workbook.save(folder / "reviews.xlsx")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_ends_well(models, monkeypatch, capsys, command):
    if "|" in command:
        result = run("bash", "-c", command, cwd=models, PYTHONPATH=str(ROOT))
        assert result.returncode == 0, result.stderr
        printed = result.stdout
    else:  # In this process, which has imported PyTorch already.
        monkeypatch.chdir(models)
        python, option, module, *arguments = shlex.split(command)
        assert (python, option) == ("python", "-m")
        run_tool(module.removeprefix("stages."), *arguments)
        printed = capsys.readouterr().out
    if output := re.search(r"--output (\S+)", command):
        assert (models / output[1]).exists()
    else:
        assert len(printed.splitlines()) == 2
