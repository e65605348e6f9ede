"""Which experiments a sweep compares."""

from stages.sweep import experiments_table


def revision(name: str, **params: object) -> dict:
    validation = {method: {"val_f1": 0.8, "val_moe": 0.04} for method in ("full", "lora")}
    data = {"params": {"params.yaml": {"data": params}}, "metrics": {"metrics/validation.json": {"data": validation}}}
    return {"name": name, "rev": name, "data": data}


def test_experiments_that_differ_in_other_parameters_are_left_out(capsys):
    revisions = [revision(f"r{r}", lora={"r": r}, split={"seed": 42}) for r in (4, 8, 16)]
    revisions.insert(0, revision("another split", lora={"r": 8}, split={"seed": 7}))
    table = experiments_table(revisions, "lora.r", test_scores=False)
    assert table["experiment"].tolist() == ["r4", "r8", "r16"]
    assert "other parameters as well: 1 experiments" in capsys.readouterr().err
