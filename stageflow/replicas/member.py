"""One process of a fleet, as its fleet sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from stageflow.errors import RunFailed, RunStopped
from stageflow.events import Event
from stageflow.replicas.messages import Beat, Failed, Ready, Setup, Told
from stageflow.replicas.wire import Wire

__all__ = ["Member"]

_PROGRAM: Final = """
import sys
sys.path[:] = {path!r}
from stageflow.replicas.replica import main
main({wire}, {life_line})
"""


class Member:
    """A process that runs a replica.

    Attributes:
        name: Its own, also among those that took the place of others.
        place: Which part of the limits is its own, from 0.
        ready: What it said when it was ready.
        beat: What it said last of how it stands.
        asks: Leases that it has asked for and has not been given.
        drained: It has done all that it was given, and will do no more.
        why: What a stage of it says that stopped the run.
    """

    def __init__(self, name: str, place: int, process: asyncio.subprocess.Process, wire: Wire, life_line: int) -> None:
        self.name = name
        self.place = place
        self.ready: Ready
        self.beat: Beat | None = None
        self.asks = 0
        self.told_end = False
        self.drained = False
        self.why: str | None = None
        self._process = process
        self._wire = wire
        self._life_line = life_line

    @classmethod
    async def start(cls, name: str, place: int, setup: Setup, told: Callable[[Event], None]) -> Member:
        """Start a process and wait until it has loaded the job and opened its resources.

        Raises:
            StageflowError: What went wrong there.
            RunFailed: A bug in stageflow.
        """
        ours, theirs = socket.socketpair()
        listening, life_line = os.pipe()
        try:
            program = _PROGRAM.format(path=sys.path, wire=theirs.fileno(), life_line=listening)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                program,
                pass_fds=(theirs.fileno(), listening),
                stdin=asyncio.subprocess.DEVNULL,
            )
        finally:
            theirs.close()
            os.close(listening)
        member = cls(name, place, process, await Wire.of(ours), life_line)
        try:
            member.send(setup)
            await member._wait_until_ready(told)
        except BaseException:
            await member.end()
            raise
        return member

    async def _wait_until_ready(self, told: Callable[[Event], None]) -> None:
        while True:
            try:
                message = await self.receive()
            except EOFError:
                how = await self.how_it_ended()
                raise RunStopped(
                    f"a process of the run ended while it started: {how}", hint="nothing was done in it"
                ) from None
            match message:
                case Ready():
                    self.ready = message
                    return
                case Told():
                    told(message.event)
                case Failed():
                    raise failure_of(message)

    def send(self, message: Any) -> None:
        self._wire.send(message)

    async def receive(self) -> Any:
        """The next message; see :meth:`Wire.receive`."""
        return await self._wire.receive()

    async def how_it_ended(self) -> str:
        """Wait for its end, and say how it came."""
        code = await self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, patience: float = 0.0) -> bool:
        """Wait for its end for so many seconds, then end it at once. False where that was needed."""
        ended = True
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            ended = False
        finally:
            if self._process.returncode is None:
                self.kill()
            await self._wire.close()
            os.close(self._life_line)
        await self._process.wait()
        return ended


def failure_of(message: Failed) -> Exception:
    """What a replica has failed of, to be raised here."""
    if message.error is not None:
        return message.error.error()
    bug = RuntimeError(message.trace)
    return RunFailed("stageflow failed in a process of the run; this is a bug, please report it", [bug])
