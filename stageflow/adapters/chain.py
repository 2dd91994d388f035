"""Several inputs as one: the records of the first, then those of the second, numbered through.

A mark in the first input is that input's own. One in a later input says in its digest where that input begins, so a
mark is all it takes to go on, and a ledger of one input goes on when more are put behind it::

    <digest of the input's own mark>@<number>:<first index>:<bytes before>:<digest of what came before>

What came before may not have another size: an earlier input that has grown would hold records which nobody reads. That
it holds what it held is told by its own marks.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from stageflow.commit import InputIdentity, InputMark
from stageflow.errors import InputDamaged, RequestError, RunStopped, StageflowError, StateMismatch
from stageflow.protocols import Entry, Source

__all__ = ["ChainedSource"]

_MARKS_KEPT: Final = 4096
_HINT: Final = "restore it, choose another output, or start anew with --fresh, which keeps the old files"


@dataclass(frozen=True, slots=True)
class _Start:
    """Where an input begins: its number, the index of its first entry, and the bytes and the sizes before it."""

    number: int = 0
    index: int = 0
    bytes: int = 0
    before: str = ""

    def mark(self, own: InputMark) -> InputMark:
        """A mark of the input as one of the whole."""
        digest = own.digest
        if self.number:
            digest = f"{digest}@{self.number}:{self.index}:{self.bytes}:{self.before}"
        blank = tuple(place + self.index for place in own.blank)
        return InputMark(own.lines + self.index, own.bytes + self.bytes, digest, blank)


def _parted(mark: InputMark) -> tuple[_Start, InputMark]:
    """A mark of the whole as where its input begins and a mark of that."""
    digest, found, rest = mark.digest.partition("@")
    if not found:
        return _Start(), mark
    number, index, bytes_before, before = rest.split(":")
    start = _Start(int(number), int(index), int(bytes_before), before)
    return start, InputMark(mark.lines - start.index, mark.bytes - start.bytes, digest)


class ChainedSource:
    """Reads one source after the other.

    All of them must be such that a later run can read them again, since where the next one begins is told by the marks
    of the ones before. Sources are checked before the first one is read, and opened when their turn comes.

    Args:
        sources: At least one, each with its path, in the order in which they are read.

    Attributes:
        path: The first one's and how many there are, for messages.
        numbered: False: :meth:`place` says where an entry stands.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self.numbered = False
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        self.path: str | None = f"{sources[0].path}{more}"
        self._starts: list[_Start] = []
        self._marks: list[InputMark] = []
        self._start = _Start()
        self._reading: Source | None = None
        self._newest: InputMark | None = None
        self._blank = 0
        self._warnings: list[str] = []
        self._told = 0
        self._read: list[Source] = []

    @property
    def paths(self) -> list[str]:
        """The paths of all of them."""
        return [str(source.path) for source in self._sources]

    @property
    def blank(self) -> int:
        """Blank lines passed over so far."""
        return self._blank + (self._reading.blank if self._reading is not None else 0)

    @property
    def warnings(self) -> Sequence[str]:
        """What each said so far."""
        if self._reading is not None:
            said = self._reading.warnings
            self._warnings += said[self._told :]
            self._told = len(said)
        return self._warnings

    def check(self) -> None:
        """Check each of them.

        Raises:
            RequestError: One can't be read, or not a second time.
        """
        for source in self._sources:
            source.check()
            if source.identity() is None:
                name = "standard input" if source.path == "-" else source.path
                raise RequestError(
                    f"{name} can be read only once, and can't be one of several inputs",
                    hint="write it to a file first, or give it alone",
                )

    def peek(self, n: int) -> list[Entry]:
        """The first ``n`` entries."""
        found: list[Entry] = []
        for source in self._sources:
            found += source.peek(n - len(found))
            if len(found) >= n:
                break
        return found

    def estimate(self) -> int | None:
        """The sum, as far as the sizes of all tell more than what the first hundred hold."""
        total = 0
        for number, source in enumerate(self._sources):
            if number == _ESTIMATED:
                return round(total * len(self._sources) / _ESTIMATED)
            found = source.estimate()
            if found is None:
                return None
            total += found
        return total

    async def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        """Yield the portions of each.

        Raises:
            As the one that is read does; its message names it.
        """
        begin, own = _parted(start) if start is not None else (_Start(), None)
        self._marks, self._read, self._blank, self._warnings = [], [], 0, []
        for source in self._sources[begin.number :]:
            self._begin(begin, source, own)
            # Before it is read: one that grows meanwhile is refused later, rather than passed over in part.
            before = _grown(begin.before, source)
            try:
                async with aclosing(source.read(own)) as portions:
                    async for portion in portions:
                        yield self._shifted(portion)
                        self._keep()
            except (InputDamaged, RunStopped) as error:
                _name(error, source)
                raise
            last, own = self._end(source), None
            begin = _Start(begin.number + 1, begin.index + last.lines, begin.bytes + last.bytes, before)

    def _begin(self, start: _Start, source: Source, own: InputMark | None) -> None:
        self._note(start)
        self._start, self._reading, self._told = start, source, 0
        self._newest = own
        self._read.append(source)

    def _end(self, source: Source) -> InputMark:
        """Note what it said in the end; return the mark behind all of it."""
        self._keep()
        self._warnings = list(self.warnings)
        self._blank += source.blank
        self._reading = None
        return self._newest or InputMark(0, 0, "")

    def _note(self, start: _Start) -> None:
        """Remember where an input begins, for :meth:`place`."""
        at = bisect_left(self._starts, start.number, key=lambda known: known.number)
        if at == len(self._starts) or self._starts[at].number != start.number:
            self._starts.insert(at, start)

    def recall(self, marks: Iterable[InputMark]) -> None:
        """Learn from the marks of earlier runs where inputs begin that will not be read again."""
        for start in {start.number: start for start, _ in map(_parted, marks)}.values():
            self._note(start)

    def _shifted(self, portion: Iterable[Entry]) -> Iterable[Entry]:
        shift = self._start.index
        return portion if not shift else ((index + shift, record) for index, record in portion)

    def take_marks(self) -> list[InputMark]:
        """The marks not taken yet."""
        self._keep()
        marks, self._marks = self._marks, []
        return marks

    def _keep(self) -> None:
        """Take over the marks of the one that is read: the last of them says where the next one begins."""
        marks = self._reading.take_marks() if self._reading is not None else []
        if not marks:
            return
        self._newest = marks[-1]
        self._marks += [self._start.mark(mark) for mark in marks]
        if len(self._marks) > _MARKS_KEPT:
            self._marks = self._marks[-1:]  # nobody takes them

    def identity(self) -> InputIdentity | None:
        """All of them together: the sum of the sizes, and a digest of what each is."""
        digest, size = hashlib.sha256(), 0
        for source in self._sources:
            there = source.identity()
            if there is None:
                return None
            size += there.size
            digest.update(repr(replace(there, path="")).encode())
        return InputIdentity(str(self.path), 0, 0, size, 0, 0, "several", digest.hexdigest())

    def first_difference(self, marks: Sequence[InputMark]) -> tuple[int, int] | None:
        """None: whatever is wrong is told with the name of the input in which it is.

        Raises:
            StateMismatch: An input is not what it was, is missing, or stands at another place.
        """
        parted: dict[int, list[InputMark]] = {}
        starts: dict[int, _Start] = {}
        for start, own in map(_parted, marks):
            parted.setdefault(start.number, []).append(own)
            starts.setdefault(start.number, start)
        self._refuse_missing(max(parted, default=0))
        for number, own_marks in sorted(parted.items()):
            source = self._sources[number]
            if (lines := source.first_difference(own_marks)) is not None:
                where = f"first difference in lines {lines[0]}-{lines[1]}"
                raise StateMismatch(f"{source.path} is not what input {number + 1} was ({where})", hint=_HINT)
        self._refuse_other_sizes(starts)
        return None

    def _refuse_missing(self, last: int) -> None:
        if last >= len(self._sources):
            raise StateMismatch(
                f"the last run had read {last + 1} inputs, and there are {len(self._sources)} now", hint=_HINT
            )

    def _refuse_other_sizes(self, starts: dict[int, _Start]) -> None:
        """Refuse an input that is longer or shorter than when the ones behind it were read."""
        before, since = "", list[str]()
        for number, source in enumerate(self._sources[: max(starts, default=0)]):
            before = _grown(before, source)
            since.append(str(source.path))
            known = starts.get(number + 1)
            if known is not None and known.before != before:
                raise StateMismatch(
                    f"{' or '.join(since)} is not of the size it was when the input behind it was read",
                    hint="new records belong at the end of the last input, or into one behind it",
                )
            if known is not None:
                since.clear()

    def changed(self) -> bool:
        """Whether one of those that were read has changed since."""
        return any(source.changed() for source in self._read)

    def place(self, index: int) -> tuple[str | None, int | None]:
        """The path of the input an entry stands in, and its line there, where reading has come by it in some run."""
        at = bisect_right(self._starts, index, key=lambda start: start.index) - 1
        if at < 0:
            return None, None
        start = self._starts[at]
        source = self._sources[start.number]
        return source.path, index - start.index + 1 if source.numbered else None


_ESTIMATED: Final = 100


def _grown(before: str, source: Source) -> str:
    """A digest of the sizes of one more input."""
    there = source.identity()
    size = there.size if there is not None else 0
    return hashlib.sha256(f"{before}:{size}".encode()).hexdigest()[:16]


def _name(error: StageflowError, source: Source) -> None:
    """Let the message say which input it is about."""
    if str(source.path) not in error.message:
        error.message = f"{source.path}: {error.message}"
        error.args = (error.message,)
