"""What all shards came to, read in the order of the input.

Dead letters count lines within their shards, since whoever wrote them knew no more; here they get their places in the
whole input: the index is counted over all its files, the line in its own.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from stageflow.cluster.commits import dead_name, part_name
from stageflow.cluster.messages import ShardCommit
from stageflow.cluster.plan import PlannedFile, Shard, ShardPlan
from stageflow.errors import StorageError
from stageflow.stores import Store

__all__ = ["Parts"]

_READERS: Final = 8
_AHEAD_BYTES: Final = 64 * 1024 * 1024
"""Parts are read before it is their turn, since each is a round trip, while they hold no more than this."""

_BLOCK_BYTES: Final = 1024 * 1024

_BEGINNING: Final = re.compile(rb'\{"index":(\d+),"line":(?:null|\d+),"path":(?:null|"(?:[^"\\]|\\.)*"),')
"""How a letter begins."""


class Parts:
    """The results and the dead letters of a complete run.

    Attributes:
        out_lines, dead_lines: How many there are in all.
        uncounted: There are failed shards whose lines can't be counted, as the input is not here, or not as it was.

    Raises:
        StorageError: What was committed is not there.
    """

    def __init__(self, store: Store, plan: ShardPlan, commits: Mapping[int, ShardCommit]) -> None:
        self._store = store
        self._plan = plan
        self._commits = [commits[shard.number] for shard in plan.shards]
        self.out_lines = sum(commit.out_lines for commit in self._commits)
        self.dead_lines = sum(commit.dead_lines for commit in self._commits)
        self.uncounted = False
        self._first = self._counted() if self.dead_lines else []
        try:
            self._sizes = {**dict(store.names("part-")), **dict(store.names("dead/part-"))}
        except OSError as error:
            raise StorageError(f"cannot read {store.url}: {error.strerror or error}") from error

    def results(self) -> Iterator[bytes]:
        """The lines of each shard."""
        wanted = [(part_name(commit.number), commit.out_lines) for commit in self._commits if commit.out_lines]
        return self._read(wanted)

    def letters(self) -> Iterator[bytes]:
        """The dead letters of each shard."""
        numbers = [commit.number for commit in self._commits if commit.dead_lines]
        wanted = [(dead_name(number), self._commits[number].dead_lines) for number in numbers]
        for number, data in zip(numbers, self._read(wanted), strict=True):
            path = self._plan.files[self._plan.shards[number].file].path
            index, line = self._first[number]
            yield b"".join(
                self._placed(letter, dead_name(number), index, line, path) + b"\n" for letter in data.split(b"\n")[:-1]
            )

    def _placed(self, letter: bytes, name: str, index: int, line: int | None, path: str) -> bytes:
        """A letter with its place in the input; the rest of it stays byte for byte what it was."""
        found = _BEGINNING.match(letter)
        if found is None:
            raise self._changed(name)
        place = int(found[1])
        where = {"index": index + place, "line": None if line is None else line + place, "path": path}
        beginning = json.dumps(where, ensure_ascii=False, separators=(",", ":"))
        return beginning[:-1].encode(errors="surrogateescape") + b"," + letter[found.end() :]

    def _counted(self) -> list[tuple[int, int | None]]:
        """By shard, the index and the line of its first line."""
        first: list[tuple[int, int | None]] = []
        index, file = 0, -1
        line: int | None = 1
        for shard, commit in zip(self._plan.shards, self._commits, strict=True):
            if shard.file != file:
                file, line = shard.file, 1
            first.append((index, line))
            lines = _lines_of(self._plan.files[file], shard) if commit.failed else commit.lines
            if lines is None:
                self.uncounted, line = True, None
            else:
                index, line = index + lines, None if line is None else line + lines
        return first

    def _read(self, wanted: list[tuple[str, int]]) -> Iterator[bytes]:
        """Read parts, some of them ahead, and see that each has as many lines as were committed."""
        left, waiting, held = deque(wanted), deque[tuple[str, int, Future[bytes]]](), 0
        with ThreadPoolExecutor(_READERS) as readers:
            while left or waiting:
                while left and len(waiting) < _READERS and held <= _AHEAD_BYTES:
                    name, lines = left.popleft()
                    held += self._size(name)
                    waiting.append((name, lines, readers.submit(self._store.read, name)))
                name, lines, read = waiting.popleft()
                try:
                    data = read.result()
                except OSError as error:
                    raise StorageError(f"cannot read {name} of {self._store.url}: {error.strerror or error}") from error
                if data.count(b"\n") != lines or not data.endswith(b"\n"):
                    raise self._changed(name)
                yield data
                held -= self._size(name)

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            raise StorageError(f"{self._store.url} lacks {name}, which was committed", hint="restore it from a copy")
        return self._sizes[name]

    def _changed(self, name: str) -> StorageError:
        return StorageError(f"{name} of {self._store.url} is not what was committed", hint="restore it from a copy")


def _lines_of(file: PlannedFile, shard: Shard) -> int | None:
    """The lines of a shard of which nothing was made; ``None`` where they can't be counted."""
    if shard.end is None:
        return None
    try:
        found = os.stat(file.place)
        if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
            return None
        # A line begins at the beginning of the file and behind each LF but the last one of all.
        lines, at, end = int(shard.start == 0), max(0, shard.start - 1), shard.end - 1
        with open(file.place, "rb") as text:
            text.seek(at)
            while at < end and (block := text.read(min(_BLOCK_BYTES, end - at))):
                lines, at = lines + block.count(b"\n"), at + len(block)
    except OSError:
        return None
    return lines
