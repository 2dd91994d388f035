"""What lets records in: the dead letters to try again, then the input without what earlier runs have settled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from stageflow.commit import BLANK, DEAD_IN_PART, LetterPlace, Resumption
from stageflow.counters import RunCounters
from stageflow.ends import RunOutput
from stageflow.engine.attempt import describe
from stageflow.engine.run import Engine
from stageflow.errors import InputDamaged, RunStopped, SourceFailed, StageflowError
from stageflow.item import BadRecord
from stageflow.options import Options
from stageflow.plan import Plan
from stageflow.protocols import Entry, Source
from stageflow.recorder import Recorder, locator
from stageflow.retries import reentries

__all__ = ["Feeder", "EarlierRuns", "retries_of"]


class EarlierRuns:
    """How far earlier runs came in the input, in numbers taken before anything is added.

    Attributes:
        records: Records before the place where reading begins.
        blank: Blank lines that are known; ``ahead``: those of them behind that place, which will be met again.
    """

    def __init__(self, resumption: Resumption) -> None:
        done, start = resumption.done, resumption.start.lines if resumption.start is not None else 0
        before = done.count(BLANK, 0, start)
        self.records = start - before
        self.blank = done.count(BLANK)
        self.ahead = self.blank - before

    def blank_lines(self, met: int) -> int:
        """All blank lines so far, those of earlier runs included; ``met`` in this one."""
        return self.blank + max(0, met - self.ahead)


def retries_of(
    output: RunOutput, resumption: Resumption, plan: Plan, upstream: Mapping[str, str], warn: Callable[[str], None]
) -> Iterator[Entry]:
    """The records of the dead letters that are to be tried again, read as they are asked for."""
    staying = 0

    def stays(place: LetterPlace) -> None:
        nonlocal staying
        staying += 1

    letters = ((place, output.read_letter(place)) for place in resumption.letters)
    done = resumption.done
    yield from reentries(letters, plan, upstream, passed_over=stays, written=lambda index: done[index] == DEAD_IN_PART)
    if staying:
        warn(f"dead letters without a record that could be tried again stay as they are: {staying:,}")


class Feeder:
    """Feeds the engine in a task of its own, so that a stop can end a wait for input and nothing else.

    Args:
        retries: Records of earlier dead letters, with their indices; they come first.
        options: How much to read, and what an unreadable line does.
        plan: The job: a field of the input that bears the name of a stage is told of once.
        warn, stop: Tell the user; stop the run.

    Attributes:
        at_end: The end of the input was reached.
        damaged: Why it ended before it should.
    """

    def __init__(
        self,
        source: Source,
        engine: Engine,
        recorder: Recorder,
        counters: RunCounters,
        resumption: Resumption,
        *,
        retries: Iterable[Entry],
        options: Options,
        plan: Plan,
        warn: Callable[[str], None],
        stop: Callable[[RunStopped], None],
    ) -> None:
        self._source = source
        self._engine = engine
        self._recorder = recorder
        self._counters = counters
        self._resumption = resumption
        self._place = EarlierRuns(resumption).records
        self._retries = retries
        self._limit = options.limit
        self._stop_at_bad = options.on_bad_input == "stop"
        self._overwritten = {s.name for s in plan.stages.values() if s.emit and plan.context is None}
        self._warn = warn
        self._stop = stop
        self._told = 0
        self._waiting = False
        self._failure: StageflowError | None = None
        self._task: asyncio.Task[None] | None = None
        self.at_end = False
        self.damaged: InputDamaged | None = None

    async def run(self) -> None:
        """Feed until the input ends, or admission does. That it is cancelled while it waits is how a stop ends it."""
        self._task = asyncio.create_task(self._feed(), name="feeder")
        try:
            await self._task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self._task.cancel()
                raise

    def stop(self) -> None:
        """Wait for no more input. A record that is just let in is let in wholly."""
        if self._waiting:
            self.cancel()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _feed(self) -> None:
        try:
            if await self._feed_retries():
                await self._feed_input()
        except InputDamaged as error:
            self.damaged = error
        except RunStopped as error:  # the source's own bound was reached
            self._stop(error)
        finally:
            self._pass_on()

    async def _feed_retries(self) -> bool:
        for index, reentry in self._retries:
            self._recorder.expect([(index, reentry)])
            if not await self._engine.feed(index, reentry):
                return False
        return True

    async def _feed_input(self) -> None:
        if self._limit is not None and self._place >= self._limit:
            return
        async with contextlib.aclosing(self._source.read(self._resumption.start)) as portions:
            while (portion := await self._next(portions)) is not None:
                # Before any of it can settle: what settles must lie before a mark, or a change of it would go unseen.
                self._pass_on()
                if not await self._let_in(self._wanted(portion)):
                    return
                if self._failure is not None:
                    raise self._failure
                if self._place == self._limit:
                    return
        self.at_end = True

    async def _let_in(self, entries: Iterator[Entry]) -> bool:
        """Let in all entries, as many at a time as there is room for. False where admission has ended.

        One more than that is read, and waits in the hand of who reads: reading is held back with it.
        """
        engine, hand = self._engine, list[Entry]()
        while True:
            room = engine.room
            if room >= len(hand) and self._failure is None:
                hand += self._read(entries, room + 1 - len(hand))
            if not hand:
                return True
            if room == 0 and await engine.wait_for_room():
                continue
            taken = engine.feed_many(hand) or int(await engine.feed(*hand[0]))
            if not taken:
                return False
            self._counters.read += taken
            hand = hand[taken:]

    def _read(self, entries: Iterator[Entry], count: int) -> list[Entry]:
        """The next entries. What ends the run, such as an error of the caller's own, is kept until those are in."""
        read: list[Entry] = []
        try:
            read.extend(islice(entries, count))  # unlike list(), it keeps what came before an error
        except StageflowError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - the caller's own iterable
            self._failure = SourceFailed(f"the source failed: {describe(error)}")
            self._failure.__cause__ = error
        if self._overwritten:
            self._look_for_overwritten([record for _, record in read if type(record) is dict])
        self._recorder.expect(read)
        return read

    def _wanted(self, portion: Iterable[Entry]) -> Iterator[Entry]:
        """The entries of a portion that are to be done: within the limit, and not settled by earlier runs."""
        if self._resumption.done or self._limit is not None or self._stop_at_bad:
            return self._filtered(portion)
        return iter(portion)

    def _filtered(self, portion: Iterable[Entry]) -> Iterator[Entry]:
        done, limit, stop_at_bad = self._resumption.done, self._limit, self._stop_at_bad
        known = len(done)
        for entry in portion:
            self._place += 1
            if entry[0] >= known or not done[entry[0]]:
                if stop_at_bad and type(entry[1]) is BadRecord:
                    raise self._bad_input(*entry)
                yield entry
            if self._place == limit:
                return

    async def _next(self, portions: AsyncGenerator[Iterable[Entry], None]) -> Iterable[Entry] | None:
        self._waiting = True
        try:
            return await anext(portions, None)
        except StageflowError:
            raise
        except Exception as error:
            raise SourceFailed(f"the source failed: {describe(error)}") from error
        finally:
            self._waiting = False

    def _pass_on(self) -> None:
        """What the source says beside its records: how far it was read, and what was odd about it."""
        self._recorder.mark(self._source.take_marks())
        warnings = getattr(self._source, "warnings", ())
        for message in warnings[self._told :]:
            self._warn(message)
        self._told = len(warnings)

    def _bad_input(self, index: int, record: BadRecord) -> RunStopped:
        found: Mapping[str, Any] = {"path": self._source.path, "line": index + 1 if self._source.numbered else None}
        if (locate := locator(self._source)) is not None:
            found = locate(index)
        path, line = found["path"], found["line"]
        where = path if line is None else f"{path}:{line}"
        if "shard" in found:
            where = f"{path}, line {line} of shard {found['shard']}"
        return RunStopped(str(record.error), hint="run with --on-bad-input dead to set such lines aside", where=where)

    def _look_for_overwritten(self, records: list[dict[str, Any]]) -> None:
        for name in sorted(self._overwritten & set().union(*records)):
            self._overwritten.discard(name)
            self._warn(f'the input field "{name}" is overwritten by the result of stage "{name}"')
