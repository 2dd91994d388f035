"""Whether replicas end by themselves before they have worked: the job, or the machines, are not fit for it. Pure."""

from __future__ import annotations

__all__ = ["Idling"]


class Idling:
    """Counts the replicas that have gone, one after another, without having been given anything to do.

    It says nothing of the rest: as long as one works, the run goes on, however often another fails to begin.

    Attributes:
        count: So many, since one was given something to do. 0 while one works.
    """

    def __init__(self) -> None:
        self._at_work: set[str] = set()
        self._gone = 0

    @property
    def count(self) -> int:
        return 0 if self._at_work else self._gone

    def works(self, who: str) -> None:
        """A replica has something to do, or has nothing because all is done."""
        self._at_work.add(who)
        self._gone = 0

    def left(self, who: str) -> None:
        """One has done all it had."""
        self._at_work.discard(who)

    def died(self, who: str) -> None:
        """One is gone."""
        if who in self._at_work:
            self._at_work.remove(who)
        else:
            self._gone += 1
