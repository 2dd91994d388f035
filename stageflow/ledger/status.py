"""What a ledger tells of a run, without disturbing it: nothing is locked, written or checked against the data."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final, Literal

from stageflow.commit import Totals
from stageflow.errors import RequestError
from stageflow.ledger.disk import Disk
from stageflow.ledger.names import Names
from stageflow.ledger.recovery import Lines
from stageflow.ledger.state import State
from stageflow.money import units

__all__ = ["Holder", "LedgerStatus", "status"]

_LOCKS: Final = "/proc/locks"


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds the lock: its process, its machine, and since when (ISO 8601)."""

    pid: int
    host: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerStatus:
    """A run as its ledger has it.

    Args:
        state: ``"running"``: a process holds the lock. ``"interrupted"``: the same command goes on with it.
        totals: Settled records; ``synced``: those of them that were durable by the newest marker.
        left: Records still to do, about, by the size of the input; ``None`` where that can't be told.
        letters: Dead letters that were not tried again.
        last_sync: When the newest marker was written (ISO 8601).
        epoch: How often the run was started.
        input, job: As they were called.
        cost: Of the calls, by what they reported, in the currency of the job's prices; ``cost_unsure``: what calls that
            reported nothing, or are in flight, may have cost beyond that.
    """

    state: Literal["running", "interrupted", "complete"]
    totals: Totals
    synced: Totals
    left: int | None
    letters: int
    last_sync: str | None
    epoch: int
    run: str
    holder: Holder | None
    input: str | None
    job: str
    cost: float = 0.0
    cost_unsure: float = 0.0


def status(path: str) -> LedgerStatus:
    """Read the ledger of an output.

    Raises:
        RequestError: There is none, or it can't be read.
    """
    names, disk, state = Names(path, None), Disk(), State()
    try:
        ledger = disk.open(names.ledger, write=False)
    except OSError as error:
        raise RequestError(
            f"cannot read {path}.ledger: {error.strerror}", hint="OUTPUT is what was given to -o"
        ) from error
    try:
        # Before the lines are read: a run that ends meanwhile is told as running, not as interrupted.
        held = _is_locked(ledger)
        for fields in Lines(disk, ledger):
            state.apply(fields)
    finally:
        disk.close(ledger)
    if state.header is None:
        raise RequestError(f"{path}.ledger tells of no run yet", hint="try again when the run has begun")
    header, given = state.header, state.input()
    holder = Holder(header["pid"], header["host"], header["at"])
    held = held if held is not None else _is_alive(holder)
    return LedgerStatus(
        state="running" if held else "complete" if state.final is not None else "interrupted",
        totals=state.totals,
        synced=state.synced_totals,
        left=_left(state),
        letters=sum(1 for _ in state.open_letters()),
        last_sync=state.synced_at,
        epoch=state.epoch,
        run=state.run,
        holder=holder if held else None,
        input=given.path if given is not None else None,
        job=header["job"]["file"],
        cost=units(state.spend.known),
        cost_unsure=units(state.spend.unsure),
    )


def _left(state: State) -> int | None:
    """Records still to do: those passed over, and those not read yet, at the length of the ones that were."""
    given = state.input()
    if state.final is not None and state.final["ended"]:
        return 0
    if given is None or given.codec != "plain" or not state.marks:
        return None
    read = state.marks[-1]
    passed_over = state.done[: read.lines].count(0) + max(0, read.lines - len(state.done))
    unread = max(0, given.size - read.bytes)
    return passed_over + round(unread * read.lines / max(1, read.bytes))


def _is_locked(descriptor: int) -> bool | None:
    """Whether some process holds the lock of an open file; ``None`` where the system does not tell.

    Trying the lock would be simpler, and could make a run that starts at that moment believe that it is taken.
    """
    found = os.fstat(descriptor)
    this = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open(_LOCKS, encoding="ascii") as file:
            return any(line.split()[1] == "FLOCK" and this in line.split() for line in file)
    except OSError:
        return None


def _is_alive(holder: Holder) -> bool:
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
