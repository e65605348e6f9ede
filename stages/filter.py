"""Rows with a valid polarity, and the count of what was dropped and why."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import read_batches, write_table
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.core.paths import FILTER_METRICS, FILTERED, INGESTED

SCHEMA = make_schema(
    {
        "Index": pa.string(),
        "RawText": pa.string(),
        "GeneralPolarity": pa.string(),
        "MainCategory": pa.string(),
        "file": pa.string(),
        "labels": pa.int64(),  # polarity + 1
    }
)
POLARITY = r"^(-1|-?0|1)(\.0*)?$"


def filter_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The valid rows of a batch of ingested rows, and how many were dropped for each reason."""
    has_key, polarity = batch["HasPolarity"], batch["GeneralPolarity"]
    text = pc.fill_null(polarity, "")
    empty = pc.equal(pc.utf8_trim_whitespace(text), "")
    valid = pc.match_substring_regex(text, POLARITY)
    is_null = pc.is_null(polarity)
    dropped = {
        "no_key": pc.invert(has_key),
        "null": pc.and_(has_key, is_null),
        "empty": pc.and_(pc.invert(is_null), empty),
        "out_of_range": pc.invert(pc.or_(empty, valid)),
    }
    kept = batch.filter(valid)
    labels = pc.add(pc.cast(pc.cast(kept["GeneralPolarity"], pa.float64()), pa.int64()), 1)
    kept = kept.drop_columns(["HasPolarity"]).append_column("labels", labels)
    return kept, {reason: pc.sum(rows).as_py() or 0 for reason, rows in dropped.items()}


@report_user_errors
def main() -> None:
    load_params()
    rows_read = 0
    dropped = dict.fromkeys(("no_key", "null", "empty", "out_of_range"), 0)

    def kept() -> Iterator[pa.RecordBatch]:
        nonlocal rows_read
        for batch in read_batches(INGESTED):
            valid, counts = filter_batch(batch)
            rows_read += batch.num_rows
            for reason, count in counts.items():
                dropped[reason] += count
            yield valid
        if sum(dropped.values()) == rows_read:
            raise UserError(
                f"data.source: none of {rows_read} rows has a valid GeneralPolarity (-1, 0 or 1): "
                + ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            )

    write_table(FILTERED, kept(), SCHEMA)
    rows_kept = rows_read - sum(dropped.values())
    write_json(FILTER_METRICS, {"rows_read": rows_read, "rows_kept": rows_kept, "dropped": dropped})


if __name__ == "__main__":
    main()
