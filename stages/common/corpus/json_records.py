"""Reading the records and errors of JSON files, such as those of AI Hub.

A valid file is parsed by msgspec, which builds only the requested fields. Any other file is parsed by the json module,
which is slower but tells where an error is, so that the records around it can be kept.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from typing import Any

import msgspec

from stages.common.corpus.records import Columns, ReadError, ReadResult, Records

MAX_INT_DIGITS = 4300  # Digits of the longest integer that Python parses; longer ones become floats.
Record = msgspec.Struct  # The fields of a JSON object that `Columns` names.

_JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= MAX_INT_DIGITS else float(digits))
_ARRAY = re.compile(r":\s*(?=\[\s*\{)")  # The colon before an array of objects.
_BLANKS = re.compile(r"[ \t\r\n]*")
_SEPARATOR = re.compile(r"[ \t\r\n]*([\[,])[ \t\r\n]*")  # The bracket or comma before a value of an array.


@cache
def _record_type(columns: Columns) -> type[Record]:
    """Make a struct with one string field for each name in `columns`."""
    names = dict.fromkeys(columns.names().values())
    field_type = str | msgspec.UnsetType | None
    fields = [(f"field_{number}", field_type, msgspec.UNSET) for number in range(len(names))]
    renamed = {field[0]: name for field, name in zip(fields, names, strict=True)}
    return msgspec.defstruct("Record", fields, rename=renamed, gc=False)


@cache
def _decoders(columns: Columns) -> tuple[msgspec.json.Decoder, msgspec.json.Decoder]:
    record = _record_type(columns)
    return msgspec.json.Decoder(list[record]), msgspec.json.Decoder(record)  # type: ignore[valid-type]


def _to_records(parsed: list[Record], columns: Columns) -> Records:
    fields = dict(zip(dict.fromkeys(columns.names().values()), _record_type(columns).__struct_fields__, strict=True))

    def values(name: str) -> list[Any]:
        return [getattr(record, fields[name]) for record in parsed]

    def known(name: str) -> list[Any]:
        return [None if value is msgspec.UNSET else value for value in values(name)]

    return Records(
        text=[text or "" for text in known(columns.text)],
        label=known(columns.label),
        has_label=[label is not msgspec.UNSET for label in values(columns.label)],
        id=[value or None for value in known(columns.id)],
        category=[value or None for value in known(columns.category)],
    )


def parse_records(data: bytes, columns: Columns) -> ReadResult:
    """Parse a JSON array, JSON lines, a single object, or an object that contains an array of records.

    If an array is cut off, its complete records are kept.
    """
    content = data.removeprefix(codecs.BOM_UTF8)
    array, record = _decoders(columns)
    try:
        content.decode()  # msgspec does not check the encoding of the fields that it skips.
        is_lines = content.lstrip(b" \t\r\n").startswith(b"{")
        lines = filter(bytes.strip, content.split(b"\n"))
        parsed = list(map(record.decode, lines)) if is_lines else array.decode(content)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return parse_tolerantly(data, columns)
    # An object without a text may hold an array of records, and a name with a dot may be the path of a nested key.
    is_flat = not (is_lines and len(parsed) == 1) and not any("." in name for name in columns.names().values())
    return ReadResult(_to_records(parsed, columns), []) if is_flat else parse_tolerantly(data, columns)


def parse_tolerantly(data: bytes, columns: Columns) -> ReadResult:
    """Parse any file with the json module; a valid file gives the same result as msgspec."""
    parsed: list[Record | ReadError] = []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        parsed.append(ReadError("not_unicode", f"byte {error.start}", "not UTF-8", of_record=False))
        # Wrong bytes become halves of surrogate pairs, so that only the records that hold them are lost.
        text = data.decode("utf-8-sig", "surrogateescape")
    is_object = text.lstrip(" \t\r\n").startswith("{")
    parsed += _parse_objects(text, columns) if is_object else _parse_array(text, columns)
    records = [value for value in parsed if not isinstance(value, ReadError)]
    return ReadResult(_to_records(records, columns), [value for value in parsed if isinstance(value, ReadError)])


def find_keys(data: bytes) -> list[str]:
    """Return the keys of the first JSON object in a file, nested ones as dotted paths; empty if there is none."""
    try:
        text = data.decode("utf-8-sig", "surrogateescape").lstrip()
        value = _JSON.raw_decode(text)[0] if text.startswith("{") else next(_values_before_error(text), None)
    except (json.JSONDecodeError, RecursionError):
        return []
    return list(key_paths(value)) if isinstance(value, dict) else []


def key_paths(value: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of an object, and the dotted paths of the keys in nested objects."""
    for key, nested in value.items():
        yield from (f"{key}.{path}" for path in key_paths(nested)) if isinstance(nested, dict) else [key]


def look_up(value: dict[str, Any], name: str) -> Any:
    """Return the value of the key `name`, or of the nested key with the dotted path `name`; UNSET if it is missing."""
    if name in value:
        return value[name]
    first, _, rest = name.partition(".")
    nested = value.get(first, msgspec.UNSET)
    return look_up(nested, rest) if rest and isinstance(nested, dict) else msgspec.UNSET


def _decode(text: str) -> Any:
    try:
        return _JSON.decode(text)
    except RecursionError as error:
        raise json.JSONDecodeError(f"nested too deep: {error}", text, 0) from error


def _parse_objects(text: str, columns: Columns) -> Iterable[Record | ReadError]:
    """Parse a single object, which is a record or contains an array of records, or else JSON lines."""
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        return _parse_lines(text, columns, error)
    try:
        arrays = dict(_arrays(value, columns)) if look_up(value, columns.text) is msgspec.UNSET else {}
    except RecursionError as error:
        return [ReadError("not_json", "line 1 column 1", f"nested too deep: {error}", of_record=False)]
    if not arrays:
        return [_to_record("line 1", value, columns)]
    if len(arrays) > 1:
        detail = f"{columns.text} is in the arrays {', '.join(arrays)}: save each of them in a file of its own"
        return [ReadError("wrong_type", "line 1 column 1", detail, of_record=False)]
    [(key, values)] = arrays.items()
    return (_to_record(f"record {number} of {key}", each, columns) for number, each in enumerate(values, start=1))


def _arrays(value: dict[str, Any], columns: Columns) -> Iterator[tuple[str, list[Any]]]:
    """Yield the path and the values of each array inside an object that contains an object with a text."""
    for key, nested in value.items():
        if isinstance(nested, dict):
            yield from ((f"{key}.{path}", array) for path, array in _arrays(nested, columns))
        elif isinstance(nested, list) and any(
            isinstance(each, dict) and look_up(each, columns.text) is not msgspec.UNSET for each in nested
        ):
            yield key, nested


def _parse_lines(text: str, columns: Columns, whole: json.JSONDecodeError) -> list[Record | ReadError]:
    parsed: list[Record | ReadError] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                parsed.append(_to_record(f"line {number}", _decode(line), columns))
            except json.JSONDecodeError as error:
                parsed.append(ReadError("not_json", f"line {number} column {error.colno}", error.msg, of_record=True))
    errors = [value for value in parsed if isinstance(value, ReadError)]
    if any(error.reason == "not_json" for error in errors) and (whole_values := _concatenated_values(text)):
        return [_to_record(f"record {number}", value, columns) for number, value in enumerate(whole_values, start=1)]
    if len(errors) == len(parsed) and errors[0].reason == "not_json":
        # The file is one broken object over many lines; the complete records of an array in it are kept.
        place = f"line {whole.lineno} column {whole.colno}"
        array = _ARRAY.search(text)
        values = _values_before_error(text[array.end() :]) if array else []
        records = [_to_record(f"record {number}", value, columns) for number, value in enumerate(values, start=1)]
        return [ReadError("not_json", place, whole.msg, of_record=False), *records]
    return parsed


def _concatenated_values(text: str) -> list[Any]:
    """Parse JSON texts that follow each other, as jq and `cat` write them; empty if one of them is broken."""
    values, at = [], 0
    try:
        while (at := _BLANKS.match(text, at).end()) < len(text):  # type: ignore[union-attr]
            value, at = _JSON.raw_decode(text, at)
            values.append(value)
    except (json.JSONDecodeError, RecursionError):
        return []
    return values


def _parse_array(text: str, columns: Columns) -> Iterator[Record | ReadError]:
    try:
        values: Any = _decode(text)
    except json.JSONDecodeError as error:
        arrays = _concatenated_values(text)
        if arrays and all(isinstance(each, list) for each in arrays):
            values = list(chain.from_iterable(arrays))
        else:
            yield ReadError("not_json", f"line {error.lineno} column {error.colno}", error.msg, of_record=False)
            values = _values_before_error(text)
    if isinstance(values, list | Iterator):
        yield from (_to_record(f"record {number}", value, columns) for number, value in enumerate(values, start=1))
    else:
        detail = f"holds one {type(values).__name__}, not an array of objects"
        yield ReadError("wrong_type", "line 1 column 1", detail, of_record=False)


def _values_before_error(text: str) -> Iterator[Any]:
    """Yield the values of a broken array up to the first incomplete one."""
    at, expected = 0, "["
    while (separator := _SEPARATOR.match(text, at)) and separator[1] == expected:
        try:
            value, at = _JSON.raw_decode(text, separator.end())
        except (json.JSONDecodeError, RecursionError):
            return
        yield value
        expected = ","


def _to_record(place: str, value: Any, columns: Columns) -> Record | ReadError:
    if not isinstance(value, dict):
        return ReadError("wrong_type", place, f"of type {type(value).__name__}, not an object", of_record=True)
    if not isinstance(text := look_up(value, columns.text), str | msgspec.UnsetType | None):
        detail = f"{columns.text} is of type {type(text).__name__}, not a string"
        return ReadError("wrong_type", place, detail, of_record=True)
    fields: list[Any] = []
    for key in dict.fromkeys(columns.names().values()):
        field = look_up(value, key)
        try:
            if not isinstance(field, str | msgspec.UnsetType | None):
                field = json.dumps(field, ensure_ascii=False)
            if isinstance(field, str):
                field.encode()
        except UnicodeEncodeError as error:
            detail = f"{key} holds half of a surrogate pair at character {error.start + 1}"
            return ReadError("not_unicode", place, detail, of_record=True)
        except RecursionError as error:
            return ReadError("not_json", place, f"{key} is nested too deep: {error}", of_record=True)
        fields.append(field)
    return _record_type(columns)(*fields)
