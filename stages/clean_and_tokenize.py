"""Clean the texts of the filtered rows and convert them to token ids."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import (
    make_schema,
    map_table,
    read_batches,
    read_class_names,
    with_preprocessing,
    write_table,
)
from stages.common.artifacts.files import read_json, write_json
from stages.common.cleaning import clean
from stages.common.pretrained.tokenizer import INT32_LIST, Tokenizer, load_tokenizer
from stages.common.runtime.console import ProgressBar, warn
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import CleanParams, Preprocessing, TokenizeParams, load_params
from stages.common.runtime.paths import BASE_MODEL, FILTERED, TOKEN_METRICS, TOKENIZED
from stages.common.runtime.prefetch import prefetch

FIELDS = {
    "input_ids": INT32_LIST,
    "attention_mask": INT32_LIST,
    "token_type_ids": INT32_LIST,
    "labels": pa.int64(),
    "Index": pa.string(),
    "text": pa.string(),  # The cleaned text.
    "MainCategory": pa.string(),
    "is_test": pa.bool_(),
}
MAX_EMPTY_FRACTION = 0.01  # Fraction of texts that cleaning leaves empty, above which a warning is given.
MAX_EXAMPLE_CHARACTERS = 60  # Length to which a text in a message is cut off.
MAX_TRUNCATED_FRACTION = 0.5  # Fraction of truncated texts above which a warning is given.
# Model types that, like RoBERTa, count positions from pad_token_id + 1 and do not use the positions before it.
POSITIONS_AFTER_PADDING = {
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def max_positions(config: dict[str, Any]) -> int | None:
    """Return the maximum length of a text, in tokens, for the model of a config.json; None if it has no limit."""
    positions = config.get("max_position_embeddings")
    if positions is None or config.get("model_type") not in POSITIONS_AFTER_PADDING:
        return positions
    return positions - 1 - (config.get("pad_token_id", 1) or 0)


def tokenize(
    batches: Iterable[tuple[pa.RecordBatch, pa.StringArray]],
    tokenizer: Tokenizer,
    params: TokenizeParams,
    counts: Counter[str],
) -> Iterator[pa.RecordBatch]:
    """Yield rows with the columns of `FIELDS`; rows whose cleaned text is empty are dropped.

    Args:
        batches: Batches of data/filtered.arrow, each with its cleaned texts.
        counts: Counts that are increased: the rows ("rows"), dropped rows ("dropped_empty"), truncated rows
            ("truncated"), tokens without the special ones ("tokens") and unknown tokens ("unknown").

    Raises:
        UserError: No text is left, or too many tokens are unknown.
    """
    num_special_tokens, example = len(tokenizer.encode([""], params.max_length).input_ids[0]), ""
    for batch, texts in batches:
        not_empty = pc.not_equal(texts, "")
        texts, kept = texts.filter(not_empty), batch.filter(not_empty)
        encoded = tokenizer.encode(texts.to_pylist(), params.max_length)
        ids, offsets = encoded.input_ids.values.to_numpy(), encoded.input_ids.offsets
        unknown = np.flatnonzero(ids == tokenizer.unk_id)
        if len(unknown) and not example:
            example = texts[int(np.searchsorted(offsets, unknown[0], side="right")) - 1].as_py()
        counts.update(rows=kept.num_rows, dropped_empty=batch.num_rows - kept.num_rows, truncated=encoded.num_truncated)
        counts.update(tokens=len(ids) - num_special_tokens * kept.num_rows, unknown=len(unknown))
        masks = [pa.ListArray.from_arrays(offsets, values) for values in (np.ones_like(ids), np.zeros_like(ids))]
        others = [kept["labels"], kept["Index"], texts, kept["MainCategory"], kept["is_test"]]
        yield pa.RecordBatch.from_arrays([encoded.input_ids, *masks, *others], list(FIELDS))
    if not counts["rows"]:
        raise UserError(f"{FILTERED}: no text is left after cleaning; change the section `clean` of params.yaml")
    if (unk_rate := counts["unknown"] / max(1, counts["tokens"])) > params.max_unk_rate:
        raise UserError(
            f"the base model's tokenizer does not fit the texts: {unk_rate:.1%} of the tokens are [UNK], more than "
            f"tokenize.max_unk_rate ({params.max_unk_rate:.1%}) allows, for example in "
            f"{example[:MAX_EXAMPLE_CHARACTERS]!r}; choose a base model for this language, or "
            "change the section `clean` of params.yaml"
        )


def find_emptied(texts: pa.StringArray, params: CleanParams) -> Iterator[str]:
    """Yield the beginning of each text that is empty after cleaning."""
    for text in texts.filter(pc.equal(clean(texts, params), "")):
        yield text.as_py()[:MAX_EXAMPLE_CHARACTERS]


def token_statistics(lengths: np.ndarray, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of metrics/tokens.json from the lengths of rows (rows,), in tokens, and the counts."""
    length = {"mean": round(float(lengths.mean()), 2), "median": float(np.median(lengths))}
    return {
        "rows": counts["rows"],
        "dropped_empty": counts["dropped_empty"],
        "length": {**length, "p95": float(np.percentile(lengths, 95)), "max": int(lengths.max())},
        "truncated_fraction": round(counts["truncated"] / counts["rows"], 4),
        "unk_rate": round(counts["unknown"] / max(1, counts["tokens"]), 4),
    }


@report_user_errors
def main() -> None:
    params = load_params()
    max_length, tokenizer = params.tokenize.max_length, load_tokenizer(BASE_MODEL)
    positions = max_positions(read_json(BASE_MODEL / "config.json"))
    if positions is not None and max_length > positions:
        raise UserError(f"tokenize.max_length is {max_length}; the base model accepts {positions} tokens at most")
    total, counts = map_table(FILTERED)["labels"].num_chunks, Counter[str]()
    batches = ProgressBar(read_batches(FILTERED), total=total, desc="clean_and_tokenize", unit="batch")
    cleaned = ((batch, clean(batch["RawText"], params.clean)) for batch in batches)
    schema = make_schema(FIELDS, read_class_names(FILTERED))
    schema = with_preprocessing(schema, Preprocessing(clean=params.clean, max_length=max_length))
    write_table(TOKENIZED, tokenize(prefetch(cleaned), tokenizer, params.tokenize, counts), schema)
    metrics = token_statistics(pc.list_value_length(map_table(TOKENIZED)["input_ids"]).to_numpy(), counts)
    write_json(TOKEN_METRICS, metrics)
    if (dropped := counts["dropped_empty"]) > MAX_EMPTY_FRACTION * (dropped + counts["rows"]):
        emptied = (find_emptied(batch["RawText"], params.clean) for batch in read_batches(FILTERED))
        example = next(chain.from_iterable(emptied))
        warn(f"{dropped} rows are dropped, because cleaning leaves nothing of their text, for example {example!r}")
    if (fraction := metrics["truncated_fraction"]) > MAX_TRUNCATED_FRACTION:
        warn(
            f"{fraction:.0%} of the texts are longer than tokenize.max_length ({max_length} tokens) and were truncated"
        )


if __name__ == "__main__":
    main()
