"""The ledger as the output of a run: when it syncs, what it waits for, and what a cancellation leaves.

On the real clock: the writer is a thread. Nothing here waits for time to pass, but for what the disk was asked for.
"""

from __future__ import annotations

import asyncio

import pytest
from model_job import DEAD_PATH, OUT, request_for
from real_files import commit
from simulated_disk import SimulatedDisk
from writer_runs import LEDGER, PARTIAL, SOURCE, Watched, fill, opened, run, settled, types, until

from stageflow.errors import StorageError
from stageflow.ledger import LedgerOutput

# When it syncs


def test_group_makes_every_commit_durable_before_it_returns() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, fsync="group")
        for n in range(3):
            await output.write(commit(n))
            assert types(disk) == "hs" + "cs" * (n + 1)
            assert disk.calls.count("marker written") == n + 1
        await output.close(complete=False)

    run(work())


def test_off_syncs_at_the_end_alone() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, fsync="off", interval=0.0)
        for n in range(3):
            await output.write(commit(n))
        assert "sync" not in disk.calls
        await output.close(complete=True)
        assert types(disk) == "hscccsf"

    run(work())


def test_interval_syncs_a_while_after_the_last_commit_and_then_no_more() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, interval=0.01)
        await output.write(commit(0))
        await until(lambda: "marker written" in disk.calls)
        assert types(disk) == "hscs"
        assert output._timer is None
        await output.write(commit(1))
        await until(lambda: disk.calls.count("marker written") == 2)
        assert types(disk) == "hscscs"
        await output.close(complete=False)

    run(work())


def test_interval_syncs_no_more_often() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk, interval=1000.0)
        for n in range(50):
            await output.write(commit(n))
        assert "sync" not in disk.calls
        await output.close(complete=False)
        assert types(disk) == "hs" + "c" * 50 + "s"

    run(work())


def test_a_sync_that_takes_its_time_never_stalls_the_loop() -> None:
    async def work() -> None:
        disk = Watched()
        output = opened(disk, interval=0.0)
        disk.held = "sync"
        await output.write(commit(0))
        await disk.arrival()
        for _ in range(1000):
            await asyncio.sleep(0)  # the thread is in the sync all the while
        disk.let_go.set()
        await output.write(commit(1))
        await output.close(complete=True)
        assert settled(disk) == 2

    run(work())


def test_a_sync_that_falls_due_as_the_run_ends_writes_nothing_behind_its_last_line() -> None:
    async def work(complete: bool) -> None:
        disk = SimulatedDisk()
        output = opened(disk)
        await output.write(commit(0))
        output._sync_soon()
        await output.close(complete=complete)
        assert types(disk) == ("hscsf" if complete else "hscs")

    run(work(True))
    run(work(False))


# Cancellation


@pytest.mark.parametrize("moment", ["write", "results written", "letters written", "commit written"])
def test_a_cancellation_in_the_middle_of_a_write_leaves_a_whole_commit(moment: str) -> None:
    async def work() -> None:
        disk = Watched()
        output = opened(disk)
        disk.held = moment
        letters = commit(0, 1, letters=[b"dead\n"], letter_counts={1: 1})
        writing = asyncio.create_task(output.write(letters))
        await disk.arrival()
        writing.cancel()
        await asyncio.sleep(0)
        assert not writing.done()
        disk.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert types(disk) == "hsc"
        await output.close(complete=False)
        assert settled(disk) == 2

    run(work())


def test_a_cancellation_ends_the_wait_for_space() -> None:
    async def work() -> None:
        disk, told = SimulatedDisk(), asyncio.Event()
        output = opened(disk, tell=lambda text: told.set())
        await output.write(commit(0))
        fill(disk)
        writing = asyncio.create_task(output.write(commit(1)))
        await told.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await output.close(complete=False)
        disk.capacity = None
        assert settled(disk) == 1

    run(work())


@pytest.mark.parametrize("how", ["cancelled", "given up"])
def test_what_was_not_finished_is_finished_by_the_next_run(how: str) -> None:
    async def work() -> None:
        disk = Watched()
        output = opened(disk)
        await output.write(commit(2, 0, 1))
        disk.held = "final line written"
        closing = asyncio.create_task(output.close(complete=True))
        await disk.arrival()
        if how == "cancelled":
            closing.cancel()
        else:
            output.give_up_waiting()
        await asyncio.sleep(0)
        disk.let_go.set()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else StorageError):
            await closing
        assert set(disk.contents()) == {PARTIAL, LEDGER}
        again = LedgerOutput(OUT, dead=DEAD_PATH, disk=disk)
        assert again.open(request_for(SOURCE)).complete
        assert disk.contents()[OUT] == b'{"n":0}\n{"n":1}\n{"n":2}\n'
        assert set(disk.contents()) == {OUT, LEDGER}

    run(work())


def test_the_copy_in_order_has_its_name_for_good_before_what_it_was_made_of_is_removed() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk)
        await output.write(commit(2, 0, 1))
        await output.close(complete=True)
        end = disk.calls[disk.calls.index("output sorted") :]
        assert end[: end.index("partial removed")] == [
            *("output sorted", "write", "sync", "rename"),
            *("output renamed", "sync_directory", "remove"),
        ]

    run(work())


def test_a_write_that_was_cancelled_does_not_keep_a_run_from_being_finished() -> None:
    async def work() -> None:
        disk = Watched()
        output = opened(disk)
        disk.held = "write"
        writing = asyncio.create_task(output.write(commit(1, 0)))
        await disk.arrival()
        writing.cancel()
        await asyncio.sleep(0)
        disk.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await output.close(complete=True)
        assert disk.contents()[OUT] == b'{"n":0}\n{"n":1}\n'

    run(work())


# The end


def test_a_run_that_wrote_nothing_leaves_nothing() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk)
        await output.close(complete=False)
        await output.close(complete=False)
        assert disk.contents() == {}
        assert disk.descriptors == 0

    run(work())


def test_an_empty_input_makes_an_empty_output() -> None:
    async def work() -> None:
        disk = SimulatedDisk()
        output = opened(disk)
        await output.close(complete=True)
        assert disk.contents()[OUT] == b""
        assert disk.descriptors == 0

    run(work())
