"""Construct a corpus like NSMC from a table of film reviews.

    python -m tests.benchmarks.nsmc nsmc-corpus.parquet DIR [--train-rows 150000] [--test-rows 50000]

This draws 100,000 reviews with ratings 1 to 4 (label 0) and 100,000 with ratings 9 and 10 (label 1), of at most 140
characters. It writes 150,000 of them to DIR/ratings_train.tsv and 50,000 to DIR/ratings_test.tsv, with the columns id,
document and label. Each file has the same number of reviews of both labels. The construction is that of
github.com/e9t/nsmc, but it is not known which reviews were drawn there.
"""

import argparse
import csv
from pathlib import Path

import pandas as pd

from stages.common.artifacts.files import atomic_write

MAX_CHARACTERS = 140
SEED = 42


def construct(corpus: pd.DataFrame, train_rows: int, test_rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw training and test rows with the same number of both labels.

    Args:
        corpus: Reviews, with the columns review and rating.
        train_rows: Number of training rows.
        test_rows: Number of test rows.

    Returns:
        Training rows and test rows, with the columns id, document and label.
    """
    # A row must be one line, so other line breaks become spaces, as in NSMC's own files.
    document = corpus["review"].str.replace(r"\s+", " ", regex=True).str.strip()
    usable = corpus.assign(document=document)[document.str.len().between(1, MAX_CHARACTERS)]
    parts = []
    for label, ratings in enumerate((range(1, 5), range(9, 11))):
        drawn = usable[usable["rating"].isin(ratings)].sample((train_rows + test_rows) // 2, random_state=SEED)
        parts.append(pd.DataFrame({"id": drawn.index, "document": drawn["document"], "label": label}))
    test = pd.concat([part[: test_rows // 2] for part in parts])
    train = pd.concat([part[test_rows // 2 :] for part in parts])
    return tuple(rows.sample(frac=1, random_state=SEED) for rows in (train, test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="PARQUET", help="file with the columns review and rating")
    parser.add_argument("output", type=Path, metavar="DIR", help="folder of the two TSV files")
    parser.add_argument("--train-rows", type=int, default=150_000, help="number of training rows")
    parser.add_argument("--test-rows", type=int, default=50_000, help="number of test rows")
    arguments = parser.parse_args()
    corpus = pd.read_parquet(arguments.corpus, columns=["review", "rating"])
    parts = construct(corpus, arguments.train_rows, arguments.test_rows)
    for name, rows in zip(("train", "test"), parts, strict=True):
        with atomic_write(arguments.output / f"ratings_{name}.tsv") as temporary:
            rows.to_csv(temporary, sep="\t", index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
        print(f"{arguments.output / f'ratings_{name}.tsv'}: {len(rows):,} rows")


if __name__ == "__main__":
    main()
