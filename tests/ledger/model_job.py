"""A small job whose results anyone can work out from its input, and a driver that runs it on a simulated disk.

The auditor (:class:`Job`) knows nothing of ledgers: it says what the files hold once everything has settled. The driver
(:class:`Trial`) reads the input as a run does, settles records in random order and random groups, syncs at random, is
killed or loses power at random operations, and goes on until the files are finished.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from simulated_disk import Crash, SimulatedDisk

from stageflow.commit import Commit, InputIdentity, InputMark, JobIdentity, LetterPlace, OpenRequest, Resumption
from stageflow.ledger.state import DEAD, DEAD_IN_PART, OPEN
from stageflow.ledger.writer import LedgerOutput

__all__ = ["DEAD_PATH", "JOB", "OUT", "DirectOutput", "Job", "Refused", "Trial", "at_once", "request_for"]

T = TypeVar("T")

Again = dict[int, list[tuple[int, int]]]
"""By ordinal the numbers of the letters to be tried again, and the child each is of."""

OUT = "/simulated/out.jsonl"
DEAD_PATH = "/simulated/out.jsonl.dead.jsonl"
JOB = JobIdentity("job.py", "rest", {"work": "1"}, {"work": ()})
MARK_LINES = 7


class Refused(Exception):
    """A run that has to go on was refused."""


def at_once(work: Awaitable[T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        work.__await__().send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    raise AssertionError("it waits")


class DirectOutput(LedgerOutput):
    """Does its work where it is asked for it, without a thread."""

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def _say(self, text: str) -> None:
        self._tell(text)

    def sync(self) -> None:
        self._open.sync()

    def abandon(self) -> None:
        """As the end of the process leaves it."""
        self._store = None

    @property
    def is_open(self) -> bool:
        return self._store is not None

    @property
    def done(self) -> bytearray:
        return self._open.state.done


def request_for(source: InputIdentity | None, **settings: Any) -> OpenRequest:
    """A request of the model job; nothing about the input or the job has changed."""
    settings.setdefault("first_difference", lambda marks: None)
    settings.setdefault("job", JOB)
    settings.setdefault("job_changes", lambda before, now: [] if before == now else ["stage work (source)"])
    return OpenRequest(input=source, **settings)


@dataclass
class Job:
    """What becomes of each line: it is blank, or has 0 to 3 children, some of which fail, some for ever.

    The children that fail once succeed when they are tried again. Of some records a retry begins at the source: its
    lines take the place of the earlier ones.
    """

    seed: int
    lines: int
    _known: dict[int, tuple[bool, bool, list[str]]] = field(default_factory=dict)

    def _plan(self, ordinal: int) -> tuple[bool, bool, list[str]]:
        if ordinal not in self._known:
            rng = random.Random(f"{self.seed}/{ordinal}")
            blank, from_source = rng.random() < 0.1, rng.random() < 0.3
            fates = rng.choices(("fine", "once", "ever"), (7, 2, 1), k=rng.randint(0, 3))
            self._known[ordinal] = blank, from_source, [] if blank else fates
        return self._known[ordinal]

    def blank(self, ordinal: int) -> bool:
        return self._plan(ordinal)[0]

    def from_source(self, ordinal: int) -> bool:
        return self._plan(ordinal)[1]

    def children(self, ordinal: int, *fates: str) -> list[int]:
        return [child for child, fate in enumerate(self._plan(ordinal)[2]) if fate in fates]

    # As bytes

    @property
    def size(self) -> int:
        return self.offset(self.lines)

    def offset(self, lines: int) -> int:
        return sum(len(self.text(ordinal)) for ordinal in range(lines))

    def text(self, ordinal: int) -> bytes:
        return b"\n" if self.blank(ordinal) else b"%d\n" % ordinal

    @staticmethod
    def line(ordinal: int, child: int) -> bytes:
        return b'{"of":%d,"child":%d,"text":"%s"}\n' % (ordinal, child, b"x" * (ordinal * 37 % 700))

    @staticmethod
    def letter(ordinal: int, child: int) -> bytes:
        return b'{"dead":%d,"child":%d,"why":"%s"}\n' % (ordinal, child, b"y" * (ordinal * 53 % 900))

    # What the finished files hold

    def output(self, *, retried: bool) -> list[bytes]:
        """In the order of the input."""
        lines = []
        for ordinal in range(self.lines):
            first = self.children(ordinal, "fine")
            late = self.children(ordinal, "once") if retried else []
            children = sorted(first + late) if self.from_source(ordinal) and self._failed(ordinal) else first + late
            lines += [self.line(ordinal, child) for child in children]
        return lines

    def _failed(self, ordinal: int) -> list[int]:
        return self.children(ordinal, "once", "ever")

    def letters(self, *, retried: bool) -> list[bytes]:
        fates = ("ever",) if retried else ("once", "ever")
        return [
            self.letter(ordinal, child) for ordinal in range(self.lines) for child in self.children(ordinal, *fates)
        ]


class Trial:
    """One life of the job, from its beginning to finished files, with crashes; :meth:`run` raises where it went wrong.

    Args:
        crashes: The most crashes.

    Attributes:
        crashed: How often it did.
        power_lost_share: How many of the crashes are losses of power; the others are kills.
    """

    def __init__(self, seed: int, *, crashes: int = 4) -> None:
        self.rng = rng = random.Random(seed)
        self.disk = SimulatedDisk(random.Random(seed + 1))
        self.job = Job(seed, rng.randint(0, 40))
        self.dead = rng.choice((DEAD_PATH, DEAD_PATH, "/elsewhere/dead.jsonl"))
        self.order: Literal["input", "completion"] = rng.choice(("input", "input", "completion"))
        self.fsync: Literal["group", "off"] = rng.choice(("off", "off", "off", "group"))
        self.shuffled = rng.choice((1, 8, 40))
        self.group = rng.choice((1, 4, 12))
        self.crashed = 0
        self.power_lost_share = 0.7
        self.notes: list[str] = []
        self._crashes = crashes
        self._source = Path("in.jsonl")  # written where it grows
        self._durable = b""  # what had become of each record when a marker was written
        self._committed = b""  # and when the process ended
        if rng.random() < 0.3:
            self.disk.largest_write = rng.choice((7, 100))  # a byte at a time: test_store
        if rng.random() < 0.3:
            self.disk.largest_read = rng.choice((50, 1000))

    def run(self) -> None:
        self.until_finished(retry=False)
        self.check(retried=False)
        if self.rng.random() < 0.3:
            self.grow()
            self.until_finished(retry=False)
            self.check(retried=False)
        retry = self.rng.random() < 0.5
        if retry:
            self.until_finished(retry=True)
            self.check(retried=True)
            if self.rng.random() < 0.3:
                self.grow()
                self.until_finished(retry=False)
                self.until_finished(retry=True)
                self.check(retried=True)
        self.disk.restart(power_lost=True)
        resumption = self.output().open(self.request(retry_failed=False))
        assert resumption.complete, "a finished run is finished after a loss of power, too"
        self.check(retried=retry)

    def output(self) -> DirectOutput:
        return DirectOutput(OUT, dead=self.dead, fsync=self.fsync, disk=self.disk, tell=self.notes.append)

    def request(self, *, retry_failed: bool) -> OpenRequest:
        source = InputIdentity(str(self._source), 1, 1, self.job.size, self.job.lines, self.job.lines)
        return request_for(source, order=self.order, retry_failed=retry_failed)

    def check(self, *, retried: bool) -> None:
        """Hold the finished files against what they have to hold."""
        files = self.disk.contents()
        found, wanted = files[OUT].splitlines(keepends=True), self.job.output(retried=retried)
        if self.order == "input":
            assert found == wanted, "the output, in the order of the input"
        assert Counter(found) == Counter(wanted), "the output"
        dead = files.get(self.dead, b"").splitlines(keepends=True)
        assert Counter(dead) == Counter(self.job.letters(retried=retried)), "the dead letters"
        assert set(files) <= {OUT, self.dead, OUT + ".ledger"}, "nothing is left over"

    # Runs

    @staticmethod
    def crash_around(moment: str, seed: int, *, power_lost: bool) -> int:
        """Run a trial again and again, with a crash at each of the operations around a moment; how many there were."""
        whole = Trial(seed, crashes=0)
        whole.run()
        reached = [number for number, name in enumerate(whole.disk.calls, 1) if name == moment]
        operations = sorted({at for number in reached[:2] + reached[-2:] for at in range(number - 2, number + 2)})
        for operation in operations:
            trial = Trial(seed, crashes=0)
            trial.disk.crash_at, trial.power_lost_share = operation, float(power_lost)
            trial.run()
        return len(operations)

    def grow(self) -> None:
        self.job.lines += self.rng.randint(1, 10)
        self._source.write_bytes(b"".join(map(self.job.text, range(self.job.lines))))

    def until_finished(self, *, retry: bool) -> None:
        """Start the run until it has come to its end."""
        finished = False
        while not finished:
            if self.crashed < self._crashes:
                soon = self.disk.operations + self.rng.randint(1, self.rng.choice((15, 60, 250)))
                self.disk.crash_at = soon if self.rng.random() < 0.8 else 0
            try:
                finished = self.attempt(retry=retry)
            except Crash:
                self.restart(power_lost=self.rng.random() < self.power_lost_share)

    def attempt(self, *, retry: bool) -> bool:
        """Start the run once. False where it stopped before its end, in good order."""
        output = self.output()
        try:
            resumption = self._opened(output, retry)
            return resumption.complete or self._go_on(output, resumption)
        except Crash:
            self._committed = bytes(output.done) if output.is_open else self._committed
            output.abandon()
            raise

    def restart(self, *, power_lost: bool) -> None:
        """Begin anew after a crash."""
        self.crashed += 1
        if power_lost:
            self._committed = self._durable
        self.disk.restart(power_lost=power_lost)

    def _opened(self, output: DirectOutput, retry: bool) -> Resumption:
        resumption = output.open(self.request(retry_failed=retry))
        # A kill loses nothing that was committed; a loss of power nothing that a marker speaks of.
        self._check_kept(self._durable, resumption.done)
        self._check_kept(self._committed, resumption.done)
        if not resumption.complete:
            self._keep(output)
        return resumption

    def _keep(self, output: DirectOutput) -> None:
        self._durable = self._committed = bytes(output.done)

    @staticmethod
    def _check_kept(kept: bytes, done: bytearray) -> None:
        for ordinal, before in enumerate(kept):
            now = done[ordinal] if ordinal < len(done) else OPEN
            if before in (DEAD, DEAD_IN_PART):
                assert now != OPEN, f"record {ordinal} was dead and durable, and is open"
            elif before != OPEN:
                assert now == before, f"record {ordinal} was {before} and durable, and is {now}"

    def _go_on(self, output: DirectOutput, resumption: Resumption) -> bool:
        """Run to the end, or stop before it. True where it is finished."""
        rng, done = self.rng, bytes(resumption.done)
        again: Again = {}
        for place in resumption.letters:
            again.setdefault(place.ordinal, []).append((place.number, self._child(output, place)))
        start = resumption.start.lines if resumption.start is not None else 0
        todo = [
            ordinal
            for ordinal in range(start, self.job.lines)
            if not self.job.blank(ordinal) and not (ordinal < len(done) and done[ordinal])
        ]
        assert not set(again) & set(todo), "a record is either open or dead"
        marks = self._marks(start)
        units = sorted([*again, *todo])
        stop_after = rng.randint(0, len(units)) if rng.random() < 0.15 else None
        settled = 0
        while units:
            window = units[: self.shuffled]
            group = rng.sample(window, min(len(window), rng.randint(1, self.group)))
            units = [unit for unit in units if unit not in group]
            read = max(window) if units else self.job.lines
            commit = self._commit(group, again)
            while marks and marks[0].lines <= read:
                commit.marks.append(marks.pop(0))
            at_once(output.write(commit))
            if self.fsync == "group":
                self._keep(output)
            settled += len(group)
            if rng.random() < 0.2:
                output.sync()
                self._keep(output)
            if stop_after is not None and settled >= stop_after:
                settled_by_now = bytes(output.done)
                at_once(output.close(complete=False))
                self._durable = self._committed = settled_by_now
                return False
        if marks:
            at_once(output.write(Commit(marks=marks)))
        if self.crashed < self._crashes and self.rng.random() < 0.3:
            self.disk.crash_at = self.disk.operations + self.rng.randint(1, 20)
        at_once(output.close(complete=True))
        return True

    def _marks(self, start: int) -> list[InputMark]:
        """The marks that a run which begins there comes by; the blank lines of the last one come once more with it."""
        marks, last = [], start
        for lines in [*range(start + MARK_LINES, self.job.lines, MARK_LINES), self.job.lines]:
            blank = tuple(ordinal for ordinal in range(last, lines) if self.job.blank(ordinal))
            marks.append(InputMark(lines, self.job.offset(lines), f"digest {lines}", blank))
            last = lines
        return marks

    def _child(self, output: DirectOutput, place: LetterPlace) -> int:
        """The child that a letter is of."""
        letter = output.read_letter(place)
        child: int = json.loads(letter)["child"]
        assert letter == Job.letter(place.ordinal, child), "a letter is not the one it was"
        return child

    def _commit(self, group: list[int], again: Again) -> Commit:
        commit = Commit(ordinals=list(group))
        for ordinal in group:
            if ordinal in again:
                commit.resolved += [number for number, _ in again[ordinal]]
                lines = self.job.children(ordinal, "fine", "once")
                letters = self.job.children(ordinal, "ever")
                if self.job.from_source(ordinal):
                    commit.replaced.append(ordinal)
                else:
                    tried = [child for _, child in again[ordinal]]
                    lines = [child for child in lines if child in tried]
                    letters = [child for child in letters if child in tried]
            else:
                lines = self.job.children(ordinal, "fine")
                letters = self.job.children(ordinal, "once", "ever")
            commit.lines += [Job.line(ordinal, child) for child in lines]
            commit.letters += [Job.letter(ordinal, child) for child in letters]
            if len(lines) != 1:
                commit.line_counts[ordinal] = len(lines)
            if letters:
                commit.letter_counts[ordinal] = len(letters)
        return commit
