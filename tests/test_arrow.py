"""Arrow files can be opened by `datasets`, and are always the same bytes."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from stages import clean_and_tokenize, filter, ingest
from stages.common.artifacts import folds
from stages.common.artifacts.arrow import make_schema, read_preprocessing, read_table, write_table
from stages.common.runtime.exceptions import UserError
from tests.support.corpus import LABELS, records, write_corpus
from tests.support.project import ROOT, prepare


@pytest.fixture
def splits(tmp_path, monkeypatch, tiny_base_model) -> Path:
    """Run the data stages in a folder, and make it the current one."""
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, tiny_base_model)
    return tmp_path


def arrow_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("data/**/*.arrow")}


def test_the_same_corpus_elsewhere_gives_the_same_bytes(splits, stage, tmp_path_factory):
    other = tmp_path_factory.mktemp("다른 폴더")
    source = write_corpus(other / "moved", records())
    first = arrow_files(splits)
    for name in ("ingest", "filter", "clean_and_tokenize", "split"):
        stage(name, data__source=str(source), tokenize__max_length=64)
    assert len(first) == 8
    assert arrow_files(splits) == first


def test_datasets_reads_the_features_of_the_notebook(splits):
    import datasets

    rows = datasets.Dataset.from_file("data/tokenized.arrow")
    int32s, string = datasets.List(datasets.Value("int32")), datasets.Value("string")
    assert rows.features == {
        "input_ids": int32s,
        "attention_mask": int32s,
        "token_type_ids": int32s,
        "labels": datasets.ClassLabel(names=list(LABELS)),
        "Index": string,
        "text": string,
        "MainCategory": string,
        "is_test": datasets.Value("bool"),
    }
    length = len(rows[0]["input_ids"])
    assert rows[0]["attention_mask"] == [1] * length
    assert rows[0]["token_type_ids"] == [0] * length


@pytest.mark.parametrize(
    "schema",
    [ingest.SCHEMA, make_schema(filter.FIELDS, LABELS), make_schema(clean_and_tokenize.FIELDS, LABELS), folds.SCHEMA],
)
def test_our_metadata_is_what_datasets_would_write(schema):
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    assert features.arrow_schema.metadata == schema.metadata
    assert features.arrow_schema == schema


def test_the_tokenized_rows_say_how_they_were_made(splits):
    assert read_preprocessing(Path("data/tokenized.arrow")).max_length == 64


def test_a_table_that_does_not_say_how_it_was_made_is_named(tmp_path):
    write_table(tmp_path / "plain.arrow", [], make_schema({"labels": pa.int64()}))
    with pytest.raises(UserError, match=r"plain\.arrow: does not say how"):
        read_preprocessing(tmp_path / "plain.arrow")


def test_a_failing_batch_leaves_no_file(tmp_path):
    schema = make_schema({"a": pa.int64()})

    def batches():
        yield pa.record_batch({"a": [1]}, schema=schema)
        raise UserError("broken")

    with pytest.raises(UserError):
        write_table(tmp_path / "table.arrow", batches(), schema)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "damaged.arrow").write_bytes(b"not arrow")
    with pytest.raises(UserError, match=r"damaged\.arrow"):
        read_table(tmp_path / "damaged.arrow")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.arrow.*dvc repro"):
        read_table(tmp_path / "missing.arrow")


@pytest.mark.parametrize("name", ["ingest", "filter", "base_model", "clean_and_tokenize", "split", "baselines"])
def test_data_stages_import_no_torch(name):
    code = f"import sys, stages.{name}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_have_the_mode_that_the_umask_asks_for(tmp_path, umask):
    """Without our code, safetensors creates files that only their owner can read."""
    code = (
        f"import os; os.umask({umask})\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from stages.common.artifacts.logits import write_logits\n"
        f"write_logits(Path({str(tmp_path / 'logits.safetensors')!r}), {{'test': np.zeros((1, 3))}})\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "logits.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask
