"""What people read: sentences, tables, pictures, the list of misclassified rows and the page."""

import csv
import json
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from tests.support.browser import visit
from tests.support.corpus import LABELS, records
from tests.support.project import ROOT, stage_runner
from tests.support.runs import LEARNING_RATES, write_runs

HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    '"따옴표"\n줄바꿈, 쉼표',
    "=HYPERLINK(1)",
    "</td><img src=x onerror=alert(2)>",
    "@최고 {{ 7*7 }} EMBEDDED_FONT",
]
SEEDS = [42, 43]
PICTURES = ("f1", "curves", "confusion", "reliability", "cost", "learning_rates", "expected_best")


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
        for name in ("select", "compare", "report"):
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


def sentences(details: dict[str, Any], part: str) -> tuple[str, str]:
    """All English sentences and all Korean ones, of the findings or of the limits."""
    from stages.common.reporting.formatting import verdict_sentences

    pairs = verdict_sentences(details)[part]
    return " ".join(english for english, _ in pairs), " ".join(korean for _, korean in pairs)


def with_difference(details: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return details | {"difference": details["difference"] | changed}


def with_tuning(details: dict[str, Any], method: str, **changed: Any) -> dict[str, Any]:
    tuning = details[method]["tuning"] | changed
    return details | {method: details[method] | {"tuning": tuning}}


@pytest.mark.parametrize(
    "verdict, low, high, english, korean",
    [
        ("better", 0.02, 0.05, "LoRA is better than full fine-tuning.", "전체 미세조정보다 낫습니다"),
        ("better", 0.02, 0.05, "The whole interval lies beyond the margin.", "허용 한계를 벗어납니다"),
        ("worse", -0.03, -0.001, "LoRA is worse than full fine-tuning.", "전체 미세조정보다 못합니다"),
        ("worse", -0.03, -0.001, "The difference may be smaller than the margin.", "작을 수도 있습니다"),
        ("equivalent", 0.001, 0.008, "LoRA and full fine-tuning are equivalent.", "동등합니다"),
        ("equivalent", 0.001, 0.008, "There is a difference, but it is smaller than the margin.", "차이는 있으나"),
        ("equivalent", 0.001, 0.008, "Equivalence within 0.01 is shown by two one-sided tests", "입증되었습니다"),
        ("undecided", -0.03, 0.02, "undecided, neither a difference nor equivalence is shown", "판단 보류"),
        ("undecided", -0.03, 0.02, "Equivalence within 0.01 is not shown", "입증되지 않았습니다"),
    ],
)
def test_the_findings_follow_from_verdict_and_interval(details, verdict, low, high, english, korean):
    changed = with_difference(details, verdict=verdict, interval=[low, high], macro_f1=(low + high) / 2)
    in_english, in_korean = sentences(changed, "findings")
    assert english in in_english
    assert korean in in_korean


@pytest.mark.parametrize(
    "about, english, korean",
    [
        ("checkpoints", "These two checkpoints: ", "이 두 체크포인트: "),
        ("methods", "The two methods at these budgets: ", "이 예산에서 비교한 두 방법: "),
    ],
)
def test_the_first_sentence_names_what_it_is_about(details, about, english, korean):
    in_english, in_korean = sentences(with_difference(details, about=about), "findings")
    assert in_english.startswith(english)
    assert in_korean.startswith(korean)


def test_paired_tests_are_named_for_what_they_test(details):
    english, korean = sentences(details, "findings")
    assert "Only about the two selected checkpoints on these rows, not about other seeds: p" in english
    assert "by the permutation test of macro-F1" in english
    assert "by McNemar's test of accuracy" in english
    assert "선택된 두 체크포인트와 이 평가 데이터에만 해당" in korean


def test_one_seed_is_said_to_be_no_more(details):
    assert (
        "another seed could give another result"
        in sentences(with_difference(details, about="checkpoints"), "limits")[0]
    )
    assert "another seed" not in sentences(details, "limits")[0]


def test_a_borderline_result_is_named(details):
    tests = {"p_permutation": 0.04, "p_mcnemar": 0.1}
    borderline = {"verdict": "undecided", "borderline": True, "interval": [-0.03, 0.001], "checkpoint_tests": tests}
    english, korean = sentences(with_difference(details, **borderline), "limits")
    assert "Borderline: the interval holds 0, but the permutation test gives p = 0.040" in english
    assert "경계선상의 결과" in korean


@pytest.mark.parametrize(
    "rows_needed, english, korean",
    [
        (8076, "test rows could not have shown equivalence within 0.01: that takes about 8,076 rows.", "약 8,076행"),
        (None, "it takes more seeds.", "시드를 늘려야 합니다"),
    ],
)
def test_rows_that_could_not_have_shown_equivalence_are_named(details, rows_needed, english, korean):
    changed = with_difference(details, verdict="worse", rows_needed=rows_needed)
    in_english, in_korean = sentences(changed, "limits")
    assert english in in_english
    assert korean in in_korean


def test_rows_that_suffice_are_not_complained_of(details):
    changed = with_difference(details, verdict="worse", rows_needed=details["rows"])
    assert "equivalence" not in sentences(changed, "limits")[0]


def test_an_undecided_comparison_tells_what_it_could_have_found(details):
    changed = with_difference(details, verdict="undecided", detectable=0.029)
    assert "A true difference below 0.029 is likely to be missed" in sentences(changed, "limits")[0]


def test_a_rate_at_the_edge_is_named(details):
    changed = with_tuning(details, "lora", at_edge=1, num_rates=3, learning_rate=0.002)
    expected = "LoRA: the selected learning rate, 0.002, is at the edge of the 3 that were tried"
    assert expected in sentences(changed, "limits")[0]


def test_fewer_than_three_rates_are_counted(details):
    assert "Few learning rates were tried (Full fine-tuning 2, LoRA 2)" in sentences(details, "limits")[0]
    three = with_tuning(with_tuning(details, "lora", num_rates=3), "full", num_rates=3)
    assert "Few learning rates" not in sentences(three, "limits")[0]


def test_unequal_budgets_are_named(details):
    changed = with_tuning(details, "lora", num_runs=9)
    assert "Tuning budgets differ: full fine-tuning 4 runs, LoRA 9" in sentences(changed, "limits")[0]


def test_runs_that_had_not_converged_are_counted(details):
    changed = with_tuning(details, "full", unconverged=1)
    assert "Full fine-tuning had not converged in 1 of 2 runs" in sentences(changed, "limits")[0]


def test_selection_on_the_test_rows_is_said(details):
    assert "chosen on the test rows" in sentences(details | {"selected_on_test_rows": True}, "limits")[0]


def test_a_baseline_that_is_not_beaten_is_named(details):
    english, korean = sentences(details, "findings")
    assert "LoRA does not beat the baseline TF-IDF + logistic regression (worse: -" in english
    assert "LoRA: 기준선(TF-IDF + 로지스틱 회귀)보다 낫다고 할 수 없습니다" in korean


def test_a_loss_that_is_best_long_before_macro_f1_takes_one_sentence_a_method(details):
    epochs = details["full"]["overfitting"] | {"best_epoch_by_loss": 2, "best_epoch_by_f1": 4}
    english, _ = sentences(details | {"full": details["full"] | {"overfitting": epochs}}, "findings")
    assert (
        english.count("Full fine-tuning: validation macro-F1 is best at epoch 4, but validation loss already at") == 1
    )


def test_the_markdown_tables_are_whole(details):
    lines = Path("metrics/compare.md").read_text(encoding="utf-8").splitlines()
    tables = [list(table) for is_table, table in groupby(lines, lambda line: line.startswith("|")) if is_table]
    methods = len(METHODS) + len(BASELINES)
    trials = sum(map(len, LEARNING_RATES.values()))
    assert [len(table) - 2 for table in tables] == [methods, trials, methods, methods * len(LABELS)]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert f"{details['full']['trainable_parameters']} | 1,000 | 0.00 MB" in tables[0][2]


def test_the_ece_is_shown_beside_what_chance_would_give(details):
    values = details["lora"]
    expected = f"{values['ece']:.3f} ({values['calibration']['ece_if_calibrated']:.3f})"
    assert expected in Path("metrics/compare.md").read_text(encoding="utf-8")


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
    selection = json.loads(Path("data/selection.json").read_text(encoding="utf-8"))
    runs = {method: Path("data/runs") / method / selection[method]["best_run"] for method in METHODS}
    predictions = {
        method: read_logits(run / "logits.safetensors", len(LABELS))["test"].argmax(1) for method, run in runs.items()
    }
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
    [
        "LoRA",
        "전체 미세조정",
        "lora.target_modules",
        "split.rows",
        "torch",
        "Git revision",
        "standard deviation",
        "What cannot be said",
        "말할 수 없는 것",
    ],
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
    for name in ("plan_runs", "select", "compare", "report"):
        stage(name, compare__bootstrap_samples=100)
    assert Path("plots/errors.csv").read_text(encoding="utf-8-sig").count("\n") == 1
    assert "These two checkpoints: LoRA and full fine-tuning are equivalent." in Path("metrics/compare.md").read_text(
        encoding="utf-8"
    )


def test_the_page_has_no_curve_of_fewer_than_three_trials(stage):
    write_runs()
    for name in ("plan_runs", "select", "compare", "report"):
        stage(name, compare__bootstrap_samples=100)
    html = Path("plots/report.html").read_text(encoding="utf-8")
    assert html.count("<img ") == len(PICTURES) - 1
    assert Path("plots/expected_best.png").is_file()


def test_many_seeds_are_shown_as_mean_and_standard_deviation(stage):
    seeds = [*range(6)]
    write_runs(seeds=seeds)
    stage("plan_runs", run__seeds=seeds)
    for name in ("select", "compare", "report"):
        stage(name, compare__bootstrap_samples=100)
    page = Path("plots/report.html").read_text(encoding="utf-8")
    assert "mean, 6 seeds" in page
    assert "<td>LoRA</td><td>3</td>" not in page
