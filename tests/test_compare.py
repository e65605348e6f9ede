"""Two seeds and hostile texts from the corpus to the report, and the notebook's protocol."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.core.labels import LABELS
from tests.support.browser import visit
from tests.support.corpus import records, write_corpus
from tests.support.project import prepare, stage_runner

HOSTILE = [
    "<script>alert(1)</script>",
    '"따옴표"\n줄바꿈, 쉼표',
    "=HYPERLINK(1)",
    "</td><img src=x onerror=alert(2)>",
    "@최고 {{ 7*7 }}",
]
AFTER = ("evaluate", "baselines", "compare", "report")
RESULTS = (
    "metrics/compare.json",
    "metrics/compare.md",
    "metrics/groups.json",
    "plots",
    "data/evaluated",
    "data/models",
)


@pytest.fixture(scope="module")
def project(tiny_base_model, tmp_path_factory):
    """A folder where both methods were trained with two seeds on texts that nobody would want in a page."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = records()
    for number, row in enumerate(rows):
        row["RawText"] = f"{HOSTILE[number % 5]} {row['RawText']}"
        row["Index"] = f"=1+{number}"
        row["MainCategory"] = ["<b>노트북</b>", "이어폰", None, " "][number % 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage = stage_runner()
        stage("base_model", base_model__name=str(tiny_base_model))
        stage("ingest", data__source=str(write_corpus(folder / "raw", rows)))
        changed = {
            "clean__keep": r"\s\S",
            "clean__strip_tags": False,
            "tokenize__max_length": 48,
            "tokenize__max_unk_rate": 1.0,
        }
        for name in ("filter", "clean_and_tokenize", "split"):
            stage(name, **changed)
        for seed in (42, 43):
            stage("train_full", seed, train__seeds=[42, 43], train__epochs=3, full__learning_rate=0.02)
            stage("train_lora", seed, lora__learning_rate=0.05)
        (folder / "data/runs/full/44").mkdir()
        for name in AFTER:
            stage(name, compare__bootstrap_samples=500)
    return folder


@pytest.fixture
def figures(project, monkeypatch):
    monkeypatch.chdir(project)
    return json.loads(Path("metrics/compare.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    paths = [
        path
        for name in RESULTS
        for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def test_a_second_run_gives_the_same_bytes(project, monkeypatch):
    monkeypatch.chdir(project)
    before = contents(project)
    assert {"plots/report.html", "plots/f1.png", "plots/full.json", "data/models/lora/training.json"} <= set(before)
    stage = stage_runner()
    changed = {"split__validation_size": 0.1, "train__seeds": [42, 43], "compare__bootstrap_samples": 500}
    for name in AFTER:
        stage(name, **changed, clean__keep=r"\s\S", clean__strip_tags=False, tokenize__max_length=48)
    assert {name for name, data in contents(project).items() if data != before[name]} <= {"plots/report.html"}


def test_several_seeds_are_means_and_the_best_is_the_model(figures):
    for method in ("full", "lora"):
        runs = figures[method]["runs"]
        assert [run["seed"] for run in runs["each"]] == [42, 43]
        scores = [run["macro_f1"] for run in runs["each"]]
        assert figures[method]["macro_f1"] == runs["mean"]["macro_f1"] == pytest.approx(sum(scores) / 2, abs=1e-4)
        assert runs["sd"]["macro_f1"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=2e-4)
        best = max(runs["each"], key=lambda run: run["validation_macro_f1"])["seed"]
        assert figures[method]["best_seed"] == best
        model = json.loads(Path(f"data/models/{method}/training.json").read_text(encoding="utf-8"))
        assert (model["seed"], model["best_epoch"]) == (best, figures[method]["best_epoch"])
        history = json.loads(Path(f"plots/{method}.json").read_text(encoding="utf-8"))
        assert {"macro_f1", "macro_f1_sd", "macro_f1_42", "macro_f1_43"} <= set(history[0])
        assert not Path(f"data/models/{method}/history.json").exists()
    assert [path.name for path in sorted(Path("data/runs/full").iterdir())] == ["42", "43"], "what is left of old seeds"


def test_every_figure_has_an_interval_and_the_difference_a_verdict(figures):
    for method in ("full", "lora", "tfidf", "majority"):
        interval = figures[method]["interval"]
        for name in ("macro_f1", "accuracy", "loss", "brier", "ece", "macro_precision", "macro_recall"):
            assert interval[name][0] <= interval[name][1]
        assert set(interval["per_class"]) == set(LABELS)
        assert set(interval["scaled"]) == {"loss", "brier", "ece"}
    difference = figures["difference"]
    assert difference["macro_f1"] == pytest.approx(figures["lora"]["macro_f1"] - figures["full"]["macro_f1"], abs=2e-4)
    assert difference["verdict"] in ("better", "worse", "equivalent", "undecided")
    assert 0 < difference["p_permutation"] <= 1
    assert 0 < difference["p_mcnemar"] <= 1
    # A text's words give its class away: the n-grams are right where three epochs of a tiny model are not.
    assert {base["baseline"]: base["verdict"] for base in figures["lora"]["against"]}["tfidf"] == "worse"
    assert figures["lora"]["beats_baselines"] is False
    table = Path("metrics/compare.md").read_text(encoding="utf-8")
    assert "LoRA does not beat the baseline TF-IDF" in table
    times = json.loads(Path("metrics/timings.json").read_text(encoding="utf-8"))
    assert times["full"]["43"]["training"]["seconds"] > 0
    assert times["lora"]["42"]["inference"]["samples_per_second"] > 0


def test_errors_are_those_of_the_models_the_surest_first(figures):
    with Path("plots/errors.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["Index", "text", "label", "full", "lora", "disagree"]
    table = read_table(Path("data/splits/test.arrow"))
    outputs = read_logits(Path("data/evaluated/logits.safetensors"))
    guesses = {
        method: outputs[f"{method}/{figures[method]['best_seed']}/test"].argmax(1).tolist()
        for method in ("full", "lora")
    }
    truth = {
        index: LABELS[label]
        for index, label in zip(table["Index"].to_pylist(), table["labels"].to_pylist(), strict=True)
    }
    wrong = {
        index: (LABELS[full], LABELS[lora])
        for index, full, lora in zip(table["Index"].to_pylist(), guesses["full"], guesses["lora"], strict=True)
        if {LABELS[full], LABELS[lora]} != {truth[index]}
    }
    found = {row["Index"].removeprefix("'"): (row["full"], row["lora"]) for row in rows}
    assert found == wrong
    assert all(row["disagree"] == ("yes" if row["full"] != row["lora"] else "") for row in rows)

    def surest(row: dict[str, str]) -> float:
        return max(float(row[f"{m}_{row[m]}"]) for m in ("full", "lora") if row[m] != row["label"])

    sure = [surest(row) for row in rows]
    assert sure == sorted(sure, reverse=True)
    assert not any(cell.startswith(("=", "@", "+", "-")) for row in rows for cell in row.values())


def test_groups_hold_every_row(figures):
    groups = json.loads(Path("metrics/groups.json").read_text(encoding="utf-8"))
    for kind in ("length", "category"):
        assert sum(group["rows"] for group in groups[kind].values()) == figures["rows"]
    assert set(groups["category"]) == {"<b>노트북</b>", "이어폰", "..."}


class Page(HTMLParser):
    """What of a page is alive, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def test_the_report_holds_everything_and_nothing_alive(figures):
    page = Page(Path("plots/report.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "b", "iframe", "a"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith("data:") for value in links)
    assert len([value for value in links if value.startswith("data:image/png;base64,")]) == 5
    for text in (
        "LoRA",
        "전체 미세조정",
        "<b>노트북</b>",
        "lora.target_modules",
        "split.train.rows",
        "torch",
        "Git revision",
    ):
        assert text in page.text
    assert any(text in page.text for text in ("<script>alert(1)</script>", "onerror=alert(2)"))
    assert "{{ 7*7 }}" in page.text


def test_the_report_shows_in_a_browser(figures, tmp_path):
    seen = visit(Path("plots/report.html"), tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    assert "전체 미세조정" in seen.dom


def test_the_notebooks_protocol_is_flagged(monkeypatch, tmp_path, tiny_base_model, capsys):
    monkeypatch.chdir(tmp_path)
    stage = prepare(tmp_path, tiny_base_model, split__validation_size=0.0)
    stage("train_full", 42, train__epochs=1)
    stage("train_lora", 42)
    for name in AFTER:
        stage(name, compare__bootstrap_samples=200)
    assert "chosen on the test rows" in capsys.readouterr().err
    for path in ("metrics/compare.md", "plots/report.html"):
        assert "Epochs were chosen on the test rows" in Path(path).read_text(encoding="utf-8")
    assert "One run a method" in Path("metrics/compare.md").read_text(encoding="utf-8")


def test_a_seed_is_part_of_the_command(stage):
    for arguments in ((), ("x",), ("-1",)):
        with pytest.raises(SystemExit):
            stage("train_full", *arguments)
