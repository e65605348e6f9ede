"""The stages base_model and clean_and_tokenize."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.common.artifacts.arrow import read_table
from tests.support.corpus import record, records, write_corpus


@pytest.fixture
def base_model(tiny_base_model, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_base_model, tmp_path / "모델 폴더"))


def test_only_what_is_read_is_copied_with_its_hashes(stage, base_model):
    (base_model / "evil.py").write_text("raise SystemExit", encoding="utf-8")
    (base_model / "pytorch_model.bin").write_bytes(b"pickle")
    stage("base_model", base_model__name=str(base_model))
    names = {path.name for path in Path("data/base_model").iterdir()}
    assert names == {"base_model.json", "config.json", "model.safetensors", "tokenizer.model", "vocab.txt"}
    noted = json.loads(Path("data/base_model/base_model.json").read_text(encoding="utf-8"))
    assert set(noted["sha256"]) == names - {"base_model.json"}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "vocab.txt"])
def test_a_folder_that_lacks_a_file_is_refused(stage, base_model, name):
    stage("base_model", base_model__name=str(base_model))
    before = sorted(path.read_bytes() for path in Path("data/base_model").iterdir())
    (base_model / name).unlink()
    with pytest.raises(SystemExit, match=name.replace("tokenizer.model", r"\*\.model")):
        stage("base_model")
    assert sorted(path.read_bytes() for path in Path("data/base_model").iterdir()) == before


def test_damaged_or_contradicting_files_are_refused(stage, base_model):
    config = base_model / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(values | {"vocab_size": 50}), encoding="utf-8")
    with pytest.raises(SystemExit, match="vocab_size of 50"):
        stage("base_model", base_model__name=str(base_model))
    config.write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"config\.json"):
        stage("base_model")
    config.write_text(json.dumps(values), encoding="utf-8")
    weights = base_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SystemExit, match="not a whole safetensors file"):
        stage("base_model")
    with pytest.raises(SystemExit, match="not a folder"):
        stage("base_model", base_model__name=str(base_model / "nowhere"))
    assert not Path("data/base_model").exists()


def test_rows_without_text_are_dropped_and_counted(stage, tmp_path, base_model):
    rows = [*records(), record(900, "😊 ㅋㅋ"), record(901, ""), record(902, "<br>"), record(903, "최고 " * 100)]
    stage("base_model", base_model__name=str(base_model))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", rows)))
    stage("filter")
    stage("clean_and_tokenize", tokenize__max_length=32)
    table = read_table(Path("data/tokenized.arrow"))
    metrics = json.loads(Path("metrics/tokens.json").read_text(encoding="utf-8"))
    assert table.num_rows == metrics["rows"] == 181
    assert metrics["dropped_empty"] == 3
    assert metrics["length"]["max"] == 32
    assert metrics["truncated_share"] == round(1 / 181, 4)
    assert metrics["unk_rate"] == 0
    assert "ㅋ" not in "".join(table["text"].to_pylist())
    stage("clean_and_tokenize", clean__keep_jamo=True)
    assert read_table(Path("data/tokenized.arrow")).num_rows == 182
    assert "배터리 실망! ㅋㅋ" in read_table(Path("data/tokenized.arrow"))["text"].to_pylist()


def test_what_cannot_be_tokenized_is_one_line(stage, tmp_path, base_model):
    stage("base_model", base_model__name=str(base_model))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", [record(1, "😊")])))
    stage("filter")
    with pytest.raises(SystemExit, match="max_length is 256, but the base model has 64 positions"):
        stage("clean_and_tokenize")
    with pytest.raises(SystemExit, match="no text is left after cleaning"):
        stage("clean_and_tokenize", tokenize__max_length=64)
    assert not Path("data/tokenized.arrow").exists()


def test_a_vocabulary_that_does_not_know_korean_is_refused(stage, tmp_path, base_model):
    """SentencePiece still finds pieces; none of them is in vocab.txt, so all Korean would be [UNK]."""
    tokens = (base_model / "vocab.txt").read_text(encoding="utf-8").split()
    latin = [token if token.isascii() else f"[unused{number}]" for number, token in enumerate(tokens)]
    (base_model / "vocab.txt").write_text("\n".join(latin), encoding="utf-8")
    stage("base_model", base_model__name=str(base_model))
    stage("ingest", data__source=str(write_corpus(tmp_path / "raw", records())))
    stage("filter")
    with pytest.raises(SystemExit) as raised:
        stage("clean_and_tokenize", tokenize__max_length=32)
    told = str(raised.value)
    assert re.search(r"does not know this text: [89]\d\.\d% of the tokens are \[UNK\], more than .*\(10\.0%\)", told)
    assert "'배터리 실망!'" in told
    assert "\n" not in told
    assert not list(Path("data").glob("*tokenized*"))
    assert not Path("metrics/tokens.json").exists()
    stage("clean_and_tokenize", tokenize__max_unk_rate=1)
    metrics = json.loads(Path("metrics/tokens.json").read_text(encoding="utf-8"))
    ids = np.concatenate(read_table(Path("data/tokenized.arrow"))["input_ids"].to_numpy())
    assert metrics["unk_rate"] == round((ids == 0).sum() / (len(ids) - 2 * metrics["rows"]), 4) > 0.8
