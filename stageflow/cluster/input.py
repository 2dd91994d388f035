"""The input of a run past one machine, as the one that starts it sees it: files that are looked at and not read."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from stageflow.adapters.chain import ChainedSource
from stageflow.adapters.jsonl import JsonlSource
from stageflow.cluster.plan import PlannedFile
from stageflow.commit import InputIdentity, InputMark
from stageflow.errors import RequestError
from stageflow.files import Files, chosen, is_url, sources_of_files
from stageflow.options import Options
from stageflow.protocols import Entry

__all__ = ["ShardedInput"]


class ShardedInput:
    """Files of JSON lines; see :class:`stageflow.protocols.Source`.

    Args:
        source: A path, a pattern, an address or several of them.

    Raises:
        RequestError: It is something that other machines can't read by themselves.
    """

    def __init__(self, source: Any, options: Options) -> None:
        given = chosen([os.fspath(source)]) if isinstance(source, (str, os.PathLike)) else source
        if not isinstance(given, (str, Files)) or given == "-":
            what = "standard input" if given == "-" else "records from Python"
            raise RequestError(
                f"{what} can't be read by every replica", hint="give files or addresses that every machine can read"
            )
        self._sources = sources_of_files(given, options)
        for each in self._sources:
            if not isinstance(each, JsonlSource):
                raise RequestError(
                    f"{each.path} is not JSON lines, and can't be cut into shards",
                    hint="give .jsonl, or .jsonl.gz or .zst",
                )
        self._whole = ChainedSource(self._sources)
        self.path = self._sources[0].path if len(self._sources) == 1 else self._whole.path
        self.numbered = False
        self.blank = 0
        self.warnings: Sequence[str] = ()

    @property
    def paths(self) -> list[str]:
        """The paths of all files."""
        return self._whole.paths

    def check(self) -> None:
        """Check each of them.

        Raises:
            RequestError: One can't be read, or not a second time.
        """
        self._whole.check()

    def files(self) -> tuple[PlannedFile, ...]:
        """What each of them is now."""
        found = []
        for source in self._sources:
            there = source.identity()
            assert there is not None, "a file that was checked"
            path = str(source.path)
            found.append(PlannedFile.of(there, path if is_url(path) else os.path.realpath(path)))
        return tuple(found)

    def identity(self) -> InputIdentity | None:
        """All of them together."""
        return self._whole.identity()

    def peek(self, n: int) -> Sequence[Entry]:
        """The first ``n`` entries."""
        return self._whole.peek(n)

    def estimate(self) -> int | None:
        """About how many records there are."""
        return self._whole.estimate()

    def read(self, start: InputMark | None = None) -> AsyncGenerator[Iterable[Entry], None]:
        raise AssertionError("replicas read it")

    def take_marks(self) -> list[InputMark]:
        return []

    def first_difference(self, marks: Sequence[InputMark]) -> None: ...

    def changed(self) -> bool:
        """Replicas look at it whenever they read."""
        return False
