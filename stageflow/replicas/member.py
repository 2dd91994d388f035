"""One process of a fleet, as its fleet sees it.

A process is told apart from its wire: one that is gone may have left children of its own that hold the wire open, and
one whose wire is closed may not end by itself. So the end of either is the end of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from stageflow.errors import RunFailed, RunStopped
from stageflow.events import Event
from stageflow.replicas.messages import Beat, Failed, Open, Ready, Setup, Told
from stageflow.replicas.wire import Wire

__all__ = ["Member"]

_PROGRAM: Final = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl({death_signal}, 9)
if os.getppid() != {fleet}:
    os._exit(1)
sys.path[:] = {path!r}
sys.argv[:] = {argv!r}
from stageflow.replicas.replica import main
main({wire}, {life_line})
"""
"""First of all it is settled that the system ends it with its fleet (on Linux): a call that never lets go of the
interpreter would hold up whatever it could do itself, and so would an import. It may have been too late for that."""

_DEATH_SIGNAL: Final = 1
"""``PR_SET_PDEATHSIG`` of prctl(2)."""

_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_END_SECONDS: Final = 1.0
"""For a process to end by itself when it has hung up."""


class Member:
    """A process that runs a replica.

    Attributes:
        name: Its own, also among those that took the place of others.
        place: Which part of the limits is its own, from 0.
        pid: Of the process.
        ready: What it said when it was ready.
        beat: What it said last of how it stands.
        open: What it said last of the records it has, less what was written since.
        heard: When it said anything last, by the loop's clock.
        silent: The user was told that it says nothing.
        leased: Records that it was given and that have not settled.
        asks: Leases that it has asked for and has not been given.
        told_end: It knows that there will be no more.
        drained: It has done all that it was given, and will do no more.
        why: What a stage of it says that stopped the run.
    """

    def __init__(self, name: str, place: int, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self.name = name
        self.place = place
        self.pid = process.pid
        self.ready: Ready
        self.beat: Beat | None = None
        self.open = Open()
        self.heard = asyncio.get_running_loop().time()
        self.silent = False
        self.leased = 0
        self.asks = 0
        self.told_end = False
        self.drained = False
        self.why: str | None = None
        self._process = process
        self._end = end
        self._wire: Wire
        self._life_line: int
        self._gone = asyncio.get_running_loop().create_future()
        self._watch = threading.Thread(target=self._wait, args=(asyncio.get_running_loop(),), name=name, daemon=True)

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
            process = _spawned(theirs.fileno(), listening)
        except BaseException:
            ours.close()
            os.close(life_line)
            raise
        finally:
            theirs.close()
            os.close(listening)
        member = cls(name, place, process, ours.dup())
        member._life_line = life_line
        member._wire = await Wire.of(ours)
        member._watch.start()
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
                    f"a process of the run ended while it started: {how}",
                    hint="run with --processes 1 to see why",
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
        message = await self._wire.receive()
        self.heard, self.silent = asyncio.get_running_loop().time(), False
        return message

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        # What it has sent is read; then there is an end, even where a child of its own holds the other side.
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RD)
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(self._is_gone, code)

    def _is_gone(self, code: int) -> None:
        if not self._gone.done():
            self._gone.set_result(code)

    async def how_it_ended(self) -> str:
        """See it to its end, now that it has hung up, and say how it came."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                code = await asyncio.shield(self._gone)
        except TimeoutError:
            self.kill()
            return "it had hung up"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def end(self, patience: float = 0.0) -> bool:
        """Wait for its end for so many seconds, then end it at once. False where that was needed."""
        ended = True
        try:
            async with asyncio.timeout(patience):
                await asyncio.shield(self._gone)
        except TimeoutError:
            ended = False
        finally:
            if not self._gone.done():
                self.kill()
            self._wire.drop()
            os.close(self._life_line)
            self._end.close()
        await self._gone
        return ended


def _spawned(wire: int, listening: int) -> subprocess.Popen[bytes]:
    """The process. Not by the loop's own means: those leave no moment at which signals could be held back."""
    program = _PROGRAM.format(
        death_signal=_DEATH_SIGNAL,
        fleet=os.getpid(),
        path=sys.path,
        argv=sys.argv,
        wire=wire,
        life_line=listening,
    )
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does it
    with _signals_held():
        return subprocess.Popen(
            [sys.executable, *flags, "-c", program], pass_fds=(wire, listening), stdin=subprocess.DEVNULL
        )


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """What is started meanwhile gets no signal until it says so: a Ctrl-C goes to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def failure_of(message: Failed) -> Exception:
    """What a replica has failed of, to be raised here."""
    if message.error is not None:
        return message.error.error()
    bug = RuntimeError(message.trace)
    return RunFailed("stageflow failed in a process of the run; this is a bug, please report it", [bug])
