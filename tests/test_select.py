"""The selection of learning rate and run, and the runs that are kept."""

from pathlib import Path

import pytest

from stages.common.artifacts.files import read_json, write_json
from stages.common.artifacts.selection import read_selection, write_selection
from stages.common.artifacts.trained_run import read_trained_run
from stages.common.runtime.exceptions import UserError
from stages.select import select
from tests.support.runs import make_run, write_runs

RUNS = {
    "0-0.1": make_run(0, 0.1, macro_f1=0.90, losses=[0.3] * 4),
    "1-0.1": make_run(1, 0.1, macro_f1=0.50, losses=[0.3] * 4),
    "0-0.2": make_run(0, 0.2, macro_f1=0.75, losses=[0.4] * 4),
    "1-0.2": make_run(1, 0.2, macro_f1=0.80, losses=[0.4] * 4),
}


def test_the_rate_with_the_best_mean_over_folds_is_selected():
    selected = select(RUNS, "macro_f1")
    assert selected.learning_rate == 0.2, "0.1 has the best single run, but a lower mean"
    assert selected.best_run == "1-0.2"
    assert list(selected.runs) == ["0-0.2", "1-0.2"]


def test_a_lower_loss_is_better():
    assert select(RUNS, "loss").learning_rate == 0.1


def test_of_equal_runs_the_first_is_selected():
    names = ("0-0.1", 0, 0.1), ("1-0.1", 1, 0.1), ("0-0.2", 0, 0.2)
    selected = select({name: make_run(fold, rate, macro_f1=0.5) for name, fold, rate in names}, "macro_f1")
    assert (selected.learning_rate, selected.best_run) == (0.1, "0-0.1")


def test_every_trial_is_kept_in_the_order_of_rates():
    trials = select(RUNS, "macro_f1").trials
    assert [(trial.learning_rate, trial.macro_f1) for trial in trials] == [(0.1, [0.90, 0.50]), (0.2, [0.75, 0.80])]


def test_a_selection_is_read_as_it_was_written(tmp_path):
    selection = {method: select(RUNS, "macro_f1") for method in ("full", "lora")}
    write_selection(selection, tmp_path / "selection.json")
    assert read_selection(tmp_path / "selection.json") == selection


def test_a_damaged_selection_is_one_line(tmp_path):
    write_json(tmp_path / "selection.json", {"full": {"learning_rate": 0.1}})
    with pytest.raises(UserError, match=r"selection\.json: is damaged, or was written by another version; run `dvc"):
        read_selection(tmp_path / "selection.json")


def test_runs_of_earlier_parameters_are_deleted(stage, tmp_path):
    old = [tmp_path / "data/runs/full/4-0.5", tmp_path / "data/baselines/4.safetensors"]
    new = [tmp_path / "data/runs/full/0-0.001", tmp_path / "data/baselines/0.safetensors"]
    for folder, file in (old, new):
        folder.mkdir(parents=True)
        file.parent.mkdir(exist_ok=True)
        file.touch()
    stage("prune_runs", full__learning_rates=[0.001], lora__learning_rates=[0.01])
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("best_epoch"), "best_epoch: Field required"),
        (lambda values: values["base_model"].pop("sha256"), r"base_model\.sha256: Field required"),
        (lambda values: values.update(seed="42"), "seed: Input should be a valid integer"),
        (lambda values: values["validation"].pop("macro_f1"), "validation: .*macro_f1"),
        (lambda values: values.update(labels=["긍정"]), "labels: .*at least 2 items"),
    ],
)
def test_a_run_whose_metadata_is_incomplete_is_refused_with_file_and_key(monkeypatch, tmp_path, change, message):
    monkeypatch.chdir(tmp_path)
    write_runs()
    folder = Path("data/runs/full/0-0.0002")
    values = read_json(folder / "checkpoint/training.json")
    change(values)
    write_json(folder / "checkpoint/training.json", values)
    with pytest.raises(UserError, match=rf"full/0-0\.0002/checkpoint/training\.json: {message}"):
        read_trained_run(folder)


def test_a_run_that_is_planned_and_was_not_trained_is_named(stage):
    write_json(Path("data/run_plan.json"), {"full": ["0-0.002"], "lora": []})
    with pytest.raises(SystemExit, match=r"full/0-0\.002: is missing; .* full\.learning_rates of params\.yaml"):
        stage("select")


def test_a_run_is_named_as_dvc_names_its_cell():
    from stages.common.runtime.paths import run_name

    assert run_name(0, 5.0e-5) == "0-5e-05"
    assert run_name(4, 0.002) == "4-0.002"
