"""What `compare` writes: metrics of several runs, scalars for DVC's tables, and data for pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.logits import read_logits
from stages.common.core.labels import BASELINES, LABELS, METHODS
from tests.support.corpus import records
from tests.support.project import ROOT, run, stage_runner
from tests.support.runs import write_runs

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
        for name in ("select", "baselines", "compare"):
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
def test_every_metric_has_an_interval_around_it(details, method):
    interval = details[method]["interval"]
    for name in ("macro_f1", "accuracy", "loss", "brier", "macro_precision", "macro_recall"):
        low, high = interval[name]
        assert low <= details[method][name] <= high
    assert set(interval["per_class"]) == set(LABELS)
    assert set(interval["scaled"]) == {"loss", "brier", "ece"}


def test_the_difference_is_lora_minus_full_with_a_verdict(details):
    difference = details["difference"]
    assert difference["macro_f1"] == pytest.approx(details["lora"]["macro_f1"] - details["full"]["macro_f1"], abs=2e-4)
    assert difference["low"] <= difference["macro_f1"] <= difference["high"]
    assert difference["verdict"] in ("better", "worse", "equivalent", "undecided")
    assert 0 < difference["p_permutation"] <= 1
    assert 0 < difference["p_mcnemar"] <= 1


def test_each_method_is_compared_with_the_baselines(details):
    # A word of each text gives its class away, so that the n-grams are right where the noisy logits are not.
    verdicts = {against["baseline"]: against["verdict"] for against in details["lora"]["against"]}
    assert verdicts == {"tfidf": "worse", "majority": "better"}
    assert details["lora"]["beats_baselines"] is False


def test_compare_json_holds_a_dozen_scalars_of_the_details(details):
    metrics = read("metrics/compare.json")
    scalars = [(name, key, value) for name, values in metrics.items() for key, value in values.items()]
    assert len(scalars) == 12
    assert all(details[name][key] == value for name, key, value in scalars)
    assert all(isinstance(value, int | float | str) for _, _, value in scalars)


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
    run_folder = Path("data/runs") / method / str(details[method]["best_seed"])
    correct = read_logits(run_folder / "logits.safetensors")["test"].argmax(1) == labels
    assert sum(cell["count"] for cell in cells) == len(labels)
    assert sum(cell["count"] for cell in cells if cell["actual"] == cell["predicted"]) == correct.sum()


def test_timings_stand_in_a_file_of_their_own(details):
    timings = read("metrics/timings.json")
    assert timings["full"]["43"]["training"] == {"seconds": 2.0, "samples_per_second": 50.0}
    assert "seconds" not in Path("metrics/compare_details.json").read_text(encoding="utf-8")


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
    for name in ("plan_runs", "select", "baselines", "compare"):
        stage(name, split__validation_size=0.0, compare__bootstrap_samples=100)
    assert "chosen on the test rows" in capsys.readouterr().err
    assert read("metrics/compare_details.json")["selected_on_test_rows"] is True


def test_a_missing_run_is_one_clear_line(stage, capsys):
    write_runs()
    for name in ("plan_runs", "select", "baselines"):
        stage(name)
    Path("data/runs/lora/42/logits.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"data/runs/lora/42/logits.safetensors: cannot be read .*dvc repro"):
        stage("compare")
    assert not Path("metrics/compare.json").exists()


@pytest.mark.parametrize("name", ["compare", "report"])
def test_parameters_are_checked_before_anything_heavy_is_imported(name):
    heavy = "{'scipy', 'sklearn', 'matplotlib', 'pandas', 'torch'} & {*sys.modules}"
    result = run("python", "-c", f"import sys, stages.{name}; sys.exit(str({heavy} or ''))", cwd=ROOT)
    assert result.stderr.strip() == ""
