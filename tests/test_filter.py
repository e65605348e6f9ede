"""The filter keeps valid polarities, and counts the others."""

import json
from pathlib import Path

import pytest

from stages.common.artifacts.arrow import read_table
from stages.filter import NUM_VALUES_LISTED
from tests.support.corpus import record, write_corpus

VALID = {"-1": 0, "0": 1, "1": 2}


@pytest.mark.parametrize(
    ("polarity", "label"),
    [("-1", 0), ("0", 1), ("1", 2), (-1, 0), (0, 1), (1, 2), (-1.0, 0), (0.0, 1), (1.0, 2), (-0.0, 1), ("1.0", 2)],
)
def test_every_form_of_a_valid_polarity_is_kept(stage, tmp_path, polarity, label):
    rows = [record(number, "a", value) for number, value in enumerate([polarity, *VALID])]
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", rows)))
    stage("filter")
    assert read_table(Path("data/filtered.arrow"))["labels"].to_pylist() == [label, 0, 1, 2]


def test_what_is_dropped_is_counted_by_reason(stage, tmp_path):
    unmapped = ["2", 2, "-2", 0.5, "1.5", "N/A", True, False, [], [1], {}, 10**30, "11", "--1", "１"]
    empty, null, no_key = ["", "", "  "], [None] * 3, [{"Index": "1", "RawText": "a"}] * 4
    rows = [record(number, "a", polarity) for number, polarity in enumerate([*unmapped, *empty, *null, *VALID])]
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [*rows, *no_key])))
    stage("filter")
    metrics = json.loads(Path("metrics/filter.json").read_text(encoding="utf-8"))
    assert metrics == {
        "rows_read": len(rows) + len(no_key),
        "rows_kept": len(VALID),
        "dropped": {"no_key": 4, "null": 3, "empty": 3, "unmapped": len(unmapped)},
    } | {"unmapped_values": metrics["unmapped_values"]}
    listed = {entry["value"]: entry["rows"] for entry in metrics["unmapped_values"]}
    assert len(listed) == NUM_VALUES_LISTED
    assert listed["2"] == 2
    assert read_table(Path("data/filtered.arrow"))["labels"].to_pylist() == list(VALID.values())


def test_a_corpus_without_a_valid_row_is_refused(stage, tmp_path):
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [record(1, "a", "7")] * 5)))
    with pytest.raises(
        SystemExit, match=r"no row of data.source has one of its values in 'GeneralPolarity'.*unmapped 5.*'7' 5"
    ) as raised:
        stage("filter")
    assert "\n" not in str(raised.value)
    assert not Path("data/filtered.arrow").exists()
    assert not Path("metrics/filter.json").exists()
