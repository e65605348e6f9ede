"""The experiments that a sweep compares, and how it compares them."""

import math

import pytest
import scipy.stats

from stages.sweep import experiments_table, paired_change


def revision(name: str, scores: tuple[float, ...] = (0.7, 0.8, 0.9), **params: object) -> dict:
    of_method = {f"fold_{fold}": score for fold, score in enumerate(scores)} | {"val_f1": sum(scores) / len(scores)}
    validation = {"full": of_method, "lora": of_method}
    data = {"params": {"params.yaml": {"data": params}}, "metrics": {"metrics/validation.json": {"data": validation}}}
    return {"name": name, "rev": name, "data": data}


def test_experiments_that_differ_in_other_parameters_are_left_out(capsys):
    revisions = [revision(f"r{r}", lora={"r": r}, split={"seed": 42}) for r in (4, 8, 16)]
    revisions.insert(0, revision("another split", lora={"r": 8}, split={"seed": 7}))
    table = experiments_table(revisions, "lora.r", test_scores=False)
    assert table["experiment"].tolist() == ["r4", "r8", "r16"]
    assert "1 experiments are left out, because they differ in other parameters as well" in capsys.readouterr().err


def test_experiments_are_compared_fold_by_fold_with_the_first(capsys):
    revisions = [
        revision("r8", (0.71, 0.83, 0.92), lora={"r": 8}),
        revision("r4", (0.7, 0.8, 0.9), lora={"r": 4}),
    ]
    table = experiments_table(revisions, "lora.r", test_scores=False)
    assert table["lora.r"].tolist() == [4, 8]
    assert table["lora change"].tolist() == pytest.approx([0.0, 0.02])
    low, high = scipy.stats.ttest_rel((0.71, 0.83, 0.92), (0.7, 0.8, 0.9)).confidence_interval()
    assert table["lora +-"][1] == pytest.approx((high - low) / 2)


def test_folds_that_only_one_experiment_has_are_left_out():
    assert paired_change({"fold_0": 0.8, "fold_1": 0.9}, {"fold_1": 0.7})[0] == pytest.approx(0.2)
    assert math.isnan(paired_change({"fold_1": 0.9}, {"fold_1": 0.7})[1]), "fewer than three folds have no interval"
