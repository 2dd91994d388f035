"""What runs in each process of a fleet: a whole run of its own, whose source is leases and whose output is a wire.

A replica ends when its fleet does: when the wire closes, and in the middle of a call when the life line does, which
nobody ever writes to. Signals are the fleet's to handle.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, Final

from stageflow.engine.attempt import describe
from stageflow.engine.limiter import Limiter
from stageflow.engine.watch import watch_loop
from stageflow.entry import guarded, run_on_loop
from stageflow.errors import RequestError, RunStopped, StageflowError
from stageflow.events import Event, RecordDead, RunStarted, StopRequested, Warned
from stageflow.fingerprint import job_identity
from stageflow.loader import Job, load
from stageflow.replicas.dividing import loading
from stageflow.replicas.granted import GrantedShares
from stageflow.replicas.leased import LeasedSource
from stageflow.replicas.messages import (
    Asked,
    AskShares,
    Beat,
    Begin,
    Cancel,
    Drained,
    Failed,
    Give,
    Granted,
    NoMore,
    Open,
    Ready,
    Setup,
    Stop,
    Stopped,
    Told,
    Written,
)
from stageflow.replicas.uplink import Uplink
from stageflow.replicas.wire import Wire, receive_first, send_last
from stageflow.runner import Run
from stageflow.work import Work

__all__ = ["BEAT_SECONDS", "main"]

BEAT_SECONDS: Final = 0.25
_FIRST_BEAT_SECONDS: Final = 0.02
"""In the beginning a replica tells more often how it stands: what a short run is asked for is known, too."""

_HUNGRY_SECONDS: Final = 0.05
"""Shares of limits are asked for so often while calls wait for them, and as soon as they begin or cease to; else with
each beat."""


def main(wire: int, life_line: int) -> None:
    """The replica's life.

    Args:
        wire: The descriptor of a socket to the fleet.
        life_line: One at whose end the fleet has ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)  # not SIG_IGN, which what the job starts would inherit
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Thread(target=_end_with_fleet, args=(life_line,), name="stageflow-fleet", daemon=True).start()
    end = socket.socket(fileno=wire)
    try:
        setup = _setup(end)
        job = _loaded(setup.job.reference)
    except EOFError:
        return
    except StageflowError as error:
        send_last(end, Failed(Stopped.of(error), ""))
        return
    code = run_on_loop(lambda: _serve(end, setup, job), setup.loop)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # threads that the job's code left hanging are not waited for


def _ignore(number: int, frame: Any) -> None: ...


def _end_with_fleet(life_line: int) -> None:
    while os.read(life_line, 1):
        pass
    os._exit(1)


def _setup(end: socket.socket) -> Setup:
    try:
        setup: Setup = receive_first(end)
    except EOFError:
        raise
    except Exception as error:
        raise RequestError(
            f"the settings and parameters can't be read in a process of the run: {describe(error)}",
            hint="give parameters of types that every process knows before it loads the job",
        ) from error
    return setup


def _loaded(reference: str) -> Job:
    """The job, loaded before there is a loop, as for any run."""
    loading.add(reference)
    try:
        return load(reference)
    finally:
        loading.clear()


async def _serve(end: socket.socket, setup: Setup, job: Job) -> int:
    wire = await Wire.of(end)
    try:
        await _Replica(wire, setup, job).run()
    except StageflowError as error:
        wire.send(Failed(Stopped.of(error), ""))
    except Exception as error:  # noqa: BLE001 - a bug of ours: the fleet tells it
        wire.send(_bug(error))
    else:
        await wire.close()
        return 0
    await wire.close()
    return 1


def _bug(error: Exception) -> Failed:
    return Failed(None, "".join(traceback.format_exception(error)))


class _Replica:
    """Between the wire and the run."""

    def __init__(self, wire: Wire, setup: Setup, job: Job) -> None:
        self._wire = wire
        importing = job.pipeline._prepare
        module = setup.job.reference.rpartition(":")[0]
        self._module: str = importing.args[0] if isinstance(importing, functools.partial) else module
        renamed = {"__main__": self._module} if setup.of_main else {}
        self._leases = LeasedSource(wire, setup, opened=self._open, reentered=self._reenter, renamed=renamed)
        self._again = 0  # records of dead letters that were handed over
        self._uplink = Uplink(wire, setup.run, opened=self._open, bad=lambda: self._work.bad, closed=self._close)
        self._plan = job.pipeline.plan(setup.job.overrides, setup.job.params)
        options = dataclasses.replace(setup.options, listeners=(self,))
        self._run = Run(self._plan, self._leases, self._uplink.ends(setup), options, job.pipeline._prepare)
        self._work: Work
        self._limiters: dict[str, Limiter] = {}
        self._begun = asyncio.Event()
        self._working = False
        self._shares = GrantedShares(self._limiters)

    async def run(self) -> None:
        """Run until there is no more to do, and say so."""
        listening = asyncio.create_task(self._listen(), name="wire")
        beating = asyncio.gather(self._beat(), self._ask_for_shares())
        try:
            with watch_loop(self._run.warn, lambda: self._run.started):
                await guarded(self._run.execute())
        finally:
            beating.cancel()
            listening.cancel()
            await asyncio.gather(beating, listening, return_exceptions=True)

    def on_event(self, event: Event) -> None:
        """What happens in the run, for the fleet."""
        if isinstance(event, RunStarted):
            self._start()
        elif isinstance(event, StopRequested):
            if (error := self._run.stopped_by) is not None and not isinstance(error, _AskedToStop):
                self._wire.send(Stopped.of(error))
        elif isinstance(event, Warned):
            self._wire.send(Told(event))
        elif isinstance(event, RecordDead):
            # Its values may be of any kind, and whoever is told of a dead letter here has no use for them.
            told = {name: value for name, value in event.letter.items() if name not in ("record", "results", "retry")}
            self._wire.send(Told(RecordDead(told)))

    def _start(self) -> None:
        assert self._run.work is not None, "a run that has started has work"
        self._work = self._run.work
        self._limiters.update(self._work.limiters())
        self._wire.send(Ready(job_identity(self._plan), self._work.max_open, self._module))

    def _close(self, complete: bool) -> None:
        if complete or (self._run.started and self._run.stopped_by is not None):  # else the run has failed
            self._wire.send(Drained(self._state(), self._work.why_stopped()))

    # What the fleet says

    async def _listen(self) -> None:
        try:
            while True:
                self._hear(await self._wire.receive())
        except EOFError:
            os._exit(1)
        except Exception as error:  # noqa: BLE001 - a bug of ours, at which the fleet ends this process
            self._wire.send(_bug(error))

    def _hear(self, message: Any) -> None:
        match message:
            case Begin(full=full):
                self._begin(full)
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
                self._run.stop(_AskedToStop("stopped"))
            case Cancel():
                self._run.stop(_AskedToStop("stopped"))
                self._run.cancel()

    def _begin(self, full: bool) -> None:
        """Ask for work; where there are limits, when the first shares are there: that much of a full bucket is full."""
        if not full:
            self._shares.nothing()
        self._begun.set()
        if not self._limiters:
            self._ask_for_work()

    def _ask_for_work(self) -> None:
        self._working = True
        self._leases.begin()

    def _grant(self, granted: Granted) -> None:
        self._shares.take(granted)
        if not self._working:
            self._ask_for_work()

    # How it stands

    async def _beat(self) -> None:
        await self._begun.wait()
        seconds = _FIRST_BEAT_SECONDS
        while True:
            self._wire.send(self._state())
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, BEAT_SECONDS)

    async def _ask_for_shares(self) -> None:
        await self._begun.wait()
        waiting: set[str] = set()
        while self._limiters:
            limits = {name: Asked(*limiter.take_use()) for name, limiter in self._limiters.items()}
            self._wire.send(AskShares(time.monotonic(), limits))
            until = time.monotonic() + BEAT_SECONDS
            while time.monotonic() < until:
                await asyncio.sleep(_HUNGRY_SECONDS)
                before, waiting = waiting, {name for name, limiter in self._limiters.items() if limiter.waiting}
                if waiting or before:
                    break

    def _state(self) -> Beat:
        work = self._work
        return Beat(
            open=self._open(),
            peak_open=work.peak_open,
            stages=work.snapshot(),
            accounts=work.accounts(),
        )

    def _reenter(self) -> None:
        """A record of dead letters comes in: it is among the dead until it has settled once more."""
        self._again += 1
        self._run.counters.dead += 1

    def _open(self) -> Open:
        counters = self._run.counters
        again = self._again - self._work.retried
        return Open(counters.read - counters.written - counters.dropped - counters.dead + again, again)


class _AskedToStop(RunStopped):
    """The fleet has asked the run to stop."""
