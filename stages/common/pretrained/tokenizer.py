"""Text to `input_ids`, in batches and without torch, from the files of a base model's folder.

Two kinds of folder are understood:

* KoBERT's: one SentencePiece `*.model` and a `vocab.txt` whose line numbers are the ids;
* any other encoder's: the `tokenizer.json` of the Rust `tokenizers` library.

No code of the folder is run.
"""

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.common.core.exceptions import UserError

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
TEXTS_AT_A_TIME = 1000
LONG = 2**16  # characters
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")
# What the reference class's NFKD changes: it takes whole syllables apart for nothing, SentencePiece composes them.
_FOLDED = re.compile(r"[^\n\x20-\x7e가-힣]+")
# But a final consonant joins the syllable before it.
_FINAL = re.compile("[\u11a8-\u11c2]")
_OPEN_AND_FINAL = re.compile("[가-힣][\u11a8-\u11c2]")


@dataclass(frozen=True)
class Encoded:
    """Texts as ids, special tokens included, one text after the other."""

    ids: np.ndarray  # (tokens,) int32
    lengths: np.ndarray  # (texts,) int64, tokens of each
    cut: int  # texts that were longer

    def rows(self) -> list[np.ndarray]:
        """The ids of each text."""
        ends = np.cumsum(self.lengths)
        return [self.ids[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]


def _fold(run: str) -> str:
    decomposed = unicodedata.normalize("NFKD", re.sub(r"\s", " ", run))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


# Reviews repeat the same few runs: ㅋㅋ, ㅠㅠ, hearts.
_fold_short = lru_cache(2**16)(_fold)


class SentencePieceTokenizer:
    """KoBERT's tokenizer: SentencePiece pieces, looked up in `vocab.txt`.

    Gives the ids of monologg's `KoBertTokenizer` (tokenization_kobert.py in the hub repository), which also reads a
    literal "[SEP]" in a text as the special token. That class splits pieces that end in a digit and a comma too;
    KoBERT's vocabulary has none, and a model that has one is refused.
    """

    def __init__(self, model_file: Path, vocab_file: Path) -> None:
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{model_file}: not a SentencePiece model") from error
        # The hub's copy ends its lines with CRLF, ours with LF: both are stripped.
        try:
            tokens = [line.strip() for line in vocab_file.read_text(encoding="utf-8").split("\n")]
        except UnicodeDecodeError as error:
            raise UserError(f"{vocab_file}: byte {error.start}: not UTF-8") from error
        ids = {token: index for index, token in enumerate(tokens) if token}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise UserError(f"{vocab_file}: lacks {', '.join(missing)}")
        self.unk_id = ids["[UNK]"]
        self._special_ids = {token: ids[token] for token in SPECIAL_TOKENS}
        self._piece_of_special = {token: self._model.vocab_size() + n for n, token in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = max(ids.values()) + 1
        pieces = [self._model.id_to_piece(index) for index in range(self._model.vocab_size())]
        if self._model.encode("\u3000 a  b ") != self._model.encode("a b"):
            raise UserError(f"{model_file}: a SentencePiece model that keeps runs of spaces is not supported")
        if split := [piece for piece in pieces if re.search(r"\d,$", piece)]:
            raise UserError(f"{model_file}: pieces that end in a digit and a comma are not supported: {split[:3]}")
        self._id_of_piece = np.array([ids.get(piece, self.unk_id) for piece in [*pieces, *SPECIAL_TOKENS]], np.int32)

    def _normalize(self, texts: Sequence[str]) -> list[str]:
        """What the reference class does before SentencePiece, but for runs of spaces, which that collapses itself."""
        lines = "\n".join(texts)
        if lines.count("\n") >= len(texts):
            lines = "\n".join([text.replace("\n", " ") for text in texts])
        lines = lines.replace("``", '"').replace("''", '"')
        lines = _FOLDED.sub(lambda match: (_fold_short if len(match[0]) < 64 else _fold)(match[0]), lines)
        if _FINAL.search(lines):
            lines = _OPEN_AND_FINAL.sub(lambda match: unicodedata.normalize("NFC", match[0]), lines)
        return lines.split("\n")

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Indices into `_id_of_piece`, which knows the special tokens after SentencePiece's own."""
        rows = self._model.encode(self._normalize(texts), out_type=int, num_threads=os.cpu_count() or 1)
        if _SPECIAL.search("\n".join(texts)):
            known = self._piece_of_special
            for index, parts in enumerate(map(_SPECIAL.split, texts)):
                if len(parts) > 1:
                    between = iter(self._pieces([part for part in parts if part not in known]))
                    found = ([known[part]] if part in known else next(between) for part in parts)
                    rows[index] = list(chain.from_iterable(found))
        return rows

    def _encode_some(self, texts: Sequence[str], max_length: int) -> Encoded:
        rows, room = self._pieces(texts), max_length - 2
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        if cut := int((lengths > room).sum()):
            rows, lengths = [row[:room] for row in rows], np.minimum(lengths, room)
        lengths += 2
        begin, end = ([self._piece_of_special[token]] for token in ("[CLS]", "[SEP]"))
        whole = chain.from_iterable(zip(repeat(begin), rows, repeat(end)))
        ids = self._id_of_piece[np.fromiter(chain.from_iterable(whole), np.int32, lengths.sum())]
        return Encoded(ids, lengths, cut)

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Ids of the texts, [CLS] and [SEP] included, each cut to `max_length` of them."""
        # In small helpings, or Python's garbage collector takes as long for the lists as SentencePiece for the texts.
        if not texts:
            return Encoded(np.empty(0, np.int32), np.empty(0, np.int64), 0)
        starts = range(0, len(texts), TEXTS_AT_A_TIME)
        some = [self._encode_some(texts[start : start + TEXTS_AT_A_TIME], max_length) for start in starts]
        ids, lengths = (np.concatenate([getattr(part, name) for part in some]) for name in ("ids", "lengths"))
        return Encoded(ids, lengths, sum(part.cut for part in some))

    def to_fast(self) -> "tokenizers.Tokenizer":
        """A copy in the form that transformers reads, `tokenizer.json`.

        One text in some hundreds gets other ids: where two ways to cut it score the same, rounding decides, and
        SentencePiece adds scores in single precision, the copy in double.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
        from tokenizers.models import Unigram

        vocab = [(f"[unused{index}]", 0.0) for index in range(self.vocab_size)]
        for piece, index in enumerate(self._id_of_piece[: self._model.vocab_size()].tolist()):
            if index != self.unk_id:
                vocab[index] = (self._model.id_to_piece(piece), self._model.get_score(piece))
        for token, index in self._special_ids.items():
            vocab[index] = (token, 0.0)
        fast = Tokenizer(Unigram(vocab, unk_id=self.unk_id))
        fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
        quotes = [normalizers.Replace(quote, '"') for quote in ("``", "''")]
        steps = [*quotes, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Nmt(), normalizers.NFKC()]
        fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(r"\s+"), " ")])
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        pair = [(token, self._special_ids[token]) for token in ("[CLS]", "[SEP]")]
        fast.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", pair)
        return fast


class FastTokenizer:
    """A `tokenizer.json`; special tokens are added as its post-processor says."""

    def __init__(self, tokenizer_file: Path) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises bare Exception for every fault of the file
            raise UserError(f"{tokenizer_file}: not a tokenizer of the tokenizers library: {error}") from error
        self._tokenizer.no_padding()
        self.vocab_size = self._tokenizer.get_vocab_size()
        model = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]
        unk_token = model.get("unk_token")
        self.unk_id = self._tokenizer.token_to_id(unk_token) if unk_token else model.get("unk_id")
        if self.unk_id is None:
            self.unk_id = -1  # a byte-level vocabulary knows every text

    def to_fast(self) -> "tokenizers.Tokenizer":
        """A copy in the form that transformers reads, `tokenizer.json`."""
        import tokenizers

        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()
        return copy

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Ids of the texts, each cut to `max_length` of them, special tokens included."""
        self._tokenizer.enable_truncation(max_length)
        # Of 10 MB the library would keep each token that is cut off, in 1 GB; the first ones do not depend on the rest.
        encodings = self._tokenizer.encode_batch([text[:LONG] for text in texts])
        for number, text in enumerate(texts):
            if len(text) > LONG and not encodings[number].overflowing:
                encodings[number] = self._tokenizer.encode(text)
        rows = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum())
        return Encoded(ids, lengths, sum(bool(encoding.overflowing) for encoding in encodings))


Tokenizer = SentencePieceTokenizer | FastTokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base model's folder.

    Raises:
        UserError: the folder holds neither kind of tokenizer, or a damaged one.
    """
    fast, vocab, models = folder / "tokenizer.json", folder / "vocab.txt", sorted(folder.glob("*.model"))
    if fast.is_file():
        return FastTokenizer(fast)
    if len(models) == 1 and vocab.is_file():
        return SentencePieceTokenizer(models[0], vocab)
    raise UserError(f"{folder}: no tokenizer: expected tokenizer.json, or one SentencePiece *.model and vocab.txt")
