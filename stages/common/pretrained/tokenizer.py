"""Tokenizers, which are read from the folder of a base model without running code of the folder.

Two kinds are supported:

* KoBERT's tokenizer: a SentencePiece `*.model`; the ids come from `vocab.txt` or, without it, from the model.
* Tokenizers of other encoders: the `tokenizer.json` of the Rust `tokenizers` library, or a `vocab.txt` of WordPiece.
"""

import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sentencepiece
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from stages.common.artifacts.files import read_json
from stages.common.runtime.exceptions import UserError

INT32_LIST = pa.list_(pa.int32())
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
CHUNK_SIZE = 1000  # Number of texts whose tokens are Python lists at a time; more would slow the garbage collector.
# Length, in characters, of the beginning of a text that is tokenized first. The libraries store all tokens of a text,
# which takes 1 GB for a text of 10 MB.
PREFIX_LENGTH = 2**16
MAX_GROWTH = 100  # Maximum factor by which the rules of a tokenizer.json may lengthen a text.
_SPECIAL_TOKEN = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")
# Characters that NFKD may change. NFKD also decomposes Hangul syllables, but SentencePiece composes them again.
_NOT_NORMAL = re.compile(r"[^\n\x20-\x7e가-힣]{1,64}")
# Characters that the rule nmt_nfkc of SentencePiece removes, and those that it replaces by a space.
_REMOVED = "\x01-\x08\x0b\x0e-\x1f\x7f\x8f\x9f"
_SPACES = "\t\n\x0c\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd"
_FINAL_CONSONANT = re.compile("[\u11a8-\u11c2]")
_SYLLABLE_AND_FINAL = re.compile("[가-힣][\u11a8-\u11c2]")


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of texts."""

    input_ids: pa.ListArray  # One list of int32 for each text, special tokens included.
    num_truncated: int  # Number of texts that were longer than `max_length`.


@lru_cache(2**16)  # Reviews repeat the same few runs of characters, such as ㅋㅋ, ㅠㅠ and hearts.
def _decompose(characters: str) -> str:
    decomposed = unicodedata.normalize("NFKD", re.sub(r"\s", " ", characters))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def _read_vocab(path: Path) -> dict[str, int]:
    """Read a `vocab.txt`, in which the id of a token is the number of its line, counted from 0."""
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start}: not UTF-8") from error
    # Lines end with CRLF in the copy of KoBERT's file on the hub; strip removes the CR.
    return {token.strip(): index for index, token in enumerate(tokens) if token.strip()}


class SentencePieceTokenizer:
    """KoBERT's tokenizer: a SentencePiece model, with the ids of `vocab_file` or, if it is None, those of the model.

    The ids are the same as those of monologg's `KoBertTokenizer` (tokenization_kobert.py in the hub repository), which
    reads the text "[SEP]" as the special token. That class also splits pieces that end in a digit and a comma; KoBERT's
    vocabulary has no such piece, and a model that has one is refused.
    """

    def __init__(self, model_file: Path, vocab_file: Path | None) -> None:
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model_file}: not a SentencePiece model") from error
        pieces = [self._model.id_to_piece(index) for index in range(self._model.vocab_size())]
        ids = _read_vocab(vocab_file) if vocab_file else {piece: index for index, piece in enumerate(pieces)}
        if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
            where = vocab_file or f"{model_file} (there is no vocab.txt)"
            raise UserError(f"{where}: lacks {', '.join(missing)}")
        if self._model.encode("\u3000 a  b ") != self._model.encode("a b"):
            raise UserError(f"{model_file}: a SentencePiece model that keeps runs of spaces is not supported")
        if split := [piece for piece in pieces if re.search(r"\d,$", piece)]:
            raise UserError(f"{model_file}: pieces that end in a digit and a comma are not supported: {split[:3]}")
        self.unk_id = ids["[UNK]"]
        self.vocab_size = max(ids.values()) + 1
        # The special tokens are numbered after the pieces of the SentencePiece model.
        self._special_pieces = {token: len(pieces) + index for index, token in enumerate(SPECIAL_TOKENS)}
        # If no piece contains a space, the tokens of the first words of a text do not depend on the rest.
        self._prefix_length = sys.maxsize if any("▁" in piece[1:] for piece in pieces) else PREFIX_LENGTH
        self._piece_to_id = np.array([ids.get(piece, self.unk_id) for piece in [*pieces, *SPECIAL_TOKENS]], np.int32)

    def _normalize(self, texts: Sequence[str]) -> list[str]:
        """Normalize texts as the reference class does; SentencePiece itself shortens runs of spaces to one."""
        lines = "\n".join([text.replace("\n", " ") for text in texts])
        lines = lines.replace("``", '"').replace("''", '"')
        lines = _NOT_NORMAL.sub(lambda match: _decompose(match[0]), lines)
        if _FINAL_CONSONANT.search(lines):  # NFC composes it with the syllable before it.
            lines = _SYLLABLE_AND_FINAL.sub(lambda match: unicodedata.normalize("NFC", match[0]), lines)
        return lines.split("\n")

    def _encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Split texts into pieces, given as indices into `_piece_to_id`, without [CLS] and [SEP] around a text."""
        rows = self._model.encode(self._normalize(texts), out_type=int, num_threads=os.cpu_count() or 1)
        special = self._special_pieces
        for index, text in enumerate(texts):
            if "[" in text and len(parts := _SPECIAL_TOKEN.split(text)) > 1:
                between = iter(self._encode_pieces([part for part in parts if part not in special]))
                found = ([special[part]] if part in special else next(between) for part in parts)
                rows[index] = list(chain.from_iterable(found))
        return rows

    def encode(self, texts: Sequence[str], max_length: int) -> EncodedTexts:
        """Tokenize texts; each is truncated to `max_length` tokens, [CLS] and [SEP] included."""
        begin, end = self._special_pieces["[CLS]"], self._special_pieces["[SEP]"]
        input_ids, num_truncated = [pa.array([], INT32_LIST)], 0
        for start in range(0, len(texts), CHUNK_SIZE):
            chunk, limit = texts[start : start + CHUNK_SIZE], self._prefix_length
            first_words = [text[:limit].rpartition(" ")[0] if len(text) > limit else text for text in chunk]
            pieces = self._encode_pieces(first_words)
            for index, text in enumerate(chunk):
                if len(text) > limit and len(pieces[index]) <= max_length - 2:
                    pieces[index] = self._encode_pieces([text])[0]
            num_truncated += sum(len(row) > max_length - 2 for row in pieces)
            rows = pa.array([[begin, *row[: max_length - 2], end] for row in pieces], INT32_LIST)
            input_ids.append(pa.ListArray.from_arrays(rows.offsets, self._piece_to_id[rows.values.to_numpy()]))
        return EncodedTexts(pa.concat_arrays(input_ids), num_truncated)

    def to_fast(self) -> RustTokenizer:
        """Make a copy that is saved as `tokenizer.json`, which transformers reads.

        The ids of about one text in some hundred differ. If two ways to split a text have the same score, rounding
        decides, and SentencePiece adds scores in single precision but the copy in double precision.
        """
        vocab = [(f"[unused{index}]", 0.0) for index in range(self.vocab_size)]
        for piece, index in enumerate(self._piece_to_id[: self._model.vocab_size()].tolist()):
            if index != self.unk_id:
                vocab[index] = (self._model.id_to_piece(piece), self._model.get_score(piece))
        special_ids = {token: int(self._piece_to_id[piece]) for token, piece in self._special_pieces.items()}
        for token, index in special_ids.items():
            vocab[index] = (token, 0.0)
        fast = RustTokenizer(models.Unigram(vocab, unk_id=self.unk_id))
        fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
        quotes = [normalizers.Replace(quote, '"') for quote in ("``", "''")]
        # These two do the same as the normalizer Nmt, which transformers.js does not support.
        nmt = [normalizers.Replace(Regex(f"[{_REMOVED}]"), ""), normalizers.Replace(Regex(f"[{_SPACES}]+"), " ")]
        steps = [*quotes, normalizers.NFKD(), normalizers.StripAccents(), *nmt, normalizers.NFKC()]
        fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(r"\s+"), " ")])
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        pair = [(token, special_ids[token]) for token in ("[CLS]", "[SEP]")]
        fast.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", pair)
        return fast


def _growth(normalizer: dict[str, Any] | None) -> int:
    """Compute an upper bound on the factor by which a normalizer can lengthen a text."""
    steps = map(_growth, (normalizer or {}).get("normalizers", []))
    return max(1, len((normalizer or {}).get("content", ""))) * math.prod(steps)


def _read_word_piece(vocab_file: Path) -> RustTokenizer:
    """Read a `vocab.txt` of WordPiece and the settings in `tokenizer_config.json` as BertTokenizer does."""
    vocab = _read_vocab(vocab_file)
    if any(token.startswith("▁") for token in vocab):
        raise UserError(f"{vocab_file}: belongs to a SentencePiece model, whose file *.model is missing")
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(f"{vocab_file}: lacks {', '.join(missing)}")
    config_file = vocab_file.with_name("tokenizer_config.json")
    config = read_json(config_file) if config_file.is_file() else {}
    word_piece = BertWordPieceTokenizer(
        vocab,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    return RustTokenizer.from_str(word_piece.to_str())


class FastTokenizer:
    """Tokenizer of the Rust library, from a `tokenizer.json` or a `vocab.txt` of WordPiece."""

    def __init__(self, tokenizer_file: Path) -> None:
        try:
            is_vocab = tokenizer_file.suffix == ".txt"
            read = _read_word_piece if is_vocab else lambda path: RustTokenizer.from_file(str(path))
            self._tokenizer = read(tokenizer_file)
        except UserError:
            raise
        except Exception as error:  # The library raises a bare Exception for every error in the file.
            raise UserError(f"{tokenizer_file}: not a tokenizer of the tokenizers library: {error}") from error
        self._tokenizer.no_padding()
        if isinstance(self._tokenizer.model, models.BPE):
            self._tokenizer.model.dropout = None  # With dropout, the ids of a text would be random.
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        parts = json.loads(self._tokenizer.to_str())
        if (growth := _growth(parts["normalizer"])) > MAX_GROWTH:
            raise UserError(f"{tokenizer_file}: its normalizer may make a text {growth} times as long")
        self._file, model = tokenizer_file, parts["model"]
        unk_token = model.get("unk_token")
        unk_id = self._tokenizer.token_to_id(unk_token) if unk_token else model.get("unk_id")
        self.unk_id = -1 if unk_id is None else unk_id  # A byte-level vocabulary has no unknown token.

    def to_fast(self) -> RustTokenizer:
        """Make a copy that is saved as `tokenizer.json`, which transformers reads."""
        copy = RustTokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()
        return copy

    def encode(self, texts: Sequence[str], max_length: int) -> EncodedTexts:
        """Tokenize texts; each is truncated to `max_length` tokens, special tokens included.

        Raises:
            UserError: The parts of the tokenizer contradict each other.
        """
        self._tokenizer.enable_truncation(max_length)
        try:
            encodings = self._tokenizer.encode_batch([text[:PREFIX_LENGTH] for text in texts])
            for index, text in enumerate(texts):
                if len(text) > PREFIX_LENGTH and not encodings[index].overflowing:
                    encodings[index] = self._tokenizer.encode(text)
            input_ids = pa.array([encoding.ids for encoding in encodings], INT32_LIST)
        except BaseException as error:  # The library raises bare exceptions; a panic is a BaseException.
            if isinstance(error, KeyboardInterrupt):
                raise
            raise UserError(f"{self._file}: cannot tokenize: {error}") from error
        lengths, ids = input_ids.value_lengths().to_numpy(), input_ids.values.to_numpy()
        if ids.max(initial=0) >= self.vocab_size or lengths.max(initial=0) > max_length:
            raise UserError(f"{self._file}: adds too many special tokens, or tokens that are not in its vocabulary")
        return EncodedTexts(input_ids, sum(bool(encoding.overflowing) for encoding in encodings))


Tokenizer = SentencePieceTokenizer | FastTokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer in the folder of a base model.

    Raises:
        UserError: The folder has no supported tokenizer, or a damaged one.
    """
    fast, vocab, models = folder / "tokenizer.json", folder / "vocab.txt", sorted(folder.glob("*.model"))
    if fast.is_file():
        return FastTokenizer(fast)
    if len(models) == 1:
        return SentencePieceTokenizer(models[0], vocab if vocab.is_file() else None)
    if vocab.is_file() and not models:
        return FastTokenizer(vocab)
    raise UserError(f"{folder}: no tokenizer: expected tokenizer.json, vocab.txt, or one SentencePiece *.model")
