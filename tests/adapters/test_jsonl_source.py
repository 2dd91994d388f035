"""Reading JSON lines: what a line is, what is wrong with it, and in whose words."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Generator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl import JsonlSource
from stageflow.adapters.jsonl.decode import has_long_digits, repeated_key
from stageflow.adapters.jsonl.lines import LineParser, wrong_file
from stageflow.adapters.jsonl.threads import BlockReader
from stageflow.errors import RequestError, StorageError
from stageflow.item import BadRecord

LIMIT = 64 * 1024 * 1024
Seen = tuple[int, Any]


def parse(data: bytes, *, block: int = 256 * 1024, limit: int = LIMIT, cut: bool = False) -> list[Seen]:
    """The entries; ``cut``: of blocks that somebody else has cut at each LF."""
    parser = LineParser("queries.jsonl", limit)
    seen: list[Seen] = []
    for at in range(0, len(data), block):
        piece = data[at : at + block]
        seen += parser.feed(piece, piece.split(b"\n") if cut else None) or ()
    seen += parser.finish() or ()
    parser.close()
    return seen


def plain(seen: list[Seen]) -> list[Any]:
    """Entries in a form that compares: bad records by message, line, column and bytes."""
    return [
        (index, (value.error.message, value.error.line, value.error.column, value.raw))
        if isinstance(value, BadRecord)
        else (index, value)
        for index, value in seen
    ]


def only_error(data: bytes, **options: int) -> tuple[str, int | None, int | None]:
    """The message, line and column of the one line that is bad, after a good one."""
    (first, record), (index, bad) = parse(b'{"ok":1}\n' + data, **options)
    assert (first, record, index) == (0, {"ok": 1}, 1)
    assert bad.raw == data.removesuffix(b"\n")
    return bad.error.message, bad.error.line, bad.error.column


async def read(source: JsonlSource) -> list[Seen]:
    return [entry async for portion in source.read() for entry in portion]


def run(source: JsonlSource) -> list[Seen]:
    return asyncio.run(read(source))


# What a line is


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", []),
        (b'{"a":1}\n', [(0, {"a": 1})]),
        (b'{"a":1}', [(0, {"a": 1})]),
        (b"{}", [(0, {})]),
        (b"{}\n{}", [(0, {}), (1, {})]),
        (b'{"a":1}\r\n{"a":2}\r\n', [(0, {"a": 1}), (1, {"a": 2})]),
        (b'\xef\xbb\xbf{"a":1}\n', [(0, {"a": 1})]),
        (b"\xef\xbb\xbf", []),
        (b'\n  \t\n\r\n {"a":1} \n\n{"a":2}', [(3, {"a": 1}), (5, {"a": 2})]),
        ('{"a":"x\u2028y\u0085z"}\n'.encode(), [(0, {"a": "x\u2028y\u0085z"})]),
        (b'{"a":\r1}\n{"b":2}', [(0, {"a": 1}), (1, {"b": 2})]),
        (b'{"a":1,"a":2}', [(0, {"a": 2})]),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 5, 1000])
def test_lines_end_at_lf_only_and_blank_ones_keep_their_number(data: bytes, expected: list[Any], block: int) -> None:
    assert parse(data, block=block) == expected


def test_blank_lines_are_counted_and_not_in_the_way_of_the_others() -> None:
    parser = LineParser("-", LIMIT)
    assert list(parser.feed(b'\n \n{"a":1}\n\r\n') or ()) == [(2, {"a": 1})]
    assert parser.blank == 3


LINES = st.one_of(
    st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)).map(
        lambda record: json.dumps(record).encode()
    ),
    st.sampled_from(
        [b"", b" ", b"\r", b"{", b"[1]", b"\x00\x00\x00", b'{"a":"\xff"}', b'{"a":NaN}', b"{}\r", b"\xef\xbb\xbf{}"]
    ),
    st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"")),
    st.integers(10**18, 10**40).map(lambda number: b'{"n":-%d}' % number),
)


@given(st.lists(LINES, max_size=12), st.booleans(), st.integers(1, 40), st.sampled_from([8, 30, LIMIT]))
def test_where_blocks_are_cut_makes_no_difference(lines: list[bytes], ended: bool, block: int, limit: int) -> None:
    # A first record, for whether the whole is UTF-16 or one array is another test's question.
    data = b'{"0":0}\n' + b"\n".join(lines) + (b"\n" if ended else b"")
    whole = plain(parse(data, limit=limit))
    assert plain(parse(data, block=block, limit=limit)) == whole
    assert plain(parse(data, block=block, limit=limit, cut=True)) == whole
    # Every physical line is one entry with its own number, or blank.
    numbered = dict(whole)
    for index, line in enumerate(data.split(b"\n")):
        assert (index in numbered) == bool(line.strip(b" \t\r")), (index, line)


# What is wrong with a line


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        (b'{"id":1,"query" 2}', "InvalidJSON: expected ':' after key at column 17", 17),
        (b'{"a":1 "b":2}', "InvalidJSON: expected ',' or '}' at column 8", 8),
        ('{"é":1 "b":2}'.encode(), "InvalidJSON: expected ',' or '}' at column 8", 8),
        (b'{"a":', "InvalidJSON: unexpected end of data at column 6", 6),
        (b'{"a":1,}', "InvalidJSON: trailing comma is not allowed at column 7", 7),
        (b'{"a":-}', "InvalidJSON: no digit after sign at column 7", 7),
        (b'{"a":01}', "InvalidJSON: number with leading zero is not allowed at column 6", 6),
        (b'{"a":1}{"a":2}', "InvalidJSON: unexpected content after document at column 8", 8),
        (b'{"a":1}\r{"a":2}', "InvalidJSON: unexpected content after document at column 9", 9),
        (b'\xef\xbb\xbf{"a":1}', "InvalidJSON: byte order mark at column 1", 1),
        (b'{"a":"x\x00y"}', "InvalidJSON: NUL byte at column 8", 8),
        (b"\x0b", "InvalidJSON: expected a JSON value at column 1", 1),
        (b"[1,2]", "record must be an object", None),
        (b"17", "record must be an object", None),
        (b'"text"', "record must be an object", None),
        (b"null", "record must be an object", None),
        (b'{"a":NaN}', "NaN is not JSON", 6),
        (b'{"a":-NaN}', "-NaN is not JSON", 7),
        (b'{"a":Infinity}', "Infinity is not JSON", 6),
        (b'{"a":[1,-Infinity]}', "-Infinity is not JSON", 10),
        (b'{"a":1e999}', "1e999 is not JSON", 6),
        (b'{"a":-1.5E+999}', "-1.5E+999 is not JSON", 6),
        (b'{"a":' + b"9" * 400 + b"}", "integer too large", 6),
        (b'{"a":"\xff"}', "InvalidEncoding at byte 7", None),
        (b'{"a":"\xc0\xaf"}', "InvalidEncoding at byte 7", None),
        (b'{"a":"\xed\xa0\x80"}', "InvalidEncoding at byte 7", None),
        (b'{"a":"\\ud800"}', "InvalidEncoding at byte 7", 7),
        ('{"é":"\\udc00"}'.encode(), "InvalidEncoding at byte 8", 7),
    ],
)
def test_a_bad_line_is_named_by_reason_line_and_column(line: bytes, message: str, column: int | None) -> None:
    assert only_error(line) == (message, 2, column)
    assert only_error(line + b"\n") == (message, 2, column)


def test_the_lines_after_a_bad_one_are_read() -> None:
    seen = parse(b'{"a":1}\nbroken\n\n{"a":2}\n')
    assert [(index, type(value)) for index, value in seen] == [(0, dict), (1, BadRecord), (3, dict)]


def nested(depth: int, *, pad: str = "") -> bytes:
    """A record of that depth, itself being level 1."""
    return f'{{"pad":"{pad}","a":{"[" * (depth - 1)}{"]" * (depth - 1)}}}'.encode()


@pytest.mark.parametrize("depth", [201, 202, 1000, 1024, 1025, 5000, 100_000])
@pytest.mark.parametrize("pad", ["", " 12345678901234567890 "])
def test_deep_nesting_is_refused_without_recursion(depth: int, pad: str) -> None:
    assert only_error(nested(depth, pad=pad)) == ("nesting deeper than 200", 2, None)


@pytest.mark.parametrize("depth", [2, 199, 200])
@pytest.mark.parametrize("pad", ["", " 12345678901234567890 ", "[" * 500])
def test_nesting_up_to_the_limit_is_read(depth: int, pad: str) -> None:
    ((_, record),) = parse(nested(depth, pad=pad))
    assert record == orjson.loads(nested(depth, pad=pad))


@pytest.mark.parametrize(("begin", "end"), [(b'{"a":', b"}"), (b"[", b"]")], ids=["objects", "arrays"])
def test_deep_nesting_of_one_kind_is_refused_and_nesting_up_to_the_limit_is_read(begin: bytes, end: bytes) -> None:
    deep = b'{"a":' + begin * 200 + b"1" + end * 200 + b"}"
    assert only_error(deep) == ("nesting deeper than 200", 2, None)
    ((_, record),) = parse(b'{"a":' + begin * 199 + b"1" + end * 199 + b"}")
    assert type(record) is dict


def test_depth_hidden_under_a_key_that_comes_again_does_not_recurse() -> None:
    line = b'{"a":' + b"[" * 1000 + b"]" * 1000 + b',"a":12345678901234567890123}'
    assert only_error(line)[0] == "nesting deeper than 200"


@pytest.mark.parametrize(
    "number",
    [2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**63) - 1, 10**18, 10**30 + 1, -(10**100) - 7, 10**307 + 3],
)
@pytest.mark.parametrize("form", ['{"n":%d}', '{"n": [1,%d ]}', '{"s":"12345678901234567890","n":\t%d\t}'])
def test_integers_of_any_size_are_exact(number: int, form: str) -> None:
    line = (form % number).encode()
    ((_, record),) = parse(line)
    assert record == json.loads(line)
    value = record["n"][1] if isinstance(record["n"], list) else record["n"]
    assert (type(value), value) == (int, number)


@given(st.lists(st.integers() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_are_what_the_standard_library_reads(numbers: list[float]) -> None:
    line = json.dumps({"numbers": numbers}).encode()
    ((_, record),) = parse(line)
    expected = json.loads(line)["numbers"]
    assert record["numbers"] == expected
    assert [type(number) for number in record["numbers"]] == [type(number) for number in expected]


@given(st.binary(max_size=40), st.integers(17, 30), st.binary(max_size=40))
def test_a_long_run_of_digits_is_seen_wherever_it_starts(before: bytes, length: int, after: bytes) -> None:
    text = before + b"7" * length + after
    if length >= 19:
        assert has_long_digits(text)
    assert not has_long_digits(b"x" * len(before) + b"1" * 18 + b"x")


def test_a_line_beyond_the_limit_is_skipped_and_measured() -> None:
    long = b'{"a":"' + b"x" * (100 * 1024) + b'"}'
    data = b'{"a":1}\n' + long + b'\n{"a":2}\n'
    for block in (100, 4096, len(data)):
        first, (index, bad), last = parse(data, block=block, limit=64 * 1024)
        assert (first, last) == ((0, {"a": 1}), (2, {"a": 2}))
        assert (index, bad.error.message, bad.error.line) == (1, "RecordTooLarge: 100.0 KiB > 64 KiB", 2)
        assert bad.raw == long[: 64 * 1024]


def test_a_line_of_exactly_the_limit_is_read() -> None:
    line = b'{"a":"' + b"x" * 92 + b'"}'
    assert len(line) == 100
    for block in (1, 7, 1000):
        assert len(parse(b"{}\n" + line + b"\n", block=block, limit=100)[1][1]["a"]) == 92
        assert only_error_message(line, block=block, limit=99) == "RecordTooLarge: 100 bytes > 99 bytes"


def only_error_message(data: bytes, **options: int) -> str:
    return only_error(data, **options)[0]


def test_a_hundred_mebibyte_line_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a":1}\n{"a":"')
        for _ in range(100):
            file.write(b"x" * 1024 * 1024)
        file.seek(file.tell() - 7)
        file.write(b'\n{"a":2}\n')
    tracemalloc.start()
    try:
        first, (_, bad), last = run(JsonlSource(str(path), max_line_bytes=4 * 1024 * 1024))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (first, last) == ((0, {"a": 1}), (2, {"a": 2}))
    assert bad.error.message == "RecordTooLarge: 100.0 MiB > 4 MiB"
    assert peak < 8 * 1024 * 1024


def test_a_tail_of_nul_bytes_is_one_bad_line() -> None:
    _, (index, bad) = parse(b'{"a":1}\n' + b"\0" * 300_000)
    assert (index, bad.error.message, bad.error.line) == (1, "InvalidJSON: NUL byte at column 1", 2)
    assert bad.raw == b"\0" * 64 * 1024


# Keys that come twice

PAIRS = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(['":', ' "a" :', "a\\"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.sampled_from(["a", "b", 'c"', "d\\", ""]), inner), max_size=4).map(tuple)
    ),
    max_leaves=12,
)


def spelt(value: Any, colon: str) -> str:
    """JSON in which objects, given as tuples of pairs, may have a key twice."""
    if isinstance(value, tuple):
        return "{" + ", ".join(json.dumps(key) + colon + spelt(inner, colon) for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(spelt(inner, colon) for inner in value) + "]"
    return json.dumps(value)


def repeated(value: Any) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeated(inner) for _, inner in value)
    return isinstance(value, list) and any(map(repeated, value))


@given(st.lists(PAIRS, min_size=1, max_size=3), st.sampled_from([":", ": ", " :", "\t: ", "\r:"]))
def test_no_key_that_comes_twice_is_missed_and_none_is_made_up(values: list[Any], colon: str) -> None:
    line = spelt((("n", values),), colon).encode()
    parser = LineParser("-", LIMIT, strict=True)
    ((_, seen),) = [*(parser.feed(line) or ()), *(parser.finish() or ())]
    assert isinstance(seen, BadRecord) == repeated(values)
    if isinstance(seen, BadRecord):
        assert seen.error.message.startswith("duplicate key ")
        assert seen.raw == line
    else:
        assert seen == json.loads(line)


def test_a_key_spelt_in_two_ways_comes_twice() -> None:
    line = rb'{"\u0061":1,"a":2,"x":"%s"}'
    assert repeated_key(line, orjson.loads(line)) == "a"


def test_a_repeated_key_is_warned_of_once_and_only_near_the_beginning(tmp_path: Path) -> None:
    twice = b'{"a":1,"a":2}\n'
    source = write(tmp_path / "early", b"{}\n" * 999 + twice * 2)
    assert len(run(source)) == 1001
    assert source.warnings == [
        f'{tmp_path / "early"}:1000: duplicate key "a"; the last value counts, here and in other lines'
    ]
    late = write(tmp_path / "late", b"{}\n" * 1000 + twice)
    assert run(late)[1000] == (1000, {"a": 2})
    assert late.warnings == []
    late.check()
    assert late.warnings == []


# What is no JSON lines at all


@pytest.mark.parametrize(
    ("good", "bad", "wrong"),
    [(0, 9, False), (0, 10, True), (5, 5, False), (4, 6, True), (50, 50, False), (1, 1, False)],
)
def test_a_file_is_the_wrong_one_when_more_than_half_of_ten_lines_or_more_are_bad(
    good: int, bad: int, wrong: bool
) -> None:
    reason = wrong_file(parse(b"{}\n" * good + b"\n" + b"broken\n" * bad))
    assert (reason is not None) == wrong
    if wrong:
        error = f"line {good + 2}: InvalidJSON: expected a JSON value at column 1"
        assert reason == f"{bad} of its first {good + bad} lines hold no record; {error}"


@pytest.mark.parametrize("text", ['{"a":1}\n', '{"é":"\u4e00"}\n{}'])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_utf16_is_recognised(text: str, encoding: str, block: int) -> None:
    if encoding == "utf-32" and sys.byteorder == "big":
        pytest.skip("starts with zeros")
    with pytest.raises(RequestError) as caught:
        parse(text.encode(encoding), block=block)
    assert str(caught.value) == "input looks like UTF-16"
    assert caught.value.hint == "convert it first: iconv -f UTF-16 -t UTF-8 queries.jsonl"


@pytest.mark.parametrize(
    "text",
    [
        '[{"a":1},{"a":2}]',
        ' \n\n [{"a":1}]\n\n',
        '[\n  {"a": 1},\n  {"a": 2}\n]\n',
        '[{"a": 1},\n{"a": 2}]\n',
        "[]",
        "[1,2,3]\n",
        '\ufeff[{"a":1}]',
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1000])
def test_one_array_over_the_whole_file_is_recognised(text: str, block: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text.encode(), block=block)
    assert str(caught.value) == "input is one JSON array, not JSON lines"
    assert caught.value.hint == "put each of its elements on a line of its own: jq -c '.[]' queries.jsonl"


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_lines_that_are_arrays_are_bad_one_by_one(block: int) -> None:
    seen = parse(b'[{"a":1}]\n\n[{"a":2}]\n{"a":3}\n[4]', block=block)
    assert [index for index, _ in seen] == [0, 2, 3, 4]
    assert [getattr(value, "error", value) for _, value in seen][2] == {"a": 3}
    assert {seen[at][1].error.message for at in (0, 1, 3)} == {"record must be an object"}


def test_a_first_line_that_is_a_broken_array_condemns_only_itself() -> None:
    seen = parse(b'[1,}\n{"a":1}\n')
    assert (seen[0][1].error.line, seen[1]) == (1, (1, {"a": 1}))


# Files


def write(path: Path, data: bytes) -> JsonlSource:
    path.write_bytes(data)
    return JsonlSource(str(path))


def test_a_file_is_read_in_portions_that_are_decoded_as_they_are_iterated(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b'{"a":1}\nbroken\n' * 100)
    source = JsonlSource(str(tmp_path / "in.jsonl"), block_bytes=64)
    source.check()
    seen = run(source)
    assert [index for index, _ in seen] == list(range(200))
    assert seen[198] == (198, {"a": 1})
    assert (source.path, source.numbered) == (str(tmp_path / "in.jsonl"), True)


def test_an_empty_file_yields_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b"")
    source.check()
    assert (run(source), source.peek(3), source.estimate(), source.blank) == ([], [], 0, 0)


def test_reading_again_starts_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b'\n{"a":1}\n')
    assert run(source) == run(source) == [(1, {"a": 1})]
    assert source.blank == 1


def test_peek_reads_apart(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", b'{"a":1}\n\nbroken\n{"a":2}\n')
    assert [index for index, _ in source.peek(2)] == [0, 2]
    assert source.blank == 0
    assert len(source.peek(100)) == len(run(source)) == 3


def test_the_estimate_is_exact_within_a_block_and_near_beyond(tmp_path: Path) -> None:
    assert write(tmp_path / "a", b'{"a":1}\n\n{"a":2}').estimate() == 2
    (tmp_path / "b").write_bytes(b'{"a":1}\n' * 1000)
    assert JsonlSource(str(tmp_path / "b"), block_bytes=100).estimate() == 1000
    (tmp_path / "c").write_bytes(b'{"a":"' + b"x" * 500 + b'"}\n')
    assert JsonlSource(str(tmp_path / "c"), block_bytes=100).estimate() == 5
    assert JsonlSource("-").estimate() is None
    assert JsonlSource(str(tmp_path / "missing")).estimate() is None


def test_what_can_not_be_read_is_said_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret").write_bytes(b"{}")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "secret")
    for name, reason in [
        ("queries.jsonl", "No such file or directory"),
        ("folder", "Is a directory"),
        ("folder/x/y", "No such file or directory"),
        ("secret/x", "Not a directory"),
        ("secret", "Permission denied"),
    ]:
        with pytest.raises(RequestError) as caught:
            JsonlSource(name).check()
        assert str(caught.value) == f"cannot read {name}: {reason}"
    with pytest.raises(RequestError, match=r"^cannot read queries.jsonl: No such file or directory$"):
        run(JsonlSource("queries.jsonl"))


def test_check_sees_a_wrong_format(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"^input looks like UTF-16$"):
        write(tmp_path / "a", '{"a":1}'.encode("utf-16")).check()
    with pytest.raises(RequestError, match=r"^input is one JSON array, not JSON lines$"):
        write(tmp_path / "b", b'[{"a":1}]\n').check()


def test_a_read_that_fails_in_the_middle_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n' * 10)
    real, calls = os.read, []

    def failing(descriptor: int, length: int) -> bytes:
        calls.append(length)
        if len(calls) > 2:
            raise OSError(5, os.strerror(5))
        return real(descriptor, length)

    seen: list[Seen] = []

    async def read_on() -> None:
        async for portion in JsonlSource(str(path), block_bytes=8).read():
            seen.extend(portion)

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", failing)
        with pytest.raises(StorageError, match=rf"^cannot read {path}: Input/output error$"):
            asyncio.run(read_on())
    assert seen == [(0, {"a": 1}), (1, {"a": 1})]


# The reader thread


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stageflow-reader"]


def test_a_source_left_early_leaves_no_thread_behind(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n' * 10_000)

    async def first() -> None:
        portions = JsonlSource(str(path), block_bytes=64).read()
        async for _ in portions:
            break
        (thread,) = reader_threads()
        assert thread.daemon
        await portions.aclose()
        thread.join(10)
        assert not thread.is_alive()

    asyncio.run(first())


def test_the_thread_reads_only_so_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a":1}\n' * 1000)
    real, calls, blocked_after = os.read, [0], queue.SimpleQueue[int]()

    def counting(descriptor: int, length: int) -> bytes:
        calls[0] += 1
        return real(descriptor, length)

    class Noting(threading.Semaphore):
        def acquire(self, *args: Any, **options: Any) -> bool:
            if super().acquire(blocking=False):
                return True
            blocked_after.put(calls[0])
            return super().acquire(*args, **options)

    async def first() -> None:
        portions = JsonlSource(str(path), block_bytes=8).read()
        await anext(portions)
        # Nothing is received while the loop stands here, so the thread comes to rest: one received, two ahead.
        while (reads := blocked_after.get(timeout=10)) < 3:
            pass
        assert reads == 3
        await portions.aclose()

    with monkeypatch.context() as patched:
        patched.setattr(threading, "Semaphore", Noting)
        patched.setattr(os, "read", counting)
        asyncio.run(first())


def test_a_cancelled_wait_loses_nothing_and_the_loop_goes_on(tmp_path: Path) -> None:
    """A FIFO whose writer is silent: the wait is cancelled, then the writer speaks."""
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async def scenario() -> list[Seen]:
        def blocks() -> Generator[bytes]:
            descriptor = os.open(path, os.O_RDONLY)
            while block := os.read(descriptor, 1024):
                yield block
            os.close(descriptor)

        reader = BlockReader(blocks)
        opening = asyncio.ensure_future(reader.receive())
        writer = await asyncio.to_thread(os.open, path, os.O_WRONLY)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        os.write(writer, b'{"a":1}\n')
        first = await reader.receive()
        os.close(writer)
        assert first is not None
        assert await reader.receive() is None
        reader.stop()
        return parse(first)

    assert asyncio.run(scenario()) == [(0, {"a": 1})]


def test_a_fifo_is_read_as_it_is_fed_and_never_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = JsonlSource(str(path))
    source.check()
    assert (source.peek(5), source.estimate()) == ([], None)

    async def scenario() -> list[Seen]:
        portions = source.read()
        first = asyncio.ensure_future(anext(portions))
        writer = await asyncio.to_thread(os.open, path, os.O_WRONLY)
        os.write(writer, b'{"a":1}\n{"a"')
        seen = list(await first)
        os.write(writer, b":2}")
        os.close(writer)
        return seen + [entry async for portion in portions for entry in portion]

    assert asyncio.run(scenario()) == [(0, {"a": 1}), (1, {"a": 2})]


READ_STDIN = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits SIGINT as ignored
from stageflow.adapters.jsonl import JsonlSource
source = JsonlSource("-")
source.check()
assert source.peek(5) == [] and source.estimate() is None
async def main():
    async for portion in source.read():
        for index, record in portion:
            print(index, record, flush=True)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(130)
"""


def child(**options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", READ_STDIN], stdin=-1, stdout=-1, stderr=-1, **options)


def test_standard_input_is_read() -> None:
    with child() as process:
        out, err = process.communicate(b'\xef\xbb\xbf{"a":1}\n\n{"a":2}', timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out == b"0 {'a': 1}\n2 {'a': 2}\n"


def test_an_interrupt_at_a_silent_standard_input_ends_the_interpreter() -> None:
    with child() as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b'{"a":1}\n')
        process.stdin.flush()
        assert process.stdout.readline() == b"0 {'a': 1}\n"
        process.send_signal(2)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


def test_a_closed_standard_input_is_refused() -> None:
    code = READ_STDIN.replace("source.check()", "import os; os.close(0)\nsource.check()")
    result = subprocess.run([sys.executable, "-c", code], stdin=-3, capture_output=True, check=False)
    assert b"RequestError: cannot read stdin: Bad file descriptor" in result.stderr
