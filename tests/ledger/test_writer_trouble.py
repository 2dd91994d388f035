"""A disk that is full, or reports an error, while a run is written."""

from __future__ import annotations

import errno
import os

import pytest
from model_job import OUT
from real_files import commit
from simulated_disk import SimulatedDisk
from writer_runs import PARTIAL, fill, opened, run, settled, types, until

from stageflow.commit import Commit
from stageflow.errors import StorageError
from stageflow.ledger import Fsync, LedgerOutput, writer


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_SPACE_RETRY", 0.001)


class Tight(SimulatedDisk):
    """Has no room until it was asked so often."""

    def __init__(self, refusals: int) -> None:
        super().__init__()
        self.refusals = refusals

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        try:
            return super().write(descriptor, data)
        except OSError:
            self.refusals -= 1
            if not self.refusals:
                self.capacity = None
            raise


@pytest.mark.usefixtures("_no_pause")
def test_row_15_a_full_disk_holds_a_commit_tells_once_and_goes_on_by_itself() -> None:
    async def work() -> None:
        disk, said = Tight(refusals=3), list[str]()
        output = opened(disk, fsync="off", tell=said.append)
        await output.write(commit(0))
        fill(disk)
        await output.write(commit(1))
        assert said == [f"no space left writing {PARTIAL}; 1 records are safe, waiting up to 600 s for space"]
        await output.close(complete=True)
        assert disk.contents()[OUT] == b'{"n":0}\n{"n":1}\n'

    run(work())


@pytest.mark.usefixtures("_no_pause")
@pytest.mark.parametrize("told", [False, True], ids=["after the wait", "when told"])
def test_row_15_it_gives_up_waiting_and_the_run_can_go_on_later(told: bool) -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        outputs: list[LedgerOutput] = []
        wait = 1000.0 if told else 0.01
        outputs.append(
            opened(disk, disk_full_wait=wait, tell=lambda text: outputs[0].give_up_waiting() if told else None)
        )
        await outputs[0].write(commit(0))
        before = disk.contents()
        fill(disk)
        with pytest.raises(StorageError, match=r"no space left writing .*; 1 records are safe"):
            await outputs[0].write(commit(1))
        assert disk.contents() == before
        await outputs[0].close(complete=False)
        assert disk.contents()[PARTIAL] == b'{"n":0}\n'
        disk.capacity = None
        assert settled(disk) == 1

    run(work())


class NoMarkers(SimulatedDisk):
    """Has room for everything but sync markers, once it is full."""

    full = False

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.full and b'{"t":"s"' in bytes(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(descriptor, data)


@pytest.mark.parametrize("fsync", ["group", "interval"])
def test_row_15_no_room_for_a_marker_alone_ends_nothing(fsync: Fsync) -> None:
    async def work() -> None:
        disk = NoMarkers()
        failures: list[StorageError] = []
        output = opened(disk, fsync=fsync, interval=0.0, disk_full_wait=0.0, failed=failures.append)
        disk.full = True
        for n in range(3):
            await output.write(commit(n))
            await until(lambda: disk.calls.count("files synced") > n)  # noqa: B023  # waited for at once
        await output.close(complete=False)
        assert types(disk) == "hsccc"
        assert not failures
        disk.full = False
        assert settled(disk) == 3

    run(work())


@pytest.mark.usefixtures("_no_pause")
def test_row_15_a_first_commit_for_which_there_is_no_room_leaves_nothing() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, disk_full_wait=0.0)
        fill(disk, 12)
        letters = commit(0, line_counts={0: 0}, letters=[b"a letter longer than that\n"], letter_counts={0: 1})
        with pytest.raises(StorageError, match="no space left"):
            await output.write(letters)
        await output.close(complete=False)
        assert disk.contents() == {}

    run(work())


def test_row_17_a_sync_that_fails_in_between_ends_the_run_at_the_next_commit() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, interval=0.0)
        disk.failing_syncs = 1
        await output.write(commit(0))
        await until(lambda: not disk.failing_syncs)
        with pytest.raises(StorageError, match="disk reported a write error"):
            await output.write(commit(1))
        await output.close(complete=False)
        assert disk.calls.count("sync") == 1
        assert types(disk) == "hsc"

    run(work())


def test_row_17_a_sync_that_fails_after_the_last_commit_is_told_at_once() -> None:
    async def work() -> None:
        disk, failures = SimulatedDisk(), list[StorageError]()
        output = opened(disk, interval=0.0, failed=failures.append)
        disk.failing_syncs = 1
        await output.write(commit(0))
        await until(lambda: bool(failures))
        assert "disk reported a write error" in str(failures[0])
        await output.close(complete=False)
        assert len(failures) == 1
        assert disk.descriptors == 0

    run(work())


def test_row_17_a_run_whose_sync_failed_is_never_complete() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, fsync="off")
        await output.write(commit(0))
        disk.failing_syncs = 1
        with pytest.raises(StorageError, match="disk reported a write error"):
            await output.close(complete=True)
        assert OUT not in disk.contents()

    run(work())


def test_row_15_no_room_for_the_copy_in_order_is_made_up_for_by_the_next_run() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk)
        lines = [b'{"n":%d,"text":"%s"}\n' % (n, b"x" * 200) for n in range(10)]
        await output.write(Commit(ordinals=list(range(9, -1, -1)), lines=lines[::-1]))
        fill(disk, 1000)  # for the last lines of the ledger, and a part of the copy
        with pytest.raises(StorageError, match=r"cannot write .*out.jsonl: No space left on device; nothing is lost"):
            await output.close(complete=True)
        assert OUT not in disk.contents()
        assert not [path for path in disk.contents() if path.endswith(".tmp")]
        disk.capacity = None
        assert settled(disk) == 10
        assert disk.contents()[OUT] == b"".join(lines)

    run(work())
