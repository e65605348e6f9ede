"""The READMEs agree with the code: parameters, stages, rooms and commands."""

import importlib.util
import itertools
import re
from pathlib import Path

import networkx
import pytest
import yaml

from tests.support import parameter_table
from tests.support.project import ROOT

DAG = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
READMES = [ROOT / name for name in ("README.md", "stages/README.md", "tests/benchmarks/README.md")]
READMES += sorted((ROOT / "data").glob("*/README.md"))
STAGES_README = (ROOT / "stages/README.md").read_text(encoding="utf-8")
GENERATE = "run `python -m tests.support.parameter_table`"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(readme: Path) -> str:
    """Return the text of all sh blocks."""
    return "\n".join(re.findall(r"```sh\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL))


def paths(stage: dict, *keys: str) -> list[str]:
    """Return the paths of entries, which may have options such as `path: {cache: false}`."""
    entries = itertools.chain.from_iterable(stage.get(key, []) for key in keys)
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def dependencies() -> set[tuple[str, str]]:
    """Return pairs of stages, of which the second depends directly on an output of the first."""
    graph = networkx.DiGraph()
    for (maker, made), (user, used) in itertools.product(DAG.items(), DAG.items()):
        for out, dep in itertools.product(paths(made, "outs", "metrics"), paths(used, "deps")):
            if out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/"):
                graph.add_edge(maker, user)
    return set(networkx.transitive_reduction(graph).edges)


def drawn(mermaid: str) -> set[tuple[str, str]]:
    """Return the arrows between stages in a flowchart."""
    edges: set[tuple[str, str]] = set()
    for line in mermaid.splitlines():
        groups = [[node.split("[")[0].strip() for node in group.split("&")] for group in line.split("-->")]
        for sources, targets in itertools.pairwise(groups):
            edges |= {(a, b) for a, b in itertools.product(sources, targets) if {a, b} <= DAG.keys()}
    return edges


def test_the_comments_of_params_yaml_are_the_descriptions_of_the_fields():
    text = parameter_table.PARAMS.read_text(encoding="utf-8")
    assert text == parameter_table.with_comments(text), GENERATE


def test_the_table_of_parameters_has_the_keys_of_params_yaml_and_the_descriptions_of_the_fields():
    """The values in the table are the shipped ones; a user may have changed those in params.yaml."""
    shipped = parameter_table.shipped()
    assert parameter_table.TABLE.search(STAGES_README)[0] == parameter_table.table(shipped), GENERATE
    assert {name: [*section] for name, section in yaml.safe_load(shipped).items()} == {
        name: [*section] for name, section in PARAMS.items()
    }, GENERATE


def test_the_drawing_shows_the_dependencies_between_stages():
    (mermaid,) = re.findall(r"```mermaid\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert drawn(mermaid) == dependencies()


@pytest.mark.parametrize("name", DAG)
def test_the_table_of_stages_names_what_a_stage_writes(name):
    (row,) = re.findall(rf"^\| `{name}` \|.*", STAGES_README, re.MULTILINE)
    written = [
        path.replace("${item.fold}", "FOLD").replace("${item.learning_rate}", "LEARNING_RATE")
        for path in paths(DAG[name], "outs", "metrics")
    ]
    assert sorted(re.findall(r"`([^`]+)`", row.rpartition("|")[0].rpartition("|")[2])) == sorted(written)


def test_the_table_of_rooms_names_every_room():
    rooms = {path.stem for path in (ROOT / "stages/common").iterdir() if path.name[0] != "_"}
    section = STAGES_README.partition("\n## Rooms\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == rooms


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_module_in_a_command_exists(readme):
    modules = re.findall(r" -m (stages[\w.]+|tests[\w.]+)", commands(readme))
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_option_in_a_command_exists(readme):
    for module, arguments in re.findall(r"python -m ((?:stages|tests)[\w.]+)(.*)", commands(readme)):
        script = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert [option for option in re.findall(r"--[\w-]+", arguments) if f'"{option}"' not in script] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_parameter_that_a_command_sets_exists(readme):
    keys = re.findall(r"-S '?(\w+)\.(\w+)=", readme.read_text(encoding="utf-8"))
    assert [f"{section}.{key}" for section, key in keys if key not in PARAMS.get(section, {})] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_parameter_in_the_text_exists(readme):
    sections = "|".join(PARAMS)
    keys = re.findall(rf"`({sections})\.(?!py\b|yaml\b)(\w+)[`:]", readme.read_text(encoding="utf-8"))
    assert [f"{section}.{key}" for section, key in keys if key not in PARAMS[section]] == []


@pytest.mark.parametrize("readme", READMES, ids=name_of)
def test_every_link_to_a_file_leads_somewhere(readme):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", readme.read_text(encoding="utf-8")):
        path = readme.parent / target if target else readme
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, anchor
