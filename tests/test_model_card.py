"""The model card: the hub accepts its metadata, and its numbers are those of the comparison."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_eval_result, metadata_load
from huggingface_hub.utils import validate_repo_id

from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.evaluation.result import read_comparison
from stages.common.reporting.formatting import format_interval
from stages.common.runtime.exceptions import UserError
from stages.common.serving.model_card import find_results, render_model_card
from stages.common.serving.text_classifier import TextClassifier, load_text_classifier
from tests.support.corpus import LABELS
from tests.support.project import run_tool

CHECKPOINT = Path("data/models/lora")
COMMIT = "f89943434bd5ebaf7be828a30587161a44a5d02c"


def write_lock(folder: Path) -> None:
    """Write what DVC records about the stages that made the LoRA model."""
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params |= {f"lora.{key}": value for key, value in params["lora"].items()}  # DVC writes single keys so
    run = next((folder / "data/runs/lora").glob("0-*")).name
    made = {
        "data/ingested.arrow": ["data"],
        "data/tokenized.arrow": ["clean", "tokenize"],
        "data/splits": ["split"],
        f"data/runs/lora/{run}": ["train", "lora.r", "lora.alpha"],
    }
    stages = {
        f"stage_{index}": {"outs": [{"path": out}], "params": {"params.yaml": {name: params[name] for name in names}}}
        for index, (out, names) in enumerate(made.items())
    }
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")


@pytest.fixture(scope="module")
def compared_project(trained_project, tmp_path_factory) -> Path:
    """Copy `trained_project`, and run the comparison in the copy."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(trained_project, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_tool("baselines", "--fold", 0)
        run_tool("compare")
        write_lock(folder)
    return folder


@pytest.fixture
def classifier(compared_project, monkeypatch) -> TextClassifier:
    """Load the LoRA model in the folder of the comparison."""
    monkeypatch.chdir(compared_project)
    return load_text_classifier(CHECKPOINT)


def test_the_metadata_of_a_card_are_what_the_hub_expects(classifier):
    data = ModelCard(render_model_card(classifier, find_results(CHECKPOINT), "sequence", "0123abc")).data
    assert (data.language, data.library_name, data.pipeline_tag) == ("ko", "transformers", "text-classification")
    assert (data.datasets, data.metrics, data.base_model) == (None, ["f1", "accuracy"], None)


def test_a_card_names_no_data_set_of_the_hub(classifier):
    """The corpus is a folder, whose name is no id on the hub."""
    text = render_model_card(classifier, find_results(CHECKPOINT), "sequence", "")
    (result,) = ModelCard(text).data.eval_results[:1]
    validate_repo_id(result.dataset_type)
    assert result.dataset_name == "raw"


def test_conflict_markers_in_dvc_lock_are_named(classifier, tmp_path, monkeypatch):
    for name in ("data", "metrics"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    lock = Path("dvc.lock").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(f"<<<<<<< HEAD\n{lock}=======\n>>>>>>> theirs\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"dvc\.lock: .* merge conflict"):
        find_results(CHECKPOINT)


def test_the_results_in_the_metadata_are_those_of_the_comparison(classifier, tmp_path):
    (tmp_path / "README.md").write_text(
        render_model_card(classifier, find_results(CHECKPOINT), "sequence", ""), encoding="utf-8"
    )
    scores = read_comparison().scores("lora")
    (result,) = metadata_load(tmp_path / "README.md")["model-index"][0]["results"]
    values = {metric["name"]: (metric["value"], metric["args"]["interval_95"]) for metric in result["metrics"]}
    assert values == {
        name: (score.value, [score.low, score.high])
        for name, score in (("macro-F1", scores.macro_f1), ("accuracy", scores.accuracy))
    }


def test_the_results_have_the_form_that_the_hub_library_makes(classifier, tmp_path):
    (tmp_path / "README.md").write_text(
        render_model_card(classifier, find_results(CHECKPOINT), "sequence", ""), encoding="utf-8"
    )
    (result,) = metadata_load(tmp_path / "README.md")["model-index"][0]["results"]
    f1 = result["metrics"][0]
    expected = metadata_eval_result(
        model_pretty_name="Text classifier",
        task_pretty_name="text classification",
        task_id="text-classification",
        metrics_pretty_name="macro-F1",
        metrics_id="f1",
        metrics_value=f1["value"],
        dataset_pretty_name="raw",
        dataset_id="private",
        dataset_split="test",
    )
    (of_library,) = expected["model-index"][0]["results"]
    del f1["args"], of_library["metrics"][0]["verified"]
    assert {**result, "metrics": [f1]} == of_library


def test_the_text_of_a_card_tells_data_results_and_origin(classifier):
    text = render_model_card(classifier, find_results(CHECKPOINT), "sequence", "0123abc")
    train = json.loads(Path("metrics/split.json").read_text(encoding="utf-8"))["folds"][0]["train"]
    assert f"LoRA on {train['rows']} texts" in text
    assert all(f"{label} {train['classes'][label]}" in text for label in LABELS)
    assert f"| macro-F1 | {format_interval(read_comparison().scores('lora').macro_f1)} |" in text
    assert "synthetic" not in text
    assert "commit `0123abc`" in text
    assert "`lora.r=8`" in text
    assert "full.learning_rate" not in text


def test_the_parameters_are_those_of_the_run_whatever_params_yaml_holds_by_now(classifier, monkeypatch, tmp_path):
    for name in ("data", "metrics", "dvc.lock"):
        (tmp_path / name).symlink_to(Path(name).absolute())
    monkeypatch.chdir(tmp_path)
    assert "`lora.r=8`" in render_model_card(classifier, find_results(CHECKPOINT), "sequence", "")


def test_a_model_of_another_run_gets_no_results(classifier, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "lora")
    (checkpoint / "adapter_model.safetensors").write_bytes(b"other weights")
    data = ModelCard(render_model_card(classifier, find_results(checkpoint), "sequence", "")).data
    assert data.eval_results is None
    monkeypatch.chdir(tmp_path)
    assert "## Results\n\nUnknown" in render_model_card(classifier, find_results(checkpoint), "sequence", "")


def test_a_base_model_of_the_hub_stands_in_the_metadata(classifier):
    base_model = BaseModelSource(name="monologg/kobert", revision=COMMIT, sha256={})
    metadata = classifier.metadata.model_copy(update={"base_model": base_model})
    classifier = dataclasses.replace(classifier, metadata=metadata)
    text = render_model_card(classifier, find_results(CHECKPOINT), "adapter", "")
    assert ModelCard(text).data.base_model == "monologg/kobert"
    assert f"`monologg/kobert` at revision `{COMMIT}`" in text


def test_a_card_speaks_the_language_of_the_corpus_and_names_the_licence_that_was_given(classifier):
    results = find_results(CHECKPOINT)
    card = ModelCard(render_model_card(classifier, results, "sequence", "", "en", "apache-2.0"))
    assert (card.data.language, card.data.license) == ("en", "apache-2.0")
    assert "Great sound!" in card.text
    prose = re.sub("|".join(LABELS), "", card.text.partition("## Training")[0])
    assert not re.findall("[가-힣]+", prose)
    korean = ModelCard(render_model_card(classifier, results, "sequence", ""))
    assert "배터리가" in korean.text
    assert korean.data.license is None


def test_a_card_says_that_the_sample_is_synthetic(classifier):
    results = dataclasses.replace(find_results(CHECKPOINT), source="data/sample/SNS")
    card = ModelCard(render_model_card(classifier, results, "sequence", ""))
    assert "**The training data is synthetic**" in card.text
    assert card.data.tags == ["synthetic"]
