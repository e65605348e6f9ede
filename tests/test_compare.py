"""What `compare` writes: metrics of several runs, scalars for DVC's tables, and data for pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.artifacts.methods import BASELINES, METHODS
from tests.support.corpus import LABELS, records
from tests.support.project import run_tool, stage_runner
from tests.support.runs import LEARNING_RATES, TIMING, write_runs

SEEDS = [42, 43]


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compared_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    rows = records()
    for index, row in enumerate(rows):
        row["MainCategory"] = ["노트북", "이어폰", None, " "][index % 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs(rows, SEEDS)
        stage = stage_runner()
        stage("plan_runs", run__seeds=SEEDS)
        for name in ("select", "compare"):
            stage(name, compare__bootstrap_samples=200)
    return folder


@pytest.fixture
def details(compared_folder, monkeypatch) -> dict[str, Any]:
    monkeypatch.chdir(compared_folder)
    return read("metrics/compare_details.json")


@pytest.mark.parametrize("method", METHODS)
def test_metrics_of_several_seeds_are_means(details, method):
    runs = details[method]["runs"]
    assert [of_run["seed"] for of_run in runs["each"]] == SEEDS
    scores = [of_run["macro_f1"] for of_run in runs["each"]]
    rounding = 1e-4  # metrics are rounded to four places
    assert details[method]["macro_f1"] == runs["mean"]["macro_f1"] == pytest.approx(np.mean(scores), abs=rounding)
    assert runs["sd"]["macro_f1"] == pytest.approx(np.std(scores, ddof=1), abs=2 * rounding)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_run_is_the_one_that_was_selected(details, method):
    best = max(details[method]["runs"]["each"], key=lambda of_run: of_run["validation_macro_f1"])
    assert details[method]["best_seed"] == best["seed"]
    assert details[method]["best_epoch"] == read(f"data/models/{method}/training.json")["best_epoch"]


@pytest.mark.parametrize("method", [*METHODS, *BASELINES])
def test_every_metric_but_the_ece_has_an_interval_around_it(details, method):
    interval = details[method]["interval"]
    assert {"macro_f1", "scaled.loss", *(f"per_class.{label}.f1" for label in LABELS)} < set(interval)
    for name, ends in interval.items():
        if name.endswith("ece"):
            assert ends is None, "the bootstrap of the ECE is biased"
        else:
            low, high = ends
            assert low <= details[method][name] <= high


def test_the_difference_is_lora_minus_full_with_a_verdict(details):
    difference = details["difference"]
    low, high = difference["interval"]
    assert difference["macro_f1"] == pytest.approx(details["lora"]["macro_f1"] - details["full"]["macro_f1"], abs=2e-4)
    assert low < difference["tost_interval"][0] < difference["macro_f1"] < difference["tost_interval"][1] < high
    assert difference["verdict"] in ("better", "worse", "equivalent", "undecided")
    assert all(0 < p <= 1 for p in difference["checkpoint_tests"].values())


def test_several_seeds_are_about_methods(details):
    assert details["difference"]["about"] == "methods"
    assert details["difference"]["run_variance"] > 0


def test_each_method_is_compared_with_the_baselines(details):
    # In these runs TF-IDF is always right, the linear probe often wrong.
    verdicts = {against["baseline"]: against["verdict"] for against in details["lora"]["against"]}
    assert verdicts == {"linear_probe": "better", "tfidf": "worse", "majority": "better"}


@pytest.mark.parametrize("method", METHODS)
def test_the_tuning_of_a_method_counts_its_rates_and_runs(details, method):
    tuning = details[method]["tuning"]
    rates = LEARNING_RATES[method]
    assert [trial["learning_rate"] for trial in tuning["trials"]] == list(rates)
    assert (tuning["num_rates"], tuning["num_runs"]) == (len(rates), len(rates) * len(SEEDS))
    assert tuning["learning_rate"] in rates


@pytest.mark.parametrize("method", METHODS)
def test_calibration_tells_what_chance_alone_would_give(details, method):
    calibration = details[method]["calibration"]
    low, high = calibration["temperature_interval"]
    assert low < calibration["temperature"] < high
    assert 0 < calibration["ece_if_calibrated"] < 1


def test_compare_json_begins_with_the_verdict_and_its_limits(details):
    metrics = read("metrics/compare.json")
    difference = details["difference"]
    beginning = ["verdict", "about", "difference", "low", "high", "detectable", "rows_needed"]
    assert list(metrics)[: len(beginning)] == beginning
    assert [metrics["low"], metrics["high"]] == difference["interval"]
    for method in METHODS:
        assert metrics[method]["macro_f1"] == details[method]["macro_f1"]
        assert metrics[method]["at_edge"] == details[method]["tuning"]["at_edge"]


def test_compare_json_holds_scalars_alone(details):
    """`dvc metrics show` leaves lists out."""
    values = [
        inner
        for value in read("metrics/compare.json").values()
        for inner in (value.values() if isinstance(value, dict) else [value])
    ]
    assert all(isinstance(value, int | float | str | None) for value in values)


@pytest.mark.parametrize("method", METHODS)
def test_validation_metrics_are_those_of_the_selected_rate(details, method):
    validation, tuning = read("metrics/validation.json")[method], details[method]["tuning"]
    assert validation["learning_rate"] == tuning["learning_rate"]
    assert 0 < validation["val_moe"] < validation["val_f1"]


def test_the_plot_of_learning_rates_has_a_row_a_run(details):
    rows = read("plots/learning_rates.json")
    assert len(rows) == sum(len(rates) for rates in LEARNING_RATES.values()) * len(SEEDS)
    for method in METHODS:
        selected = {row["learning_rate"] for row in rows if row["method"] == method and row["selected"]}
        assert selected == {details[method]["tuning"]["learning_rate"]}
    last_trial = rows[-len(SEEDS) :]
    assert last_trial[0]["mean"] == pytest.approx(np.mean([row["macro_f1"] for row in last_trial]))


@pytest.mark.parametrize("kind", ["length", "category"])
def test_slices_hold_every_row(details, kind):
    assert sum(of_slice["rows"] for of_slice in details["slices"][kind].values()) == details["rows"]


def test_rows_without_a_category_share_a_slice(details):
    assert set(details["slices"]["category"]) == {"노트북", "이어폰", "..."}


@pytest.mark.parametrize("method", METHODS)
def test_confusion_plots_count_the_predictions_of_the_best_run(details, method):
    cells = read(f"plots/confusion_{method}.json")
    assert [(cell["actual"], cell["predicted"]) for cell in cells] == [(a, p) for a in LABELS for p in LABELS]
    labels = read_table(Path("data/splits/test.arrow"))["labels"].to_numpy()
    run_folder = Path("data/runs") / method / read("data/selection.json")[method]["best_run"]
    correct = read_logits(run_folder / "logits.safetensors", len(LABELS))["test"].argmax(1) == labels
    assert sum(cell["count"] for cell in cells) == len(labels)
    assert sum(cell["count"] for cell in cells if cell["actual"] == cell["predicted"]) == correct.sum()


def test_no_metric_depends_on_the_hour(details):
    assert "seconds" not in Path("metrics/compare_details.json").read_text(encoding="utf-8")


def test_the_tool_for_timings_shows_what_each_run_cost(details, capsys):
    run_tool("timings")
    table = capsys.readouterr().out
    assert all(f"{TIMING[name]:.1f}" in table for name in TIMING)
    assert table.count("full/") == table.count("lora/") == 2 * len(LEARNING_RATES["full"])  # two seeds


def test_a_second_run_gives_the_same_bytes(details):
    written = [Path("metrics/compare_details.json"), Path("metrics/compare.json"), *Path("plots").iterdir()]
    before = {path: path.read_bytes() for path in written}
    stage_runner()("compare", compare__bootstrap_samples=200)
    assert {path: path.read_bytes() for path in written} == before


def test_small_numbers_keep_two_digits():
    from stages.compare import round_float

    assert [round_float(text) for text in ("0.123456", "-0.00004567", "5.32e-11")] == [0.1235, -4.6e-05, 5.3e-11]


def test_without_validation_rows_the_metrics_are_flagged(stage, capsys):
    write_runs()
    for name in ("plan_runs", "select", "compare"):
        stage(name, split__validation_size=0.0, compare__bootstrap_samples=100)
    assert "chosen on the test rows" in capsys.readouterr().err
    assert read("metrics/compare_details.json")["selected_on_test_rows"] is True


def test_a_missing_run_is_one_clear_line(stage, capsys):
    write_runs()
    for name in ("plan_runs", "select"):
        stage(name)
    logits = Path("data/runs/lora") / read("data/selection.json")["lora"]["best_run"] / "logits.safetensors"
    logits.unlink()
    with pytest.raises(SystemExit, match=rf"{logits}: cannot be read .*dvc repro"):
        stage("compare")
    assert not Path("metrics/compare.json").exists()


def compare_one_seed(num_better: int, num_worse: int) -> dict[str, Any]:
    """The difference between two checkpoints of one seed, of which LoRA has so many more or fewer rows right."""
    from stages.common.evaluation.comparison import compare_methods
    from stages.common.evaluation.vectorized_metrics import per_example_statistics
    from stages.common.runtime.params import CompareParams

    labels = np.arange(120) % len(LABELS)
    rows = np.arange(len(labels))
    right, wrong = np.eye(len(LABELS))[labels], np.eye(len(LABELS))[(labels + 1) % len(LABELS)]
    logits = {
        "full": np.where((rows < num_better)[:, None], wrong, right),
        "lora": np.where((rows >= len(rows) - num_worse)[:, None], wrong, right),
    }
    statistics = {name: per_example_statistics(of_method, labels, 1.0)[:, None] for name, of_method in logits.items()}
    statistics |= dict.fromkeys(BASELINES, statistics["full"])
    epoch = {"epoch": 1, "macro_f1": 0.5, "validation_loss": 1.0, "train_loss": 1.0}
    run_of_method = {"seed": 1, "best_epoch": 1, "validation": epoch, "history": [epoch]}
    run_of_method |= dict.fromkeys(("trainable_parameters", "total_parameters", "checkpoint_bytes"), 1)
    trial = {"learning_rate": 0.1, "macro_f1": [0.5], "validation_loss": [1.0]}
    selected = {"learning_rate": 0.1, "best_run": "a", "runs": {"a": run_of_method}, "trials": [trial]}
    params = CompareParams(bootstrap_samples=2000, seed=42, margin=0.01)
    return compare_methods(statistics, [str(row) for row in rows], LABELS, dict.fromkeys(METHODS, selected), params)[
        "difference"
    ]


def test_one_seed_is_about_checkpoints():
    difference = compare_one_seed(num_better=12, num_worse=0)
    assert (difference["about"], difference["verdict"], difference["borderline"]) == ("checkpoints", "better", False)


def test_with_one_seed_no_verdict_contradicts_the_permutation_test():
    """Five rows against none: the bootstrap never draws a negative difference, but chance gives p = 1/16."""
    difference = compare_one_seed(num_better=5, num_worse=0)
    assert difference["interval"][0] > 0
    assert difference["checkpoint_tests"]["p_permutation"] > 0.05
    assert (difference["verdict"], difference["borderline"]) == ("undecided", True)
