"""The README of an exported model: metadata for the Hugging Face hub, use, data, results and limits."""

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
from stages.common.reporting.formatting import DISPLAY_NAMES
from stages.common.runtime import paths
from stages.common.runtime.exceptions import UserError
from stages.common.serving.text_classifier import TextClassifier

LOCK = Path("dvc.lock")
TEMPLATE = Path(__file__).with_name("model_card.md")
LIBRARIES = {"sequence": "transformers", "token": "transformers", "adapter": "peft", "onnx": "onnx"}
METRICS = {"macro_f1": ("f1", "macro-F1", {"average": "macro"}), "accuracy": ("accuracy", "accuracy", {})}


def _locked_params(*outs: Path) -> dict[str, Any]:
    """The sections of params.yaml with which DVC made these artifacts; params.yaml itself may have changed since."""
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
    """What the pipeline in the current folder knows of a checkpoint that is the best run of a method."""

    method: str  # as people read it
    scores: Scores  # means over the folds
    num_folds: int
    selected_on_test_rows: bool
    counts: FoldCounts  # of the fold that the checkpoint was trained on
    source: str
    params: dict[str, Any]  # with which DVC made the checkpoint, by their dotted names


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


def _metadata(kind: str, base_model: BaseModelSource, results: PipelineResults | None) -> ModelCardData:
    evaluation = []
    for key, (metric_type, name, arguments) in METRICS.items():
        if not results:
            break
        score = getattr(results.scores, key)
        evaluation.append(
            EvalResult(
                task_type="text-classification",
                task_name="sentiment of reviews",
                dataset_type="private",  # It is on no hub, which would look for it there.
                dataset_name=Path(results.source).name,
                dataset_split="test",
                metric_type=metric_type,
                metric_name=name,
                metric_value=score.value,
                metric_args={**arguments, "interval_95": [score.low, score.high]},
            )
        )
    return ModelCardData(
        language="ko",
        library_name=LIBRARIES[kind],
        pipeline_tag="text-classification",
        tags=["sentiment-analysis", "korean"],
        base_model=base_model.name if base_model.revision else None,  # else it is not on the hub
        metrics=[metric_type for metric_type, _, _ in METRICS.values()],
        model_name="Sentiment of Korean reviews" if evaluation else None,
        eval_results=evaluation or None,
    )


def render_model_card(classifier: TextClassifier, results: PipelineResults | None, kind: str, revision: str) -> str:
    """Render the card of an export.

    Args:
        results: What `find_results` returned for the checkpoint.
        kind: "sequence", "token", "adapter" or "onnx".
        revision: git's, of this project.
    """
    base_model = classifier.metadata.base_model
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
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
    )
    return str(ModelCard(f"---\n{_metadata(kind, base_model, results).to_yaml()}\n---\n\n{text}\n"))
