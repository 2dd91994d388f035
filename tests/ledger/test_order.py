"""The order of the finished file: by input, whatever the order of completion, in bounded memory."""

from __future__ import annotations

import random
import tempfile
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.ledger.disk import Disk
from stageflow.ledger.order import OrderIndex

Pieces = list[tuple[int, int]]


def index_of(pieces: Pieces, *, window: int, block_lines: int) -> OrderIndex:
    index = OrderIndex(Disk().scratch(tempfile.gettempdir()), window=window, block_lines=block_lines)
    for ordinal, length in pieces:
        index.add(ordinal, length)
    return index


def index_of_runs(pieces: Pieces, runs: list[int], *, window: int, block_lines: int) -> OrderIndex:
    """The same, noted so many pieces at a time."""
    index = OrderIndex(Disk().scratch(tempfile.gettempdir()), window=window, block_lines=block_lines)
    rest = pieces
    for run in [*runs, len(pieces)]:
        now, rest = rest[:run], rest[run:]
        index.add_all([ordinal for ordinal, _ in now], [length for _, length in now])
    return index


def expected_places(pieces: Pieces) -> list[tuple[int, int, int]]:
    offset, places = 0, []
    for ordinal, length in pieces:
        places.append((ordinal, offset, length))
        offset += length
    return sorted(places, key=lambda place: place[0])


PIECES = st.lists(st.tuples(st.integers(0, 30) | st.integers(0, 2**63), st.integers(0, 5)), max_size=60)


@given(PIECES, st.integers(1, 9), st.integers(1, 7))
def test_pieces_come_by_ordinal_and_those_of_one_ordinal_as_written(
    pieces: Pieces, window: int, block_lines: int
) -> None:
    index = index_of(pieces, window=window, block_lines=block_lines)
    assert index.size == sum(length for _, length in pieces)
    assert list(index.in_order()) == expected_places(pieces)
    index.close()


@given(PIECES, st.lists(st.integers(0, 20), max_size=9), st.integers(1, 9), st.integers(1, 7))
def test_pieces_may_be_noted_many_at_a_time(pieces: Pieces, runs: list[int], window: int, block_lines: int) -> None:
    index = index_of_runs(pieces, runs, window=window, block_lines=block_lines)
    assert index.size == sum(length for _, length in pieces)
    assert list(index.in_order()) == expected_places(pieces)
    index.close()


@pytest.mark.parametrize("shape", ["one ordinal", "reversed", "late straggler", "late children of the first"])
def test_shapes_that_do_not_fit_a_window(shape: str) -> None:
    pieces = {
        "one ordinal": [(7, 1 + at % 3) for at in range(500)],
        "reversed": [(500 - at, 2) for at in range(500)],
        "late straggler": [(at, 1) for at in range(1, 500)] + [(0, 9)],
        "late children of the first": [(at, 1) for at in range(300)] + [(0, 9)] * 200 + [(299, 4)],
    }[shape]
    index = index_of(pieces, window=10, block_lines=16)
    assert list(index.in_order()) == expected_places(pieces)
    index.close()


def test_it_can_be_read_more_than_once() -> None:
    index = index_of([(2, 1), (1, 1), (3, 1)], window=2, block_lines=2)
    assert list(index.in_order()) == list(index.in_order())
    index.close()


def test_memory_grows_by_bytes_per_block_and_the_sort_holds_a_window() -> None:
    count = 100_000
    rng = random.Random(1)
    index = OrderIndex(Disk().scratch(tempfile.gettempdir()), window=4096, block_lines=1024)
    tracemalloc.start()
    try:
        for at in range(count):
            index.add(at // 100 * 100 + rng.randrange(500), 320)
        kept, _ = tracemalloc.get_traced_memory()
        sizes = sum(length for _, _, length in index.in_order())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.close()
    assert sizes == count * 320
    assert kept < 100_000
    assert peak < 4_000_000


def test_one_ordinal_with_more_pieces_than_a_window_is_streamed() -> None:
    index = index_of([(5, 1)] * 50_000 + [(4, 1)], window=100, block_lines=128)
    tracemalloc.start()
    try:
        places = index.in_order()
        assert [next(places), next(places)] == [(4, 50_000, 1), (5, 0, 1)]
        assert sum(length for _, _, length in places) == 49_999
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.close()
    assert peak < 200_000
