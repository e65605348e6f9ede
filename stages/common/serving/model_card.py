"""The README of an exported model: metadata for the Hugging Face hub, use, training data, results and limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from stages.common.artifacts.files import read_json, sha256
from stages.common.artifacts.folds import FoldCounts, SplitMetrics
from stages.common.artifacts.selection import read_selection
from stages.common.artifacts.training_metadata import BaseModelSource
from stages.common.evaluation.result import Scores, read_comparison
from stages.common.reporting.formatting import DISPLAY_NAMES, format_interval
from stages.common.runtime import paths
from stages.common.runtime.exceptions import UserError
from stages.common.serving.text_classifier import TextClassifier

LOCK = Path("dvc.lock")
TEMPLATE = Path(__file__).with_name("model_card.md")
LIBRARIES = {"sequence": "transformers", "token": "transformers", "adapter": "peft", "onnx": "onnx"}
SAMPLE = Path("data/sample")  # The corpus that this project ships; it is synthetic.
EXAMPLES = {
    "ko": '["배터리가 하루도 안 가요", "음질 최고!"]',
    "en": '["The battery does not last a day.", "Great sound!"]',
}
METRICS = {"macro_f1": ("f1", "macro-F1", {"average": "macro"}), "accuracy": ("accuracy", "accuracy", {})}


def _locked_params(*outs: Path) -> dict[str, Any]:
    """Read the parameters with which DVC made these artifacts, by dotted name; params.yaml may have changed since."""
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{LOCK}: is damaged, or has the marks of a merge conflict; see `git status`") from error
    made = [stage for stage in stages.values() if {out["path"] for out in stage.get("outs", ())} & set(map(str, outs))]
    # DVC writes whole sections nested and single keys by their dotted names.
    params = [pd.json_normalize(stage["params"]["params.yaml"]).to_dict("records")[0] for stage in made]
    return {name: value for stage_params in params for name, value in stage_params.items()}


@dataclass(frozen=True)
class PipelineResults:
    """The results of a checkpoint that is the best run of a method in the current folder."""

    method: str  # Display name.
    scores: Scores  # Means over the folds.
    num_folds: int
    selected_on_test_rows: bool
    counts: FoldCounts  # Rows of the fold that the checkpoint was trained on.
    source: str  # Folder or file of the corpus.
    params: dict[str, Any]  # Parameters with which DVC made the checkpoint, by dotted name.

    @property
    def synthetic(self) -> bool:
        """Whether the corpus is the sample of this project."""
        return SAMPLE in (Path(self.source), *Path(self.source).parents)


def find_results(checkpoint: Path) -> PipelineResults | None:
    """Find the results of a checkpoint; None if it is not the best run of a method in the current folder."""
    if not (paths.SELECTION.is_file() and paths.COMPARE_DETAILS.is_file() and LOCK.is_file()):
        return None
    (weights,) = checkpoint.glob("*.safetensors")
    for method, selected in read_selection().items():
        best = selected.runs[selected.best_run]
        if best.weights_sha256 == sha256(weights):
            comparison, run = read_comparison(), paths.RUNS / method / selected.best_run
            return PipelineResults(
                method=DISPLAY_NAMES[method],
                scores=comparison.scores(method),
                num_folds=len(comparison.folds),
                selected_on_test_rows=comparison.selected_on_test_rows,
                counts=SplitMetrics.model_validate(read_json(paths.SPLIT_METRICS)).folds[best.metadata.fold],
                source=_locked_params(paths.INGESTED)["data.source"],
                params=_locked_params(paths.TOKENIZED, paths.FOLDS, run),
            )
    return None


def _metadata(
    kind: str, base_model: BaseModelSource, results: PipelineResults | None, language: str, licence: str | None
) -> ModelCardData:
    evaluation = []
    for key, (metric_type, name, arguments) in METRICS.items():
        if not results:
            break
        score = getattr(results.scores, key)
        evaluation.append(
            EvalResult(
                task_type="text-classification",
                task_name="text classification",
                dataset_type="private",  # The hub would look for a dataset of any other name.
                dataset_name=Path(results.source).name,
                dataset_split="test",
                metric_type=metric_type,
                metric_name=name,
                metric_value=score.value,
                metric_args={**arguments, "interval_95": [score.low, score.high]},
            )
        )
    return ModelCardData(
        language=language,
        license=licence,
        library_name=LIBRARIES[kind],
        pipeline_tag="text-classification",
        tags=["synthetic"] if results and results.synthetic else None,
        base_model=base_model.name if base_model.revision else None,  # A local folder is not on the hub.
        metrics=[metric_type for metric_type, _, _ in METRICS.values()],
        model_name="Text classifier" if evaluation else None,
        eval_results=evaluation or None,
    )


def render_model_card(
    classifier: TextClassifier,
    results: PipelineResults | None,
    kind: str,
    revision: str,
    language: str = "ko",
    licence: str | None = None,
) -> str:
    """Render the card of an export.

    Args:
        classifier: The model, with what is known of its training.
        results: What `find_results` returned for the checkpoint.
        kind: "sequence", "token", "adapter" or "onnx".
        revision: Git commit of this project.
        language: Code of the language of the texts, in which the examples are.
        licence: Identifier of the model's licence on the hub, such as "apache-2.0"; None says nothing of it.
    """
    base_model = classifier.metadata.base_model
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["interval"] = format_interval
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        kind=kind,
        labels=classifier.labels,
        id2label=dict(enumerate(classifier.labels)),
        metadata=classifier.metadata,
        base_model=base_model,
        max_length=classifier.metadata.preprocessing.max_length,
        results=results,
        revision=revision,
        language=language,
        examples=EXAMPLES.get(language, '["first text", "second text"]'),
        selected_by="loss" if results and results.params.get("train.select_by") == "loss" else "macro-F1",
    )
    return str(ModelCard(f"---\n{_metadata(kind, base_model, results, language, licence).to_yaml()}\n---\n\n{text}\n"))
