"""Real DVC in a clone: what reruns, what is restored, what a mistake costs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.browser import visit
from tests.support.corpus import records, write_corpus
from tests.support.hub import COMMIT, REPOSITORY, serving
from tests.support.project import copy_project, run

DVC = ("python", "-m", "dvc")


@pytest.fixture(scope="module")
def clone(tmp_path_factory, tiny_base_model) -> Path:
    """A clone with tiny data and a tiny base model of its own, committed."""
    root = copy_project(tmp_path_factory.mktemp("a clone"))
    write_corpus(root / "data/tiny", records())
    shutil.copytree(tiny_base_model, root / "data/tiny-model")
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["data"]["source"], params["base_model"]["name"] = "data/tiny", "data/tiny-model"
    params["tokenize"]["max_length"], params["train"]["epochs"] = 32, 1
    (root / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.email", "test@example.org"],
        ["git", "config", "user.name", "test"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "tiny"],
    ):
        assert run(*command, cwd=root).returncode == 0
    result = run(*DVC, "repro", cwd=root)
    assert result.returncode == 0, result.stderr
    for command in (["git", "add", "-A"], ["git", "commit", "-qm", "results"]):
        assert run(*command, cwd=root).returncode == 0
    return root


def ran(text: str) -> list[str]:
    return [line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")]


def test_everything_is_made_and_a_second_run_does_nothing(clone):
    figures = json.loads((clone / "metrics/compare.json").read_text(encoding="utf-8"))
    assert set(figures) == {"full", "lora", "tfidf", "majority", "difference", "rows", "selected_on_test_rows"}
    assert figures["full"]["trainable_parameters"] == figures["full"]["total_parameters"]
    assert figures["lora"]["trainable_parameters"] == 2 * 2 * 2 * 8 * 8 + 27
    assert json.loads((clone / "metrics/filter.json").read_text(encoding="utf-8"))["rows_kept"] == 180
    result = run(*DVC, "repro", cwd=clone)
    assert result.returncode == 0
    assert ran(result.stdout) == []
    assert run("git", "status", "--porcelain", cwd=clone).stdout == ""
    results = set(run("git", "diff", "--name-only", "HEAD~1", cwd=clone).stdout.split())
    stages = yaml.safe_load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for stage in stages for out in stage.get("outs", []) + stage.get("metrics", [])]
    for_git = {path for out in outs if isinstance(out, dict) for path, options in out.items() if "cache" in options}
    assert results <= {"dvc.lock", *for_git}, "an artifact that git does not ignore"


def test_another_place_and_environment_leave_the_same_hashes(clone, tmp_path):
    """Under another path, time zone, locale, hash seed and order of the source folder."""
    other = copy_project(tmp_path / "둘째 clone")
    for path in sorted((clone / "data/tiny").rglob("*.json"), reverse=True):
        target = other / path.relative_to(clone)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copytree(clone / "data/tiny-model", other / "data/tiny-model")
    shutil.copyfile(clone / "params.yaml", other / "params.yaml")
    (other / "dvc.lock").unlink(missing_ok=True)
    environment = {"TZ": "America/New_York", "LC_ALL": "C", "PYTHONHASHSEED": "77"}
    for command in (("git", "init", "-q"), ("git", "add", "-A"), (*DVC, "repro")):
        result = run(*command, cwd=other, **environment)
        assert result.returncode == 0, result.stderr
    locks = [yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"] for root in (clone, other)]
    outs = [{out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]} for lock in locks]
    # It names the commit.
    assert [lock.pop("plots/report.html") for lock in outs]
    assert outs[0] == outs[1]
    assert len(outs[0]) > 20


def test_a_rank_reruns_lora_alone_and_the_way_back_trains_nothing(clone):
    result = run(*DVC, "exp", "run", "-S", "lora.r=16", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["train_lora@42", "evaluate", "compare", "report"]
    diff = run(*DVC, "metrics", "diff", "--json", cwd=clone)
    changed = json.loads(diff.stdout)["metrics/compare.json"]
    assert changed["lora.trainable_parameters"]["new"] == 2 * 2 * 16 * 2 * 8 + 27
    result = run(*DVC, "exp", "run", "-S", "lora.r=8", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["compare", "report"]
    assert "Stage 'train_lora@42' is cached" in result.stdout


def test_another_seed_trains_itself_alone(clone):
    run(*DVC, "repro", cwd=clone)
    before = (clone / "dvc.lock").read_bytes()
    result = run(*DVC, "exp", "run", "-S", "train.seeds=[42,43]", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["train_full@43", "train_lora@43", "evaluate", "compare", "report"]
    figures = json.loads((clone / "metrics/compare.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in figures["lora"]["runs"]["each"]] == [42, 43]
    result = run(*DVC, "exp", "run", "-S", "train.seeds=[42]", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert not [name for name in ran(result.stdout) if name.startswith("train")]
    stages = [yaml.safe_load(lock)["stages"] for lock in (before, (clone / "dvc.lock").read_bytes())]
    assert {name: stages[1][name] for name in stages[0]} == stages[0], "the figures of one seed, as they were"


def test_a_rate_is_written_as_a_number_is_read(clone):
    result = run(*DVC, "exp", "run", "-S", "full.learning_rate=3e-5", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["train_full@42", "evaluate", "compare", "report"]
    assert json.loads((clone / "plots/full.json").read_text(encoding="utf-8"))[0]["learning_rate"] == 3e-5


def test_a_temporary_experiment_works(clone):
    result = run(*DVC, "exp", "run", "--temp", "-S", "lora.r=4", "-n", "r4", cwd=clone)
    assert result.returncode == 0, result.stderr
    diff = run(*DVC, "metrics", "diff", "--json", "HEAD", "r4", cwd=clone)
    changed = json.loads(diff.stdout)["metrics/compare.json"]
    assert changed["lora.trainable_parameters"]["new"] == 2 * 2 * 4 * 2 * 8 + 27


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_edit_in_the_folder_of_the_base_model_is_noticed(clone):
    run(*DVC, "repro", cwd=clone)
    before = contents(clone / "data/base_model")
    config = clone / "data/tiny-model/config.json"
    text = config.read_text(encoding="utf-8")
    for edited in (text + "\n", text):
        config.write_text(edited, encoding="utf-8")
        result = run(*DVC, "repro", "base_model", cwd=clone)
        assert result.returncode == 0, result.stderr
        assert ran(result.stdout) == ["base_model_source", "base_model"]
        assert contents(clone / "data/base_model")["config.json"] == edited.encode()
    assert contents(clone / "data/base_model") == before
    assert ran(run(*DVC, "repro", cwd=clone).stdout) == []


def test_a_model_of_the_hub_and_a_corpus_take_one_command(clone, tmp_path):
    run(*DVC, "repro", cwd=clone)
    before = contents(clone / "data/base_model")
    params = (clone / "params.yaml").read_text(encoding="utf-8")
    online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": "", "NO_PROXY": "*"}
    switch = ["exp", "run", "-S", f"base_model.name={REPOSITORY}"]
    corpus = ["-S", 'data.source="data/tiny/SNS/04. IT기기"']
    with serving(contents(clone / "data/tiny-model")) as hub:
        online["HF_ENDPOINT"] = hub.url
        result = run(*DVC, *switch, "-S", "base_model.revision=main", "base_model", cwd=clone, **online)
        assert result.returncode != 0
        assert [line for line in result.stderr.splitlines() if line.startswith("error:") and COMMIT in line]
        assert contents(clone / "data/base_model") == before
        revision = ["-S", f"base_model.revision={COMMIT}"]
        result = run(*DVC, *switch, *revision, *corpus, "base_model", "ingest", cwd=clone, **online)
        assert result.returncode == 0, result.stderr
    # The hub is gone, and is not missed.
    assert json.loads(contents(clone / "data/base_model")["base_model.json"])["revision"] == COMMIT
    result = run(*DVC, "repro", "base_model", "ingest", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == []
    (clone / "params.yaml").write_text(params, encoding="utf-8")
    result = run(*DVC, "repro", cwd=clone)
    assert result.returncode == 0, result.stderr
    assert set(ran(result.stdout)) <= {"ingest", "base_model_source", "base_model"}
    assert contents(clone / "data/base_model") == before


def test_mistakes_cost_one_line(clone):
    params = clone / "params.yaml"
    before, figures = params.read_text(encoding="utf-8"), (clone / "metrics/compare.json").read_bytes()
    try:
        params.write_text(before.replace("epochs: 1", "epochs: one\n  epoch: 1"), encoding="utf-8")
        result = run(*DVC, "repro", cwd=clone)
        assert result.returncode != 0
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert "train.epochs is 'one'" in errors[0]
        assert "train.epoch is not a known key" in errors[0]
        assert "Traceback" not in result.stderr
    finally:
        params.write_text(before, encoding="utf-8")
    assert (clone / "metrics/compare.json").read_bytes() == figures


def test_plots_hold_both_methods_on_one_axis(clone):
    run(*DVC, "repro", cwd=clone)
    shown = run(*DVC, "plots", "show", "--json", cwd=clone)
    assert shown.returncode == 0, shown.stderr
    plots = json.loads(shown.stdout)["data"]
    for title in ("Training loss", "Validation loss", "Validation macro-F1"):
        content = plots[title][0]["content"]
        assert len({row["filename"] for row in content["data"]["values"]}) == 2
        assert content["encoding"]["color"]["field"] == "method"
    assert {"plots/f1.png", "plots/curves.png", "plots/confusion.png", "plots/reliability.png"} <= set(plots)
    for method in ("full", "lora"):
        content = plots[f"plots/confusion_{method}.json"][0]["content"]
        assert len(content["data"]["values"]) == 36


@pytest.mark.parametrize("command", [("show",), ("diff", "HEAD", "r4")], ids=["show", "diff"])
def test_plots_draw_in_a_browser_without_a_network(clone, tmp_path, command):
    result = run(*DVC, "plots", *command, "-o", str(tmp_path / "out"), cwd=clone)
    assert result.returncode == 0, result.stderr
    page = tmp_path / "out/index.html"
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", text)
    seen, revisions = visit(page, tmp_path), len(command) - 1 or 1
    assert seen.console == []
    assert seen.requests == []
    charts = seen.charts()
    assert len(charts) == 5 == text.count("vegaEmbed('#")
    for chart in charts[:3]:
        assert chart.count('aria-roledescription="line mark"') == 2 * revisions
        assert chart.count('aria-roledescription="point"') == 2 * revisions
    for chart in charts[3:]:
        assert "부정" in chart
        assert chart.count('aria-roledescription="rect mark"') == 9 * revisions
    images = re.findall(r'<img src="(static/[^"]+)"', seen.dom)
    assert len(images) == 5 * revisions
    assert all((tmp_path / "out" / image).is_file() for image in images)
