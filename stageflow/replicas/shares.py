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

from bisect import bisect_left
from collections import deque
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

_FEW: Final = 100
_STALE: Final = 1e-5
"""Where there are more replicas than a few, what is fair is found anew after this part of a lifetime for each of them
beyond those, and not at each asking; how much is free is known exactly. So an asking costs about the same whatever
their number."""

_ROUNDING: Final = 1e-9


@dataclass(slots=True)
class _Holder:
    """What is known of a replica.

    Attributes:
        wants: Of the whole; infinity: it is hungry.
        since: When it was given a share after it had none.
        last: When it gave one back, or joined: who has waited longest comes first.
        new: It has not been granted, or refused, anything yet.
        counted: Its part of the sum of the shares that are out.
    """

    last: float
    seen: float
    share: float = 0.0
    expires: float = -inf
    wants: float = inf
    used: float = 0.0
    since: float = -inf
    new: bool = True
    counted: float = 0.0

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
        self._grants: deque[tuple[float, _Holder]] = deque()  # by when they expire, also those that were replaced
        self._out = 0.0  # the sum of the shares that are out
        self._out_count = 0
        self._stale_at = -inf  # when the following are to be found anew
        self._whole = 1.0  # less what those hold who have left
        self._places_away = 0  # how many those are
        self._fair = inf
        self._waiting: list[float] = []  # since when those wait that have no share and are hungry, the longest first

    def join(self, who: str, now: float) -> None:
        """A replica begins: it counts as hungry from now on, so that those who ask before it leave it its part."""
        now = self._look(now)
        self._forget(now)
        holder = self._holders.setdefault(who, _Holder(now, now))
        holder.seen, holder.wants, holder.new = now, inf, True
        self._stale_at = -inf

    def leave(self, who: str) -> None:
        """A replica asks no more. Its share is out until it expires."""
        if who in self._holders:
            self._holders[who].seen = -inf
            self._stale_at = -inf

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
        if who not in self._holders:
            self._holders[who] = _Holder(now, now)
            self._stale_at = -inf
        me = self._holders[who]
        me.seen, me.used = now, max(min(used, 1.0), me.used * _MEMORY)
        me.wants = inf if waiting or me.new else self._kept(me)
        if now < self._silent_until:
            return 0.0
        if now >= self._stale_at:
            self._count(now)
        granted = min(self._wanted(me, now), 1.0 - (self._out - me.counted))
        if granted < max(self._smallest - _ROUNDING, _ROUNDING):
            granted = 0.0
        self._grant(me, granted, now)
        return granted

    def _grant(self, me: _Holder, granted: float, now: float) -> None:
        if not granted and me.share:
            me.last = now
        if granted and not me.counted:
            me.since = now
        self._take(me, granted)
        me.share, me.expires, me.new = granted, now + self._lifetime, False
        self._grants.append((me.expires, me))

    def _look(self, now: float) -> float:
        self._now = max(self._now, now)
        while self._grants and self._grants[0][0] <= self._now:
            _, holder = self._grants.popleft()
            if holder.expires <= self._now:
                self._take(holder, 0.0)
        return self._now

    def _take(self, holder: _Holder, share: float) -> None:
        """It has this much of the whole from now on."""
        self._out += share - holder.counted
        self._out_count += (share > 0) - (holder.counted > 0)
        holder.counted = share

    def _count(self, now: float) -> None:
        """Look at all replicas: what is fair, and who waits. The sum of shares is made exact again, too."""
        here, self._whole, self._out, self._places_away = [], 1.0, 0.0, 0
        for holder in self._holders.values():
            self._out += holder.counted
            if now - holder.seen <= self._lifetime:
                here.append(holder)
            else:
                self._whole -= holder.counted
                self._places_away += holder.counted > 0
        self._fair = _fair([holder.wants for holder in here], self._whole)
        if self._fair < self._smallest - _ROUNDING:
            self._waiting = sorted(holder.last for holder in here if holder.wants == inf and not holder.counted)
        self._stale_at = now + self._lifetime * _STALE * max(0, len(self._holders) - _FEW)

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

    def _wanted(self, me: _Holder, now: float) -> float:
        if self._fair >= self._smallest - _ROUNDING:
            return min(me.wants, self._fair)
        places = max(1, int(self._whole / self._smallest + _ROUNDING))
        return self._whole / places if self._has_turn(me, places, now) else 0.0

    def _has_turn(self, me: _Holder, places: int, now: float) -> bool:
        if me.wants < inf and self._waiting:
            return False  # who needs nothing at the moment makes room at once, and queues again
        if me.counted:
            return now - me.since < self._turn
        before = bisect_left(self._waiting, me.last) + self._out_count - self._places_away
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
