"""KoBERT's tokenizer by its rules; and, where the real files are at hand, by its reference ids."""

import json
import os
import resource
import time
import unicodedata
from pathlib import Path

import pytest

from stages.common.core.exceptions import UserError
from stages.common.pretrained.tokenizer import LONG, load_tokenizer
from tests.support.corpus import records
from tests.support.project import ROOT, encode

TEXTS = [row["RawText"] for row in records()]


def test_special_tokens_and_truncation(tiny_base_model):
    tokenizer = load_tokenizer(tiny_base_model)
    whole, short = tokenizer.encode(TEXTS[:20], 64), tokenizer.encode(TEXTS[:20], 4)
    assert (whole.cut, short.cut) == (0, 20)
    for full, cut in zip(whole.rows(), short.rows(), strict=True):
        assert full[0] == 2
        assert full[-1] == 3
        assert 0 not in full
        assert cut.tolist() == [*full[:3], 3]


def test_any_number_of_texts_gives_the_ids_of_each_alone(tiny_base_model):
    tokenizer = load_tokenizer(tiny_base_model)
    texts = [*TEXTS * 12, "", " ", "[MASK]", "최고\n\u2028최고", "ㅋ" * 70]
    together = tokenizer.encode(texts, 64)
    alone = [tokenizer.encode([text], 64) for text in texts]
    assert together.ids.tolist() == [token for one in alone for token in one.ids.tolist()]
    assert together.lengths.tolist() == [int(one.lengths[0]) for one in alone]
    assert together.ids.dtype == "int32"
    assert tokenizer.encode([], 64).rows() == []


def test_normalization_changes_no_id(tiny_base_model):
    """Decomposed Hangul, wide spaces and accents are what the reference class folds before SentencePiece."""
    decomposed = [unicodedata.normalize("NFD", f"\u3000{text}\u0301  ") for text in TEXTS]
    assert encode(tiny_base_model, decomposed) == encode(tiny_base_model, TEXTS)


def test_literal_special_tokens_are_read_as_the_reference_class_does(tiny_base_model):
    (plain,) = encode(tiny_base_model, ["최고"])
    assert encode(tiny_base_model, ["[CLS]최고[SEP]"]) == [[2, 2, *plain[1:-1], 3, 3]]


def test_the_embedded_model_knows_korean():
    tokenizer = load_tokenizer(ROOT / "data/kobert-mini")
    rows = tokenizer.encode(["배터리가 하루도 안 가요 ㅠㅠ"], 64).rows()
    assert tokenizer.vocab_size == 8002
    assert len(rows[0]) > 5
    assert tokenizer.unk_id not in rows[0]


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_damaged_files_are_refused(tiny_base_model, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[PAD]\n", encoding="utf-8")
    (tmp_path / "tokenizer.model").write_bytes((tiny_base_model / "tokenizer.model").read_bytes())
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes("한글".encode("cp949"))
    with pytest.raises(UserError, match=r"vocab\.txt: byte 0: not UTF-8"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("unit", ["가나다 ", "가", "<", "[SEP]", "a\u0301 "])
def test_10_mb_in_one_text_take_seconds_and_little_memory(unit):
    tokenizer = load_tokenizer(ROOT / "data/kobert-mini")
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoded = tokenizer.encode([unit * (10_000_000 // len(unit.encode()))], 256)
    assert time.process_time() - started < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert (encoded.lengths.tolist(), encoded.cut) == ([256], 1)
    # A text of the same units that is longer than 256 tokens begins like that one.
    assert encoded.ids.tolist() == tokenizer.encode([unit * 2000], 256).ids.tolist()


def test_a_tokenizer_json_reads_no_more_of_a_long_text_than_it_needs(tmp_path):
    load_tokenizer(ROOT / "data/kobert-mini").to_fast().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    short = "배터리가 하루도 안 가요 "
    started = time.process_time()
    long = tokenizer.encode([short, short * 300_000, " " * LONG + short], 256)
    assert time.process_time() - started < 4
    assert long.ids.tolist() == tokenizer.encode([short, short * 100, short], 256).ids.tolist()
    assert long.cut == 1


def test_ids_equal_the_reference():
    folder = os.environ.get("KOBERT_GOLDEN")
    if not folder:
        pytest.skip("set KOBERT_GOLDEN to a folder with golden.jsonl and monologg-kobert/ to compare with KoBERT's ids")
    lines = (Path(folder) / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    golden = [json.loads(line) for line in lines]
    rows = encode(Path(folder) / "monologg-kobert", [line["text"] for line in golden], 256)
    assert rows == [line["input_ids"] for line in golden]
