"""Arrow files that `datasets` opens, and that are the same bytes every time."""

from pathlib import Path

import pyarrow as pa
import pytest

from stages import clean_and_tokenize, filter, ingest
from stages.common.artifacts.arrow import read_table, write_table
from stages.common.core.exceptions import UserError
from stages.common.core.labels import LABELS
from tests.support.corpus import records, write_corpus


def data_stages(stage, base_model: Path, source: Path) -> None:
    stage("base_model", base_model__name=str(base_model))
    stage("ingest", data__source=str(source))
    stage("filter")
    stage("clean_and_tokenize", tokenize__max_length=64)
    stage("split")


def test_two_runs_give_the_same_bytes_wherever_the_source_stands(stage, tmp_path, tiny_base_model):
    tables = []
    for name in ("one", "two"):
        data_stages(stage, tiny_base_model, write_corpus(tmp_path / name, records()))
        tables.append({path: path.read_bytes() for path in sorted(Path("data").rglob("*.arrow"))})
    assert len(tables[0]) == 6
    assert tables[0] == tables[1]


def test_datasets_reads_the_notebooks_features(stage, tmp_path, tiny_base_model):
    import datasets

    data_stages(stage, tiny_base_model, write_corpus(tmp_path / "raw", records()))
    for name in ("tokenized", "splits/train", "splits/validation", "splits/test"):
        rows = datasets.Dataset.from_file(f"data/{name}.arrow")
        assert rows.features["labels"] == datasets.ClassLabel(names=list(LABELS))
        for feature in ("input_ids", "attention_mask", "token_type_ids"):
            assert rows.features[feature] == datasets.List(datasets.Value("int32"))
        row = rows[0]
        assert len(row["input_ids"]) == len(row["attention_mask"]) == len(row["token_type_ids"])
        assert set(row["attention_mask"]) == {1}
        assert set(row["token_type_ids"]) == {0}
    assert rows.features["Index"] == rows.features["text"] == datasets.Value("string")


@pytest.mark.parametrize("schema", [ingest.SCHEMA, filter.SCHEMA, clean_and_tokenize.SCHEMA])
def test_our_metadata_is_what_datasets_would_write(schema):
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    assert features.arrow_schema.metadata == schema.metadata
    assert features.arrow_schema == schema


def test_a_failing_batch_leaves_no_file(tmp_path):
    schema = pa.schema({"a": pa.int64()})

    def batches():
        yield pa.record_batch({"a": [1]}, schema=schema)
        raise UserError("broken")

    with pytest.raises(UserError):
        write_table(tmp_path / "t.arrow", batches(), schema)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "t.arrow"
    path.write_bytes(b"not arrow")
    with pytest.raises(UserError, match=r"t\.arrow"):
        read_table(path)
    with pytest.raises(UserError, match=r"none\.arrow"):
        read_table(tmp_path / "none.arrow")


def test_data_stages_import_no_torch():
    import subprocess
    import sys

    from conftest import ROOT

    for name in ("ingest", "filter", "base_model", "clean_and_tokenize", "split"):
        code = f"import sys, stages.{name}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, name
