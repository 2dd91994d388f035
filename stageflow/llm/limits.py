"""What a provider says of its rate limits, with each answer: how many calls and tokens remain, and until when.

Pure: headers and times come in, numbers go out. Read are

* ``x-ratelimit-limit-requests``, ``-remaining-requests``, ``-reset-requests`` and the same of ``tokens``, as OpenAI and
  many others send them, with resets such as ``6m0s``, ``20ms`` or plain seconds;
* ``anthropic-ratelimit-requests-limit``, ``-remaining``, ``-reset`` and the same of ``tokens``, ``input-tokens`` and
  ``output-tokens``, with resets as dates;
* ``RateLimit-Limit``, ``-Remaining``, ``-Reset`` and ``RateLimit: limit=.., remaining=.., reset=..``, also in the
  later form ``RateLimit: "name";r=..;t=..`` with its ``RateLimit-Policy: "name";q=..;w=..``.

What can't be read counts as not said, and so does what has no time at which it ends.

Source: R. Polli, A. Martinez, D. Miller, "RateLimit header fields for HTTP", draft-ietf-httpapi-ratelimit-headers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

__all__ = ["ProviderLimit", "limits_of"]

_VALUE_CHARS: Final = 256
_EPOCH: Final = 1e8
"""A reset of so many seconds is no time to wait but a moment: seconds since 1970."""
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")
_PAIR: Final = re.compile(r"(?:^|[\s,;])(limit|remaining|reset|q|r|t)\s*=\s*\"?(\d+(?:\.\d+)?)")

_REQUESTS: Final = (
    ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    (
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
    ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
)
_TOKENS: Final = (
    ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimit:
    """What a provider said with one answer; ``None`` is what it did not say.

    Attributes:
        began: When the request was sent, by the clock of the running loop.
        scope: Whose limit it is: that of a host and a model.
        requests_remaining, tokens_remaining: What may still be used, others of the same account included.
        requests_reset, tokens_reset: Seconds from ``began`` until all of the limit is there again; >= 0.
        requests_limit, tokens_limit: All of the limit.
    """

    began: float
    scope: str = ""
    requests_remaining: float | None = None
    requests_reset: float | None = None
    requests_limit: float | None = None
    tokens_remaining: float | None = None
    tokens_reset: float | None = None
    tokens_limit: float | None = None


def limits_of(
    headers: Mapping[str, str] | Callable[[str], str | None],
    *,
    began: float,
    ended: float,
    wall_clock: float,
    scope: str = "",
) -> ProviderLimit | None:
    """Read the limits off the headers of an answer, also of one that refuses.

    Args:
        headers: By names in lower case, or what finds a header by such a name.
        began, ended: When the request was sent and when its answer came, by the clock of the running loop. Seconds to
            wait are counted from the first, as a request is counted when it comes in; a date from the other.
        wall_clock: Seconds since 1970, for a date where the answer has no ``Date`` of its own.

    Returns:
        ``None`` where nothing is said.
    """
    find = headers.get if isinstance(headers, Mapping) else headers
    took = max(0.0, ended - began)

    def read(names: tuple[tuple[str, str, str], ...]) -> _Said | None:
        for limit, remaining, reset in names:
            if (text := find(remaining)) is not None:
                left, seconds = _number(text), _seconds(find(reset), find("date"), wall_clock, took)
                if left is not None and seconds is not None:
                    return left, seconds, _number(find(limit))
        return None

    requests = read(_REQUESTS) or _draft(find("ratelimit"), find("ratelimit-policy"))
    tokens = read(_TOKENS)
    if requests is None and tokens is None:
        return None
    calls, much = requests or _NOTHING, tokens or _NOTHING
    return ProviderLimit(
        began=began,
        scope=scope,
        requests_remaining=calls[0],
        requests_reset=calls[1],
        requests_limit=calls[2],
        tokens_remaining=much[0],
        tokens_reset=much[1],
        tokens_limit=much[2],
    )


_Said = tuple[float, float, float | None]
_NOTHING: Final = (None, None, None)


def _draft(text: str | None, policy: str | None) -> _Said | None:
    """The field of the draft, in its older form or in its later one."""
    said = _pairs(text)
    left, seconds = said.get("remaining", said.get("r")), said.get("reset", said.get("t"))
    if left is None or seconds is None:
        return None
    return left, seconds, said.get("limit", _pairs(policy).get("q"))


def _pairs(text: str | None) -> dict[str, float]:
    """The first value of each; where several limits stand in one field, the first one is read."""
    found: dict[str, float] = {}
    for name, value in _PAIR.findall((text or "")[:_VALUE_CHARS].lower()):
        found.setdefault(name, float(value))
    return found


def _number(text: str | None) -> float | None:
    """A number >= 0; the first of a list, as in ``100, 100;w=60``."""
    try:
        value = float((text or "")[:_VALUE_CHARS].partition(",")[0].partition(";")[0])
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _seconds(text: str | None, date: str | None, wall_clock: float, took: float) -> float | None:
    """How long after the request was sent the limit is whole again."""
    text = (text or "").strip()[:_VALUE_CHARS]
    if (number := _number(text)) is not None:
        return number if number < _EPOCH else max(0.0, number - _now(date, wall_clock)) + took
    if _DURATION.fullmatch(text):
        return sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, moment.timestamp() - _now(date, wall_clock)) + took


def _now(date: str | None, wall_clock: float) -> float:
    """By the clock of the service, where it tells: then ours need not be right."""
    import email.utils  # few services answer with a moment

    try:
        return email.utils.parsedate_to_datetime(date).timestamp() if date is not None else wall_clock
    except (ValueError, TypeError, OverflowError):
        return wall_clock
