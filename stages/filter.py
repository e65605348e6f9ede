"""Keep the rows whose label is one of `data.labels`, and count the other rows by reason."""

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
MAX_UNMAPPED_FRACTION = 0.01  # Fraction of rows with a value of no class above which a warning is given.
NUM_VALUES_LISTED = 10  # Number of such values that are listed, the most frequent ones.
MAX_CHARACTERS = 40  # Length to which a listed value is cut off.


@dataclass
class FilterCounts:
    """Numbers of rows that were read, kept and dropped."""

    rows: Counter[str] = field(default_factory=Counter)  # Rows "read" and "kept"; from data.test_source "test_...".
    dropped: Counter[str] = field(default_factory=Counter)  # Dropped rows by reason.
    unmapped_values: Counter[str] = field(default_factory=Counter)  # Dropped rows by value that belongs to no class.
    classes: Counter[int] = field(default_factory=Counter)  # Kept rows by class.

    def __iadd__(self, other: "FilterCounts") -> "FilterCounts":
        for name, counter in vars(self).items():
            counter.update(vars(other)[name])
        return self

    def list_values(self) -> str:
        """Return the most frequent values that belong to no class, with their numbers of rows."""
        return ", ".join(f"{value!r} {rows}" for value, rows in self.unmapped_values.most_common(NUM_VALUES_LISTED))

    def to_metrics(self) -> dict[str, Any]:
        """Return the content of metrics/filter.json."""
        # DVC shows keys as columns of its tables but omits lists; values as keys would add columns for each corpus.
        values = [{"value": value, "rows": rows} for value, rows in self.unmapped_values.most_common(NUM_VALUES_LISTED)]
        rows = {"rows_read": self.rows["read"], "rows_kept": self.rows["kept"]}
        return {**rows, "dropped": self.dropped, "unmapped_values": values}


def filter_batch(batch: pa.RecordBatch, index: Mapping[str, int]) -> tuple[pa.RecordBatch, FilterCounts]:
    """Return the rows of a batch whose label belongs to a class, and the counts of the batch.

    Args:
        index: Class index of each normalized label.
    """
    has_key, value = batch["HasPolarity"], batch["GeneralPolarity"]
    encoded = pc.fill_null(value, "").dictionary_encode()
    values = encoded.dictionary.to_pylist()  # Each distinct value is normalized once.
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
        rows=Counter(
            read=batch.num_rows,
            kept=kept.num_rows,
            test_read=batch["is_test"].true_count,
            test_kept=kept["is_test"].true_count,
        ),
        dropped=Counter({reason: rows.true_count for reason, rows in dropped.items()}),
        classes=Counter(kept["labels"].to_pylist()),
    )
    for found in pc.value_counts(value.filter(unmapped)).to_pylist():  # Long values may have the same beginning.
        counts.unmapped_values[found["values"][:MAX_CHARACTERS]] += found["counts"]
    return kept, counts


def check_counts(counts: FilterCounts, class_names: Sequence[str], label_column: str) -> None:
    """Check that every class has a row, and that data.test_source, if it is given, has a row of any class.

    Raises:
        UserError: Such a row is missing; the message says why rows were dropped.
    """
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in counts.dropped.items())
    values = counts.list_values()
    why = f"rows dropped: {reasons}{f'; values of no class: {values}' if values else ''}"
    if not counts.rows["kept"]:
        raise UserError(f"data.labels: no row of data.source has one of its values in {label_column!r}; {why}")
    if empty := [name for number, name in enumerate(class_names) if not counts.classes[number]]:
        raise UserError(f"data.labels: class {empty[0]!r} has no row; {why}")
    if counts.rows["test_read"] and not counts.rows["test_kept"]:
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
    if (unmapped := total.dropped["unmapped"]) > MAX_UNMAPPED_FRACTION * total.rows["read"]:
        warn(
            f"data.labels: {unmapped} of {total.rows['read']} rows are dropped, because their value of "
            f"{params.data.label_column!r} belongs to no class: {total.list_values()}"
        )
    write_json(FILTER_METRICS, total.to_metrics())


if __name__ == "__main__":
    main()
