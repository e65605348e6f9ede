"""dvc.yaml agrees with the imports, with params.yaml and with the files of the project."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stages.common.runtime.paths import TIMINGS
from tests.support.project import ROOT, run

DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
STAGES = DAG["stages"]
TOOLS = {"plan", "predict", "export", "sweep", "demo", "timings"}  # Scripts for people, which DVC does not run.
COMMON = "stages/common/"
RUNTIME = "runtime"  # The room of what shapes no bytes: no stage depends on it.
# A room, which is a folder or a single module, imports only from rooms that stand before it.
ROOMS = (
    *("labels", RUNTIME, "artifacts", "spreadsheet", "cleaning", "corpus", "pretrained", "modeling"),
    *("training", "evaluation", "reporting", "serving"),
)
# Parameters that a stage reads and that change none of its bytes.
NOT_TRACKED = {"run.launcher", "run.parallel", "run.save_interval_seconds"}


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Return our modules that a script imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: this test does not see relative imports"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        modules = [ROOT / (name.replace(".", "/") + ".py") for name in names if name.startswith("stages")]
        found |= {module_of(module) for module in modules if module.is_file()}
    return found


def room(module: str) -> str:
    return module.removeprefix(COMMON).partition("/")[0].removesuffix(".py")


def all_imports(path: Path, through: Callable[[str], bool] = lambda module: True) -> set[str]:
    """Return our modules that a script imports, directly or through modules for which `through` returns true."""
    seen: set[str] = set()
    pending = imports(path)
    while pending:
        module = pending.pop()
        seen.add(module)
        pending |= imports(ROOT / module) - seen if through(module) else set()
    return seen


def rooms(modules: set[str]) -> set[str]:
    return {room(module) for module in modules if module.startswith(COMMON)}


def accessed(path: Path) -> set[str]:
    """Return the parameters that a script reads: `params.section.key`, and whole sections that it passes on."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    found = set()
    for node in nodes:
        parts: list[str] = []
        if id(node) in inner:
            continue  # This is the beginning of a longer path.
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


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_its_script_and_on_the_rooms_that_shape_its_bytes(name):
    code = {dep for dep in STAGES[name]["deps"] if dep.startswith("stages/")}
    imported = rooms(all_imports(ROOT / f"stages/{name}.py", lambda module: room(module) != RUNTIME)) - {RUNTIME}
    files = {COMMON + (each if (ROOT / COMMON / each).is_dir() else f"{each}.py") for each in imported}
    assert code == {f"stages/{name}.py", *files}


def test_what_shapes_no_bytes_writes_no_artifact():
    """No stage depends on the runtime room, so no module of it may write an output of a stage."""
    modules = sorted((ROOT / COMMON / RUNTIME).glob("*.py"))
    writers = [
        path.stem for path in modules if re.search(r"\.write_(text|bytes)|open\([^)]*[\"'][wax]", path.read_text())
    ]
    assert writers == ["timings"]  # Neither git nor DVC tracks data/timings.
    outs = [path for stage in STAGES.values() for path in paths(stage.get("outs", []) + stage.get("metrics", []))]
    assert not [path for path in outs if path.startswith(TIMINGS.as_posix())]


@pytest.mark.parametrize("name", STAGES)
def test_the_command_of_a_stage_is_its_script(name):
    """DVC quotes only the values of ${item}, so no other value of params.yaml may reach the shell."""
    assert STAGES[name]["cmd"] == f"python -m stages.{name}{' ${item}' if 'matrix' in STAGES[name] else ''}"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_parameters_that_it_reads(name):
    listed = set(paths(STAGES[name].get("params", [])))
    if listed == {"params.yaml"}:
        return  # The stage depends on all parameters.
    read = accessed(ROOT / f"stages/{name}.py")
    if name.startswith("train_"):
        # The learning rate of a cell is in its command, so that another one trains nothing again.
        own = {f"{name.removeprefix('train_')}.{key}" for key in PARAMS[name.removeprefix("train_")]}
        read = {key for key in read if key != "lora"} | {key for key in own if "learning_rates" not in key}
        read |= accessed(ROOT / "stages/common/training/train_stage.py")
    read = {key for key in read if key not in NOT_TRACKED and key.partition(".")[0] not in listed}
    assert {key for key in listed if "." in key} == read


def test_every_section_is_listed_by_a_stage():
    listed = {key.partition(".")[0] for stage in STAGES.values() for key in paths(stage.get("params", []))}
    assert listed == {*PARAMS, "params"}


def test_no_stage_runs_again_because_of_how_it_is_run():
    listed = {key for stage in STAGES.values() for key in paths(stage.get("params", []))}
    assert not listed & {"run", *NOT_TRACKED}


def test_every_script_is_a_stage_or_a_tool():
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {*STAGES, *TOOLS}


def test_every_artifact_is_made_by_a_stage():
    made = {path for stage in STAGES.values() for path in paths(stage.get("outs", []) + stage.get("metrics", []))}
    made |= {path.partition("/${item")[0].removesuffix(f"/{method}") for path in made for method in ("full", "lora")}
    used = {path for stage in STAGES.values() for path in stage["deps"] if not path.startswith(("stages/", "$"))}
    assert {path.replace("/${item.fold}.arrow", "") for path in used} <= made
    assert {artifact["path"] for artifact in DAG["artifacts"].values()} <= made
    for plot in DAG["plots"]:
        if isinstance(plot, str):
            assert plot in made  # This plot is a picture.
            continue
        ((path, properties),) = plot.items()
        assert set(properties["y"] if isinstance(properties["y"], dict) else [path]) <= made
        assert (ROOT / ".dvc/plots" / f"{properties['template']}.json").is_file()


def test_a_room_imports_only_from_rooms_before_it():
    found = {path.stem for path in (ROOT / COMMON).iterdir() if path.name[0] != "_"}
    assert found == set(ROOMS)
    for path in (ROOT / COMMON).rglob("*.py"):
        own = room(module_of(path))
        for other in rooms(imports(path)):
            assert ROOMS.index(other) <= ROOMS.index(own), f"{module_of(path)} imports from {other}"


def test_no_module_imports_itself_in_a_circle():
    for path in (ROOT / COMMON).rglob("*.py"):
        assert module_of(path) not in all_imports(path)


def test_no_room_imports_a_stage():
    for path in (ROOT / COMMON).rglob("*.py"):
        assert all(module.startswith(COMMON) for module in imports(path))


@pytest.mark.parametrize("name", sorted(TOOLS - {"plan"}))
def test_a_tool_does_not_read_params_yaml(name):
    """A model is used as it was trained, even if params.yaml has changed since."""
    scripts = [ROOT / f"stages/{name}.py", *(ROOT / module for module in all_imports(ROOT / f"stages/{name}.py"))]
    calls = [node for path in scripts for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    assert not [call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) == "load_params"]


@pytest.mark.parametrize("name", ["train_full", "train_lora"])
def test_training_has_cached_outs_alone(name):
    """A single output without cache would turn DVC's run cache off."""
    assert all(isinstance(out, str) for out in STAGES[name]["outs"])
    assert "metrics" not in STAGES[name]


def test_lora_parameters_are_read_by_train_lora_alone():
    readers = [name for name in STAGES if "lora.r" in paths(STAGES[name].get("params", []))]
    assert readers == ["train_lora"]


def test_no_stage_is_always_changed():
    assert not any(stage.get("always_changed") for stage in STAGES.values())


def test_one_stage_alone_knows_the_hub():
    users = [name for name in STAGES if "stages/common/pretrained/hub.py" in all_imports(ROOT / f"stages/{name}.py")]
    assert users == ["base_model"]


LOADERS = ("AutoConfig", "AutoModelForTokenClassification", "AutoModelForSequenceClassification", "AutoTokenizer")


def test_no_call_runs_a_models_code_or_asks_the_hub():
    nodes = [node for path in (ROOT / "stages").rglob("*.py") for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    loaders = tuple(f"{name}.from_pretrained" for name in LOADERS)
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(loaders)]
    assert calls
    for call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("trust_remote_code") == "False", ast.unparse(call)
        assert keywords.get("local_files_only") == "True", ast.unparse(call)


IMPORT_STAGES = """
import importlib, sys

for name in sys.argv[1:]:
    importlib.import_module(f"stages.{name}")
    heavy = {"torch", "transformers", "sklearn", "scipy", "matplotlib", "pandas", "datasets"} & {*sys.modules}
    assert not heavy, (name, heavy)
"""


def test_parameters_are_checked_before_anything_heavy_is_imported():
    result = run("python", "-c", IMPORT_STAGES, *STAGES, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".dvc/plots").glob("*.json")), ids=lambda path: path.name)
def test_plot_templates_are_json_with_a_place_for_the_data(path):
    assert json.loads(path.read_text(encoding="utf-8"))["data"] == {"values": "<DVC_METRIC_DATA>"}


def test_dvc_needs_no_network():
    config = (ROOT / ".dvc/config").read_text(encoding="utf-8")
    assert "analytics = false" in config
    assert "check_update = false" in config
