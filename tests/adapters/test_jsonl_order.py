"""The order of the finished file: by input, whatever the order of completion, in bounded memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stageflow.adapters.jsonl.order import OrderIndex

Lines = list[tuple[int, int]]


def index_of(lines: Lines, *, window: int, block_lines: int, batch: int, directory: str = ".") -> OrderIndex:
    index = OrderIndex(directory, window=window, block_lines=block_lines)
    for at in range(0, len(lines), batch):
        part = lines[at : at + batch]
        index.add([ordinal for ordinal, _ in part], [length for _, length in part])
    return index


def expected_spans(lines: Lines) -> Lines:
    offset, places = 0, []
    for ordinal, length in lines:
        places.append((ordinal, offset, length))
        offset += length
    return [(start, length) for _, start, length in sorted(places, key=lambda place: place[0])]


LINES = st.lists(st.tuples(st.integers(0, 30) | st.integers(0, 2**60), st.integers(1, 5)), max_size=60)


@given(LINES, st.integers(1, 9), st.integers(1, 7), st.integers(1, 10))
def test_lines_come_by_ordinal_and_those_of_one_ordinal_as_written(
    tmp_path_factory: pytest.TempPathFactory, lines: Lines, window: int, block_lines: int, batch: int
) -> None:
    directory = str(tmp_path_factory.getbasetemp())
    index = index_of(lines, window=window, block_lines=block_lines, batch=batch, directory=directory)
    ordinals = [ordinal for ordinal, _ in lines]
    assert index.ascending == (ordinals == sorted(ordinals))
    assert list(index.in_order()) == expected_spans(lines)
    index.close()


@pytest.mark.parametrize("shape", ["one ordinal", "reversed", "late straggler", "late children of the first"])
def test_shapes_that_do_not_fit_a_window(tmp_path: Path, shape: str) -> None:
    lines = {
        "one ordinal": [(7, 1 + at % 3) for at in range(500)],
        "reversed": [(500 - at, 2) for at in range(500)],
        "late straggler": [(at, 1) for at in range(1, 500)] + [(0, 9)],
        "late children of the first": [(at, 1) for at in range(300)] + [(0, 9)] * 200 + [(299, 4)],
    }[shape]
    index = index_of(lines, window=10, block_lines=16, batch=5, directory=str(tmp_path))
    assert list(index.in_order()) == expected_spans(lines)
    assert list(tmp_path.iterdir()) == []
    index.close()


def test_memory_grows_by_bytes_per_block_and_the_sort_holds_a_window(tmp_path: Path) -> None:
    count = 300_000
    rng = random.Random(1)
    index = OrderIndex(str(tmp_path), window=4096, block_lines=1024)
    tracemalloc.start()
    try:
        for at in range(0, count, 100):
            index.add([at + rng.randrange(500) for _ in range(100)], [320] * 100)
        kept, _ = tracemalloc.get_traced_memory()
        sizes = sum(length for _, length in index.in_order())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.close()
    assert sizes == count * 320
    assert kept < 100_000
    assert peak < 4_000_000


def test_one_ordinal_with_more_lines_than_a_window_is_streamed(tmp_path: Path) -> None:
    index = index_of([(5, 1)] * 50_000 + [(4, 1)], window=100, block_lines=128, batch=100, directory=str(tmp_path))
    tracemalloc.start()
    try:
        spans = index.in_order()
        assert [next(spans), next(spans)] == [(50_000, 1), (0, 1)]
        assert sum(length for _, length in spans) == 49_999
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index.close()
    assert peak < 200_000
