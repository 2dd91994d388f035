"""Reading a file that was written: the lengths of its lines, and pieces of it that are nearly in order."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from simulated_disk import SimulatedDisk

from stageflow.ledger import disk as disks
from stageflow.ledger.disk import Disk, ScatteredReads, line_lengths, read_lines, write_all

BLOCK = disks._BLOCK_BYTES
KEPT = disks._BLOCKS_KEPT


def written(data: bytes) -> tuple[SimulatedDisk, int]:
    disk = SimulatedDisk()
    descriptor = disk.create("/simulated/file")
    write_all(disk, descriptor, data)
    return disk, descriptor


@given(st.lists(st.binary(max_size=9)).map(b"\n".join), st.integers(1, 12), st.integers(0, 5))
def test_lengths_are_those_of_the_lines_wherever_reads_end(data: bytes, largest: int, less: int) -> None:
    disk, descriptor = written(data)
    disk.largest_read = largest
    end = max(0, len(data) - less)
    lines = list(read_lines(disk, descriptor, 0, end))
    assert b"".join(lines) == data[:end]
    assert list(line_lengths(disk, descriptor, end)) == [len(line) for line in lines]


class Counted(Disk):
    """Notes how much was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.calls = 0
        self.bytes_read = 0

    def read(self, descriptor: int, count: int, offset: int) -> bytes:
        found = self.data[offset : offset + count]
        self.calls += 1
        self.bytes_read += len(found)
        return found


def pieces_of(data: bytes, length: int) -> list[tuple[int, int]]:
    return [(at, min(at + length, len(data))) for at in range(0, len(data), length)]


def read_all(disk: Counted, pieces: list[tuple[int, int]]) -> None:
    reads = ScatteredReads(disk, 0, len(disk.data))
    assert all(reads.read(start, end) == disk.data[start:end] for start, end in pieces)
    assert len(reads._blocks) <= KEPT


def test_pieces_that_stand_near_each_other_are_read_by_blocks() -> None:
    data = random.Random(1).randbytes(10 * BLOCK + 17)
    pieces = pieces_of(data, 350)
    rng = random.Random(2)
    nearby = sorted(pieces, key=lambda piece: piece[0] + rng.random() * 2 * BLOCK)
    disk = Counted(data)
    read_all(disk, nearby)
    assert disk.calls < 50, "a call for each block, and one for each piece that stands across two"
    assert disk.bytes_read < len(data) + 50 * 350


def test_pieces_that_are_far_apart_are_not_read_many_times_over() -> None:
    data = random.Random(3).randbytes(40 * BLOCK)
    pieces = pieces_of(data, 2000)
    random.Random(4).shuffle(pieces)
    disk = Counted(data)
    read_all(disk, pieces)
    assert disk.bytes_read <= 3 * len(data) + KEPT * BLOCK


def test_pieces_longer_than_a_block_are_read_by_themselves() -> None:
    data = random.Random(5).randbytes(5 * BLOCK)
    disk = Counted(data)
    read_all(disk, [(0, 2 * BLOCK), (2 * BLOCK - 1, 4 * BLOCK), (0, 0), (5 * BLOCK, 5 * BLOCK), (0, 5 * BLOCK)])
    assert disk.calls <= 5
