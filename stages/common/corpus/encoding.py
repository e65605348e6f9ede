"""Detection of the encoding and the line ends of a file by its own bytes."""

import codecs
from functools import partial
from io import BytesIO
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 2**20
ENCODINGS = {"utf-8": "utf-8-sig", "cp949": "cp949"}  # Python's codec for each value of data.encoding.
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class TextFormat(NamedTuple):
    """Encoding and line ends of a text file."""

    codec: str
    is_valid: bool  # Whether the codec decodes all bytes of the file.
    newline: str

    @property
    def errors(self) -> str:
        """How the codec treats wrong bytes: as halves of surrogate pairs, or as an error in UTF-16, which has those."""
        return "strict" if self.codec == "utf-16" else "surrogateescape"


def _decodes(file: BinaryIO, codec: str) -> bool:
    file.seek(0)
    try:
        for _ in codecs.iterdecode(iter(partial(file.read, BLOCK_BYTES), b""), codec):
            pass
    except UnicodeDecodeError:
        return False
    return True


def detect_format(file: BinaryIO, preferred: str = "utf-8") -> TextFormat:
    """Detect the encoding and the line ends of a file, and return to its first byte.

    A byte order mark decides. Without one, the preferred encoding and then the other one are tried. If neither decodes
    the whole file, the preferred one is returned. Lines end with a carriage return only if the beginning of the file
    has no line feed.
    """
    file.seek(0)
    beginning = file.read(BLOCK_BYTES)
    marked = [codec for mark, codec in BYTE_ORDER_MARKS.items() if beginning.startswith(mark)]
    codecs_to_try = marked or [ENCODINGS[preferred], *ENCODINGS.values()]
    codec = next((codec for codec in codecs_to_try if _decodes(file, codec)), None)
    text = beginning.decode(codec or codecs_to_try[0], "ignore")
    file.seek(0)
    newline = "\r" if "\r" in text and "\n" not in text else "\n"
    return TextFormat(codec or codecs_to_try[0], codec is not None, newline)


def to_utf8(data: bytes, preferred: str = "utf-8") -> bytes:
    """Convert the bytes of a file to UTF-8; bytes that are not valid remain in it.

    Raises:
        UnicodeDecodeError: The file is UTF-16 and damaged.
    """
    found = detect_format(BytesIO(data), preferred)
    if found.codec == ENCODINGS["utf-8"]:
        return data
    return data.decode(found.codec, found.errors).encode(errors="surrogateescape")
