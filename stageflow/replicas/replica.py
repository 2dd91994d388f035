"""What runs in each process of a fleet: a whole run of its own, whose source is leases and whose output is a wire.

A replica ends when its fleet does: when the wire closes, and in the middle of a call when the life line does, which
nobody ever writes to. Signals are the fleet's to handle.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.adapters.jsonl.parts import entries_of
from stageflow.commit import Commit, InputMark, LetterPlace, OpenRequest, Resumption
from stageflow.ends import Ends
from stageflow.entry import guarded, run_on_loop
from stageflow.errors import RecordError, ResultError, RunStopped, StageflowError
from stageflow.events import Event, RecordDead, RunStarted, StopRequested, Warned
from stageflow.fingerprint import job_identity
from stageflow.item import BadRecord, Reentry
from stageflow.loader import load
from stageflow.protocols import Entry
from stageflow.replicas.coordinator import Lease
from stageflow.replicas.messages import (
    Ask,
    Asked,
    Beat,
    Begin,
    Cancel,
    Committed,
    Drained,
    Entries,
    Failed,
    Give,
    Granted,
    Lines,
    NoMore,
    Read,
    Ready,
    Setup,
    Stop,
    Stopped,
    Told,
    Written,
)
from stageflow.replicas.wire import Wire, receive_first
from stageflow.runner import Run
from stageflow.work import Work

__all__ = ["main"]

BEAT_SECONDS: Final = 0.25
_AHEAD: Final = 2
"""Leases that are asked for before the one at hand is read: so there is always one to go on with."""


def main(wire: int, life_line: int) -> None:
    """The replica's life.

    Args:
        wire: The descriptor of a socket to the fleet.
        life_line: One at whose end the fleet has ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_fleet, args=(life_line,), name="stageflow-fleet", daemon=True).start()
    end = socket.socket(fileno=wire)
    try:
        setup: Setup = receive_first(end)
    except EOFError:
        return
    code = run_on_loop(lambda: _serve(end, setup), setup.loop)
    if code:
        os._exit(code)  # threads that the job's code left hanging are not waited for


def _end_with_fleet(life_line: int) -> None:
    while os.read(life_line, 1):
        pass
    os._exit(1)


async def _serve(end: socket.socket, setup: Setup) -> int:
    wire = await Wire.of(end)
    try:
        await _Replica(wire, setup).run()
    except StageflowError as error:
        wire.send(Failed(Stopped.of(error), ""))
    except Exception as error:  # noqa: BLE001 - a bug of ours: the fleet tells it
        wire.send(Failed(None, "".join(traceback.format_exception(error))))
    else:
        await wire.close()
        return 0
    await wire.close()
    return 1


class _Replica:
    """Between the wire and the run."""

    def __init__(self, wire: Wire, setup: Setup) -> None:
        self._wire = wire
        self._leases = _LeasedSource(wire, setup)
        self._uplink = _Uplink(wire, setup)
        job = load(setup.job.reference)
        self._plan = job.pipeline.plan(setup.job.overrides, setup.job.params)
        ends = Ends(
            output=self._uplink,
            dead=None,
            encode=encode_strictly if setup.as_lines else _pickled,
            encode_letter=encode_leniently if setup.letters_as_lines else _letter_pickled,
            durable=setup.durable,
            notes=(),
            paths={},
            retrying=setup.retrying,
        )
        options = dataclasses.replace(setup.options, listeners=(self,))
        self._run = Run(self._plan, self._leases, ends, options, job.pipeline._prepare)
        self._work: Work
        self._started = asyncio.Event()
        self._asked = time.monotonic()

    async def run(self) -> None:
        """Run until there is no more to do, and say so."""
        listening = asyncio.create_task(self._listen(), name="wire")
        beating = asyncio.create_task(self._beat(), name="beat")
        try:
            await guarded(self._run.execute())
        finally:
            beating.cancel()
            listening.cancel()
            await asyncio.gather(beating, listening, return_exceptions=True)

    def on_event(self, event: Event) -> None:
        """What happens in the run, for the fleet."""
        if isinstance(event, RunStarted):
            self._begin()
        elif isinstance(event, StopRequested):
            if (error := self._run.stopped_by) is not None and not isinstance(error, _Asked):
                self._wire.send(Stopped.of(error))
        elif isinstance(event, Warned):
            self._wire.send(Told(event))
        elif isinstance(event, RecordDead):
            # Its values may be of any kind, and whoever is told of a dead letter here has no use for them.
            told = {name: value for name, value in event.letter.items() if name not in ("record", "results", "retry")}
            self._wire.send(Told(RecordDead(told)))

    def _begin(self) -> None:
        assert self._run.work is not None, "a run that has started has work"
        self._work = self._run.work
        self._share_out(0.0)
        self._uplink.drained = lambda: self._wire.send(Drained(self._state(), self._work.why_stopped()))
        self._wire.send(Ready(job_identity(self._plan), self._work.max_open))
        self._started.set()

    def _share_out(self, share: float) -> None:
        for limiter in self._work.limiters().values():
            limiter.set_share(share)

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._wire.receive()
            except EOFError:
                os._exit(1)
            match message:
                case Begin():
                    self._leases.begin()
                case Give(lease=lease):
                    self._leases.give(lease)
                case NoMore():
                    self._leases.end()
                case Written():
                    self._uplink.written()
                case Granted():
                    self._grant(message)
                case Stop():
                    self._leases.end()
                    self._run.stop(_Asked("stopped"))
                case Cancel():
                    self._run.stop(_Asked("stopped"))
                    self._run.cancel()

    def _grant(self, granted: Granted) -> None:
        limiters = self._work.limiters()
        for name, share in granted.shares.items():
            limiters[name].set_share(share)
        until = self._asked + granted.seconds
        asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._expire, self._asked)

    def _expire(self, asked: float) -> None:
        if asked == self._asked:  # no newer share has come
            self._share_out(0.0)

    async def _beat(self) -> None:
        await self._started.wait()
        while True:
            self._asked = time.monotonic()
            self._wire.send(self._state())
            await asyncio.sleep(BEAT_SECONDS)

    def _state(self) -> Beat:
        work, snapshot = self._work, self._run.snapshot()
        open_records = snapshot.read - snapshot.settled - work.retried
        return Beat(
            open=open_records,
            again=min(open_records, self._leases.again - work.retried),
            peak_open=work.peak_open,
            bad=work.bad,
            stages=snapshot.stages,
            accounts=work.accounts(),
            limits={name: Asked(*limiter.take_use()) for name, limiter in work.limiters().items()},
        )


class _Asked(RunStopped):
    """The fleet has asked the run to stop."""


def _pickled(record: Any) -> bytes:
    try:
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise ResultError(f"a value that can't leave its process: {error}") from error


def _letter_pickled(letter: Any) -> bytes:
    try:
        return _pickled(letter)
    except ResultError:
        return _pickled(json.loads(encode_leniently(letter)))


class _LeasedSource:
    """Records of leases; see :class:`stageflow.protocols.Source`."""

    def __init__(self, wire: Wire, setup: Setup) -> None:
        self.path = setup.path
        self.numbered = setup.numbered
        self.blank = 0
        self.warnings: list[str] = []
        self.again = 0  # records of dead letters that were handed over
        self._strict = setup.options.strict
        self._wire = wire
        self._given: asyncio.Queue[Lease | None] = asyncio.Queue()

    def begin(self) -> None:
        for _ in range(_AHEAD):
            self._wire.send(Ask())

    def give(self, lease: Lease) -> None:
        self._given.put_nowait(lease)

    def end(self) -> None:
        self._given.put_nowait(None)

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield the entries of one lease after the other."""
        while (lease := await self._given.get()) is not None:
            blank: list[int] = []
            yield self._entries(lease, blank)
            if not isinstance(lease.indices, range):
                blank = sorted(set(lease.indices).intersection(blank))
            self._wire.send(Read(blank))
            self._wire.send(Ask())

    def _entries(self, lease: Lease, blank: list[int]) -> Iterator[Entry]:
        content = lease.shard.content
        if isinstance(content, Lines):
            entries = entries_of(
                content.data,
                content.first,
                path=self.path or "-",
                strict=self._strict,
                warn=self.warnings.append,
                blank=blank,
            )
        else:
            assert isinstance(content, Entries), "a lease of nothing known"
            self.again += sum(isinstance(record, Reentry) for _, record in content.entries)
            entries = iter(content.entries)
        if lease.fatal:
            entries = (_failed(entry, lease.deaths) for entry in entries)
        if isinstance(lease.indices, range):
            return entries
        wanted = set(lease.indices)
        return (entry for entry in entries if entry[0] in wanted)

    # What a run asks of its source, and is the fleet's to know

    def check(self) -> None: ...

    def peek(self, n: int) -> Sequence[Entry]:
        return ()

    def take_marks(self) -> list[InputMark]:
        return []

    def identity(self) -> None: ...

    def first_difference(self, marks: Sequence[InputMark]) -> None: ...

    def changed(self) -> bool:
        return False

    def estimate(self) -> None: ...


def _failed(entry: Entry, deaths: int) -> Entry:
    index, record = entry
    raw = encode_leniently(record.record if isinstance(record, Reentry) else record).rstrip(b"\n")
    return index, BadRecord(RecordError(f"the process that ran it died {deaths} times: it is not run again"), raw)


class _Uplink:
    """Commits over the wire; see :class:`stageflow.ends.RunOutput`."""

    def __init__(self, wire: Wire, setup: Setup) -> None:
        self._wire = wire
        self._run = setup.run
        self._answer: asyncio.Future[None] | None = None
        self.drained: Callable[[], None] = lambda: None

    def open(self, request: OpenRequest) -> Resumption:
        return Resumption(run=self._run)

    async def write(self, commit: Commit) -> None:
        """Send a commit, and wait until it is safe."""
        self._answer = asyncio.get_running_loop().create_future()
        self._wire.send(Committed(commit))
        await self._answer

    def written(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def read_letter(self, place: LetterPlace) -> bytes:
        raise AssertionError("letters are read by the fleet")

    def give_up_waiting(self) -> None:
        """It waits for the fleet, which knows better."""

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """All that settled has been written."""
        self.drained()
