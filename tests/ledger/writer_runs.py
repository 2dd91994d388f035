"""Runs of the writer on the real clock: what they share.

The writer is a thread. Nothing waits for time to pass, but for what the disk was asked for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from model_job import DEAD_PATH, OUT, request_for
from simulated_disk import SimulatedDisk

from stageflow.commit import InputIdentity
from stageflow.ledger import LedgerOutput

__all__ = ["LEDGER", "PARTIAL", "SOURCE", "Watched", "fill", "opened", "run", "settled", "types", "until"]

SOURCE = InputIdentity("in.jsonl", 1, 1, 100, 1, 1)
LEDGER, PARTIAL = OUT + ".ledger", OUT + ".partial"
DEADLINE = 20.0


class Watched(SimulatedDisk):
    """Stops the thread that asks for something by name, until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.held: str | None = None
        self.arrived = threading.Event()
        self.let_go = threading.Event()

    def _step(self, name: str) -> bool:
        if name == self.held and not self.let_go.is_set():
            self.arrived.set()
            assert self.let_go.wait(DEADLINE), "the loop was held up"
        return super()._step(name)

    async def arrival(self) -> None:
        await until(self.arrived.is_set)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, within a bound; the thread ends with it."""

    async def guarded() -> None:
        async with asyncio.timeout(DEADLINE):
            await work

    asyncio.run(guarded())
    assert not [thread for thread in threading.enumerate() if "ledger" in thread.name], "a thread is left"


def opened(disk: SimulatedDisk, **settings: Any) -> LedgerOutput:
    output = LedgerOutput(OUT, dead=DEAD_PATH, disk=disk, **settings)
    output.open(request_for(SOURCE))
    disk.calls = []
    return output


def types(disk: SimulatedDisk) -> str:
    """The types of the lines in the ledger, one letter each."""
    return "".join(chr(line[15]) for line in disk.contents()[LEDGER].splitlines())


def settled(disk: SimulatedDisk) -> int:
    """How many records a next run finds settled."""
    disk.restart(power_lost=False)
    output = LedgerOutput(OUT, dead=DEAD_PATH, disk=disk)
    return output.open(request_for(SOURCE)).totals.settled


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # it is a thread that makes it true
        await asyncio.sleep(0.001)


def fill(disk: SimulatedDisk, room: int = 5) -> None:
    disk.capacity = sum(map(len, disk.contents().values())) + room
