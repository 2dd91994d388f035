"""What a source of parts of an input leaves to whoever has all of it."""

from __future__ import annotations

from collections.abc import Sequence

from stageflow.commit import InputMark
from stageflow.protocols import Entry

__all__ = ["PartialSource"]


class PartialSource:
    """What a run asks of its source beside records, where another one has checked the input and marks its places.

    See :class:`stageflow.protocols.Source`.
    """

    def check(self) -> None: ...

    def peek(self, n: int) -> Sequence[Entry]:
        return ()

    def take_marks(self) -> list[InputMark]:
        return []

    def identity(self) -> None: ...

    def first_difference(self, marks: Sequence[InputMark]) -> None: ...

    def changed(self) -> bool:
        return False

    def estimate(self) -> None: ...
