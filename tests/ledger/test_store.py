"""The three files while a run goes on: every commit whole or not at all, every marker true, whatever the disk does."""

from __future__ import annotations

import tracemalloc
from itertools import count

import pytest
from model_job import DEAD_PATH, OUT, request_for
from simulated_disk import SimulatedDisk
from writer_runs import types

from stageflow.commit import Commit, InputIdentity, InputMark
from stageflow.errors import StorageError
from stageflow.ledger.names import Names
from stageflow.ledger.opening import open_store
from stageflow.ledger.store import OutOfSpace, Store

SOURCE = InputIdentity("in.jsonl", 1, 1, 100, 1, 1)
LEDGER, PARTIAL = OUT + ".ledger", OUT + ".partial"

FIRST = Commit(ordinals=[0, 1], lines=[b'{"n":0}\n', b'{"n":1}\n'], letters=[b'{"dead":0}\n'], letter_counts={0: 1})
SECOND = Commit(
    ordinals=[3, 2],
    lines=[b'{"n":3}\n', b'{"m":3}\n'],
    line_counts={3: 2, 2: 0},
    letters=[b'{"dead":2}\n'],
    letter_counts={2: 1},
    marks=[InputMark(4, 40, "digest", (5,))],
)


def opened(disk: SimulatedDisk) -> Store:
    store, _ = open_store(disk, Names(OUT, DEAD_PATH), request_for(SOURCE))
    assert store is not None
    return store


def settled(disk: SimulatedDisk) -> tuple[list[int], bytes, bytes]:
    """What a next run finds: what has settled, the results and the letters."""
    disk.restart(power_lost=False)
    state = opened(disk).state
    files = disk.contents()
    done = [ordinal for ordinal in range(len(state.done)) if state.is_done(ordinal)]
    return done, files[PARTIAL], files.get(DEAD_PATH, b"")


def test_row_18_short_writes_of_one_byte_are_invisible() -> None:
    disk = SimulatedDisk()
    disk.largest_write = disk.largest_read = 1
    store = opened(disk)
    store.append(FIRST)
    store.append(SECOND)
    assert settled(disk) == (
        [0, 1, 2, 3, 5],
        b'{"n":0}\n{"n":1}\n{"n":3}\n{"m":3}\n',
        b'{"dead":0}\n{"dead":2}\n',
    )


def test_a_commit_stands_behind_the_marks_that_came_with_it() -> None:
    disk = SimulatedDisk()
    opened(disk).append(SECOND)
    assert types(disk).endswith("ic")


def used(disk: SimulatedDisk) -> int:
    return sum(map(len, disk.contents().values()))


@pytest.mark.parametrize("first_letter", [True, False], ids=["first letter", "later letter"])
def test_row_15_a_disk_full_at_any_byte_leaves_the_files_at_the_last_commit(first_letter: bool) -> None:
    earlier = [] if first_letter else [FIRST]
    for room in count():
        disk = SimulatedDisk()
        store = opened(disk)
        for commit in earlier:
            store.append(commit)
        before = {DEAD_PATH: b"", **disk.contents()}
        disk.capacity = used(disk) + room
        try:
            store.append(SECOND)
        except OutOfSpace as full:
            told = str(full)
        else:
            break
        assert told == f"no space left writing /simulated/out.jsonl.partial; {2 * len(earlier)} records are safe"
        assert {DEAD_PATH: b"", **disk.contents()} == before, f"room {room}"
        disk.capacity = None
        store.append(SECOND)
        store.sync()
        done, results, _ = settled(disk)
        assert done == ([2, 3, 5] if first_letter else [0, 1, 2, 3, 5])
        assert results.endswith(b'{"n":3}\n{"m":3}\n')
    assert room > 100


def test_row_16_a_file_that_may_not_grow_is_no_full_disk() -> None:
    disk = SimulatedDisk()
    store = opened(disk)
    before = disk.contents()
    disk.largest_file = 10
    with pytest.raises(StorageError, match="File too large; 0 records are safe") as caught:
        store.append(FIRST)
    assert not isinstance(caught.value, OutOfSpace)
    assert disk.contents() == before


def test_row_17_after_a_failed_sync_nothing_is_synced_or_written_again() -> None:
    disk = SimulatedDisk()
    store = opened(disk)
    store.append(FIRST)
    before = disk.contents()
    disk.failing_syncs, disk.calls = 1, []
    message = "disk reported a write error .*; stopping, nothing after 0 records is trusted"
    for attempt in (store.sync, store.sync, lambda: store.append(SECOND), lambda: store.sync(clean=True)):
        with pytest.raises(StorageError, match=message):
            attempt()
    assert disk.calls == ["sync"]
    assert disk.contents() == before


@pytest.mark.parametrize("failing", range(1, 5))
def test_row_17_whichever_sync_fails_there_is_no_marker(failing: int) -> None:
    disk = SimulatedDisk()
    store = opened(disk)
    store.append(FIRST)
    ledger = disk.contents()[LEDGER]
    fine = iter(range(1, failing))

    def sync(descriptor: int) -> None:
        if next(fine, None) is None:
            disk._fail_sync()

    disk.failing_syncs = 1
    disk.sync = sync  # type: ignore[method-assign]
    disk.sync_directory = lambda path: sync(0)  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="disk reported a write error"):
        store.sync()
    assert disk.contents()[LEDGER] == ledger


def test_where_half_a_commit_cannot_be_cut_off_nothing_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk()
    store = opened(disk)

    def broken(descriptor: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    disk.capacity = used(disk) + 10
    monkeypatch.setattr(disk, "truncate", broken)
    with pytest.raises(OutOfSpace):
        store.append(FIRST)
    disk.capacity = None
    with pytest.raises(StorageError, match="Input/output error"):
        store.append(FIRST)
    monkeypatch.undo()
    assert settled(disk) == ([], b"", b"")


def test_the_name_of_the_dead_letters_is_durable_before_a_marker_speaks_of_them() -> None:
    disk = SimulatedDisk()
    store = opened(disk)
    store.append(FIRST)
    disk.calls = []
    store.sync()
    assert disk.calls == ["sync", "sync", "sync_directory", "sync", "files synced", "write", "marker written"]
    disk.calls = []
    store.append(SECOND)
    store.sync()
    assert "sync_directory" not in disk.calls


def test_a_final_line_follows_a_durable_marker_and_is_durable() -> None:
    disk = SimulatedDisk()
    store = opened(disk)
    store.append(FIRST)
    store.sync()
    disk.calls = []
    store.complete({"t": "f", "o": 16, "x": 11, "z": 16, "y": 11, "rewritten": False, "ended": True, "n": [1, 0, 1]})
    assert disk.calls == ["sync", "write", "sync", "final line written"]


def test_a_record_may_not_settle_twice() -> None:
    store = opened(SimulatedDisk())
    store.append(FIRST)
    with pytest.raises(AssertionError, match="settled twice"):
        store.append(Commit(ordinals=[1], lines=[b"1\n"]))


def test_what_is_dirty_is_what_was_written_since_the_marker() -> None:
    store = opened(SimulatedDisk())
    assert not store.dirty
    store.append(FIRST)
    assert store.dirty
    store.sync()
    assert not store.dirty


class Nowhere(SimulatedDisk):
    """Keeps nothing of what is written to it."""

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        return len(data)

    def reached(self, moment: str) -> None:
        pass

    def sync(self, descriptor: int) -> None:
        pass


def test_memory_grows_by_a_byte_a_record() -> None:
    store = opened(Nowhere())
    size = 50

    def commits(first: int, many: int) -> int:
        for number in range(first, first + many):
            ordinals = list(range(number * size, (number + 1) * size))
            store.append(Commit(ordinals=ordinals, lines=[b"x\n"] * size))
            if number % 100 == 0:
                store.sync()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = commits(0, 400)
        after = commits(400, 4000)
    finally:
        tracemalloc.stop()
    assert after - before < 1.4 * 4000 * size + 20_000
