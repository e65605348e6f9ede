"""What people read: sentences, tables, pictures, the list of misclassified rows and the page."""

import csv
import json
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.evaluation.result import Comparison, Estimate, Trial, read_comparison
from stages.common.reporting.formatting import format_difference, format_interval, format_p_value, verdict_sentences
from stages.common.runtime import paths
from tests.support.browser import visit
from tests.support.corpus import LABELS, records
from tests.support.project import stage_runner
from tests.support.runs import LEARNING_RATES, STAGES_AFTER_TRAINING, write_runs

HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    '"따옴표"\n줄바꿈, 쉼표',
    "=HYPERLINK(1)",
    "</td><img src=x onerror=alert(2)>",
    "@최고 {{ 7*7 }} EMBEDDED_FONT",
]
PICTURES = ("difference", "f1", "curves", "confusion", "reliability", "cost", "learning_rates")


@pytest.fixture(scope="module")
def reported_folder(tmp_path_factory):
    """A folder with a report on texts that would harm a careless page or spreadsheet."""
    folder = tmp_path_factory.mktemp("reported")
    rows = records()
    for index, row in enumerate(rows):
        row["RawText"] = f"{HOSTILE_TEXTS[index // 5 % 5]} {row['RawText']}"
        row["Index"] = f"=1+{index}" if index else None
        row["MainCategory"] = ["<b>노트북</b>", "이어폰"][index % 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs(rows)
        stage = stage_runner()
        for name in STAGES_AFTER_TRAINING:
            stage(name, compare__bootstrap_samples=200)
    return folder


@pytest.fixture
def comparison(reported_folder, monkeypatch) -> Comparison:
    monkeypatch.chdir(reported_folder)
    return read_comparison()


@pytest.fixture
def errors(comparison) -> list[dict[str, str]]:
    with Path("plots/errors.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_run_gives_the_same_bytes(comparison):
    written = [Path("metrics/compare.md"), *Path("plots").iterdir()]
    before = {path: path.read_bytes() for path in written}
    stage_runner()("report", compare__bootstrap_samples=200)
    assert {path: path.read_bytes() for path in written} == before
    assert {f"plots/{name}.png" for name in PICTURES} <= {str(path) for path in written}


def sentences(comparison: Comparison, part: str) -> tuple[str, str]:
    """All English sentences and all Korean ones, of the findings or of the limits."""
    pairs = verdict_sentences(comparison)[part]
    return " ".join(english for english, _ in pairs), " ".join(korean for _, korean in pairs)


def changed(value: Any, **changes: Any) -> Any:
    """A copy of a part of the result, with other values."""
    return value.model_copy(update=changes)


def with_difference(comparison: Comparison, **changes: Any) -> Comparison:
    return changed(comparison, difference=changed(comparison.difference, **changes))


def with_tuning(comparison: Comparison, method: str, **changes: Any) -> Comparison:
    result = comparison.method(method)
    return changed(comparison, **{method: changed(result, tuning=changed(result.tuning, **changes))})


@pytest.mark.parametrize(
    "verdict, low, high, english, korean",
    [
        ("better", 0.02, 0.05, "LoRA is better than full fine-tuning", "전체 미세조정보다 낫습니다"),
        ("better", 0.02, 0.05, "The whole interval lies beyond the margin.", "허용 한계를 벗어납니다"),
        ("worse", -0.03, -0.001, "LoRA is worse than full fine-tuning", "전체 미세조정보다 못합니다"),
        ("worse", -0.03, -0.001, "The difference may be smaller than the margin.", "작을 수도 있습니다"),
        ("equivalent", 0.001, 0.008, "LoRA and full fine-tuning are equivalent within 0.01", "동등합니다"),
        ("equivalent", 0.001, 0.008, "There is a difference, but it is smaller than the margin.", "차이는 있으나"),
        ("equivalent", 0.001, 0.008, "Equivalence within 0.01 is shown by two one-sided tests", "입증되었습니다"),
        ("undecided", -0.03, 0.02, "Undecided: neither a difference between LoRA and", "판단 보류"),
        ("undecided", -0.03, 0.02, "Equivalence within 0.01 is not shown", "입증되지 않았습니다"),
    ],
)
def test_the_findings_follow_from_verdict_and_interval(comparison, verdict, low, high, english, korean):
    macro_f1 = Estimate(value=(low + high) / 2, low=low, high=high)
    in_english, in_korean = sentences(with_difference(comparison, verdict=verdict, macro_f1=macro_f1), "findings")
    assert english in in_english
    assert korean in in_korean


def test_fewer_than_three_folds_do_not_compare_the_methods(comparison):
    two = changed(with_difference(comparison, verdict="undecided"), folds=[0, 1])
    findings, limits = sentences(two, "findings")[0], sentences(two, "limits")[0]
    assert findings.startswith("The methods are not compared: a verdict on them takes at least three folds")
    assert "between the models that were trained" in findings
    assert not {"better", "worse", "equivalent"} & set(findings.split())
    assert "the result may be due to the split or the seed" in limits


@pytest.mark.parametrize("p, beginning", [(0.3, "No significant difference"), (0.01, "A significant difference")])
def test_trained_models_are_told_apart_from_methods(comparison, p, beginning):
    models = changed(comparison.trained_models, p_permutation=p)
    english, _ = sentences(changed(comparison, trained_models=models), "findings")
    assert f"{beginning} between the models that were trained, on the 108 rows that tested them" in english
    assert "by a permutation test of macro-F1" in english
    assert "Other splits and seeds can give another result." in english


def test_what_the_interval_is_about_depends_on_the_test_rows(comparison):
    assert "about new splits and seeds of this corpus" in sentences(comparison, "findings")[0]
    fixed = sentences(changed(comparison, fixed_test_rows=True), "findings")[0]
    assert "The test rows are the same in every fold" in fixed


def test_a_run_far_from_the_others_is_named(comparison):
    runs = [changed(run, diverged=run.fold == 1, macro_f1=0.31) for run in comparison.lora.runs]
    english, korean = sentences(changed(comparison, lora=changed(comparison.lora, runs=runs)), "limits")
    assert "LoRA: the run of fold 1 is far from the others (macro-F1 0.31)" in english
    assert "발산" in korean


@pytest.mark.parametrize(
    "rows_needed, english, korean",
    [
        (
            8076,
            "108 test rows are fewer than the 8,076 or so with which equivalence within 0.01 would be shown",
            "약 8,076행",
        ),
        (None, "it takes more folds.", "폴드를 늘려야 합니다"),
    ],
)
def test_rows_that_could_not_have_shown_equivalence_are_named(comparison, rows_needed, english, korean):
    in_english, in_korean = sentences(with_difference(comparison, verdict="worse", rows_needed=rows_needed), "limits")
    assert english in in_english
    assert korean in in_korean


def test_rows_that_suffice_are_not_complained_of(comparison):
    enough = with_difference(comparison, verdict="worse", rows_needed=comparison.rows)
    assert "equivalence" not in sentences(enough, "limits")[0]


def test_every_verdict_is_about_methods_that_do_not_fail(comparison):
    assert "Failures that are rarer than one run in 3" in sentences(comparison, "limits")[0]


def test_an_undecided_comparison_tells_what_it_could_have_found(comparison):
    undecided = with_difference(comparison, verdict="undecided", minimum_detectable_effect=0.029)
    assert "A true difference of about 0.029 would be found with a power of 80%" in sentences(undecided, "limits")[0]


def trials(*rates: float) -> list[Trial]:
    return [Trial(learning_rate=rate, macro_f1=[0.5, 0.6, 0.7]) for rate in rates]


def test_a_rate_at_the_edge_is_named(comparison):
    at_edge = with_tuning(comparison, "lora", at_edge=True, trials=trials(5e-4, 1e-3, 2e-3), learning_rate=0.002)
    expected = "LoRA: the selected learning rate, 0.002, is at the edge of the 3 that were tried"
    assert expected in sentences(at_edge, "limits")[0]


def test_fewer_than_three_rates_are_counted(comparison):
    few = with_tuning(with_tuning(comparison, "lora", trials=trials(0.1, 0.2)), "full", trials=trials(0.1))
    assert "Few learning rates were tried (Full fine-tuning 1, LoRA 2)" in sentences(few, "limits")[0]
    three = with_tuning(with_tuning(comparison, "lora", trials=trials(1, 2, 3)), "full", trials=trials(1, 2, 3))
    assert "Few learning rates" not in sentences(three, "limits")[0]


def test_unequal_budgets_are_named(comparison):
    unequal = with_tuning(with_tuning(comparison, "lora", trials=trials(0.1, 0.2)), "full", trials=trials(0.1))
    assert "Tuning budgets differ: full fine-tuning 3 runs, LoRA 6" in sentences(unequal, "limits")[0]


def test_runs_that_had_not_converged_are_counted(comparison):
    expected = "Full fine-tuning had not converged in 1 of 3 runs"
    assert expected in sentences(with_tuning(comparison, "full", unconverged=1), "limits")[0]


def test_selection_on_the_test_rows_is_said(comparison):
    assert "selected on the test rows" in sentences(changed(comparison, selected_on_test_rows=True), "limits")[0]


def test_a_baseline_that_is_not_beaten_is_named(comparison):
    english, korean = sentences(comparison, "findings")
    assert "LoRA is not shown to beat the baseline TF-IDF + logistic regression (worse: -" in english
    assert "LoRA: 기준선(TF-IDF + 로지스틱 회귀)보다 낫다고 할 수 없습니다" in korean


def test_a_loss_that_is_best_long_before_macro_f1_takes_one_sentence_a_method(comparison):
    epochs = changed(comparison.full.runs[0].epochs, best_epoch_by_loss=2, best_epoch_by_f1=4)
    full = changed(comparison.full, runs=[changed(run, epochs=epochs) for run in comparison.full.runs])
    english, korean = sentences(changed(comparison, full=full), "findings")
    assert english.count("Full fine-tuning, best run: validation macro-F1 is best at epoch 4, but validation") == 1
    assert "예측은 나빠지지 않았습니다" in korean


def test_the_markdown_tables_are_whole(comparison):
    lines = Path("metrics/compare.md").read_text(encoding="utf-8").splitlines()
    tables = [list(table) for is_table, table in groupby(lines, lambda line: line.startswith("|")) if is_table]
    methods, rates = len(METHODS) + len(BASELINES), sum(map(len, LEARNING_RATES.values()))
    classes, folds = len(LABELS), len(comparison.folds)
    assert [len(table) - 2 for table in tables] == [methods, folds, rates, methods, methods * classes, classes]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert f"{comparison.full.trainable_parameters} | 1,000 | 0.00 MB" in tables[0][2]


def test_the_ece_is_shown_beside_what_chance_would_give(comparison):
    expected = f"{comparison.lora.scores.ece.value:.3f} ({comparison.lora.ece_if_calibrated:.3f})"
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
    value, low, high = values
    assert format_interval(Estimate(value=value, low=low, high=high)) == text


def test_a_difference_shows_on_which_side_of_0_its_ends_lie():
    assert format_difference(Estimate(value=0.0281, low=0.0031, high=0.0532)) == "+0.028 [+0.003, +0.053]"


@pytest.mark.parametrize("p, text", [(0.0002, "p < 0.001"), (0.0312, "p = 0.031"), (0.456, "p = 0.46")])
def test_p_values_have_two_digits_or_so(p, text):
    assert format_p_value(p) == text


def test_errors_are_the_tested_rows_that_the_model_of_their_fold_has_wrong(comparison, errors):
    table = read_table(paths.TOKENIZED)
    labels, expected = table["labels"].to_numpy(), {}
    for fold in comparison.folds:
        rows = read_fold(paths.fold_path(fold), len(table)).test
        runs = [(method, paths.run_name(fold, comparison.method(method).tuning.learning_rate)) for method in METHODS]
        files = [paths.RUNS / method / run / "logits.safetensors" for method, run in runs]
        predictions = [read_logits(file, len(LABELS))["test"].argmax(1) for file in files]
        for row, *predicted in zip(rows, *predictions, strict=True):
            if any(label != labels[row] for label in predicted):
                expected[table["text"][int(row)].as_py()] = tuple(LABELS[label] for label in predicted)
    assert {row["text"].removeprefix("'"): (row["full"], row["lora"]) for row in errors} == expected


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
def page(comparison) -> Page:
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
        "split.excluded_rows",
        "torch",
        "Git revision",
        "standard deviation",
        "What cannot be said",
        "말할 수 없는 것",
    ],
)
def test_the_page_holds_verdict_parameters_data_and_versions(page, text):
    assert text in page.text


def test_no_two_columns_of_a_table_have_one_name(comparison):
    html = Path("plots/report.html").read_text(encoding="utf-8")
    headers = [part.split("</tr>")[0].split("<th>")[1:] for part in html.split("<table")[1:] if "<th>" in part]
    assert len(headers) > len(METHODS)
    for header in headers:
        assert len(set(header)) == len(header)


def test_the_page_shows_in_a_browser(comparison, tmp_path):
    seen = visit(Path("plots/report.html"), tmp_path)
    assert (seen.console, seen.requests) == ([], [])
    assert "전체 미세조정" in seen.dom


def report(stage, **options: Any) -> str:
    """Write runs and report on them; returns the table for GitHub."""
    write_runs(**options)
    for name in STAGES_AFTER_TRAINING:
        stage(name, run__folds=options.get("folds", [0, 1, 2]), compare__bootstrap_samples=100)
    return Path("metrics/compare.md").read_text(encoding="utf-8")


def test_a_flawless_pair_of_methods_makes_a_report(stage):
    assert "LoRA and full fine-tuning are equivalent within 0.01" in report(stage, separation=100.0)
    assert Path("plots/errors.csv").read_text(encoding="utf-8-sig").count("\n") == 1


def test_one_fold_makes_a_report(stage):
    assert "The methods are not compared" in report(stage, folds=[2])
    assert "fits the suspected labels" not in Path("plots/report.html").read_text(encoding="utf-8")


def test_the_page_tells_which_method_learned_the_suspected_labels(comparison, page):
    audit = json.loads(Path("metrics/audit.json").read_text(encoding="utf-8"))
    assert set(audit["label_fit"]) == set(METHODS)
    for fit in audit["label_fit"].values():
        assert f"{100 * fit['suspected']:.1f}%" in page.text
