"""Both checkpoints on the test rows: metrics and confusion matrices."""

from pathlib import Path

from stages.common.batches import Collator, Rows, predict_logits, read_rows
from stages.common.errors import one_line, warn
from stages.common.files import read_json, write_json
from stages.common.metrics import macro_scores
from stages.common.model import load_checkpoint, weight_bytes
from stages.common.params import load_params
from stages.common.paths import (
    BASE_MODEL,
    COMPARE_METRICS,
    FULL,
    FULL_CONFUSION,
    LORA,
    LORA_CONFUSION,
    TEST,
)
from stages.common.processes import device
from stages.common.records import LABELS


def measure(checkpoint: Path, rows: Rows, batch_size: int, packing: bool) -> tuple[dict[str, float], list[int]]:
    """The figures of one checkpoint on `rows`, and the class it predicts for each."""
    model = load_checkpoint(checkpoint, BASE_MODEL).to(device())
    predictions = predict_logits(model, Collator(model, packing), rows, batch_size).argmax(1).tolist()
    scores = macro_scores(predictions, rows.labels.tolist())
    facts = read_json(checkpoint / "training.json")
    figures = {
        **{name: round(score, 4) for name, score in scores.items()},
        "best_epoch": facts["best_epoch"],
        "trainable_parameters": facts["trainable_parameters"],
        "total_parameters": facts["total_parameters"],
        "checkpoint_bytes": weight_bytes(checkpoint),
    }
    return figures, predictions


@one_line
def main() -> None:
    params = load_params()
    if not params.split.validation_size:
        warn("split.validation_size is 0: epochs were chosen on the test rows, so these figures are optimistic")
    rows = read_rows(TEST)
    figures = {}
    for method, checkpoint, confusion in (("full", FULL, FULL_CONFUSION), ("lora", LORA, LORA_CONFUSION)):
        figures[method], predictions = measure(checkpoint, rows, params.compare.batch_size, params.train.packing)
        pairs = zip(rows.labels.tolist(), predictions, strict=True)
        write_json(confusion, [{"actual": LABELS[label], "predicted": LABELS[guess]} for label, guess in pairs])
        print(f"{method}: " + ", ".join(f"{name} {value}" for name, value in figures[method].items()))
    write_json(COMPARE_METRICS, figures)


if __name__ == "__main__":
    main()
