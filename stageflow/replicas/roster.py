"""The processes of a run, one in each place: started, replaced, watched and ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from stageflow.commit import JobIdentity
from stageflow.errors import RequestError, RunStopped
from stageflow.events import Event
from stageflow.fingerprint import job_identity
from stageflow.replicas.dividing import options_of
from stageflow.replicas.member import Member
from stageflow.replicas.messages import Setup
from stageflow.work import JobOrigin, WorkRequest

__all__ = ["Roster"]

_SILENT_SECONDS: Final = 10.0
"""After which the user is told that a process says nothing: it was suspended, or a stage blocks its event loop."""

_STARTS: Final = 3
"""Attempts to put another process in the place of one that is gone."""


class Roster:
    """The processes of a run.

    Args:
        origins: Where each of them finds the job.
        tell: Told of what they say while they start.
        joined: Called with each one when it is ready.
    """

    def __init__(
        self,
        request: WorkRequest,
        origins: Sequence[JobOrigin],
        *,
        tell: Callable[[Event], None],
        joined: Callable[[Member], None],
    ) -> None:
        self._request = request
        self._origins = origins
        self._tell = tell
        self._joined = joined
        self._job: JobIdentity = job_identity(request.plan)
        self._members: dict[int, Member] = {}
        self._names = itertools.count(1)
        self._run = ""
        self._retrying = False
        self._replacing: set[asyncio.Task[Member]] = set()
        self._given_up = False

    def __iter__(self) -> Iterator[Member]:
        """Those that there are."""
        return iter(self._members.values())

    async def start(self, run: str, *, retrying: bool) -> None:
        """Start all, and wait until they are of one mind about the job.

        Args:
            run: The identity of the run.
            retrying: Records of dead letters will come.

        Raises:
            StageflowError: One can't be started; the others were ended.
        """
        self._run, self._retrying = run, retrying
        starting = [asyncio.create_task(self._start(place)) for place in range(len(self._origins))]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            for started in await asyncio.gather(*starting, return_exceptions=True):
                if isinstance(started, Member):
                    await started.end()
            raise
        self._members = {place: task.result() for place, task in enumerate(starting)}
        for member in self:
            self._joined(member)

    async def replace(self, member: Member) -> Member | None:
        """See one that is gone to its end, and start another one in its place; none where that was given up.

        Raises:
            StageflowError: One after another has ended while it started.
        """
        await self.remove(member)
        for left in reversed(range(_STARTS)):
            if self._given_up:
                break
            try:
                return await self._another(member.place)
            except RunStopped:
                if not left:
                    raise
        return None

    async def _another(self, place: int) -> Member | None:
        starting = asyncio.create_task(self._start(place))
        self._replacing.add(starting)
        try:
            member = await starting
        except asyncio.CancelledError:
            if starting.cancelled() and self._given_up:
                return None
            starting.cancel()
            raise
        finally:
            self._replacing.discard(starting)
        self._members[place] = member
        self._joined(member)
        return member

    async def remove(self, member: Member) -> None:
        """One is gone."""
        del self._members[member.place]
        await member.end()

    def replace_no_more(self) -> None:
        """The run is stopped: whoever is gone from now on is not missed."""
        self._given_up = True
        for task in self._replacing:
            task.cancel()

    async def _start(self, place: int) -> Member:
        member = await Member.start(f"process {next(self._names)}", place, self._setup(place), self._tell)
        if member.ready.job != self._job:
            await member.end()
            raise RequestError(
                "a process of the run has loaded another job than this one",
                hint="was its file changed just now, or is it not the same each time it is loaded?",
            )
        return member

    def _setup(self, place: int) -> Setup:
        request, ends = self._request, self._request.ends
        return Setup(
            job=self._origins[place],
            options=options_of(request.options, place),
            loop="uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio",
            run=self._run,
            path=request.source.path,
            numbered=request.source.numbered,
            as_lines=ends.as_lines,
            letters_as_lines=ends.letters_as_lines,
            durable=ends.durable,
            retrying=self._retrying,
            of_main=self._of_main,
        )

    @property
    def _of_main(self) -> bool:
        """The job's module is the one that this process was started with."""
        main = sys.modules["__main__"]
        file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
        names = [spec.name] if spec is not None else [os.path.abspath(file)] if file is not None else []
        return self._origins[0].reference.startswith(tuple(f"{name}:" for name in names))

    @property
    def renamed(self) -> Mapping[str, str]:
        """Modules here by what they are called there."""
        return {self._members[0].ready.module: "__main__"} if self._of_main else {}

    def send(self, message: Any) -> None:
        """Send to all."""
        for member in self:
            member.send(message)

    def kill(self, whom: Callable[[Member], bool] = lambda member: True) -> None:
        """End some of them at once, or all."""
        for member in self:
            if whom(member):
                member.kill()

    async def watch(self) -> None:
        """Tell of those that say nothing, until cancelled."""
        while True:
            await asyncio.sleep(_SILENT_SECONDS / 4)
            now = asyncio.get_running_loop().time()
            for member in self:
                if not member.silent and not member.drained and now - member.heard > _SILENT_SECONDS:
                    member.silent = True
                    self._request.warn(
                        f"a process of the run (pid {member.pid}) has said nothing for {_SILENT_SECONDS:g} s: it is "
                        "suspended, or a stage blocks its event loop"
                    )

    async def see_off(self, patience: float, listen: Callable[[Member], Awaitable[None]]) -> None:
        """Wait until all have ended, for so many seconds; end those that have not.

        Args:
            listen: Hears what one says until it hangs up, which raises EOFError.

        Raises:
            StageflowError, RunFailed: What one has failed of.
        """
        ending = (self._see_off(member, patience, listen) for member in self)
        for error in await asyncio.gather(*ending, return_exceptions=True):
            if error is not None and patience:
                raise error

    async def _see_off(self, member: Member, patience: float, listen: Callable[[Member], Awaitable[None]]) -> None:
        late = False
        try:
            async with asyncio.timeout(patience):
                with contextlib.suppress(EOFError):
                    await listen(member)
        except TimeoutError:
            late = True
        finally:
            ended = await member.end(0.0 if late else min(patience, 1.0))
        if patience and not ended and not self._given_up:
            self._request.warn(f"a process had not closed its resources after {patience:g} s, and was ended")
