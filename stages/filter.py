"""Rows whose label is one of `data.labels`, and the count of what was dropped and why."""

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import make_schema, read_batches, write_table
from stages.common.artifacts.files import write_json
from stages.common.labels import label_index, normalize_label
from stages.common.runtime.exceptions import UserError, report_user_errors
from stages.common.runtime.params import load_params
from stages.common.runtime.paths import FILTER_METRICS, FILTERED, INGESTED

FIELDS = {
    "Index": pa.string(),
    "RawText": pa.string(),
    "MainCategory": pa.string(),
    "file": pa.string(),
    "is_test": pa.bool_(),
    "labels": pa.int64(),
}
NUM_VALUES_LISTED = 10  # of those that stand for no class, the most frequent
MAX_CHARACTERS = 40  # of such a value


def filter_batch(
    batch: pa.RecordBatch, index: Mapping[str, int]
) -> tuple[pa.RecordBatch, dict[str, int], Counter[str]]:
    """The valid rows of a batch of ingested rows, how many were dropped for each reason, and the values of no class.

    Args:
        index: of the class of each normalized value.
    """
    has_key, value = batch["HasPolarity"], batch["GeneralPolarity"]
    encoded = pc.fill_null(value, "").dictionary_encode()
    values = encoded.dictionary.to_pylist()  # each distinct one once
    classes = np.array([index.get(normalize_label(text), -1) for text in values], np.int64)
    labels = classes[encoded.indices.to_numpy()]
    is_null, empty = pc.is_null(value), pc.equal(pc.utf8_trim_whitespace(pc.fill_null(value, "")), "")
    unmapped = pc.invert(pc.or_(empty, pa.array(labels >= 0)))
    dropped = {
        "no_key": pc.invert(has_key),
        "null": pc.and_(has_key, is_null),
        "empty": pc.and_(pc.invert(is_null), empty),
        "unmapped": unmapped,
    }
    columns = [*(batch[name] for name in FIELDS if name != "labels"), pa.array(labels)]
    kept = pa.RecordBatch.from_arrays(columns, list(FIELDS)).filter(pa.array(labels >= 0))
    counts = pc.value_counts(value.filter(unmapped)).to_pylist()
    unknown = Counter[str]()
    for count in counts:  # two long values may begin alike
        unknown[count["values"][:MAX_CHARACTERS]] += count["counts"]
    return kept, {reason: rows.true_count for reason, rows in dropped.items()}, unknown


@report_user_errors
def main() -> None:
    params = load_params()
    class_names, index = list(params.data.labels), label_index(params.data.labels)
    rows: Counter[str] = Counter(rows_read=0, rows_kept=0)
    dropped, unmapped, of_class = Counter[str](), Counter[str](), Counter[int]()
    read_test, kept_test = 0, 0

    def kept_batches() -> Iterator[pa.RecordBatch]:
        nonlocal read_test, kept_test
        for batch in read_batches(INGESTED):
            kept, counts, unknown = filter_batch(batch, index)
            rows.update(rows_read=batch.num_rows, rows_kept=kept.num_rows)
            dropped.update(counts)
            unmapped.update(unknown)
            of_class.update(kept["labels"].to_pylist())
            read_test, kept_test = read_test + batch["is_test"].true_count, kept_test + kept["is_test"].true_count
            yield kept
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
        values = ", ".join(f"{value!r} {count}" for value, count in unmapped.most_common(NUM_VALUES_LISTED))
        why = f"rows dropped: {reasons}{f'; values of no class: {values}' if values else ''}"
        if not rows["rows_kept"]:
            raise UserError(
                f"data.labels: no row of data.source has one of its values in {params.data.label_column}; {why}"
            )
        if empty := [name for number, name in enumerate(class_names) if not of_class[number]]:
            raise UserError(f"data.labels: class {empty[0]} has no row; {why}")
        if read_test and not kept_test:
            raise UserError(f"data.test_source: no row has one of the values of data.labels; {why}")

    write_table(FILTERED, kept_batches(), make_schema(FIELDS, class_names))
    # As a list DVC leaves the values out of its tables, whose columns would differ from corpus to corpus.
    listed = [{"value": value, "rows": count} for value, count in unmapped.most_common(NUM_VALUES_LISTED)]
    write_json(FILTER_METRICS, {**rows, "dropped": dropped, "unmapped_values": listed})


if __name__ == "__main__":
    main()
