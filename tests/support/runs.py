"""Write folds and runs of both methods, as the stages before `select` do, without any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from stages.common.artifacts.arrow import make_schema, write_table
from stages.common.artifacts.files import write_json
from stages.common.artifacts.folds import PARTS, Fold, FoldCounts, SplitMetrics, write_fold
from stages.common.artifacts.logits import write_logits
from stages.common.artifacts.methods import METHODS
from stages.common.artifacts.training_metadata import BaseModelSource, TrainingMetadata, write_training_metadata
from stages.common.runtime import paths
from stages.common.runtime.params import Preprocessing
from stages.common.runtime.timings import write_timing
from tests.support.corpus import LABELS, SHIPPED, records

EPOCHS = 4
NUM_FOLDS = 5
# Mean of the logit of the right class, in standard deviations. The other logits have a mean of 0.
SEPARATION = {"full": 1.5, "lora": 1.2}
BASELINE_SEPARATION = {"linear_probe": 0.1, "tfidf": 10.0}
TIMING = {"seconds": 4.0, "seconds_to_best_epoch": 2.0, "samples_per_second": 50.0, "peak_memory_mib": 100.0}
LEARNING_RATES = {"full": SHIPPED.full.learning_rates, "lora": SHIPPED.lora.learning_rates}


def labelled_logits(labels: np.ndarray, separation: float, seed: int) -> np.ndarray:
    """Draw normal logits (rows, 3), and add `separation` to those of the right class."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(LABELS)))
    return noise + separation * np.eye(len(LABELS))[labels]


def make_run(fold: int, learning_rate: float, macro_f1: float | None = None, losses: Sequence[float] = ()) -> Any:
    """Make a run as `read_trained_run` returns it.

    Args:
        fold: Number of the fold.
        learning_rate: Learning rate of the run.
        macro_f1: Validation macro-F1 of the second epoch, which is the best; by default all scores are random.
        losses: Validation losses of all epochs; by default the second is the lowest.
    """
    from stages.common.artifacts.trained_run import TrainedRun

    random_scores = np.random.default_rng([fold, round(learning_rate * 1e6)]).uniform(0.5, 0.8, EPOCHS)
    losses = losses or [0.5 + 0.1 * (epoch - 2) ** 2 for epoch in range(1, EPOCHS + 1)]
    history = [
        {"epoch": epoch, "train_loss": 1 / epoch, "validation_loss": loss, "macro_f1": float(score)}
        for epoch, (loss, score) in enumerate(zip(losses, np.resize(random_scores, len(losses)), strict=True), start=1)
    ]
    if macro_f1 is not None:
        for epoch in history:
            epoch["macro_f1"] = macro_f1 if epoch["epoch"] == 2 else macro_f1 / 2
    best = max(history, key=lambda row: row["macro_f1"])
    metadata = TrainingMetadata(
        base_model=BaseModelSource(name="tiny", revision=None, sha256={}),
        preprocessing=Preprocessing(clean=SHIPPED.clean, max_length=64),
        labels=LABELS,
        fold=fold,
        seed=42 + fold,
        learning_rate=learning_rate,
        best_epoch=int(best["epoch"]),
        validation=best,
        trainable_parameters=30 + fold % 2,
        total_parameters=1000,
    )
    return TrainedRun(metadata, 1000, f"{fold}-{learning_rate}", history)


def _write_run(folder: Path, logits: dict[str, np.ndarray], fold: int, learning_rate: float) -> None:
    run = make_run(fold, learning_rate)
    (folder / "checkpoint").mkdir(parents=True)
    save_file({"weight": logits["test"][:1].astype(np.float32)}, folder / "checkpoint/model.safetensors")
    write_training_metadata(folder / "checkpoint", run.metadata)
    write_json(folder / "history.json", run.history)
    write_logits(folder / "logits.safetensors", logits)
    write_timing(folder / "checkpoint", **TIMING)


def write_runs(
    rows: list[dict[str, Any]] | None = None,
    folds: Sequence[int] = (0, 1, 2),
    separation: float | None = None,
    learning_rates: Mapping[str, Sequence[float]] = LEARNING_RATES,
    selects_on_test_rows: bool = False,
    fixed_test_rows: bool = False,
) -> None:
    """Write folds of `rows` to the current folder, and baselines and runs of both methods for each fold.

    Args:
        rows: AI Hub records; by default `records`.
        folds: The folds for which there are runs.
        separation: Mean of the logit of the right class for both methods; by default `SEPARATION`.
        learning_rates: Learning rates of each method.
        selects_on_test_rows: Whether the validation rows are the test rows.
        fixed_test_rows: Whether all folds have the same test rows.
    """
    rows = rows or records()
    columns = {
        "labels": [int(row["GeneralPolarity"]) + 1 for row in rows],
        "Index": [row["Index"] for row in rows],
        "text": [row["RawText"] for row in rows],
        "MainCategory": [row["MainCategory"] for row in rows],
    }
    fields = {"labels": pa.int64(), "Index": pa.string(), "text": pa.string(), "MainCategory": pa.string()}
    schema = make_schema(fields, LABELS)
    write_table(paths.TOKENIZED, [pa.table(columns, schema)], schema)
    labels, numbers = np.array(columns["labels"]), np.arange(len(rows))
    counts = []
    for fold in range(NUM_FOLDS):
        test = numbers[numbers % NUM_FOLDS == (0 if fixed_test_rows else fold)]
        others = np.setdiff1d(numbers, test)
        validation = test if selects_on_test_rows else others[(others + fold) % 3 == 0]
        parts = Fold(np.setdiff1d(others, validation), validation, test)
        write_fold(paths.fold_path(fold), parts, len(rows))
        counts.append(FoldCounts.of(parts, labels, LABELS))
        if fold in folds:
            of_parts = {part: labels[each] for part, each in vars(parts).items()}
            _write_baselines(fold, of_parts)
            for number, method in enumerate(METHODS):
                for rank, rate in enumerate(learning_rates[method]):
                    seed = 1000 * number + 100 * rank + 10 * fold
                    logits = {
                        part: labelled_logits(each, separation or SEPARATION[method], seed + len(part))
                        for part, each in of_parts.items()
                    }
                    _write_run(paths.RUNS / method / paths.run_name(fold, rate), logits, fold, rate)
    write_json(
        paths.SPLIT_METRICS,
        SplitMetrics(
            rows=len(rows),
            duplicate_rows=0,
            near_duplicate_texts=0,
            duplicates_of_test_source=0,
            excluded_rows=0,
            fixed_test_rows=fixed_test_rows,
            mean_rows={part: getattr(counts[0], part).rows for part in PARTS},
            folds=counts,
        ).model_dump(),
    )
    for path in (paths.FILTER_METRICS, paths.TOKEN_METRICS):
        write_json(path, {"rows": len(rows)})


def _write_baselines(fold: int, labels: Mapping[str, np.ndarray]) -> None:
    logits = {f"majority/{part}": np.zeros((len(each), len(LABELS))) for part, each in labels.items()}
    for name, separation in BASELINE_SEPARATION.items():
        logits |= {f"{name}/{part}": labelled_logits(each, separation, seed=7 + fold) for part, each in labels.items()}
    write_logits(paths.baseline_path(fold), logits)


STAGES_AFTER_TRAINING = ("prune_runs", "select", "audit", "compare", "report")
