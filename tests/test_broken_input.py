"""Broken AI Hub files stop the stage with `data.on_error: stop`, or are counted with `skip`; nothing else is lost.

`FUZZ_EXAMPLES=2000 pytest tests/test_broken_input.py` tries more files.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from stages.common.artifacts.arrow import read_table
from stages.common.corpus.encoding import to_utf8
from stages.common.corpus.json_records import parse_records, parse_tolerantly
from stages.common.corpus.records import AIHUB
from stages.ingest import BATCH_ROWS, find_files, read_files, to_batches
from tests.support.corpus import record, write_corpus

fuzz = pytest.mark.parametrize("seed", range(int(os.environ.get("FUZZ_EXAMPLES", 150))))
TEXTS = ["배터리가 하루도 안 가요", "음질 최고! ㅋㅋ", "그냥\n그래요 😊", "<b>보통</b>", ""]
HOPELESS = {
    "empty.json": b"",
    "cut.json": b'[{"RawText": "\xff',
    "object.json": b'{\n"RawText":\n}',
    "text.json": b'"text"',
    "deep.json": b"[" * 100_000,
}


def metrics() -> dict[str, Any]:
    return json.loads(Path("metrics/ingest.json").read_text(encoding="utf-8"))


def texts() -> list[str]:
    return read_table(Path("data/ingested.arrow"))["RawText"].to_pylist()


def test_what_is_whole_is_kept_and_what_is_not_is_counted(stage, tmp_path, capsys):
    source = write_corpus(tmp_path / "raw", [record(n, f"글 {n}") for n in range(50)])
    bad = [record(1, "앞"), 7, {"RawText": 7}, {"RawText": "\ud800"}, record(2, "뒤")]
    (source / "array.json").write_text(json.dumps(bad), encoding="utf-8")
    lines = [json.dumps(record(3, "첫 줄")), '{"RawText": ', "7", json.dumps(record(4, "끝 줄"))]
    (source / "lines.json").write_text("\n".join(lines), encoding="utf-8")
    whole = json.dumps([record(5, "온전"), record(5, "성함"), record(6, "잘림")], ensure_ascii=False, indent=2)
    (source / "half.json").write_bytes(whole.encode()[:-100])
    mixed = json.dumps([record(7, "이름", ProductName="가"), record(8, "한글")], ensure_ascii=False).encode()
    (source / "cp949.json").write_bytes(mixed.replace("가".encode(), b"\xb0\xa1").replace("한".encode(), b"\xc7\xd1"))
    (source / "gone.json").symlink_to("nowhere")
    (source / "folder.json").mkdir()
    for name, content in HOPELESS.items():
        (source / name).write_bytes(content)
    stage("ingest", data__source=str(source), data__on_error="skip")
    assert texts() == [*(f"글 {n}" for n in range(50)), "앞", "뒤", "이름", "온전", "성함", "첫 줄", "끝 줄"]
    counted = metrics()
    assert counted["files"] == {"read": 1, "partly_read": 4, "skipped": 6}
    assert counted["records"] == {"read": 57, "skipped": 6}
    assert counted["file_errors"] == {"not_json": 5, "not_unicode": 2, "unreadable": 1, "wrong_type": 1}
    assert counted["record_errors"] == {"not_json": 1, "not_unicode": 2, "wrong_type": 3}
    found = {(error["file"], error["place"]): error["detail"] for error in counted["first_errors"]}
    assert found["array.json", "record 2"] == "of type int, not an object"
    assert found["array.json", "record 4"] == "RawText holds half of a surrogate pair at character 1"
    assert found["lines.json", "line 3"] == "of type int, not an object"
    assert found["gone.json", ""] == "No such file or directory"
    assert "files read in part: 4, because data.on_error of params.yaml is skip" in capsys.readouterr().err


def test_only_the_first_errors_are_listed(stage, tmp_path):
    source = write_corpus(tmp_path / "raw", [record(1, "a"), *range(40)])
    stage("ingest", data__source=str(source), data__on_error="skip")
    assert metrics()["records"] == {"read": 1, "skipped": 40}
    assert [error["place"] for error in metrics()["first_errors"]] == [f"record {n}" for n in range(2, 22)]


def test_nothing_valid_at_all_is_one_line(stage, tmp_path):
    for name, content in HOPELESS.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=r"no valid record in 5 files of .*cut\.json: byte 14: not UTF-8") as raised:
        stage("ingest", data__source=str(tmp_path), data__on_error="skip")
    assert "\n" not in str(raised.value)
    assert not Path("data/ingested.arrow").exists()


def test_keys_are_listed_from_the_last_file_that_has_records(stage, tmp_path):
    source = write_corpus(tmp_path / "raw", [{"text": "글"}])
    (source / "y.json").write_text('[{"review": "글"}]', encoding="utf-8")
    (source / "z.json").symlink_to("nowhere")
    with pytest.raises(
        SystemExit, match=r"data.text_column of params.yaml: no record of .* has 'RawText'; .* has review"
    ):
        stage("ingest", data__source=str(source), data__on_error="skip")


def test_a_file_whose_name_is_not_unicode_is_read(stage, tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    (source / os.fsdecode(b"\xb0\xa1.json")).write_text(json.dumps([record(1, "글"), 7]), encoding="utf-8")
    stage("ingest", data__source=str(source), data__on_error="skip")
    assert read_table(Path("data/ingested.arrow"))["file"].to_pylist() == ["\\udcb0\\udca1.json"]


def test_50_mb_in_one_text_and_in_many_records(tmp_path):
    long, many = "가나다 " * 5_000_000, [record(number, "글") for number in range(60_000)]
    (tmp_path / "long.json").write_text(json.dumps([record(1, long), 7], ensure_ascii=False), encoding="utf-8")
    (tmp_path / "many.json").write_text("\n".join(map(json.dumps, many)), encoding="utf-8")
    batches = list(to_batches(read_files(tmp_path, find_files(tmp_path), on_error="skip")))
    assert [batch.num_rows for batch in batches] == [*[BATCH_ROWS] * 7, 60_001 - 7 * BATCH_ROWS]
    assert batches[0]["RawText"][0].as_py() == long


def _mutate(data: bytes, kind: str, random_: random.Random) -> bytes:
    at = random_.randrange(len(data) + 1)
    insertions = {
        "bytes": random_.randbytes(random_.randrange(1, 5)),
        "surrogate": b"\\ud8" + random_.choice([b"00", b"00\\ud800", b"3d\\ude00"]),
        "token": random_.choice([*(bytes([byte]) for byte in b'"\\[]{},:-\n\0'), b"null", b"NaN"]),
        "number": random_.choice([b"1e999", b"-0", b"9" * 5000, b"1" * 10**5, b"0x1", b"01", b"1.5e-3"]),
        "deep": random_.choice([b"[", b'{"a":']) * random_.choice([100, 3000, 100_000]),
        "key": b'"RawText": "x", "RawText": ' + random_.choice([b"7, ", b"null, ", b'"y", ', b"{}, "]),
    }
    match kind:
        case "cut":
            return data[:at]
        case "flip":
            flipped = bytearray(data)
            for _ in range(random_.randrange(1, 4)):
                flipped[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
            return bytes(flipped)
        case "bom":
            return b"\xef\xbb\xbf" * random_.randrange(1, 3) + data
        case "crlf":
            return data.replace(b"\n", b"\r\n")
        case "nest":
            return random_.choice([b"[" + data + b"]", b'{"data": ' + data + b"}", data + data, data[1:-1]])
        case "encoding":
            return data.decode("utf-8", "replace").encode(random_.choice(["utf-16", "utf-8-sig"]), "replace")
        case "type":
            values = [b"7", b"null", b"true", b"[]", b'{"a": [1]}', b"1e5", b'"1"', b"NaN", b"9" * 30, b"1.0"]
            key = random_.choice([b'"Index"', b'"RawText"', b'"GeneralPolarity"', b'"MainCategory"'])
            changed = key + b": " + random_.choice(values) + b', "was": '
            return data.replace(key + b": ", changed, random_.randrange(1, 3))
    # Half of the insertions go where a value begins, or most would be syntax errors.
    if random_.random() < 0.5 and (places := [n for n in range(len(data)) if data[n - 2 : n] in (b": ", b"[\n")]):
        at = random_.choice(places)
    return data[:at] + insertions[kind] + data[at:]


KINDS = (
    *("cut", "flip", "bom", "crlf", "nest", "encoding", "type"),
    *("bytes", "surrogate", "token", "number", "deep", "key"),
)


def _file(random_: random.Random) -> bytes:
    labels = [*["1", "0", "-1", None, ""] * 4, -1, 1.0]
    rows = [
        record(number, random_.choice(TEXTS), random_.choice(labels), ReviewScore=number, Aspects=[{}])
        for number in range(random_.randrange(6))
    ]
    if random_.random() < 0.3:
        return "\n".join(json.dumps(row, ensure_ascii=random_.random() < 0.5) for row in rows).encode()
    return json.dumps(rows, ensure_ascii=random_.random() < 0.5, indent=random_.choice([2, None])).encode()


@pytest.fixture
def neighbours(tmp_path) -> Path:
    """Make a folder with a file before `b.json` and a file after it."""
    source = tmp_path / "raw"
    write_corpus(source / "a", [record(0, "앞")])
    write_corpus(source / "z", [record(0, "뒤")])
    return source


def _broken_file(seed: int) -> bytes:
    random_ = random.Random(seed)
    data = _file(random_)
    for kind in random_.choices(KINDS, k=random_.randint(0, 2)):
        data = _mutate(data, kind, random_) if data else data
    return data


@fuzz
def test_no_broken_file_takes_its_neighbours_along(stage, neighbours, seed):
    (neighbours / "b.json").write_bytes(_broken_file(seed))
    stage("ingest", data__source=str(neighbours), data__on_error="skip")
    kept, counted = texts(), metrics()
    assert (kept[0], kept[-1]) == ("앞", "뒤")
    assert counted["records"]["read"] == len(kept)
    assert sum(counted["files"].values()) == 3
    has_error = sum(counted["file_errors"].values()) + sum(counted["record_errors"].values()) > 0
    assert has_error == (counted["files"]["read"] == 2) == bool(counted["first_errors"])


@fuzz
def test_an_error_stops_the_stage_exactly_where_one_is_counted(stage, neighbours, seed):
    data = _broken_file(seed)
    (neighbours / "b.json").write_bytes(data)
    try:
        _, errors = parse_records(to_utf8(data), AIHUB)
    except UnicodeDecodeError as error:  # UTF-16 raises this error.
        errors = [error]
    try:
        stage("ingest", data__source=str(neighbours), data__on_error="stop")
        assert not errors
    except SystemExit as exit_:
        assert errors
        assert "b.json: " in exit_.code
        assert "\n" not in exit_.code


@fuzz
def test_both_parsers_find_the_same(seed):
    data = _broken_file(seed)
    records, errors = parse_records(data, AIHUB)
    if not errors:
        assert parse_tolerantly(data, AIHUB) == (records, [])
