"""Which part of the input is which shard; frozen with the output, so that every later run cuts it the same way.

A shard is a range of bytes of a text, and holds the records whose first bytes are in it: who has a range need know
nothing of the others. What is compressed can't be entered in the middle, and is one shard, however large it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final

from stageflow.commit import InputIdentity, JobIdentity
from stageflow.errors import RequestError, StateMismatch, StorageError
from stageflow.item import PLACES
from stageflow.stores.base import Store

__all__ = ["PLACES", "PlannedFile", "Shard", "ShardPlan", "place_in_shard", "shard_of"]

_NAME: Final = "_stageflow/plan.json"
_FORMAT: Final = 1

_MOST_SHARDS: Final = 200_000
_LARGEST_BYTES: Final = 1024 * 1024
_SMALLEST_BYTES: Final = 4096
_PER_REPLICA: Final = 20
"""Shards for each replica, where there is so much: the last one is then at most a twentieth of its work."""


def shard_of(index: int) -> int:
    """The number of the shard of a record."""
    return index // PLACES


def place_in_shard(index: int) -> int:
    """Which line of its shard a record is, from 0."""
    return index % PLACES


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the input, as it was when the run was first started.

    Args:
        path: As the user calls it. ``place``: where every machine finds it, a whole path or an address.
        size: In bytes, as it lies there.
        mtime_ns, version: What else tells it from what it was before, by its medium.
        codec: How it is compressed; "plain": it is not.
    """

    path: str
    place: str
    size: int
    mtime_ns: int
    version: str = ""
    codec: str = "plain"

    @classmethod
    def of(cls, there: InputIdentity, place: str) -> PlannedFile:
        return cls(there.path, place, there.size, there.mtime_ns, there.version, there.codec)

    def is_still(self, there: InputIdentity | None) -> bool:
        """Whether it has not been touched. On another machine it may be another device's."""
        return there is not None and replace(self.of(there, self.place), path=self.path) == self


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the input.

    Args:
        number: From 0, in the order of the input.
        file: The number of its file.
        start, end: The bytes in which its records begin; ``end`` is ``None`` where it is all of a file that can't be
            cut.
    """

    number: int
    file: int
    start: int = 0
    end: int | None = None

    @property
    def base(self) -> int:
        """The index of a record at its first line."""
        return self.number * PLACES


@dataclass(frozen=True)
class ShardPlan:
    """What a run is to do.

    Args:
        run: Its identity, kept over all its starts.
        shard_bytes: The size of a shard.
        files: The input, in its order.
        job: What was to be done, as digests.
    """

    run: str
    shard_bytes: int
    files: tuple[PlannedFile, ...]
    job: JobIdentity

    @cached_property
    def shards(self) -> Sequence[Shard]:
        """All shards."""
        found: list[Shard] = []
        for number, file in enumerate(self.files):
            if file.codec != "plain":
                found.append(Shard(len(found), number))
                continue
            for start in range(0, file.size, self.shard_bytes):
                found.append(Shard(len(found), number, start, min(start + self.shard_bytes, file.size)))
        return found

    # Where it is kept

    @classmethod
    def read(cls, store: Store) -> ShardPlan | None:
        """The plan of an output; ``None`` where no run has begun.

        Raises:
            StorageError: It can't be read.
        """
        try:
            found = json.loads(store.read(_NAME))
            if found["format"] != _FORMAT:
                raise StorageError(
                    f"{store.url} was begun by another version of stageflow",
                    hint="go on with that, or choose another output",
                )
            files = tuple(PlannedFile(**file) for file in found["files"])
            graph = {name: tuple(needs) for name, needs in found["job"].pop("graph").items()}
            return cls(found["run"], found["shard_bytes"], files, JobIdentity(**found["job"], graph=graph))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the plan of {store.url}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"the plan of {store.url} is damaged: {error}", hint="choose another output") from error

    def freeze(self, store: Store) -> bool:
        """Write it, unless there is one."""
        return store.create(_NAME, self._as_json())

    def rewrite(self, store: Store) -> None:
        """Put it in the place of the one that is there: it may differ in the job only."""
        store.put(_NAME, self._as_json())

    def _as_json(self) -> bytes:
        known: dict[str, Any] = {"format": _FORMAT, **asdict(self)}
        return json.dumps(known, indent=1).encode() + b"\n"

    # Whether a later run may go on with it

    def refuse_other_input(self, now: Sequence[PlannedFile]) -> None:
        """Refuse another input than the one that was cut.

        Raises:
            StateMismatch: It is another one, or was changed.
        """
        hint = "restore it, or choose another output"
        if len(now) != len(self.files):
            raise StateMismatch(
                f"the run was begun over {_files(len(self.files))}, and there are {len(now)}", hint=hint
            )
        for before, file in zip(self.files, now, strict=True):
            if before.place != file.place:
                raise StateMismatch(f"the run was begun over {before.path}, not over {file.path}", hint=hint)
            if before != replace(file, path=before.path):
                raise StateMismatch(f"{file.path} was changed since the run was begun", hint=hint)

    def mended(self, now: Sequence[PlannedFile], done: Collection[int]) -> ShardPlan:
        """The plan with those compressed files of the input as they are now of which nothing is committed.

        One that broke off is given whole the next time. It is one shard, whatever is in it.
        """
        if len(now) != len(self.files):
            return self
        committed = {shard.file for shard in self.shards if shard.number in done}
        files = [
            replace(after, path=before.path)
            if number not in committed and "plain" not in (before.codec, after.codec) and before.place == after.place
            else before
            for number, (before, after) in enumerate(zip(self.files, now, strict=True))
        ]
        return replace(self, files=tuple(files))

    def refuse_other_job(self, job: JobIdentity, changes: Callable[[JobIdentity, JobIdentity], list[str]]) -> None:
        """Refuse a job that is not what it was.

        Raises:
            StateMismatch: It would give other results.
        """
        if different := changes(self.job, job):
            raise StateMismatch(
                f"the job has changed since the run was begun: {', '.join(different)}",
                hint="--accept-job-change goes on with the new job for what is left; another output starts anew",
            )


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def shard_bytes(total: int, replicas: int, asked: int | None) -> int:
    """How large shards are to be: small enough that all replicas end at about the same time.

    Args:
        total: Bytes of the input.
        asked: What the user wants.

    Raises:
        RequestError: So many shards would take too long to list.
    """
    least = -(-total // _MOST_SHARDS)
    if asked is not None and asked < least:
        raise RequestError(
            f"shards of {asked:,} bytes would be more than {_MOST_SHARDS:,}", hint=f"give at least {least:,} bytes"
        )
    if asked is not None:
        return asked
    return max(least, min(_LARGEST_BYTES, max(_SMALLEST_BYTES, total // (_PER_REPLICA * replicas))))
