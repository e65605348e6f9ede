"""Measure time and peak memory of the data stages with large corpora, and of the notebook's code on the same files.

    python -m tests.benchmarks.scale --rows 600000 2400000 [--reviews FILE.parquet] [--base-model DIR]
        [--formats csv parquet] [--notebook 60000] [--output FILE.json]

FILE has the columns `review` and `rating` (1 to 10); by default the reviews are those of data/sample. If there are too
few, they are repeated with a number at the end, so that no two are equal. DIR is the folder of a base model, of which
the tokenizer and config.json are read.

For each number of rows, AI Hub files are written, and every stage runs in a process of its own, as in `dvc repro`.
`--formats` also measures our stages with the same rows as one table in each of these formats. `--notebook` measures,
with that number of rows, both our stages and the notebook's code, which uses `datasets` and KoBERT's reference
tokenizer; DIR must then be a folder of KoBERT.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from stages.common.artifacts.arrow import read_table
from stages.common.artifacts.files import write_json
from stages.ingest import find_files, read_files, to_batches

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "filter", "clean_and_tokenize", "split")
RECORDS_A_FILE = 100
FILES_A_FOLDER = 500
# The ways in which a record has no polarity: without the key, null, and an empty string.
NO_POLARITY = ("", '    "GeneralPolarity": null,\n', '    "GeneralPolarity": "",\n')
RECORD = """  {{
    "Index": "{index}",
    "RawText": {text},
    "Source": "SNS",
    "Domain": "IT기기",
    "MainCategory": "이어폰",
    "ProductName": "가온전자 뷰온 라이트",
    "ReviewScore": "{score}",
    "Syllable": "{syllables}",
    "Word": "{words}",
    "RDate": "20190226",
{polarity}    "Aspects": [
      {{
        "Aspect": "전체",
        "SentimentText": {text},
        "SentimentWord": "{words}",
        "SentimentPolarity": "1"
      }}
    ]
  }}"""


def reviews(file: Path | None) -> Iterator[tuple[str, int]]:
    """Yield texts and ratings without end. No text occurs twice unless the file has it twice."""
    for turn in itertools.count():
        for text, rating in _read(file):
            yield f"{text} {turn}" if turn else text, rating


def _read(file: Path | None) -> Iterator[tuple[str, int]]:
    if file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["review", "rating"]):
            yield from zip(batch["review"].to_pylist(), batch["rating"].to_pylist(), strict=True)
    else:
        sample = ROOT / "data/sample"
        for batch in to_batches(read_files(sample, find_files(sample))):
            yield from ((text, 1 + number % 10) for number, text in enumerate(batch["RawText"].to_pylist()))


def write_corpus(folder: Path, rows: int, file: Path | None) -> int:
    """Write AI Hub files with `rows` records, of which 12% have no polarity, and return their size in bytes."""
    generator, source, size = random.Random(42), reviews(file), 0
    for number, start in enumerate(range(0, rows, RECORDS_A_FILE)):
        records = []
        for index in range(start, min(start + RECORDS_A_FILE, rows)):
            text, rating = next(source)
            polarity = f'    "GeneralPolarity": "{(rating > 4) + (rating > 7) - 1}",\n'
            if generator.random() < 0.12:
                polarity = generator.choice(NO_POLARITY)
            quoted = json.dumps(text, ensure_ascii=False)
            values = {"score": 10 * rating, "syllables": len(text), "words": text.count(" ") + 1}
            records.append(RECORD.format(index=index + 1, text=quoted, polarity=polarity, **values))
        target = folder / f"SNS/{number // FILES_A_FOLDER:02d}. IT기기/4-1.IT기기({number + 1}).json"
        target.parent.mkdir(parents=True, exist_ok=True)
        size += target.write_bytes(("[\n" + ",\n".join(records) + "\n]\n").encode())
    return size


def run(command: list[str], folder: Path, **environment: str) -> dict[str, float]:
    """Run a command, and return its wall-clock and processor time in seconds and its peak resident memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT), **environment})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }


def our_way(folder: Path, source: Path, base_model: Path) -> dict[str, dict[str, float]]:
    """Run the data stages in `folder`, and return time and memory of each."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["data"]["source"] = str(source)
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True, sort_keys=False), encoding="utf-8")
    shutil.copytree(base_model, folder / "data/base_model", ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return {stage: run([sys.executable, "-m", f"stages.{stage}"], folder) for stage in STAGES}


def in_total(stages: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the total time of all stages, and the largest of their peaks of memory."""
    times = {clock: round(sum(stage[clock] for stage in stages.values()), 2) for clock in ("seconds", "cpu_seconds")}
    return {**times, "peak_mib": max(stage["peak_mib"] for stage in stages.values())}


def write_as_table(ingested: Path, target: Path) -> Path:
    """Write the rows of ingested.arrow as one table, in the format that the suffix of `target` names."""
    frame = read_table(ingested).select(["Index", "RawText", "GeneralPolarity", "MainCategory"]).to_pandas()
    match target.suffix:
        case ".parquet":
            frame.to_parquet(target)
        case ".xlsx":
            frame.to_excel(target, index=False)
        case suffix:
            frame.to_csv(target, sep="," if suffix == ".csv" else "\t", index=False)
    return target


def notebook_way(source: Path, files: Path) -> None:
    """Do what the notebook does before training, in the same order and with the same libraries."""
    import re

    import datasets

    from tests.benchmarks.tokenizer import reference

    tokenizer = reference(files)
    labels = {"-1": 0, "0": 1, "1": 2}

    def clean(text: str) -> str:
        text = re.sub(r"<[^>]+>", " ", text)
        text = re.sub(r"[^0-9가-힣A-Za-z\.\,\?\!]+", " ", text)
        return re.sub(r"\s+", " ", text).strip()

    def encode(batch: dict[str, list]) -> dict[str, list]:
        encoded = tokenizer([clean(text) for text in batch["RawText"]], truncation=True, max_length=256)
        return {**encoded, "labels": [labels[polarity] for polarity in batch["GeneralPolarity"]]}

    paths = sorted(str(path) for path in source.rglob("*.json"))
    rows = datasets.load_dataset("json", data_files=paths, split="train")
    rows = rows.filter(lambda row: row["GeneralPolarity"] in labels)
    rows = rows.map(encode, batched=True, remove_columns=rows.column_names)
    rows.train_test_split(test_size=0.2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, nargs="*", default=[], help="numbers of rows to measure")
    arguments.add_argument("--reviews", type=Path, help="Parquet file with the columns review and rating")
    arguments.add_argument(
        "--formats",
        nargs="*",
        default=[],
        choices=("csv", "tsv", "parquet", "xlsx"),
        help="formats of tables to measure too",
    )
    arguments.add_argument("--base-model", type=Path, default=ROOT / "data/kobert-mini", help="folder of a base model")
    arguments.add_argument("--notebook", type=int, metavar="ROWS", help="rows with which to measure the notebook too")
    arguments.add_argument("--run-notebook", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments.add_argument(
        "--work", type=Path, help="new folder in which all files are kept; otherwise they are deleted"
    )
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    options = arguments.parse_args()
    if options.run_notebook:
        notebook_way(options.run_notebook, options.base_model)
        return
    base_model = options.base_model.resolve()
    work = options.work or Path(tempfile.mkdtemp())
    measured: list[dict[str, Any]] = []
    try:
        for rows in sorted({*options.rows, *([options.notebook] if options.notebook else [])}):
            source = (work / f"{rows} 행").resolve()
            size = write_corpus(source, rows, options.reviews)
            result: dict[str, Any] = {"rows": rows, "bytes": size}
            result["stages"] = stages = our_way(work / f"ours-{rows}", source, base_model)
            result |= in_total(stages)
            for name in options.formats:
                table = write_as_table(work / f"ours-{rows}/data/ingested.arrow", work / f"{rows}.{name}")
                of_format = in_total(our_way(work / f"{name}-{rows}", table, base_model))
                result[name] = of_format | {"times_json": round(of_format["seconds"] / result["seconds"], 2)}
            if rows == options.notebook:
                script = [sys.executable, "-m", "tests.benchmarks.scale", "--base-model", str(base_model)]
                environment = {"HF_DATASETS_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
                notebook = run([*script, "--run-notebook", str(source)], work, **environment)
                result["notebook"] = {**notebook, "times_ours": round(notebook["seconds"] / result["seconds"], 1)}
            measured.append(result)
            print_result(result)
            if not options.work:
                shutil.rmtree(source)
    finally:
        if not options.work:
            shutil.rmtree(work)
    if options.output:
        write_json(options.output, measured)


def print_result(result: dict) -> None:
    print(f"\n| {result['rows']:,} rows, {result['bytes'] / 1e6:,.0f} MB | seconds | processor seconds | peak MiB |")
    print("| --- | ---: | ---: | ---: |")
    lines = {**result["stages"], "**all**": result}
    for name in ("csv", "tsv", "parquet", "xlsx"):
        if name in result:
            lines[f"all, from .{name}, {result[name]['times_json']:.2f} times as long as from JSON"] = result[name]
    if notebook := result.get("notebook"):
        lines[f"the notebook's code, {notebook['times_ours']:.1f} times as long as ours"] = notebook
    for name, figures in lines.items():
        print(
            f"| {name} | {figures['seconds']:.1f} | {figures['cpu_seconds']:.1f} | {figures['peak_mib']} |", flush=True
        )


if __name__ == "__main__":
    main()
