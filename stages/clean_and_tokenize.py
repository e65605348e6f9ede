"""Clean text -> ids, with the notebook's features."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import (
    INT32_LIST,
    make_schema,
    read_batches,
    read_table,
    with_preprocessing,
    write_table,
)
from stages.common.core.console import ProgressBar, warn
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import read_json, write_json
from stages.common.core.params import Preprocessing, load_params
from stages.common.core.paths import BASE_MODEL, FILTERED, TOKEN_METRICS, TOKENIZED
from stages.common.core.prefetch import prefetch
from stages.common.corpus.cleaning import clean
from stages.common.pretrained.tokenizer import Tokenizer, load_tokenizer

SCHEMA = make_schema(
    input_ids=INT32_LIST,
    attention_mask=INT32_LIST,
    token_type_ids=INT32_LIST,
    labels=pa.int64(),
    Index=pa.string(),
    text=pa.string(),  # cleaned
    MainCategory=pa.string(),
)
MAX_TRUNCATED_FRACTION = 0.5  # more of the texts give a warning
# Models whose positions are counted from pad_token_id + 1, as in RoBERTa; those before are never used.
POSITIONS_AFTER_PADDING = {
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


@dataclass
class TokenCounts:
    """What metrics/tokens.json is computed from, added up over batches."""

    num_special_tokens: int  # in each text
    lengths: list[np.ndarray] = field(default_factory=list)  # in tokens, special tokens included
    dropped_empty: int = 0  # texts
    truncated: int = 0  # texts
    unknown: int = 0  # tokens
    unknown_text: str = ""  # the first with an unknown token

    @property
    def unk_rate(self) -> float:
        """Fraction of [UNK] among the tokens that are not special."""
        return self.unknown / max(1, sum(int((lengths - self.num_special_tokens).sum()) for lengths in self.lengths))

    def summarize(self) -> dict[str, Any]:
        """Numbers of texts, their lengths, and the fractions of truncated texts and of unknown tokens."""
        lengths = np.concatenate(self.lengths)
        quantiles = {"median": float(np.median(lengths)), "p95": float(np.percentile(lengths, 95))}
        return {
            "rows": len(lengths),
            "dropped_empty": self.dropped_empty,
            "length": {"mean": round(float(lengths.mean()), 2), **quantiles, "max": int(lengths.max())},
            "truncated_fraction": round(self.truncated / len(lengths), 4),
            "unk_rate": round(self.unk_rate, 4),
        }


def max_positions(config: dict[str, Any]) -> int | None:
    """The longest text, in tokens, that the model of a config.json accepts; None where nothing limits it."""
    positions = config.get("max_position_embeddings")
    if positions is None or config.get("model_type") not in POSITIONS_AFTER_PADDING:
        return positions
    return positions - 1 - (config.get("pad_token_id", 1) or 0)


def tokenize(
    batch: pa.RecordBatch, texts: pa.StringArray, tokenizer: Tokenizer, max_length: int, counts: TokenCounts
) -> pa.RecordBatch:
    """Tokenize filtered rows with their cleaned texts, drop those whose text is empty now, and add to `counts`."""
    not_empty = pc.not_equal(texts, "")
    texts, kept = texts.filter(not_empty), batch.filter(not_empty)
    encoded = tokenizer.encode(texts.to_pylist(), max_length)
    ids, offsets = encoded.input_ids.values, encoded.input_ids.offsets
    counts.lengths.append(encoded.input_ids.lengths)
    counts.dropped_empty += batch.num_rows - kept.num_rows
    counts.truncated += encoded.num_truncated
    unknown = np.flatnonzero(ids == tokenizer.unk_id)
    counts.unknown += len(unknown)
    if len(unknown) and not counts.unknown_text:
        counts.unknown_text = texts[int(np.searchsorted(offsets, unknown[0], side="right")) - 1].as_py()
    values = (ids, np.ones_like(ids), np.zeros_like(ids))
    lists = [pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column) for column in values]
    columns = [*lists, kept["labels"], kept["Index"], texts, kept["MainCategory"]]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


@report_user_errors
def main() -> None:
    params = load_params()
    max_length, max_unk_rate = params.tokenize.max_length, params.tokenize.max_unk_rate
    rows, tokenizer = read_table(FILTERED).num_rows, load_tokenizer(BASE_MODEL)
    positions = max_positions(read_json(BASE_MODEL / "config.json"))
    if positions is not None and max_length > positions:
        raise UserError(f"tokenize.max_length is {max_length}, but the base model has {positions} positions")
    counts = TokenCounts(num_special_tokens=tokenizer.encode([""], max_length).input_ids.values.size)

    def tokenized() -> Iterator[pa.RecordBatch]:
        cleaned = ((batch, clean(batch["RawText"], params.clean)) for batch in read_batches(FILTERED))
        with ProgressBar(total=rows, desc="clean_and_tokenize", unit="row") as progress:
            for batch, texts in prefetch(cleaned):
                yield tokenize(batch, texts, tokenizer, max_length, counts)
                progress.update(batch.num_rows)
        if counts.dropped_empty == rows:
            raise UserError(f"{FILTERED}: no text is left after cleaning; see section `clean` of params.yaml")
        if counts.unk_rate > max_unk_rate:
            raise UserError(
                f"the base model's tokenizer does not know this text: {counts.unk_rate:.1%} of the tokens are [UNK], "
                f"more than tokenize.max_unk_rate ({max_unk_rate:.1%}) allows, for example in "
                f"{counts.unknown_text[:60]!r}; choose a base model for this language, or see section `clean`"
            )

    preprocessing = Preprocessing(clean=params.clean, max_length=max_length)
    write_table(TOKENIZED, tokenized(), with_preprocessing(SCHEMA, preprocessing))
    metrics = counts.summarize()
    write_json(TOKEN_METRICS, metrics)
    if (fraction := metrics["truncated_fraction"]) > MAX_TRUNCATED_FRACTION:
        warn(
            f"{fraction:.0%} of the texts are longer than tokenize.max_length ({max_length} tokens) and were truncated"
        )


if __name__ == "__main__":
    main()
