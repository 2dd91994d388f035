"""Lines of a ledger: sealed, chained, and refused where one bit is wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.ledger.format import merge_ranges, parse, ranges_of, seal, seal_of, stands_alone

FIELDS = st.dictionaries(
    st.sampled_from("toxkmdqu"),
    st.integers(0, 2**53) | st.text(max_size=20) | st.lists(st.integers(0, 99), max_size=5),
    max_size=5,
)


@given(st.lists(FIELDS, max_size=8))
def test_a_chain_of_lines_comes_apart_as_it_was_made(objects: list[dict[str, Any]]) -> None:
    previous, lines = 0, []
    for fields in objects:
        line, previous = seal(dict(fields), previous)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        lines.append(line)
    previous, found = 0, []
    for line in lines:
        fields = parse(line[:-1], previous)
        assert fields is not None
        previous = seal_of(line)
        assert fields.pop("p") is not None
        found.append(fields)
    assert found == objects


def test_what_a_line_looks_like() -> None:
    line, crc = seal({"t": "c", "k": [1, 2], "m": {7: 0}}, 5)
    assert line == b'%08x {"t":"c","k":[1,2],"m":{"7":0},"p":5}\n' % crc


def test_every_flipped_bit_of_a_line_is_found() -> None:
    line = seal({"t": "c", "o": [0, 10, 123], "k": [1, 2]}, 99)[0][:-1]
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        assert stands_alone(bytes(damaged)) is None, f"bit {bit}"


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 10, -1])
def test_a_torn_line_is_none(cut: int) -> None:
    line = seal({"t": "c"}, 0)[0][:-1]
    assert stands_alone(line[:cut]) is None


def test_a_line_out_of_its_chain_stands_alone_but_does_not_follow() -> None:
    _, first = seal({"t": "h"}, 0)
    line, _ = seal({"t": "s"}, first)
    assert parse(line[:-1], first) == {"t": "s", "p": first}
    assert parse(line[:-1], first + 1) is None
    assert stands_alone(line[:-1]) == {"t": "s", "p": first}


@pytest.mark.parametrize("body", [b"[1]", b"7", b"null", b"{", b""])
def test_what_is_no_object_is_no_line(body: bytes) -> None:
    assert stands_alone(b"%08x %s" % (crc32(body), body)) is None


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_the_numbers_again(numbers: set[int]) -> None:
    ranges = ranges_of(sorted(numbers))
    assert list(merge_ranges(ranges)) == sorted(numbers)
    assert all(first <= last for first, last in ranges)
    assert all(after[0] > before[1] + 1 for before, after in pairwise(ranges))
