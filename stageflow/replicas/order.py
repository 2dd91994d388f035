"""What becomes of the commits of several replicas before they are written: joined, or put in the order of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stageflow.commit import Commit

__all__ = ["InputOrder", "merged"]


def merged(commits: Iterable[Commit]) -> Commit:
    """One commit of several, which are of different records."""
    whole = Commit()
    for commit in commits:
        whole.ordinals += commit.ordinals
        whole.lines += commit.lines
        whole.line_counts |= commit.line_counts
        whole.letters += commit.letters
        whole.letter_counts |= commit.letter_counts
        whole.marks += commit.marks
        whole.places |= commit.places
        whole.resolved += commit.resolved
        whole.replaced += commit.replaced
    return whole


class InputOrder:
    """Holds back lines until everything before them in the input is done, shard by shard."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[int, list[Any]]]] = {}
        self._done: set[int] = set()
        self._next = 0

    def hold(self, shard: int, index: int, lines: list[Any]) -> None:
        """Take the lines of a record that has settled."""
        if lines:
            self._held.setdefault(shard, []).append((index, lines))

    def release(self, done: Iterable[int]) -> Commit:
        """The lines whose turn it is, now that these shards are done."""
        commit = Commit()
        self._done.update(done)
        while self._next in self._done:
            self._done.remove(self._next)
            for index, lines in self._sorted(self._next):
                commit.ordinals.append(index)
                commit.lines += lines
                if len(lines) != 1:
                    commit.line_counts[index] = len(lines)
            self._next += 1
        return commit

    def rest(self) -> Commit:
        """What is held when the run ends before its input does: whole records, in order, with gaps between them."""
        return self.release(range(self._next, max(self._held, default=-1) + 1))

    def _sorted(self, shard: int) -> Iterator[tuple[int, list[Any]]]:
        return iter(sorted(self._held.pop(shard, []), key=lambda each: each[0]))
