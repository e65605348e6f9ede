"""Keep the rows whose label is one of `data.labels`; count why the others were dropped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.common.artifacts.arrow import make_schema, read_batches, table_writer
from stages.common.artifacts.files import write_json
from stages.common.labels import label_index, normalize_label
from stages.common.runtime.console import warn
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
MAX_UNMAPPED_FRACTION = 0.01  # more of the rows give a warning
NUM_VALUES_LISTED = 10  # the most frequent of the values that belong to no class
MAX_CHARACTERS = 40  # of such a value; the rest is cut off


@dataclass
class FilterCounts:
    """How many rows were read, kept and dropped."""

    rows_read: int = 0
    rows_kept: int = 0
    test_rows_read: int = 0  # of these, rows from data.test_source
    test_rows_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # rows by reason
    unmapped_values: Counter[str] = field(default_factory=Counter)  # rows by value that belongs to no class
    classes: Counter[int] = field(default_factory=Counter)  # kept rows by class

    def __iadd__(self, other: "FilterCounts") -> "FilterCounts":
        self.rows_read += other.rows_read
        self.rows_kept += other.rows_kept
        self.test_rows_read += other.test_rows_read
        self.test_rows_kept += other.test_rows_kept
        self.dropped.update(other.dropped)
        self.unmapped_values.update(other.unmapped_values)
        self.classes.update(other.classes)
        return self

    def to_metrics(self) -> dict[str, Any]:
        """The content of metrics/filter.json."""
        # DVC leaves lists out of its tables; as keys, the values would make other columns for every corpus.
        values = [{"value": value, "rows": rows} for value, rows in self.unmapped_values.most_common(NUM_VALUES_LISTED)]
        rows = {"rows_read": self.rows_read, "rows_kept": self.rows_kept}
        return {**rows, "dropped": self.dropped, "unmapped_values": values}


def filter_batch(batch: pa.RecordBatch, index: Mapping[str, int]) -> tuple[pa.RecordBatch, FilterCounts]:
    """Return the rows of a batch of ingested rows that have a class, and the counts of the batch.

    Args:
        index: The class of each normalized value, an index into the names of the classes.
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
    counts = FilterCounts(
        rows_read=batch.num_rows,
        rows_kept=kept.num_rows,
        test_rows_read=batch["is_test"].true_count,
        test_rows_kept=kept["is_test"].true_count,
        dropped=Counter({reason: rows.true_count for reason, rows in dropped.items()}),
        classes=Counter(kept["labels"].to_pylist()),
    )
    for found in pc.value_counts(value.filter(unmapped)).to_pylist():  # two long values may begin alike
        counts.unmapped_values[found["values"][:MAX_CHARACTERS]] += found["counts"]
    return kept, counts


def check_counts(counts: FilterCounts, class_names: Sequence[str], label_column: str) -> None:
    """Check that every class has a row, and a test source, if there is one, a row of any class.

    Raises:
        UserError: A row is missing; the message says why rows were dropped.
    """
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in counts.dropped.items())
    values = ", ".join(f"{value!r} {rows}" for value, rows in counts.unmapped_values.most_common(NUM_VALUES_LISTED))
    why = f"rows dropped: {reasons}{f'; values of no class: {values}' if values else ''}"
    if not counts.rows_kept:
        raise UserError(f"data.labels: no row of data.source has one of its values in {label_column}; {why}")
    if empty := [name for number, name in enumerate(class_names) if not counts.classes[number]]:
        raise UserError(f"data.labels: class {empty[0]} has no row; {why}")
    if counts.test_rows_read and not counts.test_rows_kept:
        raise UserError(f"data.test_source: no row has one of the values of data.labels; {why}")


@report_user_errors
def main() -> None:
    params = load_params()
    class_names, index = list(params.data.labels), label_index(params.data.labels)
    total = FilterCounts()
    with table_writer(FILTERED, make_schema(FIELDS, class_names)) as table:
        for batch in read_batches(INGESTED):
            kept, counts = filter_batch(batch, index)
            total += counts
            table.write(kept)
        check_counts(total, class_names, params.data.label_column)
    if (unmapped := total.dropped["unmapped"]) > MAX_UNMAPPED_FRACTION * total.rows_read:
        values = ", ".join(f"{value!r} {rows}" for value, rows in total.unmapped_values.most_common(NUM_VALUES_LISTED))
        warn(
            f"data.labels: {unmapped} of {total.rows_read} rows are dropped, since their {params.data.label_column} is "
            f"a value of no class: {values}"
        )
    write_json(FILTER_METRICS, total.to_metrics())


if __name__ == "__main__":
    main()
