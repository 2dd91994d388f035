"""How a limit that holds for a whole run is divided among the replicas that work on it. Pure: the time is a number.

The rules:

* A replica is granted a *share*, a fraction of the limit, for a time. The shares that are out never sum to more than
  the whole. A share expires by itself, counted from when it was asked for: that of a replica which is lost, too.
* A replica that has calls waiting, or was never seen before, is *hungry*: it could use all there is. The others want a
  little more than they have used of late, so that the next call need not wait for a new share.
* What all want is divided by max-min fairness: nobody is given more than it wants, and nobody less than an even part
  of what those who want less leave over. Divided by what each has used, the one that was held back would look idle,
  and get less.
* A share that is worth less than one permit per second (``smallest``) is useless: permits would come to idle hands.
  Where even shares would be as small as that, few of the hungry hold one at a time, and take turns: who has waited
  longest comes next. Between the end of a turn and the next asking nobody has the share, so that turns are long.

Source: D. Bertsekas, R. Gallager, "Data Networks", 1992, 6.5.2 (max-min fair flow control).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

__all__ = ["Shares"]

_MARGIN: Final = 1.2
"""What a replica that is not hungry wants, in times what it used."""

_MEMORY: Final = 0.5
"""How much of the use told before counts at an asking. Where calls are few, an asking meets one or none by chance."""

_RESERVE: Final = 0.04
"""The part of the limit that idle replicas keep at most, all together, to start their next calls from."""

_TURN: Final = 10
"""Lifetimes that a turn lasts at least. After each the share is idle until the next asking, at most a lifetime."""

_ROUNDING: Final = 1e-9


@dataclass(slots=True)
class _Holder:
    """What is known of a replica.

    Attributes:
        wants: Of the whole; infinity: it is hungry.
        since: When it was given a share after it had none.
        last: When it gave one back, or joined: who has waited longest comes first.
        new: It has not been granted, or refused, anything yet.
    """

    last: float
    seen: float
    share: float = 0.0
    expires: float = -inf
    wants: float = inf
    used: float = 0.0
    since: float = -inf
    new: bool = True

    def out(self, now: float) -> float:
        return self.share if self.expires > now else 0.0


class Shares:
    """The shares of one limit.

    A clock that goes back counts as standing still.

    Args:
        lifetime: Seconds that a share is good for; > 0, and longer than the time between two askings.
        smallest: The smallest share that is of use, 0 to 1.
        turn: Seconds after which a share is handed on where replicas take turns; as long as it takes to use it, or
            longer. Not less than ten lifetimes.
        silent_until: Nothing is granted before: shares of a coordinator before this one may still be out.
    """

    def __init__(
        self, *, lifetime: float, smallest: float = 0.0, turn: float = 0.0, silent_until: float = -inf
    ) -> None:
        assert lifetime > 0, "a share that is never good"
        self._lifetime = lifetime
        self._smallest = min(1.0, smallest)
        self._turn = max(turn, _TURN * lifetime)
        self._silent_until = silent_until
        self._now = -inf
        self._holders: dict[str, _Holder] = {}

    def join(self, who: str, now: float) -> None:
        """A replica begins: it counts as hungry from now on, so that those who ask before it leave it its part."""
        now = self._look(now)
        self._forget(now)
        holder = self._holders.setdefault(who, _Holder(now, now))
        holder.seen, holder.wants, holder.new = now, inf, True

    def leave(self, who: str) -> None:
        """A replica asks no more. Its share is out until it expires."""
        if who in self._holders:
            self._holders[who].seen = -inf

    def outstanding(self, now: float) -> float:
        """The sum of the shares that are out."""
        now = self._look(now)
        return sum(holder.out(now) for holder in self._holders.values())

    def ask(self, who: str, now: float, *, used: float, waiting: bool) -> float:
        """Ask for a share, in the place of the one that is held.

        Args:
            used: The part of the whole limit that was used since the last asking, >= 0.
            waiting: Calls waited for their permit.

        Returns:
            The share, from 0 to 1, for ``lifetime`` seconds from when this was sent.
        """
        now = self._look(now)
        me = self._holders.setdefault(who, _Holder(now, now))
        me.seen, me.used = now, max(min(used, 1.0), me.used * _MEMORY)
        me.wants = inf if waiting or me.new else self._kept(me)
        if now < self._silent_until:
            return 0.0
        others = [holder for holder in self._holders.values() if holder is not me]
        free = 1.0 - sum(holder.out(now) for holder in others)
        granted = min(self._wanted(me, others, now), free)
        if granted < max(self._smallest - _ROUNDING, _ROUNDING):
            granted = 0.0
        if not granted and me.share:
            me.last = now
        if granted and not me.out(now):
            me.since = now
        me.share, me.expires, me.new = granted, now + self._lifetime, False
        return granted

    def _look(self, now: float) -> float:
        self._now = max(self._now, now)
        return self._now

    def _forget(self, now: float) -> None:
        """Of a replica that does not ask any more nothing is to be known once its share has expired."""
        for who, holder in list(self._holders.items()):
            if now - holder.seen > self._lifetime and not holder.out(now):
                del self._holders[who]

    def _kept(self, me: _Holder) -> float:
        reserve = _RESERVE / len(self._holders)
        if me.used <= reserve and self._smallest > reserve:
            return 0.0
        return max(_MARGIN * me.used, reserve, self._smallest)

    def _wanted(self, me: _Holder, others: list[_Holder], now: float) -> float:
        here = [holder for holder in others if now - holder.seen <= self._lifetime]
        whole = 1.0 - sum(holder.out(now) for holder in others if now - holder.seen > self._lifetime)
        fair = _fair([me.wants, *(holder.wants for holder in here)], whole)
        if fair >= self._smallest - _ROUNDING:
            return min(me.wants, fair)
        places = max(1, int(whole / self._smallest + _ROUNDING))
        return whole / places if self._has_turn(me, here, places, now) else 0.0

    def _has_turn(self, me: _Holder, others: list[_Holder], places: int, now: float) -> bool:
        waiting = [holder for holder in others if holder.wants == inf and not holder.out(now)]
        if me.wants < inf and waiting:
            return False  # who needs nothing at the moment makes room at once, and queues again
        if me.out(now):
            return now - me.since < self._turn
        before = sum(holder.last < me.last for holder in waiting) + sum(holder.out(now) > 0 for holder in others)
        return before < places and me.wants > 0


def _fair(wants: Iterable[float], whole: float) -> float:
    """The most that anybody is given: an even part of what those who want less leave over; infinity: all they want."""
    wants = sorted(wants)
    for place, wanted in enumerate(wants):
        even = whole / (len(wants) - place)
        if wanted > even:
            return even
        whole -= wanted
    return inf
