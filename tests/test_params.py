"""params.yaml may have numbers as DVC writes them, and all errors are in one message."""

import re
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError

from stages.common.runtime.exceptions import UserError
from stages.common.runtime.params import Preprocessing, load_params
from tests.support.corpus import SHIPPED, SHIPPED_TEXT


def changed(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    text = SHIPPED_TEXT
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_holds_the_notebooks_sizes():
    params = SHIPPED
    assert (params.train.batch_size, params.tokenize.max_length) == (16, 256)
    assert (params.lora.r, params.lora.alpha, params.lora.dropout) == (8, 16, 0.1)
    assert len(params.full.learning_rates) == len(params.lora.learning_rates), "equal tuning budgets"
    assert params.split.folds == 5, "a fifth of the rows is tested, as in the notebook"


@pytest.mark.parametrize("written", ["3e-05", "3e-5", "0.00003", "3.0e-05"])
def test_a_rate_is_a_number_however_it_is_written(tmp_path, written):
    path = changed(tmp_path, ("learning_rates: [2.0e-4]", f"learning_rates: [{written}]"))
    assert load_params(path).full.learning_rates == [3e-5]


def test_all_errors_are_reported_together(tmp_path):
    path = changed(
        tmp_path,
        ("  r: 8\n", "  r: '8'\n  rank: 8\n"),
        ("epochs: 6", "epochs: 0"),
        ("patience: 0", "patience: true"),
        ("  alpha: 16\n", ""),
        ("schedule: linear", "schedule: step"),
        ("validation_size: 0.1", "validation_size: .nan"),
        ("keep: 0-9가-힣A-Za-z.,?!", "keep: z-a"),
        ("compare:", "compere:"),
        ("folds: [0, 1, 2]", "folds: [1, 1]"),
    )
    with pytest.raises(UserError) as raised:
        load_params(path)
    text = str(raised.value)
    assert "\n" not in text
    for key in (
        "lora.r is '8'",
        "lora.rank is not a known key",
        "train.epochs",
        "train.patience",
        "run.folds is [1, 1]: value error, names a value twice",
        "lora.alpha is missing",
        "train.schedule",
        "split.validation_size",
        "clean.keep",
        "compere is not a known key",
        "compare is missing",
    ):
        assert key in text


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00", "seed: 1"])
def test_a_file_that_is_no_params_file_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"params\.yaml"):
        load_params(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path / "none.yaml")


def test_a_checkpoint_of_when_rule_3_had_a_switch_can_be_used_if_it_was_on():
    stored = {"clean": SHIPPED.clean.model_dump(), "max_length": 256}
    former = stored | {"clean": {**stored["clean"], "collapse_spaces": True}}
    assert Preprocessing.model_validate(former) == Preprocessing.model_validate(stored)
    former["clean"]["collapse_spaces"] = False
    with pytest.raises(ValidationError, match="collapse_spaces"):
        Preprocessing.model_validate(former)


@pytest.mark.parametrize("number", ["0x" + "f" * 10_000, "9" * 10_000, "0b" + "1" * 20_000], ids=["hex", "dec", "bin"])
@pytest.mark.parametrize("key", ["r", "epochs", "seed", "patience", "bootstrap_samples"])
def test_a_number_of_ten_thousand_digits_is_told_in_one_line(tmp_path, key, number):
    path = tmp_path / "params.yaml"
    text = re.sub(rf"^  {key}: .*$", f"  {key}: {number}", SHIPPED_TEXT, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_params(path)
    assert len(str(error.value)) < 400


def test_comments_survive_what_dvc_writes_for_experiments(tmp_path):
    """DVC first turns lists into blocks, and the second time it deletes comments that follow such a block."""
    path = changed(tmp_path)
    for rank in (4, 2):
        apply_overrides(path, [f"lora.r={rank}", "run.folds=[0,1,2,3]"])
    comments = [line for line in SHIPPED_TEXT.splitlines() if "#" in line]
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if "#" in line] == comments
    assert load_params(path).lora.r == 2
