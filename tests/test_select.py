"""Which learning rate and run are selected, and which runs are kept."""

from pathlib import Path

import pytest

from stages.common.artifacts.files import read_json, write_json
from stages.common.artifacts.trained_run import TrainedRun, read_trained_run
from stages.common.runtime.exceptions import UserError
from stages.select import select
from tests.support.corpus import LABELS
from tests.support.runs import training_metadata, write_runs


def run(seed: int, learning_rate: float, macro_f1: float, loss: float = 1.0) -> TrainedRun:
    epoch = {"epoch": 1, "macro_f1": macro_f1, "validation_loss": loss}
    metadata = training_metadata(seed, learning_rate, epoch)
    return TrainedRun(metadata, checkpoint_bytes=0, weights_sha256="", history=[epoch])


RUNS = {
    "1-0.1": run(1, 0.1, 0.90, loss=0.3),
    "2-0.1": run(2, 0.1, 0.50, loss=0.3),
    "1-0.2": run(1, 0.2, 0.75, loss=0.4),
    "2-0.2": run(2, 0.2, 0.80, loss=0.4),
}


def test_the_rate_with_the_best_mean_over_seeds_is_selected():
    selected = select(RUNS, "macro_f1")
    assert selected["learning_rate"] == 0.2, "0.1 has the best single run, but a lower mean"
    assert selected["best_run"] == "2-0.2"
    assert list(selected["runs"]) == ["1-0.2", "2-0.2"]


def test_a_lower_loss_is_better():
    assert select(RUNS, "loss")["learning_rate"] == 0.1


def test_of_equal_runs_the_first_is_selected():
    runs = {
        name: run(seed, rate, 0.5) for name, seed, rate in (("1-0.1", 1, 0.1), ("2-0.1", 2, 0.1), ("1-0.2", 1, 0.2))
    }
    selected = select(runs, "macro_f1")
    assert (selected["learning_rate"], selected["best_run"]) == (0.1, "1-0.1")


def test_every_trial_is_kept_in_the_order_of_rates():
    trials = select(RUNS, "macro_f1")["trials"]
    assert [(trial["learning_rate"], trial["macro_f1"]) for trial in trials] == [
        (0.1, [0.90, 0.50]),
        (0.2, [0.75, 0.80]),
    ]


def test_runs_of_earlier_parameters_are_deleted(stage, tmp_path):
    old, new = tmp_path / "data/runs/full/7-0.5", tmp_path / "data/runs/full/42-0.001"
    for folder in (old, new):
        folder.mkdir(parents=True)
    stage("plan_runs", full__learning_rates=[0.001], lora__learning_rates=[0.01])
    assert not old.exists()
    assert new.exists()


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
    folder = Path("data/runs/full/42-0.0002")
    values = read_json(folder / "checkpoint/training.json")
    change(values)
    write_json(folder / "checkpoint/training.json", values)
    with pytest.raises(UserError, match=rf"full/42-0\.0002/checkpoint/training\.json: {message}"):
        read_trained_run(folder)


def test_a_run_is_named_as_dvc_names_its_cell():
    from stages.common.runtime.paths import run_name

    assert run_name(42, 5.0e-5) == "42-5e-05"
    assert run_name(42, 0.002) == "42-0.002"


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_a_fraction_of_the_training_rows_is_a_part_of_a_larger_one(fraction):
    import numpy as np

    from stages.common.runtime.params import SplitParams
    from stages.split import split

    labels = np.random.default_rng(0).choice(3, 1000, p=[0.5, 0.3, 0.2])

    def rows(train_fraction: float) -> dict:
        sizes = {"test_size": 0.2, "validation_size": 0.1, "train_fraction": train_fraction}
        params = SplitParams(**sizes, group_near_duplicates=True, seed=42)
        return split(labels, np.arange(1000), LABELS, params)

    whole, part = rows(1.0), rows(fraction)
    assert set(part["train"]) <= set(whole["train"])
    for name in ("validation", "test"):
        assert part[name].tolist() == whole[name].tolist()
    shares = [np.bincount(labels[split["train"]], minlength=3) for split in (whole, part)]
    assert np.abs(shares[1] - fraction * shares[0]).max() <= 1
