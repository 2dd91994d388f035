"""What was made of each shard, decided once: the commits of an output, in its store.

A replica that has done a shard writes its results and dead letters as an attempt, under names that are nobody else's;
creates the commit record, which the store does only once per shard, and that is the decision; and publishes the attempt
under its final names::

    _stageflow/attempts/000017.2-5f3a9c01.out  .dead     what a replica made of shard 17
    _stageflow/commits/000017.json                       whose it is, and what it comes to
    part-000017.jsonl  dead/part-000017.jsonl            the same as the attempt, whose names are gone then
    _stageflow/commits-snapshot.json                     what many records say, so that a later run need not read them

Whoever is killed leaves one of three things:

- An attempt of a shard that has no record. It may be that of a replica which is alive and about to create the record,
  so it stays until the shard has one.
- An attempt of a shard whose record names another: of no use to anybody; it is swept.
- An attempt of a shard whose record names it: it is published.

The names of attempts hold a number drawn for each, so two runs over one output that count attempts alike never write
over each other's. The record holds it, too: by it a replica knows its own record where the answer to its creation was
lost.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from stageflow.cluster.messages import ShardCommit
from stageflow.errors import StorageError
from stageflow.stores import Store

__all__ = ["Commits", "dead_name", "part_name"]

_ATTEMPTS: Final = "_stageflow/attempts/"
_COMMITS: Final = "_stageflow/commits/"
_SNAPSHOT: Final = "_stageflow/commits-snapshot.json"
_VERSION: Final = 1
_READERS: Final = 16
"""More records than this are read so many at a time: each is a round trip."""

_TRIES: Final = 3
"""A service that is asked by several at once may refuse all of them, and ask them to try again."""

_ATTEMPT: Final = re.compile(r"(\d{6,})\.(\d+)-([0-9a-f]{8})\.(out|dead)")
_COMMIT: Final = re.compile(r"(\d{6,})\.json")
_FIELDS: Final = tuple(field.name for field in fields(ShardCommit))
_values: Final = attrgetter(*_FIELDS)


def part_name(number: int) -> str:
    """Where the results of a shard stand."""
    return f"part-{number:06}.jsonl"


def dead_name(number: int) -> str:
    """Where the dead letters of a shard stand."""
    return f"dead/part-{number:06}.jsonl"


@dataclass(frozen=True, slots=True)
class _Record:
    """A commit record: what was made of a shard, and the number that was drawn for the attempt."""

    commit: ShardCommit
    drawn: str

    @property
    def publications(self) -> list[tuple[str, str]]:
        """The names of the attempt's objects, each with its final one."""
        commit, attempt = self.commit, f"{_ATTEMPTS}{self.commit.number:06}.{self.commit.attempt}-{self.drawn}"
        lines = {(f"{attempt}.out", part_name(commit.number)): commit.out_lines}
        lines[f"{attempt}.dead", dead_name(commit.number)] = commit.dead_lines
        return [names for names, count in lines.items() if count]


class Commits:
    """The commits of an output. Everything blocks, and may be called from any thread and in any process.

    Raises:
        StorageError: The store can't be read or written, or a record in it is damaged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def commit(self, found: ShardCommit, out: bytes, dead: bytes) -> ShardCommit:
        """Make it known what a shard came to, unless somebody has.

        Args:
            out, dead: Lines of results and of dead letters, as many as ``found`` says.

        Returns:
            What the shard comes to: ``found``, or what another has committed before. It is published.
        """
        assert bool(out) == bool(found.out_lines), "lines of output that are not counted"
        assert bool(dead) == bool(found.dead_lines), "dead letters that are not counted"
        own = _Record(found, secrets.token_hex(4))
        with self._storing():
            for attempt, final in own.publications:
                self._store.put(attempt, dead if final == dead_name(found.number) else out)
            winner = self._decide(own)
            if winner != own:
                for attempt, _ in own.publications:
                    self._store.delete(attempt)
            self._publish(winner)
        return winner.commit

    def all(self) -> dict[int, ShardCommit]:
        """The commits there are, by the number of the shard, in its order."""
        with self._storing():
            numbers = [number for name, _ in self._store.names(_COMMITS) if (number := _number_of(name)) is not None]
            known = self._snapshot() if numbers else {}
            missing = [number for number in numbers if number not in known]
            known.update((record.commit.number, record.commit) for record in self._read_all(missing))
        return {number: known[number] for number in sorted(numbers)}

    def repair(self) -> dict[int, ShardCommit]:
        """Finish what was decided and not published, and sweep the attempts that lost. Others may be at work meanwhile.

        For the start of a run, and for its end: what a shard was given up with is swept when it has a commit.

        Returns:
            The commits, as :meth:`all`.
        """
        with self._storing():
            # Listed first: the commit that an attempt found here is waiting for may be made before commits are listed.
            attempts = [(name, found) for name, _ in self._store.names(_ATTEMPTS) if (found := _attempt_of(name))]
            commits = self.all()
            decided = {number for _, (number, _) in attempts if number in commits}
            winners = {record.commit.number: record for record in self._read_all(sorted(decided))}
            for name, (number, drawn) in attempts:
                if number in winners and winners[number].drawn != drawn:
                    self._store.delete(name)
            for winner in winners.values():
                self._publish(winner)
        return commits

    def compact(self, commits: Mapping[int, ShardCommit]) -> None:
        """Write down commits that are known, so that whoever asks for all of them need not read each.

        Two that do so at once do no harm: a record that was left out is read.
        """
        rows = [_values(commits[number]) for number in sorted(commits)]
        text = json.dumps({"stageflow": "commits", "version": _VERSION, "rows": rows}, separators=(",", ":"))
        with self._storing():
            self._store.put(_SNAPSHOT, text.encode())

    def _decide(self, own: _Record) -> _Record:
        """Create the record; return the one that is there."""
        number = own.commit.number
        for _ in range(_TRIES):
            if self._store.create(_record_name(number), _encoded(own)):
                return own
            with suppress(FileNotFoundError):
                return self._read(number)
        raise OSError(errno.EIO, f"{_record_name(number)} can be neither created nor read")

    def _publish(self, winner: _Record) -> None:
        for attempt, final in winner.publications:
            try:
                self._store.publish(attempt, final)
            except FileNotFoundError as error:
                raise StorageError(
                    f"{self._store.url} has a commit of shard {winner.commit.number}, and not its {final}",
                    hint="restore it from a copy, or choose another output",
                ) from error

    def _read(self, number: int) -> _Record:
        name = _record_name(number)
        record = _decoded(self._store.read(name), number)
        if record is None:
            raise StorageError(
                f"{self._store.url}: {name} is no commit record of this version of stageflow, or it is damaged",
                hint="restore it from a copy, or choose another output",
            )
        return record

    def _read_all(self, numbers: list[int]) -> Iterable[_Record]:
        if len(numbers) <= _READERS:
            return map(self._read, numbers)
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self._read, numbers))

    def _snapshot(self) -> dict[int, ShardCommit]:
        """What the snapshot says. A record says the same, so one that can't be read is none."""
        try:
            found = json.loads(self._store.read(_SNAPSHOT))
            if (found["stageflow"], found["version"]) != ("commits", _VERSION):
                return {}
            commits = [_commit_of(dict(zip(_FIELDS, row, strict=True))) for row in found["rows"]]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return {}
        return {commit.number: commit for commit in commits if commit is not None}

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot use {self._store.url}: {error.strerror or error}") from error


def _record_name(number: int) -> str:
    return f"{_COMMITS}{number:06}.json"


def _number_of(name: str) -> int | None:
    found = _COMMIT.fullmatch(name.removeprefix(_COMMITS))
    return int(found[1]) if found else None


def _attempt_of(name: str) -> tuple[int, str] | None:
    """The shard an attempt is of, and its number that was drawn."""
    found = _ATTEMPT.fullmatch(name.removeprefix(_ATTEMPTS))
    return (int(found[1]), found[3]) if found else None


def _encoded(record: _Record) -> bytes:
    commit = dict(zip(_FIELDS, _values(record.commit), strict=True))
    return json.dumps({"version": _VERSION, "drawn": record.drawn, **commit}).encode()


def _decoded(data: bytes, number: int) -> _Record | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        return None
    drawn, commit = found.pop("drawn", None), _commit_of(found)
    if not isinstance(drawn, str) or not re.fullmatch("[0-9a-f]{8}", drawn):
        return None
    return _Record(commit, drawn) if commit is not None and commit.number == number else None


def _commit_of(found: dict[str, Any]) -> ShardCommit | None:
    """A commit of exactly the fields it has, each of its type; else none."""
    if found.keys() != set(_FIELDS) or type(found["failed"]) is not bool:
        return None
    counts = [found[name] for name in _FIELDS if name != "failed"]
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return ShardCommit(**found)
