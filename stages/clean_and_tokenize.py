"""Clean text -> ids, with the notebook's features."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from stages.common.artifacts.arrow import (
    INT32_LIST,
    read_batches,
    read_table,
    with_preprocessing,
    write_table,
)
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import read_json, write_json
from stages.common.core.params import Preprocessing, load_params
from stages.common.core.paths import BASE_MODEL, FILTERED, TOKEN_METRICS, TOKENIZED
from stages.common.core.prefetch import prefetch
from stages.common.corpus.cleaning import clean
from stages.common.pretrained.tokenizer import Tokenizer, load_tokenizer

SCHEMA = make_schema(
    {
        "input_ids": INT32_LIST,
        "attention_mask": INT32_LIST,
        "token_type_ids": INT32_LIST,
        "labels": pa.int64(),
        "Index": pa.string(),
        "text": pa.string(),  # cleaned
        "MainCategory": pa.string(),
    }
)
# RoBERTa and its kin count positions from pad_token_id + 1, and never use those before.
COUNT_FROM_PAD = {
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


class TokenCounts:
    """What metrics/tokens.json says, added up over batches."""

    def __init__(self, special_tokens: int) -> None:
        self.special_tokens = special_tokens  # in each row
        self.lengths: list[np.ndarray] = []
        self.dropped_empty = self.truncated = self.unknown = 0
        self.unknown_text = ""  # the first one with an [UNK]

    def unk_rate(self) -> float:
        """Share of [UNK] in all tokens but the special ones."""
        return self.unknown / max(1, sum(int((lengths - self.special_tokens).sum()) for lengths in self.lengths))

    def summary(self) -> dict[str, object]:
        """Lengths in tokens, special tokens included; truncated_share is one of texts."""
        lengths = np.concatenate(self.lengths)
        return {
            "rows": len(lengths),
            "dropped_empty": self.dropped_empty,
            "length": {
                "mean": round(float(lengths.mean()), 2),
                "median": float(np.median(lengths)),
                "p95": float(np.percentile(lengths, 95)),
                "max": int(lengths.max()),
            },
            "truncated_share": round(self.truncated / len(lengths), 4),
            "unk_rate": round(self.unk_rate(), 4),
        }


def usable_positions(config: dict[str, Any]) -> int | None:
    """The longest text, in tokens, that the model of a config.json can take; None where nothing limits it."""
    positions = config.get("max_position_embeddings")
    if positions is None or config.get("model_type") not in COUNT_FROM_PAD:
        return positions
    return positions - 1 - (config.get("pad_token_id", 1) or 0)


def tokenize(
    batch: pa.RecordBatch, texts: pa.StringArray, tokenizer: Tokenizer, max_length: int, counts: TokenCounts
) -> pa.RecordBatch:
    """Tokenized rows of a batch of filtered rows and their cleaned texts, without those that are empty by now.

    `counts` is added to.
    """
    present = pc.not_equal(texts, "")
    texts, kept = texts.filter(present), batch.filter(present)
    encoded = tokenizer.encode(texts.to_pylist(), max_length)
    ids, lengths = encoded.ids, encoded.lengths
    counts.lengths.append(lengths)
    counts.dropped_empty += batch.num_rows - len(lengths)
    counts.truncated += encoded.cut
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    unknown = np.flatnonzero(ids == tokenizer.unk_id)
    counts.unknown += len(unknown)
    if len(unknown) and not counts.unknown_text:
        counts.unknown_text = texts[int(np.searchsorted(offsets, unknown[0], side="right")) - 1].as_py()

    def rows_of(values: np.ndarray) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, pa.int32()))

    columns = [rows_of(ids), rows_of(np.ones_like(ids)), rows_of(np.zeros_like(ids)), kept["labels"], kept["Index"]]
    return pa.RecordBatch.from_arrays([*columns, texts, kept["MainCategory"]], schema=SCHEMA)


@report_user_errors
def main() -> None:
    params = load_params()
    rows, tokenizer = read_table(FILTERED).num_rows, load_tokenizer(BASE_MODEL)
    positions = usable_positions(read_json(BASE_MODEL / "config.json"))
    if positions is not None and params.tokenize.max_length > positions:
        raise UserError(
            f"tokenize.max_length is {params.tokenize.max_length}, but the base model has {positions} positions"
        )
    counts = TokenCounts(special_tokens=len(tokenizer.encode([""], params.tokenize.max_length).ids))

    def tokenized() -> Iterator[pa.RecordBatch]:
        cleaned = ((batch, clean(batch["RawText"], params.clean)) for batch in read_batches(FILTERED))
        with tqdm(total=rows, desc="clean_and_tokenize", unit="row", disable=None) as progress:
            for batch, texts in prefetch(cleaned):
                yield tokenize(batch, texts, tokenizer, params.tokenize.max_length, counts)
                progress.update(batch.num_rows)
        if counts.dropped_empty == rows:
            raise UserError(f"{FILTERED}: no text is left after cleaning; see section `clean` of params.yaml")
        if (rate := counts.unk_rate()) > params.tokenize.max_unk_rate:
            raise UserError(
                f"the base model's tokenizer does not know this text: {rate:.1%} of the tokens are [UNK], more than "
                f"tokenize.max_unk_rate ({params.tokenize.max_unk_rate:.1%}) allows, for example in "
                f"{counts.unknown_text[:60]!r}; choose a base model for this language, or see section `clean`"
            )

    preprocessing = Preprocessing(clean=params.clean, max_length=params.tokenize.max_length)
    write_table(TOKENIZED, tokenized(), with_preprocessing(SCHEMA, preprocessing))
    write_json(TOKEN_METRICS, counts.summary())


if __name__ == "__main__":
    main()
