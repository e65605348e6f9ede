"""Compare exported models: torch with ONNX in 32 and 8 bits, and `stages.predict` with transformers' pipeline.

    dvc repro && python -m tests.benchmarks.serving [--model data/models/full] [--texts 20000] [--rounds 3]
        [--formats "ONNX" "ONNX, int8"]

The first table has accuracy on the test rows, the median time of one text, and texts per second in batches. The formats
take turns in one process. The second table has texts per second of a CSV file. All get raw texts, which the exported
tokenizer cleans.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from stages.common.artifacts.arrow import read_batches, read_table
from stages.common.artifacts.folds import read_fold
from stages.common.artifacts.training_metadata import read_training_metadata
from stages.common.runtime.paths import FILTERED, TOKENIZED, fold_path
from stages.common.serving.text_classifier import load_text_classifier
from stages.export import export

BATCH_SIZE, NUM_SINGLE = 64, 200
FORMATS = ("ONNX", "ONNX, int8")
Classify = Callable[[Sequence[str]], np.ndarray]  # A function from texts to their class indices, (texts,).


def raw_texts() -> dict[str, str]:
    """Return the texts before cleaning, by their ids."""
    pairs: dict[str, str] = {}
    for batch in read_batches(FILTERED, ("Index", "RawText")):
        pairs |= zip(batch["Index"].to_pylist(), batch["RawText"].to_pylist(), strict=True)
    return pairs


def export_model(model: Path, name: str, output: Path) -> Path:
    export(load_text_classifier(model), model, "sequence" if name == "torch" else "onnx", name.endswith("int8"), output)
    return output


def torch_classifier(folder: Path) -> Classify:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def classify(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            return model(**inputs).logits.argmax(1).numpy()

    return classify


def onnx_classifier(folder: Path) -> Classify:
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def classify(texts: Sequence[str]) -> np.ndarray:
        inputs = tokenizer(list(texts), padding=True, truncation=True, return_tensors="np")
        (logits,) = session.run(["logits"], {name: inputs[name] for name in ("input_ids", "attention_mask")})
        return logits.argmax(1)

    return classify


def in_batches(classify: Classify, texts: Sequence[str]) -> np.ndarray:
    return np.concatenate([classify(texts[i : i + BATCH_SIZE]) for i in range(0, len(texts), BATCH_SIZE)])


def seconds(function: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def compare_formats(model: Path, formats: Sequence[str], work: Path, rounds: int) -> None:
    """Print size, accuracy, latency and throughput of the model in torch and in `formats`."""
    table, by_id = read_table(TOKENIZED), raw_texts()
    table = table.take(read_fold(fold_path(read_training_metadata(model).fold), len(table)).test)
    texts, labels = [by_id[index] for index in table["Index"].to_pylist()], table["labels"].to_numpy()
    folders = {name: export_model(model, name, work / name) for name in ("torch", *formats)}
    contenders = {name: (torch_classifier if name == "torch" else onnx_classifier)(f) for name, f in folders.items()}
    single: dict[str, list[float]] = {name: [] for name in contenders}
    batched: dict[str, list[float]] = {name: [] for name in contenders}
    predictions = {}
    for _ in range(rounds):
        for name, classify in contenders.items():
            single[name] += [seconds(classify, [text]) for text in texts[:NUM_SINGLE]]
            batched[name].append(seconds(in_batches, classify, texts))
            predictions[name] = in_batches(classify, texts)
    print("| | weights | accuracy | other labels than torch | one text | texts/s in batches of 64 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, folder in folders.items():
        (weights,) = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx")]
        others = np.mean(predictions[name] != predictions["torch"])
        columns = [
            f"{weights.stat().st_size / 1e6:.1f} MB",
            f"{np.mean(predictions[name] == labels):.3f}",
            f"{others:.1%}",
        ]
        columns += [f"{1000 * median(single[name]):.1f} ms", f"{len(texts) / median(batched[name]):,.0f}"]
        print(f"| {name} | " + " | ".join(columns) + " |")


def compare_files(model: Path, work: Path, num_texts: int, rounds: int) -> None:
    """Print the throughput of `stages.predict` and of transformers' pipeline, both on the same CSV file."""
    texts = list(raw_texts().values())
    texts = [f"{texts[number % len(texts)]} {number}" for number in range(num_texts)]
    with (work / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    command = [sys.executable, "-m", "stages.predict", "--model", str(model), "--input", str(work / "in.csv")]
    command += ["--text-column", "text", "--output", str(work / "out.csv")]
    script = f"""import csv, sys
from transformers import pipeline
with open({str(work / "in.csv")!r}, encoding="utf-8", newline="") as file:
    texts = [row["text"] for row in csv.DictReader(file)]
classify = pipeline("text-classification", model={str(work / "torch")!r}, truncation=True, batch_size={BATCH_SIZE})
with open({str(work / "pipeline.csv")!r}, "w") as file:
    csv.writer(file).writerows([[row["label"], row["score"]] for row in classify(texts)])
"""
    commands = {"stages.predict": command, "pipeline": [sys.executable, "-c", script]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, of_contender in commands.items():
            times[name].append(seconds(partial(subprocess.run, of_contender, check=True, capture_output=True)))
    print(f"\n| {num_texts:,} texts of a .csv | seconds | texts/s |\n| --- | ---: | ---: |")
    for name, each in times.items():
        print(f"| {name} | {median(each):.1f} | {num_texts / median(each):,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/full"), help="folder of the model")
    parser.add_argument("--texts", type=int, default=20_000, help="number of texts in the CSV file")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="formats to compare with torch")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements, of which the median counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        compare_formats(arguments.model, arguments.formats, Path(work), arguments.rounds)
        compare_files(arguments.model, Path(work), arguments.texts, arguments.rounds)


if __name__ == "__main__":
    main()
