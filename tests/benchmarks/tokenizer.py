"""Compare our KoBERT tokenizer with its reference class: the token ids, and the speed.

    pip install --no-deps kobert-transformers==0.6.0
    python -m tests.benchmarks.tokenizer --files DIR --reviews FILE.parquet [--count 100000]

DIR has KoBERT's SentencePiece model and vocab.txt, and FILE has a column `review`. The two tokenizers take turns. The
ratio is that of the median times.
"""

import argparse
import importlib.metadata
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.common.pretrained.tokenizer import load_tokenizer

ROUNDS = 3


def reference(folder: Path) -> Any:
    """Load the tokenizer class of kobert-transformers from its file, since importing the package accesses the hub."""
    package = Path(str(importlib.metadata.distribution("kobert-transformers").locate_file("kobert_transformers")))
    module = runpy.run_path(str(package / "tokenization_kobert.py"))
    return module["KoBertTokenizer"](str(next(folder.glob("*.model"))), str(folder / "vocab.txt"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--files", type=Path, required=True, help="folder of KoBERT's tokenizer")
    arguments.add_argument("--reviews", type=Path, required=True, help="Parquet file with a column review")
    arguments.add_argument("--count", type=int, default=100_000, help="number of reviews to tokenize")
    options = arguments.parse_args()
    texts = pq.read_table(options.reviews, columns=["review"])["review"].to_pylist()[: options.count]
    ours, theirs = load_tokenizer(options.files), reference(options.files)
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        encoded = ours.encode(texts, 256)
        seconds["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        expected = [theirs(text, max_length=256, truncation=True)["input_ids"] for text in texts]
        seconds["reference"].append(time.perf_counter() - started)
    differ = sum(row != ids for row, ids in zip(encoded.input_ids.to_pylist(), expected, strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{len(texts):,} reviews: ours {medians['ours']:.2f} s, reference {medians['reference']:.2f} s, ", end="")
    print(f"{medians['reference'] / medians['ours']:.1f} times as fast; {differ} reviews have different ids")


if __name__ == "__main__":
    main()
