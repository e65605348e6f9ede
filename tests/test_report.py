"""What people read: sentences, tables, pictures, the list of misclassified rows and the page."""

import copy
import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.core.labels import LABELS, METHODS
from tests.support.browser import visit
from tests.support.corpus import records
from tests.support.project import stage_runner
from tests.support.runs import write_runs

HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    '"따옴표"\n줄바꿈, 쉼표',
    "=HYPERLINK(1)",
    "</td><img src=x onerror=alert(2)>",
    "@최고 {{ 7*7 }} EMBEDDED_FONT",
]
SEEDS = [42, 43]
PICTURES = ("f1", "curves", "confusion", "reliability", "cost")


@pytest.fixture(scope="module")
def reported_folder(tmp_path_factory):
    """A folder with a report on texts that would harm a careless page or spreadsheet."""
    folder = tmp_path_factory.mktemp("reported")
    rows = records()
    for index, row in enumerate(rows):
        row["RawText"] = f"{HOSTILE_TEXTS[index % 5]} {row['RawText']}"
        row["Index"] = f"=1+{index}" if index else None
        row["MainCategory"] = ["<b>노트북</b>", "이어폰"][index % 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs(rows, SEEDS)
        stage = stage_runner()
        stage("plan_runs", run__seeds=SEEDS)
        for name in ("select", "baselines", "compare", "report"):
            stage(name, compare__bootstrap_samples=200)
    return folder


@pytest.fixture
def details(reported_folder, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(reported_folder)
    return json.loads(Path("metrics/compare_details.json").read_text(encoding="utf-8"))


@pytest.fixture
def errors(details) -> list[dict[str, str]]:
    with Path("plots/errors.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_gives_the_same_bytes(details):
    written = [Path("metrics/compare.md"), *Path("plots").iterdir()]
    before = {path: path.read_bytes() for path in written}
    stage_runner()("report", run__seeds=SEEDS, compare__bootstrap_samples=200)
    assert {path: path.read_bytes() for path in written} == before
    assert {f"plots/{name}.png" for name in PICTURES} <= {str(path) for path in written}


def sentences(details: dict[str, Any]) -> tuple[str, str]:
    """All English sentences and all Korean ones."""
    from stages.common.reporting.formatting import verdict_sentences

    english, korean = zip(*verdict_sentences(details), strict=True)
    return " ".join(english), " ".join(korean)


@pytest.mark.parametrize(
    "verdict, low, high, english, korean",
    [
        ("better", 0.02, 0.05, "LoRA is better than full fine-tuning.", "전체 미세조정보다 낫습니다"),
        ("better", 0.02, 0.05, "The whole interval lies beyond the margin.", "허용 한계를 벗어납니다"),
        ("worse", -0.03, -0.001, "LoRA is worse than full fine-tuning.", "전체 미세조정보다 못합니다"),
        ("worse", -0.03, -0.001, "The difference may be smaller than the margin.", "작을 수도 있습니다"),
        ("equivalent", 0.001, 0.008, "LoRA and full fine-tuning are equivalent.", "동등합니다"),
        ("equivalent", 0.001, 0.008, "There is a difference, but it is smaller than the margin.", "차이는 있으나"),
        ("undecided", -0.03, 0.02, "neither a difference nor equivalence", "판단 보류"),
    ],
)
def test_the_sentences_follow_from_verdict_and_interval(details, verdict, low, high, english, korean):
    changed = copy.deepcopy(details)
    changed["difference"] |= {"verdict": verdict, "low": low, "high": high, "macro_f1": (low + high) / 2}
    in_english, in_korean = sentences(changed)
    assert english in in_english
    assert korean in in_korean


def test_one_run_a_method_is_said_to_be_no_more(details):
    changed = copy.deepcopy(details)
    del changed["full"]["runs"]["sd"]
    assert "another seed could give another result" in sentences(changed)[0]
    assert "another seed" not in sentences(details)[0]


def test_selection_on_the_test_rows_is_said(details):
    assert "Epochs were chosen on the test rows" in sentences(details | {"selected_on_test_rows": True})[0]


def test_a_baseline_that_is_not_beaten_is_named(details):
    assert "LoRA does not beat the baseline TF-IDF + logistic regression (worse: -" in sentences(details)[0]
    assert "LoRA: 기준선(TF-IDF + 로지스틱 회귀)보다 낫다고 할 수 없습니다" in sentences(details)[1]


def test_best_epochs_that_disagree_are_named_by_seed(details):
    run = next(run for run in details["full"]["runs"]["each"] if run["best_epoch"] != run["best_epoch_by_loss"])
    expected = f"Full fine-tuning, seed {run['seed']}: the best epoch is {run['best_epoch']} by validation macro-F1"
    assert expected in sentences(details)[0]


def test_the_markdown_tables_are_whole(details):
    lines = Path("metrics/compare.md").read_text(encoding="utf-8").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    rows_of_methods, rows_of_classes = 4, 4 * len(LABELS)
    cells = [line.count("|") for line in tables]
    assert cells == [*(2 + rows_of_methods) * [cells[0]], *(2 + rows_of_classes) * [cells[-1]]]
    assert "30 | 1,000 | 0.00 MB" in tables[2]


@pytest.mark.parametrize(
    "values, text",
    [
        ((0.79796, 0.7712, 0.8241), "0.80 [0.77, 0.82]"),
        ((0.73694, 0.7331, 0.7401), "0.737 [0.733, 0.740]"),
        ((1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
        ((0.0, -3.0, 4.0), "0 [-3, 4]"),
    ],
)
def test_a_metric_has_no_more_digits_than_its_interval_justifies(values, text):
    from stages.common.reporting.formatting import format_with_interval

    assert format_with_interval(*values) == text


def test_a_difference_shows_on_which_side_of_0_its_ends_lie():
    from stages.common.reporting.formatting import format_difference

    assert format_difference(0.0281, 0.0031, 0.0532) == "+0.028 [+0.003, +0.053]"


@pytest.mark.parametrize("p, text", [(0.0002, "p < 0.001"), (0.0312, "p = 0.031"), (0.456, "p = 0.46")])
def test_p_values_have_two_digits_or_so(p, text):
    from stages.common.reporting.formatting import format_p_value

    assert format_p_value(p) == text


def test_errors_are_the_rows_that_the_selected_runs_have_wrong(details, errors):
    table = read_table(Path("data/splits/test.arrow"))
    labels = table["labels"].to_numpy()
    runs = {method: Path("data/runs") / method / str(details[method]["best_seed"]) for method in METHODS}
    predictions = {method: read_logits(run / "logits.safetensors")["test"].argmax(1) for method, run in runs.items()}
    wrong = {
        table["text"][row].as_py(): (LABELS[predictions["full"][row]], LABELS[predictions["lora"][row]])
        for row in range(len(labels))
        if any(predictions[method][row] != labels[row] for method in METHODS)
    }
    assert {row["text"].removeprefix("'"): (row["full"], row["lora"]) for row in errors} == wrong


def test_errors_name_where_the_methods_disagree(errors):
    assert list(errors[0])[:6] == ["Index", "text", "label", "full", "lora", "disagree"]
    assert {row["disagree"] for row in errors} == {"yes", ""}
    assert all((row["disagree"] == "yes") == (row["full"] != row["lora"]) for row in errors)


def test_errors_begin_with_the_most_confident(errors):
    confidences = [
        max(float(row[f"{method}_{row[method]}"]) for method in METHODS if row[method] != row["label"])
        for row in errors
    ]
    assert confidences == sorted(confidences, reverse=True)


def test_errors_run_no_formula_in_a_spreadsheet(errors):
    cells = [cell for row in errors for cell in row.values()]
    assert not any(cell.startswith(("=", "@", "+", "-")) for cell in cells)
    assert any(cell.startswith("'=HYPERLINK(1)") for cell in cells)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

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


@pytest.fixture
def page(details) -> Page:
    return Page(Path("plots/report.html").read_text(encoding="utf-8"))


def test_the_page_runs_nothing_and_loads_nothing(page):
    assert not page.tags & {"script", "b", "iframe", "a"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in page.attributes if name in ("src", "href"))


def test_the_page_shows_hostile_texts_as_they_are(page):
    assert "<b>노트북</b>" in page.text
    assert any(text in page.text for text in ("<script>alert(1)</script>", "onerror=alert(2)"))
    assert "{{ 7*7 }} EMBEDDED_FONT" in page.text


def test_the_page_holds_all_pictures(page):
    pictures = [value for name, value in page.attributes if name == "src"]
    assert len(pictures) == len(PICTURES)
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)


@pytest.mark.parametrize(
    "text",
    ["LoRA", "전체 미세조정", "lora.target_modules", "split.rows", "torch", "Git revision", "standard deviation"],
)
def test_the_page_holds_verdict_parameters_data_and_versions(page, text):
    assert text in page.text


def test_no_two_columns_of_a_table_have_one_name(details):
    html = Path("plots/report.html").read_text(encoding="utf-8")
    headers = [part.split("</tr>")[0].split("<th>")[1:] for part in html.split("<table")[1:] if "<th>" in part]
    assert len(headers) > len(METHODS)
    for header in headers:
        assert len(set(header)) == len(header)


def test_the_page_shows_in_a_browser(details, tmp_path):
    seen = visit(Path("plots/report.html"), tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    assert "전체 미세조정" in seen.dom


def test_a_flawless_pair_of_methods_makes_a_report(stage):
    write_runs(separation=100.0)
    for name in ("plan_runs", "select", "baselines", "compare", "report"):
        stage(name, compare__bootstrap_samples=100)
    assert Path("plots/errors.csv").read_text(encoding="utf-8-sig").count("\n") == 1
    assert "LoRA and full fine-tuning are equivalent." in Path("metrics/compare.md").read_text(encoding="utf-8")
