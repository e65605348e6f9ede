"""Text to `input_ids`, in batches and without torch, from the files of a base model's folder.

Two kinds of folder are understood:

* KoBERT's: one SentencePiece `*.model` and a `vocab.txt` whose line numbers are the ids;
* any other encoder's: the `tokenizer.json` of the Rust `tokenizers` library.

No code of the folder is run.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stages.common.errors import UserError

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")
_NEEDS_NFKD = re.compile(r"[^\x20-\x7e가-힣]")


class Tokenizer(Protocol):
    """What the stages need of a tokenizer."""

    unk_id: int
    vocab_size: int

    def to_fast(self) -> "tokenizers.Tokenizer":
        """A copy in the form that transformers reads, `tokenizer.json`."""
        ...

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Ids of each text, special tokens included, cut to `max_length` of them; and how many texts were cut."""
        ...


def _combining_characters() -> re.Pattern[str]:
    characters = (chr(point) for point in range(sys.maxunicode + 1) if unicodedata.combining(chr(point)))
    return re.compile(f"[{''.join(characters)}]+")


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
        tokens = [line.strip() for line in vocab_file.read_text(encoding="utf-8").split("\n")]
        ids = {token: index for index, token in enumerate(tokens) if token}
        missing = [token for token in SPECIAL_TOKENS if token not in ids]
        if missing:
            raise UserError(f"{vocab_file}: lacks {', '.join(missing)}")
        self.unk_id, self.pad_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self._special_ids = {token: ids[token] for token in SPECIAL_TOKENS}
        self.vocab_size = max(ids.values()) + 1
        pieces = [self._model.id_to_piece(index) for index in range(self._model.vocab_size())]
        if split := [piece for piece in pieces if re.search(r"\d,$", piece)]:
            raise UserError(f"{model_file}: pieces that end in a digit and a comma are not supported: {split[:3]}")
        self._id_of_piece = [ids.get(piece, self.unk_id) for piece in pieces]
        self._combining = _combining_characters()

    def _normalize(self, text: str) -> str:
        text = " ".join(text.split()).replace("``", '"').replace("''", '"')
        if _NEEDS_NFKD.search(text) is None:  # SentencePiece composes Hangul again, so taking it apart changes nothing
            return text
        return self._combining.sub("", unicodedata.normalize("NFKD", text))

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        pieces = self._model.encode([self._normalize(text) for text in texts], out_type=int)
        return [[self._id_of_piece[piece] for piece in row] for row in pieces]

    def _encode_with_specials(self, text: str) -> list[int]:
        ids = []
        for part in _SPECIAL.split(text):
            special_id = self._special_ids.get(part)
            ids += self._encode_plain([part])[0] if special_id is None else [special_id]
        return ids

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Ids of each text, [CLS] and [SEP] included, cut to `max_length` of them; and how many texts were cut."""
        rows = self._encode_plain(texts)
        for index, text in enumerate(texts):
            if "[" in text and _SPECIAL.search(text):
                rows[index] = self._encode_with_specials(text)
        cut = sum(len(row) > max_length - 2 for row in rows)
        return [[self.cls_id, *row[: max_length - 2], self.sep_id] for row in rows], cut

    def to_fast(self) -> "tokenizers.Tokenizer":
        """A copy in the form that transformers reads, `tokenizer.json`.

        One text in some hundreds gets other ids: where two ways to cut it score the same, rounding decides, and
        SentencePiece adds scores in single precision, the copy in double.
        """
        from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
        from tokenizers.models import Unigram

        vocab = [(f"[unused{index}]", 0.0) for index in range(self.vocab_size)]
        for piece, index in enumerate(self._id_of_piece):
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

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Ids of each text, special tokens included, cut to `max_length` of them; and how many texts were cut."""
        self._tokenizer.enable_truncation(max_length)
        encodings = self._tokenizer.encode_batch(list(texts))
        return [encoding.ids for encoding in encodings], sum(bool(encoding.overflowing) for encoding in encodings)


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
