"""KoBERT's tokenizer follows its rules, and gives the reference ids if the real files are available."""

import json
import os
import shutil
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models

from stages.common.pretrained import tokenizer as tokenizers
from stages.common.pretrained.tokenizer import CHUNK_SIZE, PREFIX_LENGTH, SPECIAL_TOKENS, load_tokenizer
from stages.common.runtime.exceptions import UserError
from tests.support.corpus import records
from tests.support.project import ROOT, encode, run

TEXTS = [row["RawText"] for row in records()]
EMBEDDED = ROOT / "data/kobert-mini"
KOBERT_VOCAB_SIZE = 8002
UNK, CLS, SEP = 0, 2, 3  # Ids in KoBERT, the embedded and the tiny model.


def test_a_text_stands_between_special_tokens(tiny_base_model):
    for ids in encode(tiny_base_model, TEXTS[:20]):
        assert (ids[0], ids[-1]) == (CLS, SEP)
        assert UNK not in ids


def test_a_long_text_is_truncated_before_the_last_special_token(tiny_base_model):
    tokenizer = load_tokenizer(tiny_base_model)
    whole, truncated = tokenizer.encode(TEXTS[:20], 64), tokenizer.encode(TEXTS[:20], 4)
    assert (whole.num_truncated, truncated.num_truncated) == (0, 20)
    assert encode(tiny_base_model, TEXTS[:20], 4) == [[*row[:3], SEP] for row in whole.input_ids.to_pylist()]


def test_texts_together_have_the_ids_of_each_alone(tiny_base_model):
    texts = [*TEXTS * 12, "", " ", "[MASK]", "최고\n\u2028최고", "ㅋ" * 70]
    assert len(texts) > CHUNK_SIZE
    assert encode(tiny_base_model, texts) == [encode(tiny_base_model, [text])[0] for text in texts]


def test_no_texts_have_no_ids(tiny_base_model):
    encoded = load_tokenizer(tiny_base_model).encode([], 64)
    assert len(encoded.input_ids) == encoded.num_truncated == 0


def test_normalization_changes_no_id(tiny_base_model):
    """The reference class normalises decomposed Hangul, wide spaces and accents before SentencePiece."""
    decomposed = [unicodedata.normalize("NFD", f"\u3000{text}\u0301  ") for text in TEXTS]
    assert encode(tiny_base_model, decomposed) == encode(tiny_base_model, TEXTS)


def test_literal_special_tokens_are_read_as_the_reference_class_does(tiny_base_model):
    (plain,) = encode(tiny_base_model, ["최고"])
    assert encode(tiny_base_model, ["[CLS]최고[SEP]"]) == [[CLS, CLS, *plain[1:-1], SEP, SEP]]


def test_the_embedded_model_knows_korean():
    tokenizer = load_tokenizer(EMBEDDED)
    ids = tokenizer.encode(["배터리가 하루도 안 가요 ㅠㅠ"], 64).input_ids[0].as_py()
    assert tokenizer.vocab_size == KOBERT_VOCAB_SIZE
    assert len(ids) > 5
    assert tokenizer.unk_id not in ids


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json: not a tokenizer"),
        ("vocab.txt", b"[UNK]\n[PAD]\n", r"vocab\.txt: lacks \[CLS\], \[SEP\], \[MASK\]"),
        ("vocab.txt", "한글".encode("cp949"), r"vocab\.txt: byte 0: not UTF-8"),
        ("tokenizer.model", b"not a model", r"tokenizer\.model: not a SentencePiece model"),
    ],
)
def test_a_damaged_file_is_named(tiny_base_model, tmp_path, name, content, error):
    shutil.copytree(tiny_base_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=error):
        load_tokenizer(tmp_path)


ENCODE_10_MB = """
import json, re, sys, time
from pathlib import Path
from stages.common.pretrained.tokenizer import load_tokenizer

folder, unit = sys.argv[1:]
tokenizer = load_tokenizer(Path(folder))
started = time.process_time()
encoded = tokenizer.encode([unit * (10_000_000 // len(unit.encode()))], 256)
seconds = time.process_time() - started
# ru_maxrss would include what the parent process held when it forked.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20  # GiB
print(json.dumps({"seconds": seconds, "peak": peak, "ids": encoded.input_ids[0].as_py()}))
"""


@pytest.mark.parametrize("unit", ["가나다 ", "가", "<", "[SEP]", "a\u0301 "])
def test_10_mb_in_one_text_take_seconds_and_little_memory(unit):
    """This runs in a process of its own, whose peak memory no other test has raised."""
    result = run(sys.executable, "-c", ENCODE_10_MB, str(EMBEDDED), unit, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["seconds"] < 16
    assert figures["peak"] < 1
    # A text of the same units that is longer than 256 tokens begins like that one.
    assert [figures["ids"]] == encode(EMBEDDED, [unit * 2000], 256)


def test_a_tokenizer_json_reads_no_more_of_a_long_text_than_it_needs(tmp_path):
    load_tokenizer(EMBEDDED).to_fast().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    short = "배터리가 하루도 안 가요 "
    started = time.process_time()
    long = tokenizer.encode([short, short * 300_000, " " * PREFIX_LENGTH + short], 256)
    assert time.process_time() - started < 8
    expected = tokenizer.encode([short, short * 100, short], 256)
    assert long.input_ids == expected.input_ids
    assert long.num_truncated == 1


@pytest.mark.parametrize("limit", [20, 60])
def test_the_first_words_of_a_long_text_have_the_ids_of_the_whole(tiny_base_model, monkeypatch, limit):
    texts = ["배터리 최고! ㅋㅋ " * 30, "화면별로" * 40, "음질 [SEP] 보통 " * 30, "가격 최고"]
    expected = load_tokenizer(tiny_base_model).encode(texts, 12)
    monkeypatch.setattr(tokenizers, "PREFIX_LENGTH", limit)
    encoded = load_tokenizer(tiny_base_model).encode(texts, 12)
    assert encoded.input_ids == expected.input_ids
    assert encoded.num_truncated == expected.num_truncated == 3


def test_ids_equal_the_reference():
    """kobert_ids.jsonl has 25 texts with the ids of the reference class. Another such file is used if it exists."""
    if "KOBERT_GOLDEN" not in os.environ:
        pytest.skip("needs KoBERT's *.model and vocab.txt: set KOBERT_GOLDEN to a folder with monologg-kobert/")
    folder = Path(os.environ["KOBERT_GOLDEN"])
    files = [Path(__file__).with_name("kobert_ids.jsonl"), *folder.glob("golden.jsonl")]
    golden = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    rows = encode(folder / "monologg-kobert", [line["text"] for line in golden], 256)
    assert rows == [line["input_ids"] for line in golden]


WORD_PIECES = [*SPECIAL_TOKENS, *"배터리가최고abc中!", "##리", "##터", "##고", "배터", "ab", "##c", "de", "##f"]


@pytest.mark.parametrize("name", ["BertTokenizer", "ElectraTokenizer"])
@pytest.mark.parametrize("config", [{"do_lower_case": False}, {"do_lower_case": True}, {"strip_accents": False}])
def test_word_piece_has_the_ids_of_the_classes_of_transformers(tmp_path, name, config):
    (tmp_path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    texts = ["배터리가 최고!", "ABC abc déf", "中中배터리 [SEP] x", "  ", "최고\u200b\x00a", "a " * 40]
    reference = getattr(transformers, name).from_pretrained(tmp_path)
    assert encode(tmp_path, texts, 16) == reference(texts, truncation=True, max_length=16)["input_ids"]


def test_the_vocabulary_of_a_sentencepiece_model_is_not_read_as_word_piece(tiny_base_model, tmp_path):
    shutil.copy(tiny_base_model / "vocab.txt", tmp_path)
    with pytest.raises(UserError, match=r"vocab\.txt: belongs to a SentencePiece model, whose file \*\.model is"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_alone_has_its_own_ids(tmp_path):
    """skt/kobert-base-v1 is such a model. Its ids are compared with SentencePiece and a class of transformers."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=120,
        hard_vocab_limit=False,
        unk_piece="[UNK]",
        bos_id=-1,
        eos_id=-1,
        pad_id=1,
        pad_piece="[PAD]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )
    (tmp_path / "spiece.vocab").unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert encode(tmp_path, TEXTS) == [[CLS, *model.encode(text), SEP] for text in TEXTS]
    reference = transformers.T5Tokenizer.from_pretrained(str(tmp_path), unk_token="[UNK]", pad_token="[PAD]")
    rows = reference(TEXTS, add_special_tokens=False)["input_ids"]
    assert encode(tmp_path, TEXTS) == [[CLS, *row, SEP] for row in rows]


def test_dropout_of_a_tokenizer_is_ignored(tmp_path):
    vocab = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3}
    model = models.BPE(vocab, [("a", "b")], dropout=0.5, unk_token="[UNK]")
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["ab" * 20], 64).input_ids.to_pylist() == [[3] * 20]
    assert tokenizer.to_fast().encode("ab" * 20).ids == [3] * 20
