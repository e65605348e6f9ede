"""Quality of a base model: full fine-tuning and LoRA against random weights and TF-IDF, over several seeds.

    python -m tests.benchmarks.seeds [--corpus DIR] [--base-model DIR] [--seeds 42 43 44 45 46] [--output FILE]

Each seed has a split, a head and an order of the examples of its own. The best epoch is chosen on the validation rows;
the result is macro-F1 on the test rows. Parameters are those of params.yaml.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForTokenClassification

from stages.common.corpus.cleaning import clean
from stages.common.linear_models import TFIDF_C_GRID, fit_logistic_regression, tfidf_features
from stages.common.modeling.classifier import add_lora, build_classifier
from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.inference import predict_logits
from stages.common.modeling.macro_scores import macro_scores
from stages.common.pretrained.tokenizer import load_tokenizer
from stages.common.runtime.params import Params, label_index, load_params
from stages.common.training.trainer import Trainer
from stages.filter import filter_batch
from stages.ingest import find_files, read_files, to_batches
from stages.split import split

METHODS = ("full", "lora", "random full", "random lora", "tfidf")


def read_corpus(folder: Path, params: Params) -> tuple[list[str], np.ndarray]:
    """Cleaned texts and class indices of the rows of a class."""
    index = label_index(params.data.labels)
    batches = [filter_batch(batch, index)[0] for batch in to_batches(read_files(folder, find_files(folder)))]
    table = pa.Table.from_batches(batches)
    return clean(table["RawText"], params.clean).to_pylist(), table["labels"].to_numpy()


def tfidf(texts: list[str], labels: np.ndarray, rows: dict[str, np.ndarray]) -> list[int]:
    """Predictions on the test rows by TF-IDF and logistic regression, whose C is chosen on the validation rows."""
    features = tfidf_features({name: [texts[number] for number in part] for name, part in rows.items()})
    of_rows = {name: labels[part] for name, part in rows.items()}
    return fit_logistic_regression(features, of_rows, TFIDF_C_GRID, "none", "tfidf").predict(features["test"]).tolist()


def build(method: str, base_model: Path, params: Params, seed: int) -> torch.nn.Module:
    """The classifier, from the base model's weights or from random ones, with adapters or without."""
    model = build_classifier(base_model, list(params.data.labels), params.train.dropout, seed)
    if method.startswith("random"):
        torch.manual_seed(seed)
        model = AutoModelForTokenClassification.from_config(model.config)
    return add_lora(model, params.lora, seed) if method.endswith("lora") else model


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--corpus", type=Path, help="folder of AI Hub JSON files (default: data.source)")
    arguments.add_argument("--base-model", type=Path, help="folder of a base model (default: base_model.folder)")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44, 45, 46])
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments.add_argument("--output", type=Path, help="JSON file for the results of every run")
    options = arguments.parse_args()
    params = load_params()
    corpus = options.corpus or Path(params.data.source)
    base_model = options.base_model or Path(params.base_model.folder)
    texts, labels = read_corpus(corpus, params)
    input_ids = load_tokenizer(base_model).encode(texts, params.tokenize.max_length).input_ids
    groups = np.unique(texts, return_inverse=True)[1]
    scores: dict[str, list[float]] = {method: [] for method in options.methods}
    for seed in options.seeds:
        rows = split(labels, groups, list(params.data.labels), params.split.model_copy(update={"seed": seed}))
        datasets = {name: TokenizedDataset(input_ids.take(pa.array(part)), labels[part]) for name, part in rows.items()}
        for method in options.methods:
            if method == "tfidf":
                predictions, epochs = tfidf(texts, labels, rows), ""
            else:
                model = build(method, base_model, params, seed)
                learning_rate = params.lora.learning_rate if method.endswith("lora") else params.full.learning_rate
                trainer = Trainer(model, datasets["train"], datasets["validation"], params.train, learning_rate, seed)
                result = trainer.train()
                logits = predict_logits(model, trainer.collator, datasets["test"], params.train.eval_batch_size)
                predictions, epochs = logits.argmax(1).tolist(), f", best epoch {result.best_epoch}"
            scores[method].append(
                macro_scores(predictions, datasets["test"].labels.tolist(), len(params.data.labels))["macro_f1"]
            )
            print(f"== seed {seed}, {method}: test macro-F1 {scores[method][-1]:.4f}{epochs}", flush=True)
    print(f"\n| {corpus.name} | mean | sd | seeds |\n| --- | ---: | ---: | ---: |")
    for method, values in scores.items():
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        print(f"| {method} | {np.mean(values):.3f} | {spread:.3f} | {len(values)} |")
    if options.output:
        options.output.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
