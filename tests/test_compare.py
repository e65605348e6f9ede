"""The outputs of `compare`: metrics over the folds, scalars for DVC's tables, and data for pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from stages.common.evaluation.comparison import tuning_of
from stages.common.evaluation.result import ClassScores, Comparison, Estimate, Scores, read_comparison
from stages.common.runtime import paths
from stages.compare import round_floats
from stages.select import select
from tests.support.corpus import LABELS, records
from tests.support.project import run_tool, stage_runner
from tests.support.runs import LEARNING_RATES, STAGES_AFTER_TRAINING, TIMING, make_run, write_runs

FOLDS = [0, 1, 2]
TO_COMPARE = STAGES_AFTER_TRAINING[: STAGES_AFTER_TRAINING.index("compare") + 1]


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def compare(stage, folds: list[int], **options: Any) -> Comparison:
    """Write runs of these folds, and compare them."""
    write_runs(folds=folds, **options)
    for name in TO_COMPARE:
        stage(name, run__folds=folds, compare__bootstrap_samples=100)
    return read_comparison()


@pytest.fixture(scope="module")
def compared_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    rows = records()
    for index, row in enumerate(rows):
        row["MainCategory"] = ["노트북", "이어폰", None, " "][index % 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs(rows, FOLDS)
        stage = stage_runner()
        for name in TO_COMPARE:
            stage(name, run__folds=FOLDS, compare__bootstrap_samples=200)
    return folder


@pytest.fixture
def comparison(compared_folder, monkeypatch) -> Comparison:
    monkeypatch.chdir(compared_folder)
    return read_comparison()


def test_every_row_of_the_folds_that_were_run_is_tested(comparison):
    num_rows = len(read_table(paths.TOKENIZED))
    tested = [read_fold(paths.fold_path(fold), num_rows).test for fold in FOLDS]
    assert comparison.rows == sum(map(len, tested)) < num_rows
    assert (comparison.folds, comparison.num_folds) == (FOLDS, 5)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_means_over_the_folds_of_the_selected_runs(comparison, method):
    table = read_table(paths.TOKENIZED)
    labels, scores = table["labels"].to_numpy(), []
    for run in comparison.method(method).runs:
        name = paths.run_name(run.fold, comparison.method(method).tuning.learning_rate)
        logits = read_logits(paths.RUNS / method / name / "logits.safetensors", len(LABELS))["test"]
        rows = read_fold(paths.fold_path(run.fold), len(table)).test
        scores.append(f1_score(labels[rows], logits.argmax(1), average="macro"))
        assert run.macro_f1 == pytest.approx(scores[-1], abs=1e-4)
    assert comparison.scores(method).macro_f1.value == pytest.approx(np.mean(scores), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_run_is_the_one_with_the_best_validation_score(comparison, method):
    result = comparison.method(method)
    best = max(result.runs, key=lambda run: run.validation_macro_f1)
    assert result.best_fold == best.fold == read(f"data/models/{method}/training.json")["fold"]


def estimates(value: Any) -> list[tuple[str, Estimate]]:
    """Return all estimates in a part of the result, by the names of their fields."""
    if isinstance(value, Estimate):
        return [("", value)]
    items = value.items() if isinstance(value, dict) else dict(value).items()
    parts = [(name, part) for name, part in items if isinstance(part, Estimate | dict) or hasattr(part, "model_dump")]
    return [(name or inner, estimate) for name, part in parts for inner, estimate in estimates(part)]


@pytest.mark.parametrize("name", [*METHODS, *BASELINES])
def test_every_metric_but_the_ece_has_an_interval_around_it(comparison, name):
    found = estimates(comparison.scores(name))
    assert len(found) == len(Scores.model_fields) - 1 + len(ClassScores.model_fields) * len(LABELS)
    for metric, estimate in found:
        if metric.endswith("ece"):
            assert estimate.low is None, "the bootstrap of the ECE is biased"
        else:
            assert estimate.low <= estimate.value <= estimate.high


def test_the_difference_is_the_mean_over_the_folds_of_lora_minus_full(comparison):
    difference = comparison.difference
    pairs = zip(comparison.lora.runs, comparison.full.runs, strict=True)
    assert difference.by_fold == pytest.approx([lora.macro_f1 - full.macro_f1 for lora, full in pairs], abs=2e-4)
    assert difference.macro_f1.value == pytest.approx(np.mean(difference.by_fold), abs=2e-4)
    assert difference.macro_f1.low < difference.equivalence.low < difference.macro_f1.value
    assert difference.macro_f1.value < difference.equivalence.high < difference.macro_f1.high
    assert set(comparison.class_differences) == set(LABELS)


@pytest.mark.parametrize(
    "separations, verdict", [((5.0, 0.2), "worse"), ((0.2, 5.0), "better"), ((9.0, 9.0), "equivalent")]
)
def test_a_clear_result_gets_its_verdict(stage, monkeypatch, separations, verdict):
    monkeypatch.setattr("tests.support.runs.SEPARATION", dict(zip(METHODS, separations, strict=True)))
    assert compare(stage, FOLDS).difference.verdict == verdict


@pytest.mark.parametrize("folds", [[0], [3, 1]])
def test_fewer_than_three_folds_decide_nothing(stage, monkeypatch, folds):
    monkeypatch.setattr("tests.support.runs.SEPARATION", {"full": 5.0, "lora": 0.2})
    comparison = compare(stage, folds)
    assert comparison.difference.verdict == "undecided"
    assert comparison.difference.minimum_detectable_effect is None
    assert comparison.trained_models.p_permutation < 0.05, "what the trained models show is said apart"
    assert comparison.folds == sorted(folds)


def test_fixed_test_rows_are_said_to_be_so(stage):
    comparison = compare(stage, FOLDS, fixed_test_rows=True)
    assert comparison.fixed_test_rows
    assert comparison.rows == 36, "each row is tested by each fold and counts once"
    assert read("metrics/audit.json")["rows"] == 36, "and audited once"


def test_each_method_is_compared_with_the_baselines(comparison):
    # In these runs TF-IDF is always right, the linear probe often wrong.
    verdicts = {against.baseline: against.difference.verdict for against in comparison.lora.against}
    assert verdicts == {"linear_probe": "better", "tfidf": "worse", "majority": "better"}


@pytest.mark.parametrize("method", METHODS)
def test_the_tuning_of_a_method_counts_its_rates_and_runs(comparison, method):
    tuning, rates = comparison.method(method).tuning, LEARNING_RATES[method]
    assert [trial.learning_rate for trial in tuning.trials] == list(rates)
    assert (tuning.num_rates, tuning.num_runs) == (len(rates), len(rates) * len(FOLDS))


@pytest.mark.parametrize(
    "rates, best, at_edge", [([0.1, 0.2, 0.3], 0.3, True), ([0.1, 0.2, 0.3], 0.2, False), ([0.1, 0.2], 0.2, False)]
)
def test_a_rate_is_at_the_edge_of_three_or_more(rates, best, at_edge):
    runs = {str(rate): make_run(0, rate, macro_f1=0.9 if rate == best else 0.5) for rate in rates}
    assert tuning_of(select(runs, "macro_f1")).at_edge is at_edge


@pytest.mark.parametrize(
    "losses, unconverged",
    [
        ([0.9, 0.8, 0.7], 1),
        ([0.9, 0.7, 0.8], 0),
        ([*np.linspace(1, 0.1, 19), 0.2], 1),
        ([*np.linspace(1, 0.1, 18), 0.2, 0.2], 0),
    ],
)
def test_a_run_whose_loss_is_lowest_in_the_last_tenth_has_not_converged(losses, unconverged):
    selected = select({"a": make_run(0, 0.1, losses=losses)}, "macro_f1")
    assert tuning_of(selected).unconverged == unconverged


def test_compare_json_begins_with_the_verdict_and_its_limits(comparison):
    metrics, difference = read("metrics/compare.json"), comparison.difference
    beginning = ["verdict", "difference", "low", "high", "detectable"]
    assert list(metrics) == [*beginning, *METHODS, *BASELINES], "counts are no metrics"
    assert [metrics["low"], metrics["high"]] == [difference.macro_f1.low, difference.macro_f1.high]
    for method in METHODS:
        assert metrics[method]["macro_f1"] == comparison.scores(method).macro_f1.value


def test_compare_json_holds_scalars_alone(comparison):
    """`dvc metrics show` does not show lists."""
    values = [
        inner
        for value in read("metrics/compare.json").values()
        for inner in (value.values() if isinstance(value, dict) else [value])
    ]
    assert all(isinstance(value, int | float | str | None) for value in values)


@pytest.mark.parametrize("method", METHODS)
def test_validation_scores_are_those_of_each_fold_at_the_selected_rate(comparison, method):
    validation, result = read("metrics/validation.json")[method], comparison.method(method)
    assert validation["learning_rate"] == result.tuning.learning_rate
    scores = [validation[f"fold_{fold}"] for fold in FOLDS]
    assert scores == [run.validation_macro_f1 for run in result.runs]
    assert validation["val_f1"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_the_plot_of_learning_rates_has_a_row_a_run(comparison):
    rows = read("plots/learning_rates.json")
    assert len(rows) == sum(len(rates) for rates in LEARNING_RATES.values()) * len(FOLDS)
    for method in METHODS:
        selected = {row["learning_rate"] for row in rows if row["method"] == method and row["selected"]}
        assert selected == {comparison.method(method).tuning.learning_rate}
    last_trial = rows[-len(FOLDS) :]
    assert last_trial[0]["mean"] == pytest.approx(np.mean([row["macro_f1"] for row in last_trial]))


@pytest.mark.parametrize("kind", ["length", "category"])
def test_slices_hold_every_tested_row(comparison, kind):
    assert sum(each.rows for each in comparison.slices if each.kind == kind) == comparison.rows


def test_slices_have_paired_intervals(comparison):
    for each in comparison.slices:
        difference = each.accuracy_difference
        assert difference.value == pytest.approx(each.lora.accuracy - each.full.accuracy, abs=2e-4)
        assert difference.low <= difference.value <= difference.high


def test_rows_without_a_category_share_a_slice(comparison):
    assert {each.name for each in comparison.slices if each.kind == "category"} == {"노트북", "이어폰", "..."}


@pytest.mark.parametrize("method", METHODS)
def test_confusion_plots_count_the_predictions_of_all_folds(comparison, method):
    cells = read(f"plots/confusion_{method}.json")
    assert [(cell["actual"], cell["predicted"]) for cell in cells] == [(a, p) for a in LABELS for p in LABELS]
    assert sum(cell["count"] for cell in cells) == comparison.rows
    right = sum(cell["count"] for cell in cells if cell["actual"] == cell["predicted"])
    assert right / comparison.rows == pytest.approx(comparison.scores(method).accuracy.value, abs=1e-3)


def test_no_metric_depends_on_the_hour(comparison):
    assert "seconds" not in Path("metrics/compare_details.json").read_text(encoding="utf-8")


def test_the_tool_for_timings_shows_what_each_run_cost(comparison, capsys):
    run_tool("timings")
    table = capsys.readouterr().out
    assert all(f"{TIMING[name]:.1f}" in table for name in TIMING)
    assert table.count("full/") == len(FOLDS) * len(LEARNING_RATES["full"])


def test_a_second_run_gives_the_same_bytes(comparison):
    written = [Path("metrics/compare_details.json"), Path("metrics/compare.json"), *Path("plots").iterdir()]
    before = {path: path.read_bytes() for path in written}
    stage_runner()("compare", run__folds=FOLDS, compare__bootstrap_samples=200)
    assert {path: path.read_bytes() for path in written} == before


def test_numbers_are_rounded_to_four_places_and_small_ones_to_two_digits():
    values = {"a": [0.123456, -0.00004567, 5.32e-11, 1e-16], "b": {"c": 3, "d": None, "e": True, "f": "0.123456"}}
    expected = {"a": [0.1235, -4.6e-05, 5.3e-11, 0.0], "b": {"c": 3, "d": None, "e": True, "f": "0.123456"}}
    assert round_floats(values) == expected


def test_selection_on_the_test_rows_is_flagged_by_the_folds_themselves(stage, capsys):
    assert compare(stage, FOLDS, selects_on_test_rows=True).selected_on_test_rows
    assert "selected on the test rows" in capsys.readouterr().err


def test_a_run_far_from_the_others_is_marked(stage):
    write_runs(folds=[*range(5)], learning_rates={"full": [0.1], "lora": [0.1]}, separation=6.0)
    logits = paths.RUNS / "lora" / paths.run_name(3, 0.1) / "logits.safetensors"
    from safetensors.numpy import load_file, save_file

    save_file({part: -values for part, values in load_file(logits).items()}, logits)
    for name in TO_COMPARE:
        options = {"full__learning_rates": [0.1], "lora__learning_rates": [0.1], "compare__bootstrap_samples": 100}
        stage(name, run__folds=[*range(5)], **options)
    comparison = read_comparison()
    assert [run.fold for run in comparison.lora.runs if run.diverged] == [3]
    assert not any(run.diverged for run in comparison.full.runs)


@pytest.mark.parametrize("path", ["data/baselines/0.safetensors", "data/runs/lora/{}/logits.safetensors"])
def test_a_missing_file_is_one_clear_line(stage, path):
    write_runs()
    for name in ("prune_runs", "select"):
        stage(name)
    missing = Path(path.format(read("data/selection.json")["lora"]["best_run"]))
    missing.unlink()
    with pytest.raises(SystemExit, match=rf"{missing}: cannot be read .*dvc repro"):
        stage("compare")
    assert not Path("metrics/compare.json").exists()
