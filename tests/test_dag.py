"""dvc.yaml against the real imports, params.yaml and the files of the project."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from tests.support.project import ROOT, run

DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES = sorted(DAG["stages"])
# What a stage is made of: a training stage is one for each seed.
BODIES = {name: stage.get("do", stage) for name, stage in DAG["stages"].items()}
TOOLS = {"predict", "export"}  # for people, after the DAG: they take arguments and read no params.yaml
LEAVES = {f"{section}.{key}" for section, keys in PARAMS.items() for key in keys}


def imported(path: Path, seen: set[str] | None = None) -> set[str]:
    """Every module of ours that a script imports, at any depth and anywhere in its code, and the script itself."""
    seen = set() if seen is None else seen
    seen.add(path.relative_to(ROOT).as_posix())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide from this test"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            module = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("stages") and module.is_file() and module.relative_to(ROOT).as_posix() not in seen:
                imported(module, seen)
    return seen


def accessed(path: Path) -> set[str]:
    """Parameters that a stage reads: `params.section.key`, and whole sections that it hands on or binds."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    found = set()
    for node in nodes:
        parts: list[str] = []
        if id(node) in inner:
            continue  # the beginning of a longer path
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_params":
            parts.insert(0, "params")
        elif isinstance(node, ast.Name):
            parts.insert(0, node.id)
        if len(parts) > 1 and parts[0] == "params" and parts[1] in PARAMS:
            found.add(".".join(parts[1:3]))
    return found


def paths(entries: list) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


# A training stage is told its own seed, and how often it saves changes no byte.
UNLISTED = {"train.seeds", "train.save_every"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_exactly_the_modules_that_it_imports(name):
    listed = {path for path in BODIES[name]["deps"] if path.endswith(".py")}
    assert listed == imported(ROOT / f"stages/{name}.py")
    trains = name.startswith("train_")
    command = f"${{train.launcher}} -m stages.{name} ${{item}}" if trains else f"python -m stages.{name}"
    assert BODIES[name]["cmd"] == command


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_parameters_that_it_reads(name):
    listed = set(paths(BODIES[name].get("params", [])))
    if listed == {"params.yaml"}:
        return  # all of it
    assert listed <= LEAVES
    read = accessed(ROOT / f"stages/{name}.py")
    expanded = {leaf for leaf in LEAVES if leaf in read or leaf.partition(".")[0] in read}
    if name.startswith("train_"):
        expanded -= UNLISTED
    assert listed == expanded


def test_every_parameter_is_read_by_a_stage():
    listed = {key for body in BODIES.values() for key in paths(body.get("params", []))}
    assert listed == {*LEAVES, "params.yaml"} - {"train.save_every"}


def test_every_script_is_a_stage_and_every_artifact_is_made_by_one():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {*STAGES, *TOOLS}
    stages = BODIES.values()
    made = {path for stage in stages for path in paths(stage.get("outs", []) + stage.get("metrics", []))}
    made |= {path.removesuffix("/${item}") for path in made}
    used = {path for stage in stages for path in stage["deps"] if not path.startswith("stages/") and "$" not in path}
    assert used <= made
    assert {artifact["path"] for artifact in DAG["artifacts"].values()} <= made
    for plot in DAG["plots"]:
        if isinstance(plot, str):
            assert plot in made  # a picture
            continue
        ((path, properties),) = plot.items()
        assert set(properties["y"] if isinstance(properties["y"], dict) else [path]) <= made
        assert (ROOT / ".dvc/plots" / f"{properties['template']}.json").is_file()


@pytest.mark.parametrize("name", sorted(TOOLS))
def test_a_tool_needs_nothing_but_its_model(name):
    """What was trained is used as it was trained, whatever params.yaml and the splits hold by now."""
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in imported(ROOT / f"stages/{name}.py")]
    assert accessed(ROOT / f"stages/{name}.py") == set()
    assert all("load_params(" not in text or "def load_params(" in text for text in texts)


def test_training_has_cached_outs_alone():
    """One out without a cache would turn the run cache off."""
    for name in ("train_full", "train_lora"):
        assert all(isinstance(out, str) for out in BODIES[name]["outs"])
        assert "metrics" not in BODIES[name]
        assert BODIES[name]["outs"][0].endswith("/${item}"), "another seed would train all of them again"


def test_lora_parameters_touch_lora_alone():
    readers = {name for name in STAGES if any(key.startswith("lora.") for key in paths(BODIES[name].get("params", [])))}
    assert readers == {"train_lora"}


def test_no_stage_runs_unless_something_changed():
    assert not any(stage.get("always_changed") for stage in BODIES.values())
    assert all(stage["deps"] for stage in BODIES.values())


def test_one_stage_knows_the_hub_and_none_runs_a_models_code():
    assert [name for name in STAGES if "stages/common/hub.py" in BODIES[name]["deps"]] == ["base_model"]
    for path in (ROOT / "stages").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("transformers.Auto"):
                assert "local_files_only" in {keyword.arg for keyword in call.keywords}


def test_the_data_stages_do_without_torch():
    names = [name for name in STAGES if "stages/common/model.py" not in BODIES[name]["deps"]]
    assert {"base_model", "baselines", "compare", "report"} <= set(names)
    loaded = "{'torch', 'transformers'} & {*sys.modules}"
    code = f"import sys, {', '.join(f'stages.{name}' for name in names)}; sys.exit(bool({loaded}))"
    assert run("python", "-c", code, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / ".dvc/plots").glob("*.json")), ids=lambda path: path.name)
def test_plot_templates_are_json_with_a_place_for_the_data(path):
    assert json.loads(path.read_text(encoding="utf-8"))["data"] == {"values": "<DVC_METRIC_DATA>"}


def test_dvc_needs_no_network():
    config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
    assert "analytics = false" in config
    assert "check_update = false" in config
    assert "remote" not in config
