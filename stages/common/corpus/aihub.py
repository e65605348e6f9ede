"""Records from the bytes of an AI Hub file, and what is wrong with it.

A file without a fault is read by msgspec, which builds nothing but what is asked for. Any other goes to the json
module, which is slower and tells where the fault is and what stands around it.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import pyarrow as pa

MOST_DIGITS = 4300  # of an integer that Python takes from a string


class Record(msgspec.Struct, gc=False):
    """What is read of an AI Hub record; numbers are as JSON writes them."""

    Index: str | None = None
    RawText: str | None = None
    GeneralPolarity: str | msgspec.UnsetType | None = msgspec.UNSET  # UNSET: there is no such key
    MainCategory: str | None = None


@dataclass(frozen=True)
class Fault:
    """What is wrong with one record of a file, or with the file itself."""

    reason: Literal["unreadable", "not_json", "not_unicode", "wrong_type"]
    place: str  # in the file
    detail: str
    of_record: bool

    def __str__(self) -> str:
        joint = " " if self.of_record and self.reason in ("wrong_type", "not_unicode") else ": "
        return f"{self.place}{joint}{self.detail}".removeprefix(": ")


_ARRAY, _RECORD = msgspec.json.Decoder(list[Record]), msgspec.json.Decoder(Record)
_JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else float(digits))
_SPACE = re.compile(r"[ \t\r\n]*")


def is_utf8(data: bytes) -> bool:
    """Whether all bytes are UTF-8. Other threads go on meanwhile."""
    ends = pa.array([0, len(data)], pa.int64()).buffers()[1]
    try:
        pa.LargeStringArray.from_buffers(1, ends, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def read_records(data: bytes, valid_utf8: bool) -> tuple[list[Record], list[Fault]]:
    """The valid records of a file, a JSON array or NDJSON with or without a byte order mark, and all its faults.

    Of an array that breaks off, the records before that are valid.
    """
    if valid_utf8:
        content = data.removeprefix(codecs.BOM_UTF8)
        try:
            if content.lstrip(b" \t\r\n").startswith(b"{"):
                return [_RECORD.decode(line) for line in content.split(b"\n") if line.strip()], []
            return _ARRAY.decode(content), []
        except (msgspec.MsgspecError, RecursionError):
            pass
    return _read_slowly(data)


def _read_slowly(data: bytes) -> tuple[list[Record], list[Fault]]:
    records: list[Record] = []
    faults: list[Fault] = []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.append(Fault("not_unicode", f"byte {error.start}", "not UTF-8", of_record=False))
        # Wrong bytes become halves of surrogate pairs, so that only the records that hold them are lost.
        text = data.decode("utf-8-sig", "surrogateescape")
    for place, value in _values(text):
        record = value if isinstance(value, Fault) else _record(place, value)
        if isinstance(record, Fault):
            faults.append(record)
        else:
            records.append(record)
    return records, faults


def _values(text: str) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and its value or a fault."""
    if text.lstrip(" \t\r\n").startswith("{"):
        lines = list(_lines(text))
        first = lines[0][1]
        if isinstance(first, Fault) and not any(isinstance(value, dict) for _, value in lines):
            lines = [("", replace(first, of_record=False))]  # one object of many lines
        yield from lines
        return
    records: Iterable[Any]
    try:
        if not isinstance(records := _decode(text), list):
            detail = f"holds one {type(records).__name__}, not an array of objects"
            records = [Fault("wrong_type", "line 1 column 1", detail, of_record=False)]
    except json.JSONDecodeError as error:
        yield "", Fault("not_json", f"line {error.lineno} column {error.colno}", error.msg, of_record=False)
        records = _before_the_fault(text)
    for number, record in enumerate(records, start=1):
        yield f"record {number}", record


def _decode(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except RecursionError as error:
        raise json.JSONDecodeError(f"nested too deep: {error}", text, 0) from error


def _lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", _decode(line)
            except json.JSONDecodeError as error:
                yield "", Fault("not_json", f"line {number} column {error.colno}", error.msg, of_record=True)


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _before_the_fault(text: str) -> Iterator[Any]:
    """The values of a broken array, up to the first one that is not whole."""
    at, separator = _skip_space(text, 0), "["
    while text[at : at + 1] == separator:
        try:
            value, at = _JSON.raw_decode(text, _skip_space(text, at + 1))
        except (json.JSONDecodeError, RecursionError):
            return
        yield value
        at, separator = _skip_space(text, at), ","


def _record(place: str, value: Any) -> Record | Fault:
    if not isinstance(value, dict):
        return Fault("wrong_type", place, f"is of type {type(value).__name__}, not an object", of_record=True)
    if not isinstance(value.get("RawText", ""), str | None):
        name = type(value["RawText"]).__name__
        return Fault("wrong_type", place, f"RawText is of type {name}, not a string", of_record=True)
    texts = {}
    for key in Record.__struct_fields__:
        if key in value:
            text = value[key]
            try:
                texts[key] = text if isinstance(text, str | None) else json.dumps(text, ensure_ascii=False)
                (texts[key] or "").encode()
            except UnicodeEncodeError as error:
                detail = f"{key} holds half of a surrogate pair at character {error.start + 1}"
                return Fault("not_unicode", place, detail, of_record=True)
            except RecursionError as error:
                return Fault("not_json", place, f"{key} is nested too deep: {error}", of_record=True)
    return Record(**texts)
