"""Rows with a valid polarity, and the count of what was dropped and why."""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import make_schema, read_batches, write_table
from stages.common.core.exceptions import UserError, report_user_errors
from stages.common.core.files import write_json
from stages.common.core.params import load_params
from stages.common.core.paths import FILTER_METRICS, FILTERED, INGESTED

SCHEMA = make_schema(
    Index=pa.string(),
    RawText=pa.string(),
    GeneralPolarity=pa.string(),
    MainCategory=pa.string(),
    file=pa.string(),
    labels=pa.int64(),  # polarity + 1
)
POLARITY = r"^(-1|-?0|1)(\.0*)?$"


def filter_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
    """The valid rows of a batch of ingested rows, and how many were dropped for each reason."""
    has_key, polarity = batch["HasPolarity"], batch["GeneralPolarity"]
    text, is_null = pc.fill_null(polarity, ""), pc.is_null(polarity)
    empty, valid = pc.equal(pc.utf8_trim_whitespace(text), ""), pc.match_substring_regex(text, POLARITY)
    dropped = {
        "no_key": pc.invert(has_key),
        "null": pc.and_(has_key, is_null),
        "empty": pc.and_(pc.invert(is_null), empty),
        "out_of_range": pc.invert(pc.or_(empty, valid)),
    }
    kept = batch.filter(valid)
    labels = pc.add(pc.cast(pc.cast(kept["GeneralPolarity"], pa.float64()), pa.int64()), 1)
    kept = kept.drop_columns(["HasPolarity"]).append_column("labels", labels)
    return kept, {reason: rows.true_count for reason, rows in dropped.items()}


@report_user_errors
def main() -> None:
    load_params()
    rows: Counter[str] = Counter(rows_read=0, rows_kept=0)
    dropped: Counter[str] = Counter()

    def kept_batches() -> Iterator[pa.RecordBatch]:
        for batch in read_batches(INGESTED):
            kept, counts = filter_batch(batch)
            rows.update(rows_read=batch.num_rows, rows_kept=kept.num_rows)
            dropped.update(counts)
            yield kept
        if not rows["rows_kept"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            raise UserError(f"data.source: no row has a valid GeneralPolarity (-1, 0 or 1); rows dropped: {reasons}")

    write_table(FILTERED, kept_batches(), SCHEMA)
    write_json(FILTER_METRICS, {**rows, "dropped": dropped})


if __name__ == "__main__":
    main()
