"""The outputs that people read: sentences, tables, pictures, the list of misclassified rows and the page."""

import csv
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.artifacts.selection import read_selection
from stages.common.evaluation.result import Comparison, Estimate, Trial, read_comparison
from stages.common.reporting import formatting, plots
from stages.common.reporting.formatting import format_difference, format_ece, format_interval, format_p_value
from stages.common.runtime import paths
from stages.report import TRACKED_PICTURES, errors_to_show, read_costs
from tests.support.browser import visit
from tests.support.corpus import LABELS, records
from tests.support.project import stage_runner
from tests.support.runs import LEARNING_RATES, STAGES_AFTER_TRAINING, TIMING, write_runs

HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    '"따옴표"\n줄바꿈, 쉼표',
    "=HYPERLINK(1)",
    "</td><img src=x onerror=alert(2)>",
    "@최고 {{ 7*7 }} EMBEDDED_FONT",
]
ON_THE_PAGE = {"difference", "f1", "breakdown", "cost", "curves", "confusion", "reliability"}  # few rates: no curve


@pytest.fixture(scope="module")
def reported_folder(tmp_path_factory):
    """Make a folder with a report on texts that would harm a careless page or spreadsheet."""
    folder = tmp_path_factory.mktemp("reported")
    rows = records()
    for index, row in enumerate(rows):
        row["RawText"] = f"{HOSTILE_TEXTS[index // 5 % 5]} {row['RawText']}"
        row["Index"] = f"=1+{index}" if index else None
        row["MainCategory"] = ["$\\노트북$ <b>", "이어폰"][index % 2]  # no formula of matplotlib's
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
    assert {path.stem for path in written if path.suffix == ".png"} == set(TRACKED_PICTURES)


def sentences(comparison: Comparison, part: str) -> tuple[str, str]:
    """Return all English sentences and all Korean sentences of a part."""
    texts = formatting.sentences(comparison)[part]
    return " ".join(text.english for text in texts), " ".join(text.korean for text in texts)


def changed(value: Any, **changes: Any) -> Any:
    """Copy a part of the result, and change values."""
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
    found = formatting.sentences(with_difference(comparison, verdict=verdict, macro_f1=macro_f1))
    said = [found["headline"][0], *found["findings"]]
    assert any(english in text.english and korean in text.korean for text in said)


def test_fewer_than_three_folds_do_not_compare_the_methods(comparison):
    two = changed(with_difference(comparison, verdict="undecided"), folds=[0, 1])
    headline, findings, limits = (sentences(two, part)[0] for part in ("headline", "findings", "limits"))
    assert headline.startswith("The methods are not compared: a verdict takes at least three folds")
    assert "The models that were trained" in findings
    assert not {"better", "worse", "equivalent"} & set(findings.split())
    assert "the result may be due to the split or the seed" in limits


@pytest.mark.parametrize("p, differ", [(0.3, "do not differ"), (0.01, "differ")])
def test_trained_models_are_told_apart_from_methods(comparison, p, differ):
    models = changed(comparison.trained_models, p_permutation=p)
    english, _ = sentences(changed(comparison, trained_models=models), "findings")
    assert f"The models that were trained {differ} significantly on the 108 rows that tested them" in english
    assert "by a permutation test of macro-F1" in english
    assert "other splits and seeds give other models" in english


def test_what_the_interval_is_about_depends_on_the_test_rows(comparison):
    assert "about new splits and seeds of this corpus" in sentences(comparison, "findings")[0]
    fixed = sentences(changed(comparison, fixed_test_rows=True), "findings")[0]
    assert "The test rows are the same in every fold" in fixed


def test_a_run_far_from_the_others_is_named(comparison):
    runs = [changed(run, diverged=run.fold == 1, macro_f1=0.31) for run in comparison.lora.runs]
    english, korean = sentences(changed(comparison, lora=changed(comparison.lora, runs=runs)), "limits")
    assert "LoRA: the run of fold 1 is far from the others (macro-F1 0.310)" in english
    assert "발산" in korean


@pytest.mark.parametrize(
    "rows_needed, english, korean",
    [
        (
            8076,
            "by a rough estimate it takes about 8,076.",
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
    assert "The minimum detectable effect is about 0.029" in sentences(undecided, "limits")[0]


def trials(*rates: float) -> list[Trial]:
    return [Trial(learning_rate=rate, macro_f1=[0.5, 0.6, 0.7]) for rate in rates]


@pytest.mark.parametrize("rate, where, korean", [(0.002, "highest", "크므로"), (5e-4, "lowest", "작으므로")])
def test_a_rate_at_the_edge_stands_in_the_headline(comparison, rate, where, korean):
    at_edge = with_tuning(comparison, "lora", at_edge=True, trials=trials(5e-4, 1e-3, 2e-3), learning_rate=rate)
    headline = sentences(at_edge, "headline")
    assert f"the selected learning rate, {rate:g}, is the {where} of the 3 that were tried" in headline[0]
    assert korean in headline[1]


def test_fewer_than_three_rates_are_counted(comparison):
    few = with_tuning(with_tuning(comparison, "lora", trials=trials(0.1, 0.2)), "full", trials=trials(0.1))
    assert "Few learning rates were tried (Full fine-tuning 1, LoRA 2)" in sentences(few, "limits")[0]
    three = with_tuning(with_tuning(comparison, "lora", trials=trials(1, 2, 3)), "full", trials=trials(1, 2, 3))
    assert "Few learning rates" not in sentences(three, "limits")[0]


def test_unequal_budgets_are_named(comparison):
    unequal = with_tuning(with_tuning(comparison, "lora", trials=trials(0.1, 0.2)), "full", trials=trials(0.1))
    assert "The tuning budgets differ: full fine-tuning had 3 runs and LoRA 6" in sentences(unequal, "limits")[0]


def test_an_undertrained_method_stands_in_the_headline(comparison):
    expected = "Full fine-tuning may be undertrained: in 1 of 3 runs"
    assert expected in sentences(with_tuning(comparison, "full", unconverged=1), "headline")[0]


def test_selection_on_the_test_rows_is_said(comparison):
    assert "selected on the test rows" in sentences(changed(comparison, selected_on_test_rows=True), "limits")[0]


@pytest.mark.parametrize(
    "verdict, english, korean",
    [
        (
            "worse",
            "LoRA is worse than the baseline TF-IDF",
            "LoRA의 성능이 기준선인 TF-IDF + 로지스틱 회귀보다 낮습니다",
        ),
        ("undecided", "LoRA is not shown to beat the baseline TF-IDF", "보다 높다고 할 수 없습니다"),
    ],
)
def test_a_baseline_that_is_not_beaten_stands_in_the_headline(comparison, verdict, english, korean):
    (tfidf,) = (against for against in comparison.lora.against if against.baseline == "tfidf")
    assert tfidf.difference.verdict == "worse"
    against = changed(tfidf, difference=changed(tfidf.difference, verdict=verdict))
    in_english, in_korean = sentences(changed(comparison, lora=changed(comparison.lora, against=[against])), "headline")
    assert f"{english} + logistic regression: its macro-F1 minus that of the baseline is -" in in_english
    assert korean in in_korean


def test_one_fold_still_tells_of_a_baseline_that_scores_higher(comparison):
    one = changed(with_difference(comparison, verdict="undecided"), folds=[0])
    assert "LoRA scores lower than the baseline TF-IDF" in sentences(one, "headline")[0]


def test_both_languages_give_the_same_numbers(comparison):
    for text in itertools.chain.from_iterable(formatting.sentences(comparison).values()):
        english, korean = (sorted(re.findall(r"[+-]?\d+\.\d+", each)) for each in text)
        assert english == korean, text


def test_a_loss_that_is_best_long_before_macro_f1_takes_one_sentence_a_method(comparison):
    epochs = changed(comparison.full.runs[0].epochs, best_epoch_by_loss=2, best_epoch_by_f1=4)
    full = changed(comparison.full, runs=[changed(run, epochs=epochs) for run in comparison.full.runs])
    english, korean = sentences(changed(comparison, full=full), "findings")
    assert (
        english.count("Full fine-tuning: in the best run validation macro-F1 is best at epoch 4, but validation") == 1
    )
    assert "예측은 나빠지지 않았습니다" in korean


def test_the_markdown_tables_are_whole(comparison):
    text = Path("metrics/compare.md").read_text(encoding="utf-8")
    tables = [list(table) for is_table, table in groupby(text.splitlines(), lambda line: line[:1] == "|") if is_table]
    methods, rates = len(METHODS) + len(BASELINES), sum(map(len, LEARNING_RATES.values()))
    classes, folds = len(LABELS), len(comparison.folds)
    rows = [methods, folds, rates, len(METHODS), methods, methods * classes, classes]
    assert [len(table) - 2 for table in tables] == rows
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
    assert f"{comparison.full.trainable_parameters} | 1,000 | 0.00 MB" in text


def test_the_markdown_begins_with_the_answer_and_has_short_paragraphs(comparison):
    text = Path("metrics/compare.md").read_text(encoding="utf-8")
    assert text.startswith(f"## Answer\n\n**{formatting.sentences(comparison)['headline'][0].english}**\n")
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) < 400
    assert "\n\n\n" not in text


def test_a_number_is_rounded_in_one_way_everywhere(comparison, page):
    ece = format_ece(comparison, "lora", scaled=False)
    assert ece == f"{comparison.lora.scores.ece.value:.3f} ({comparison.lora.ece_if_calibrated:.3f})"
    assert ece in page.text
    assert ece in Path("metrics/compare.md").read_text(encoding="utf-8")
    bins = json.loads(Path("plots/reliability.json").read_text(encoding="utf-8"))
    legend = plots.plot_reliability(bins, comparison).axes[1].get_legend()
    assert any(ece in text.get_text() for text in legend.get_texts())


@pytest.mark.parametrize(
    "values, text",
    [
        ((0.79796, 0.7712, 0.8241), "0.80 [0.77, 0.82]"),
        ((0.73694, 0.7331, 0.7401), "0.737 [0.733, 0.740]"),
        ((1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
        ((0.7, 0.55, 0.85), "0.70 [0.55, 0.85]"),
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
    assert not page.tags & {"script", "b", "iframe"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith(("data:", "#")) for name, value in page.attributes if name in ("src", "href"))


def test_the_page_shows_hostile_texts_as_they_are(page):
    assert any(text in page.text for text in ("<script>alert(1)</script>", "onerror=alert(2)"))
    assert "{{ 7*7 }} EMBEDDED_FONT" in page.text


def test_the_page_holds_all_pictures_each_with_a_caption_in_both_languages(comparison):
    html = Path("plots/report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(figures) == html.count("<img") == len(ON_THE_PAGE)
    for figure in figures:
        assert re.search(r"<figcaption>[A-Z].+?<br><span lang=\"ko\">.*?[가-힣]", figure)


def test_the_page_begins_with_the_picture_of_the_answer_then_the_verdict_then_the_contents(comparison):
    html = Path("plots/report.html").read_text(encoding="utf-8")
    verdict = formatting.sentences(comparison)["headline"][0]
    order = ["<h1", "<img", "<figcaption", verdict.english, verdict.korean, "<nav", "<h2 id="]
    assert sorted(order, key=html.index) == order
    anchors = re.findall(r'href="#(\w+)"', html)
    assert anchors == re.findall(r'<h2 id="(\w+)"', html)


def test_the_page_shows_each_text_once_and_no_empty_section(comparison):
    errors = pd.read_csv(paths.ERRORS, keep_default_na=False)
    shown = errors_to_show(pd.concat([errors, errors]).reset_index(drop=True))
    texts = [row["text"] for rows in shown.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert [title.split(" · ")[0] for title in shown] == ["The methods disagree", "Both methods make the same mistake"]
    assert len(errors_to_show(errors[errors["disagree"] == ""])) == 1


def test_two_points_make_no_curve(comparison):
    histories = {method: json.loads(Path(f"plots/{method}.json").read_text(encoding="utf-8")) for method in METHODS}
    assert plots.plot_curves(histories, comparison)
    assert plots.plot_curves({method: rows[:2] for method, rows in histories.items()}, comparison) is None
    assert plots.plot_learning_rates(with_tuning(comparison, "lora", trials=trials(1, 2, 3), learning_rate=2))
    assert plots.plot_learning_rates(with_tuning(comparison, "lora", trials=trials(1, 2), learning_rate=2)) is None


def test_costs_that_were_measured_elsewhere_are_left_out(comparison):
    selection = read_selection()
    measured = read_costs(comparison, selection)
    assert measured["seconds of training"] == {method: TIMING["seconds"] for method in METHODS}
    shutil.move("data/timings", "data/moved")
    assert list(read_costs(comparison, selection)) == list(measured)[:2]
    shutil.move("data/moved", "data/timings")


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
    """Write runs and a report on them, and return the table for GitHub."""
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
