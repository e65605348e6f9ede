"""Splits and finished runs of both methods, as the stages before `select` leave them, without training anything."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.artifacts.files import write_json
from stages.common.artifacts.logits import write_logits
from stages.common.artifacts.methods import METHODS
from stages.common.artifacts.training_metadata import BaseModelSource, TrainingMetadata, write_training_metadata
from stages.common.runtime import paths
from stages.common.runtime.params import Preprocessing
from stages.common.runtime.timings import write_timing
from tests.support.corpus import LABELS, SHIPPED, records

EPOCHS = 4
SEPARATION = {"full": 1.5, "lora": 1.2}  # of the right class' logit from the others, in standard deviations
BASELINE_SEPARATION = {"linear_probe": 0.1, "tfidf": 10.0}
TIMING = {"seconds": 4.0, "seconds_to_best_epoch": 2.0, "samples_per_second": 50.0, "peak_memory_mib": 100.0}
LEARNING_RATES = {"full": (5e-5, 2e-4), "lora": (5e-4, 2e-3)}  # as in params.yaml


def labelled_logits(labels: np.ndarray, separation: float, seed: int) -> np.ndarray:
    """Normal logits (rows, 3), the right class' shifted by `separation`."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(LABELS)))
    return noise + separation * np.eye(len(LABELS))[labels]


def _history(seed: int, learning_rate: float) -> list[dict[str, float]]:
    scores = np.random.default_rng([seed, round(learning_rate * 1e6)]).uniform(0.5, 0.8, EPOCHS)
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "validation_loss": 0.5 + 0.1 * (epoch - 2) ** 2,
            "macro_f1": float(score),
        }
        for epoch, score in enumerate(scores, start=1)
    ]


def training_metadata(seed: int, learning_rate: float, validation: dict[str, Any]) -> TrainingMetadata:
    """Metadata of a run whose best epoch has these validation scores."""
    return TrainingMetadata(
        base_model=BaseModelSource(name="data/kobert-mini", revision=None, sha256={}),
        preprocessing=Preprocessing(clean=SHIPPED.clean, max_length=SHIPPED.tokenize.max_length),
        labels=LABELS,
        seed=seed,
        learning_rate=learning_rate,
        best_epoch=validation["epoch"],
        validation=validation,
        trainable_parameters=30 + seed % 2,
        total_parameters=1000,
    )


def _write_run(folder: Path, logits: dict[str, np.ndarray], seed: int, learning_rate: float) -> None:
    history = _history(seed, learning_rate)
    best = max(history, key=lambda row: row["macro_f1"])
    (folder / "checkpoint").mkdir(parents=True)
    save_file({"weight": logits["test"][:1].astype(np.float32)}, folder / "checkpoint/model.safetensors")
    write_training_metadata(folder / "checkpoint", training_metadata(seed, learning_rate, best))
    write_json(folder / "history.json", history)
    write_logits(folder / "logits.safetensors", logits)
    write_timing(folder / "checkpoint", **TIMING)


def write_runs(
    rows: list[dict[str, Any]] | None = None,
    seeds: Sequence[int] = (42,),
    separation: float | None = None,
    learning_rates: Mapping[str, Sequence[float]] = LEARNING_RATES,
) -> None:
    """Write splits of `rows`, baselines, and a run for each method, seed and learning rate into the current folder.

    Args:
        separation: see `SEPARATION`.
    """
    rows = rows or records()
    columns = {
        "labels": [int(row["GeneralPolarity"]) + 1 for row in rows],
        "Index": [row["Index"] for row in rows],
        "text": [row["RawText"] for row in rows],
        "MainCategory": [row["MainCategory"] for row in rows],
    }
    schema = make_schema(
        {"labels": pa.int64(), "Index": pa.string(), "text": pa.string(), "MainCategory": pa.string()}, LABELS
    )
    table = pa.table(columns, schema)
    labels = {}
    for first, (split, path) in enumerate(
        (("train", paths.TRAIN), ("validation", paths.VALIDATION), ("test", paths.TEST))
    ):
        of_split = table.take(np.arange(first, len(rows), 3))
        write_table(path, [of_split], schema)
        labels[split] = of_split["labels"].to_numpy()
    baselines = {f"majority/{split}": np.zeros((len(of_split), len(LABELS))) for split, of_split in labels.items()}
    for name, of_baseline in BASELINE_SEPARATION.items():
        baselines |= {f"{name}/{split}": labelled_logits(labels[split], of_baseline, seed=7) for split in labels}
    write_logits(paths.BASELINE_LOGITS, baselines)
    for number, method in enumerate(METHODS):
        for seed, (rank, learning_rate) in product(seeds, enumerate(learning_rates[method])):
            logits = {
                split: labelled_logits(
                    labels[split], separation or SEPARATION[method], 1000 * number + 100 * rank + seed + len(split)
                )
                for split in ("validation", "test")
            }
            folder = paths.RUNS / method / paths.run_name(seed, learning_rate)
            _write_run(folder, logits, seed, learning_rate)
    write_json(paths.AUDIT_METRICS, {"rows": 120, "suspected": 7, "estimated_wrong": 0.0625})
    write_json(paths.LABEL_NOISE, [{"label": "부정", "suggested": "긍정", "rate": 0.1234}])
    for path in (paths.FILTER_METRICS, paths.SPLIT_METRICS, paths.TOKEN_METRICS):
        write_json(path, {"rows": len(rows)})
