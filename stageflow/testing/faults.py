"""What shall go wrong at a service, and in which of its calls: decided beforehand, drawn from one seed.

How a fault finds its calls:

1. A fault fits the calls of its ``path`` and its ``model``; without them, all. ``calls`` are numbers among those it
   fits, from 1.
2. One without ``share`` strikes every call it fits, and is looked at before those that have one.
3. Each call has one draw for all the others: shares are parts of all calls that fit, and those of several faults add
   up. So 0.1 and 0.1 leave 0.8, and where they add up to more than 1, the last ones get what is left.
4. The first that strikes is what happens. Delays only take time: they are drawn for themselves, and add up.
5. ``reset_before`` comes before all others, since nothing but the head of the request has been read.

The draws depend on the seed and on the call's identity, and on nothing that happens to other calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from math import exp
from statistics import NormalDist
from typing import Final

__all__ = ["KINDS", "NO_FAULT", "Call", "Draws", "Fate", "Fates", "Fault", "Latency"]

_REFUSAL: Final = frozenset({"after"})
_WAIT: Final = frozenset({"retry_after", "retry_after_as"})
KINDS: Final = {
    "delay": frozenset({"seconds", "times"}),
    "rate_limit": _REFUSAL | _WAIT,
    "quota": _REFUSAL,
    "unauthorized": _REFUSAL,
    "error": _REFUSAL | _WAIT | {"status", "code", "message"},
    "reset_before": frozenset[str](),
    "reset_after": _REFUSAL,
    "reset_body": frozenset({"at"}),
    "cut_body": frozenset({"at"}),
    "truncated_json": frozenset({"at", "clean"}),
    "invalid_json": frozenset[str](),
    "stall": frozenset({"at"}),
    "error_event": frozenset({"at", "code", "message"}),
    "no_done": frozenset[str](),
    "slow_body": frozenset({"bytes", "pause"}),
    "hang": frozenset[str](),
    "content_type": frozenset({"content_type"}),
    "empty_choices": frozenset[str](),
    "length": frozenset[str](),
    "content_filter": frozenset[str](),
}
"""What may happen to a call, with the options that each takes."""

_NORMAL: Final = NormalDist()


class Draws:
    """Random numbers that are functions: the same seed, purpose and identity draw the same again.

    A generator would have to be seeded for each call, which takes ten times as long.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._key = str(seed).encode()[:64]

    def uniform(self, purpose: str, identity: str) -> float:
        """A number in [0, 1)."""
        said = f"{purpose} {identity}".encode()
        return (int.from_bytes(blake2b(said, key=self._key, digest_size=8).digest(), "big") >> 11) * 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long calls take: evenly between two numbers, or lognormal where ``sigma`` is given; and a tail.

    Args:
        low, high: Seconds, >= 0. Of a lognormal one ``low`` is the median.
        sigma: Of the logarithm of the seconds; > 0.
        tail: The part of the calls, 0 to 1, that takes ``times`` as long.
        times: > 0.
        most: No call takes longer, seconds.
    """

    low: float = 0.0
    high: float = 0.0
    sigma: float | None = None
    tail: float = 0.0
    times: float = 1.0
    most: float = float("inf")

    def draw(self, draws: Draws, purpose: str, identity: str) -> float:
        """Seconds, for the call of this identity."""
        seconds = self.low
        if self.sigma is not None:
            # The draw is below 1; at 0 the normal distribution has no value.
            level = max(draws.uniform(purpose, identity), 1e-12)
            seconds *= exp(self.sigma * _NORMAL.inv_cdf(level))
        elif self.high > self.low:
            seconds += (self.high - self.low) * draws.uniform(purpose, identity)
        if self.tail and draws.uniform(f"{purpose} tail", identity) < self.tail:
            seconds *= self.times
        return min(seconds, self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is known of a call when its fate is decided.

    Args:
        identity: What its draws go by.
        path: Without the ``/v1/`` in front.
        model: Empty as long as only the head has been read.
        number: From 1, in the order of arrival; among all calls,
        of_path, of_model, of_both: among those of its path, of its model, of both.
    """

    identity: str
    path: str
    model: str = ""
    number: int = 1
    of_path: int = 1
    of_model: int = 1
    of_both: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a script: which calls it strikes, and the options of its kind."""

    do: str
    path: str | None = None
    model: str | None = None
    calls: tuple[range, ...] | None = None
    share: float | None = None

    after: Latency | None = None
    seconds: Latency | None = None
    times: float = 1.0
    status: int = 500
    code: str | None = None
    message: str | None = None
    retry_after: float | str | None = None
    """A text is sent as it stands, so that a client can meet what is no time to wait."""
    retry_after_as: str = "seconds"
    at: float = 0.5
    clean: bool = False
    bytes: int = 1
    pause: float = 0.05
    content_type: str = "text/html"

    def fits(self, call: Call) -> bool:
        """Whether it is a call that this may strike, its share apart."""
        if self.path is not None and self.path != call.path:
            return False
        if self.model is not None and self.model != call.model:
            return False
        if self.calls is None:
            return True
        if self.path is not None:
            number = call.of_path if self.model is None else call.of_both
        else:
            number = call.number if self.model is None else call.of_model
        return any(number in numbers for numbers in self.calls)


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to a call: at most one fault, and how its latency changes: ``seconds`` more after ``times``."""

    fault: Fault | None = None
    seconds: float = 0.0
    times: float = 1.0


NO_FAULT: Final = Fate()


class Fates:
    """Tells each call its fate."""

    def __init__(self, faults: Iterable[Fault], draws: Draws) -> None:
        self._draws = draws
        ordered = sorted(faults, key=lambda fault: fault.do != "reset_before")
        self._delays = [fault for fault in ordered if fault.do == "delay"]
        self._certain = [fault for fault in ordered if fault.do != "delay" and fault.share is None]
        self._drawn = [fault for fault in ordered if fault.do != "delay" and fault.share is not None]
        before = [fault for fault in ordered if fault.do == "reset_before"]
        self._before = None if not before or len(before) == len(ordered) else Fates(before, draws)
        self.resets_before = bool(before)
        """Whether there is a fault that strikes before the body of a request is read."""

    def at_head(self, call: Call) -> bool:
        """Whether the call is reset before its body is read."""
        return self.resets_before and (self._before or self)._struck(call) is not None

    def of(self, call: Call) -> Fate:
        """The fate of a call whose request has been read."""
        fault = self._struck(call) if self._certain or self._drawn else None
        seconds, times = self._delay(call) if self._delays else (0.0, 1.0)
        if fault is None and seconds == 0.0 and times == 1.0:
            return NO_FAULT
        return Fate(fault, seconds, times)

    def _struck(self, call: Call) -> Fault | None:
        for fault in self._certain:
            if fault.fits(call):
                return fault
        if not self._drawn:
            return None
        left = self._draws.uniform("fault", call.identity)
        for fault in self._drawn:
            if fault.fits(call):
                assert fault.share is not None
                if left < fault.share:
                    return fault
                left -= fault.share
        return None

    def _delay(self, call: Call) -> tuple[float, float]:
        seconds, times = 0.0, 1.0
        for place, fault in enumerate(self._delays):
            if not fault.fits(call):
                continue
            if fault.share is None or self._draws.uniform(f"delay {place}", call.identity) < fault.share:
                times *= fault.times
                if fault.seconds is not None:
                    seconds += fault.seconds.draw(self._draws, f"seconds {place}", call.identity)
        return seconds, times
