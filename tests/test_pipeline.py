"""DVC in a clone: the stages that run again, the outputs that are restored, and the errors that are printed."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages.report import TRACKED_PICTURES
from tests.support.browser import visit
from tests.support.dvc import DVC, copy_clone, ran, read, status, trained
from tests.support.hub import COMMIT, PATIENCE, REPOSITORY, serving
from tests.support.project import ROOT, copy_project, run

STAGES_README = (ROOT / "stages/README.md").read_text(encoding="utf-8")


def tree(path: Path) -> dict[Path, bytes]:
    """Return the contents of a file, or of all files in a folder by their relative paths."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {file.relative_to(path): file.read_bytes() for file in files}


def test_a_second_run_does_nothing(repro):
    result = run(*DVC, "repro", cwd=repro)
    assert result.returncode == 0
    assert ran(result.stdout) == set()
    assert run("git", "status", "--porcelain", cwd=repro).stdout == ""
    result = run(*DVC, "status", cwd=repro)
    assert result.stdout == "Data and pipelines are up to date.\n"
    assert "is empty" not in result.stderr, "DVC warns of empty files"


def test_git_tracks_the_small_results_alone(clone):
    tracked = set(run("git", "ls-files", "data", "metrics", "plots", cwd=clone).stdout.split())
    stages = yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for stage in stages for out in stage.get("outs", []) + stage.get("metrics", [])]
    uncached = {path for out in outs if isinstance(out, dict) for path, options in out.items() if "cache" in options}
    cached = {out for out in outs if isinstance(out, str)}
    assert uncached <= tracked
    assert not cached & tracked
    assert all((clone / path).stat().st_size < 20_000 for path in uncached if not path.endswith(".png"))


def test_parameters_are_counted_exactly(clone):
    runs = read(clone / "data/selection.json")
    full, lora = (next(iter(runs[method]["runs"].values()))["metadata"] for method in ("full", "lora"))
    assert full["trainable_parameters"] == full["total_parameters"]
    layers, targets, matrices, width, rank, head = 2, 2, 2, 8, 8, 8 * 3 + 3
    assert lora["trainable_parameters"] == layers * targets * matrices * width * rank + head


def test_metrics_fit_on_a_screen(repro):
    """`dvc metrics show` and `dvc exp show` are wide tables with a column for each scalar."""
    shown = run(*DVC, "metrics", "show", "--json", "metrics/compare.json", cwd=repro)
    values = json.loads(shown.stdout)[""]["data"]["metrics/compare.json"]["data"]
    assert next(iter(values)) == "verdict"
    command = next(line for line in STAGES_README.splitlines() if line.startswith("dvc exp show"))
    table = run(*DVC, *shlex.split(command)[1:], "--no-pager", cwd=repro, COLUMNS="160")
    assert table.returncode == 0, table.stderr
    assert "…" not in table.stdout, "no column is cut"


RUN_ALL = """
import sys
from importlib import import_module

for command in sys.argv[1:]:
    name, *sys.argv[1:] = command.split()
    import_module(f"stages.{name}").main()
"""


def test_another_place_and_environment_leave_the_same_hashes(clone, tmp_path):
    """Path, time zone, locale, hash seed and order of the source folder differ. All stages run in one process."""
    other = copy_project(tmp_path / "둘째 clone")
    for path in sorted((clone / "data/tiny").rglob("*.json"), reverse=True):
        target = other / path.relative_to(clone)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copytree(clone / "data/tiny-model", other / "data/tiny-model")
    shutil.copyfile(clone / "params.yaml", other / "params.yaml")
    stages = [*yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]]  # In a valid order.
    lock = yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    cells = sorted(lock, key=lambda name: stages.index(name.partition("@")[0]))
    commands = [lock[name]["cmd"].removeprefix("python -m stages.") for name in cells]
    environment = {"TZ": "America/New_York", "LC_ALL": "C", "PYTHONHASHSEED": "77"}
    result = run("python", "-c", RUN_ALL, *commands, cwd=other, **environment)
    assert result.returncode == 0, result.stderr
    written = [Path(out["path"]) for stage in lock.values() for out in stage["outs"]]
    assert len(written) > 20
    for out in written:
        if out != Path("plots/report.html"):  # It names the commit, and what the trainings took.
            assert tree(other / out) == tree(clone / out), out


AFTER_TRAINING = {"select", "audit", "compare", "report"}


def test_an_experiment_trains_what_is_missing_and_restores_what_was_trained(repro):
    lock = yaml.safe_load((repro / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    result = run(*DVC, "exp", "run", "-S", "lora.r=16", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {"train_lora@0-0.01", *AFTER_TRAINING}
    diff = run(*DVC, "params", "diff", "--json", cwd=repro)
    assert json.loads(diff.stdout)["params.yaml"] == {"lora.r": {"old": 8, "new": 16, "diff": 8}}

    changes = ("-S", "lora.r=8", "-S", "run.folds=[0,1]", "-S", "run.parallel=2")
    result = run(*DVC, "exp", "run", *changes, cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {"train_full@1-0.001", "prune_runs", *AFTER_TRAINING}
    assert trained(result.stdout) == {"train_full@1-0.001", "train_lora@1-0.01"}, "one beside the other"
    for cell in ("train_lora@0-0.01", "train_lora@1-0.01", "baselines@1"):
        assert f"Stage '{cell}' is cached - skipping run" in result.stdout
    assert list(read(repro / "data/selection.json")["lora"]["runs"]) == ["0-0.01", "1-0.01"]

    result = run(*DVC, "exp", "run", "-S", "run.folds=[0]", "-S", "run.parallel=auto", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert not {name for name in ran(result.stdout) if name.startswith("train")}
    after = yaml.safe_load((repro / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    for stages in (lock, after):  # The page shows what the trainings took.
        stages["report"]["outs"] = [out for out in stages["report"]["outs"] if out["path"] != "plots/report.html"]
    assert {name: after[name] for name in lock} == lock, "the results of one fold, as they were"
    assert status(repro) == set()


def test_a_rate_is_a_number_however_dvc_writes_it(repro):
    result = run(*DVC, "exp", "run", "-S", "full.learning_rates=[3e-5,0.001]", "select", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {"train_full@0-3e-05", "prune_runs", "select"}, "0.001 is trained already"
    trials = read(repro / "data/selection.json")["full"]["trials"]
    assert [trial["learning_rate"] for trial in trials] == [3e-5, 0.001]


@pytest.fixture(scope="session")
def with_experiment(clone, build_once) -> Path:
    """A copy of the clone in which a temporary experiment has ended; not to be changed."""

    def build(folder: Path) -> None:
        root = copy_clone(clone, folder)
        result = run(*DVC, "exp", "run", "--temp", "-S", "lora.r=4", "-n", "r4", cwd=root)
        assert result.returncode == 0, result.stderr

    return build_once("experiment", build) / "a clone"


def test_a_temporary_experiment_works(with_experiment):
    diff = run(*DVC, "params", "diff", "--json", "HEAD", "r4", cwd=with_experiment)
    assert json.loads(diff.stdout)["params.yaml"]["lora.r"]["new"] == 4


def test_a_sweep_shows_each_experiment_by_its_validation_score(with_experiment, tmp_path):
    repro = copy_clone(with_experiment, tmp_path)
    result = run("python", "-m", "stages.sweep", "lora.r", cwd=repro)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(repro / "plots/sweeps/lora.r.csv")
    assert {4, 8} <= set(table["lora.r"]), "the commit and the temporary experiment"
    assert table["lora change"][0] == 0, "the first value is the reference"
    assert not [column for column in table if "test" in column]
    assert "Test scores are not shown" in result.stdout
    assert (repro / "plots/sweeps/lora.r.png").stat().st_size > 10_000
    assert "sweeps" not in run("git", "status", "--porcelain", cwd=repro).stdout


def test_a_sweep_shows_test_scores_on_request(repro):
    result = run("python", "-m", "stages.sweep", "split.train_fraction", "--test-scores", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert "lora test F1" in result.stdout


def test_a_sweep_of_an_unknown_parameter_is_one_line(repro):
    result = run("python", "-m", "stages.sweep", "lora.rank", cwd=repro)
    assert result.returncode == 1
    assert result.stderr == "error: lora.rank: no finished experiment has this parameter; see `dvc exp show`\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_edit_in_the_folder_of_the_base_model_is_noticed(repro):
    before = contents(repro / "data/base_model")
    config = repro / "data/tiny-model/config.json"
    text = config.read_text(encoding="utf-8")
    for edited in (text + "\n", text):
        config.write_text(edited, encoding="utf-8")
        result = run(*DVC, "repro", "base_model", cwd=repro)
        assert result.returncode == 0, result.stderr
        assert ran(result.stdout) == {"base_model"}
        assert contents(repro / "data/base_model")["config.json"] == edited.encode()
    assert contents(repro / "data/base_model") == before
    assert ran(run(*DVC, "repro", cwd=repro).stdout) == set()


def test_a_model_of_the_hub_and_a_corpus_take_one_command(repro, tmp_path):
    before = contents(repro / "data/base_model")
    params = (repro / "params.yaml").read_text(encoding="utf-8")
    online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": "", "NO_PROXY": "*", **PATIENCE}
    switch = ["exp", "run", "-S", f"base_model.hub_id={REPOSITORY}"]
    corpus = ["-S", 'data.source="data/tiny/SNS/04. IT기기"']
    with serving(contents(repro / "data/tiny-model")) as hub:
        online["HF_ENDPOINT"] = hub.url
        result = run(*DVC, *switch, "-S", "base_model.revision=main", "base_model", cwd=repro, **online)
        assert result.returncode != 0
        assert [line for line in result.stderr.splitlines() if line.startswith("error:") and COMMIT in line]
        assert contents(repro / "data/base_model") == before
        revision = ["-S", f"base_model.revision={COMMIT}"]
        result = run(*DVC, *switch, *revision, *corpus, "base_model", "ingest", cwd=repro, **online)
        assert result.returncode == 0, result.stderr
    # The hub is gone, and is not missed.
    assert json.loads(contents(repro / "data/base_model")["base_model.json"])["revision"] == COMMIT
    result = run(*DVC, "repro", "base_model", "ingest", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == set()
    (repro / "params.yaml").write_text(params, encoding="utf-8")
    result = run(*DVC, "repro", cwd=repro)
    assert result.returncode == 0, result.stderr
    assert set(ran(result.stdout)) <= {"ingest", "base_model"}
    assert contents(repro / "data/base_model") == before


def test_mistakes_cost_one_line(repro):
    params = repro / "params.yaml"
    before, figures = params.read_text(encoding="utf-8"), (repro / "metrics/compare.json").read_bytes()
    try:
        params.write_text(before.replace("epochs: 1", "epochs: one\n  epoch: 1"), encoding="utf-8")
        result = run(*DVC, "repro", cwd=repro)
        assert result.returncode != 0
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "train.epochs is 'one'" in errors[0]
        assert "train.epoch is not a known key" in errors[0]
        assert "Traceback" not in result.stderr
    finally:
        params.write_text(before, encoding="utf-8")
    assert (repro / "metrics/compare.json").read_bytes() == figures


def test_plots_hold_both_methods_on_one_axis(repro):
    shown = run(*DVC, "plots", "show", "--json", cwd=repro)
    assert shown.returncode == 0, shown.stderr
    plots = json.loads(shown.stdout)["data"]
    for title in ("Training loss", "Validation loss", "Validation macro-F1"):
        content = plots[title][0]["content"]
        assert len({row["filename"] for row in content["data"]["values"]}) == 2
        assert content["encoding"]["color"]["field"] == "method"
    assert {path for path in plots if path.endswith(".png")} == {f"plots/{name}.png" for name in TRACKED_PICTURES}
    for method in ("full", "lora"):
        content = plots[f"plots/confusion_{method}.json"][0]["content"]
        assert sum(row["count"] for row in content["data"]["values"]) == 36


@pytest.mark.parametrize("command", [("show",), ("diff", "HEAD", "r4")], ids=["show", "diff"])
def test_plots_draw_in_a_browser_without_a_network(with_experiment, tmp_path, command):
    result = run(*DVC, "plots", *command, "-o", str(tmp_path / "out"), cwd=with_experiment)
    assert result.returncode == 0, result.stderr
    page = tmp_path / "out/index.html"
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", text)
    seen, revisions = visit(page, tmp_path), len(command) - 1 or 1
    assert seen.console == []
    assert seen.requests == []
    charts = seen.charts()
    assert len(charts) == 6 == text.count("vegaEmbed('#")
    curves, confusion = ([chart for chart in charts if word in chart] for word in ("by epoch", "부정"))
    assert (len(curves), len(confusion)) == (3, 2)
    assert sum("by learning rate" in chart for chart in charts) == 1
    for chart in curves:
        assert chart.count('aria-roledescription="line mark"') == 2 * revisions
        assert chart.count('aria-roledescription="point"') == 2 * revisions
    for chart in confusion:
        assert chart.count('aria-roledescription="rect mark"') == 9 * revisions
    images = re.findall(r'<img src="(static/[^"]+)"', seen.dom)
    assert len(images) == len(TRACKED_PICTURES) * revisions
    assert all((tmp_path / "out" / image).is_file() for image in images)
