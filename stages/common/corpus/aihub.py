"""Records of an AI Hub file, and its faults.

A file without a fault is parsed by msgspec, which builds only the fields asked for. Any other file goes to the json
module, which is slower, but tells where a fault is and lets the records around it be kept.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

MAX_INT_DIGITS = 4300  # Python refuses to parse more; such numbers become floats


class Record(msgspec.Struct, gc=False):
    """The fields of a record that the pipeline reads; numbers are kept as Python's json module writes them."""

    Index: str | None = None
    RawText: str | None = None
    GeneralPolarity: str | msgspec.UnsetType | None = msgspec.UNSET  # UNSET: the record has no such key
    MainCategory: str | None = None


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, or with one record of it."""

    reason: Literal["unreadable", "not_json", "not_unicode", "wrong_type"]
    place: str  # in the file: record, line and column, or byte
    detail: str
    of_record: bool

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.detail)))


_ARRAY, _RECORD = msgspec.json.Decoder(list[Record]), msgspec.json.Decoder(Record)
_JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits))
_SEPARATOR = re.compile(r"[ \t\r\n]*([\[,])[ \t\r\n]*")  # before a value of an array


def parse_records(data: bytes) -> tuple[list[Record], list[Fault]]:
    """The valid records of a file and all its faults.

    The file is a JSON array or JSON lines, with or without a byte order mark. Of a truncated array, the records before
    its end are valid.
    """
    content = data.removeprefix(codecs.BOM_UTF8)
    try:
        content.decode()  # msgspec does not check the fields that it skips
        if content.lstrip(b" \t\r\n").startswith(b"{"):
            return [_RECORD.decode(line) for line in content.split(b"\n") if line.strip()], []
        return _ARRAY.decode(content), []
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return parse_faulty(data)


def parse_faulty(data: bytes) -> tuple[list[Record], list[Fault]]:
    """What `parse_records` returns, for any file, by the json module."""
    parsed: list[Record | Fault] = []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        parsed.append(Fault("not_unicode", f"byte {error.start}", "not UTF-8", of_record=False))
        # Wrong bytes become halves of surrogate pairs, so that only the records that hold them are lost.
        text = data.decode("utf-8-sig", "surrogateescape")
    parsed += _parse_lines(text) if text.lstrip(" \t\r\n").startswith("{") else _parse_array(text)
    records = [value for value in parsed if isinstance(value, Record)]
    return records, [value for value in parsed if isinstance(value, Fault)]


def _decode(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except RecursionError as error:
        raise json.JSONDecodeError(f"nested too deep: {error}", text, 0) from error


def _parse_lines(text: str) -> list[Record | Fault]:
    parsed: list[Record | Fault] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                parsed.append(_to_record(f"line {number}", _decode(line)))
            except json.JSONDecodeError as error:
                parsed.append(Fault("not_json", f"line {number} column {error.colno}", error.msg, of_record=True))
    first = parsed[0]
    if isinstance(first, Fault) and first.reason == "not_json" and not any(isinstance(one, Record) for one in parsed):
        return [replace(first, of_record=False)]  # one object over many lines
    return parsed


def _parse_array(text: str) -> Iterator[Record | Fault]:
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        yield Fault("not_json", f"line {error.lineno} column {error.colno}", error.msg, of_record=False)
        values = _values_before_fault(text)
    if isinstance(values, list | Iterator):
        yield from (_to_record(f"record {number}", value) for number, value in enumerate(values, start=1))
    else:
        detail = f"holds one {type(values).__name__}, not an array of objects"
        yield Fault("wrong_type", "line 1 column 1", detail, of_record=False)


def _values_before_fault(text: str) -> Iterator[Any]:
    """The values of a broken array, up to the first that is not whole."""
    at, expected = 0, "["
    while (separator := _SEPARATOR.match(text, at)) and separator[1] == expected:
        try:
            value, at = _JSON.raw_decode(text, separator.end())
        except (json.JSONDecodeError, RecursionError):
            return
        yield value
        expected = ","


def _to_record(place: str, value: Any) -> Record | Fault:
    if not isinstance(value, dict):
        return Fault("wrong_type", place, f"of type {type(value).__name__}, not an object", of_record=True)
    if not isinstance(text := value.get("RawText"), str | None):
        return Fault("wrong_type", place, f"RawText is of type {type(text).__name__}, not a string", of_record=True)
    fields = {key: value[key] for key in Record.__struct_fields__ if key in value}
    for key, field in fields.items():
        try:
            fields[key] = field if isinstance(field, str | None) else json.dumps(field, ensure_ascii=False)
            (fields[key] or "").encode()
        except UnicodeEncodeError as error:
            detail = f"{key} holds half of a surrogate pair at character {error.start + 1}"
            return Fault("not_unicode", place, detail, of_record=True)
        except RecursionError as error:
            return Fault("not_json", place, f"{key} is nested too deep: {error}", of_record=True)
    return Record(**fields)
