"""The stage clean_and_tokenize."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stages.common.artifacts.arrow import read_table
from tests.support.corpus import record, records, write_corpus

TOKENIZED = Path("data/tokenized.arrow")


def metrics() -> dict:
    return json.loads(Path("metrics/tokens.json").read_text(encoding="utf-8"))


@pytest.fixture
def base_model(tiny_base_model, tmp_path) -> Path:
    """Copy the tiny base model, so that a test may damage it."""
    return Path(shutil.copytree(tiny_base_model, tmp_path / "모델 폴더"))


@pytest.fixture
def tokenize(stage, tmp_path, base_model) -> Callable[..., pa.Table]:
    """Run the stages up to clean_and_tokenize, by default with at most 32 tokens, and return the table."""

    def run_stages(rows: list[dict], **changed: object) -> pa.Table:
        stage("base_model", base_model__folder=str(base_model))
        stage("ingest", data__source=str(write_corpus(tmp_path / "raw", rows)))
        stage("filter")
        stage("clean_and_tokenize", **{"tokenize__max_length": 32, **changed})
        return read_table(TOKENIZED)

    return run_stages


def test_rows_without_text_are_dropped_and_counted(tokenize):
    empty = [record(900, "😊 ㅋㅋ"), record(901, ""), record(902, "<br>")]
    table = tokenize([*records(), *empty])
    assert table.num_rows == metrics()["rows"] == len(records())
    assert metrics()["dropped_empty"] == len(empty)
    assert metrics()["unk_rate"] == 0


def test_cleaning_follows_the_parameters(tokenize):
    table = tokenize([*records(), record(900, "ㅋㅋ")], clean__keep_jamo=True)
    assert table["text"].to_pylist() == [*(row["RawText"] for row in records()), "ㅋㅋ"]


def test_long_texts_are_truncated_and_counted(tokenize, capsys):
    table = tokenize([*records(), record(900, "최고 " * 100)])
    assert len(table["input_ids"][-1]) == metrics()["length"]["max"] == 32
    assert metrics()["truncated_fraction"] == round(1 / table.num_rows, 4)
    assert "truncated" not in capsys.readouterr().err


def test_a_warning_says_that_most_texts_are_truncated(tokenize, capsys):
    tokenize(records(), tokenize__max_length=4)
    warning = "warning: 100% of the texts are longer than tokenize.max_length (4 tokens) and were truncated\n"
    assert warning in capsys.readouterr().err


def test_more_tokens_than_the_model_has_positions_are_refused(tokenize):
    with pytest.raises(SystemExit, match="max_length is 256; the base model accepts 64 tokens at most"):
        tokenize(records(), tokenize__max_length=256)
    assert not TOKENIZED.exists()


def test_a_corpus_without_text_is_refused(tokenize):
    with pytest.raises(SystemExit, match="no text is left after cleaning"):
        tokenize([record(number, "😊", label) for number, label in enumerate(["-1", "0", "1"])])
    assert not TOKENIZED.exists()


@pytest.fixture
def latin_base_model(base_model) -> Path:
    """Remove all Korean pieces from vocab.txt, so that all Korean pieces of SentencePiece are [UNK]."""
    tokens = (base_model / "vocab.txt").read_text(encoding="utf-8").split()
    latin = [token if token.isascii() else f"[unused{number}]" for number, token in enumerate(tokens)]
    (base_model / "vocab.txt").write_text("\n".join(latin), encoding="utf-8")
    return base_model


def test_a_vocabulary_that_does_not_know_korean_is_refused(tokenize, latin_base_model):
    with pytest.raises(SystemExit) as raised:
        tokenize(records())
    error = str(raised.value)
    assert re.search(r"does not fit the texts: [89]\d\.\d% of the tokens are \[UNK\], more than .*\(10\.0%\)", error)
    assert "'배터리 실망!'" in error
    assert "\n" not in error
    assert not list(Path("data").glob("*tokenized*"))
    assert not Path("metrics/tokens.json").exists()


def test_the_rate_of_unknown_tokens_is_measured_without_special_tokens(tokenize, latin_base_model):
    table = tokenize(records(), tokenize__max_unk_rate=1)
    ids = np.concatenate(table["input_ids"].to_numpy())
    num_special_tokens, unk_id = 2 * table.num_rows, 0
    assert metrics()["unk_rate"] == round((ids == unk_id).sum() / (len(ids) - num_special_tokens), 4) > 0.8
