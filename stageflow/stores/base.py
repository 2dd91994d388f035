"""Where a run past one machine keeps what it has done: names and bytes, and one promise, to create a name only once.

Everything blocks, and may be called from any thread, from several at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Store"]


class Store(Protocol):
    """A place for objects, each under a name like ``a/b.json``.

    Whatever fails raises :class:`OSError`, with ``errno`` and one line of text.

    Attributes:
        url: What the user calls it.
    """

    url: str

    def check(self) -> None:
        """See that it can be written, and that it creates a name only once.

        Raises:
            RequestError: It can't, or it doesn't: then two replicas could both believe that a shard is theirs.
        """
        ...

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The names that begin with the prefix, sorted, each with its size in bytes."""
        ...

    def read(self, name: str) -> bytes:
        """What is there.

        Raises:
            FileNotFoundError: Nothing.
        """
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write it, whatever was there. Who reads meanwhile sees all of it, or what was there before."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write it if there is nothing of that name. Of all who try, at most one is told ``True``.

        Where the answer of a service is lost, and it is asked again, the one whose object is there may be told
        ``False``: who must know reads it.
        """
        ...

    def publish(self, source: str, target: str) -> None:
        """Give it another name. May be repeated: where the source is gone and the target is there, it is done.

        Raises:
            FileNotFoundError: Neither is there.
        """
        ...

    def delete(self, name: str) -> None:
        """Take it away, if it is there."""
        ...
