"""What an error of some HTTP library says: its status, its headers, how long to wait, whether the quota is used up.

The libraries are never imported. An error is asked for the attributes that httpx, requests, aiohttp, urllib and the
clients built on them have, and so is an exception of the user's own that has them. Whatever an attribute does when it
is read, or whatever it holds, is no second failure: it counts as absent.

Where the error itself says nothing, what it was raised from, or while handling, is asked; ``from None`` hides a context
from tracebacks, not from here, since httpcore says ``from None`` to a name that can't be resolved.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping
from inspect import getattr_static, iscoroutine
from itertools import islice
from typing import Any, Final

__all__ = ["headers_of", "host_of", "is_quota", "is_unknown_host", "quota_code", "retry_after", "status_of"]

_LINKS: Final = 16
"""How many errors of a chain or a group are asked. Seen in practice: five, from an SDK down to the socket."""
_HEADERS: Final = 256
_VALUE_CHARS: Final = 128
_BODY_BYTES: Final = 65_536
_MAY_BE_QUOTA: Final = (402, 403, 429, None)
"""``None``: an error in the middle of a streamed answer has a code and no status."""

_QUOTA_CODES: Final = {
    code.replace("_", ""): code
    for code in (
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "quota_exceeded",
        "insufficient_balance",
        "insufficient_credits",
    )
}
_UNKNOWN_HOST: Final = {
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)
}  # EAI_AGAIN is a resolver's bad moment


def status_of(error: BaseException) -> int | None:
    """The HTTP status an error stands for, 100 to 599, or ``None``."""
    return next((status for link in _links(error) if (status := _status(link)) is not None), None)


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers of the response an error stands for, their names in lower case; empty where there are none."""
    return next((headers for link in _links(error) if (headers := _headers(link))), {})


def retry_after(error: BaseException, *, wall_clock: float | None = None) -> float | None:
    """How long the server asked to be left alone.

    Read from ``retry-after-ms`` and ``retry-after``, or from an attribute ``retry_after`` in seconds of an exception of
    the user's own. A date is taken relative to the response's own ``Date``, so that neither clock has to be right.

    Args:
        wall_clock: Seconds since 1970, for a date in a response that has no ``Date``; without it such a one is ignored.

    Returns:
        Seconds, finite and > 0, of any size: what is too long is for the caller to say. ``None`` where nothing was
        asked for, or something that is no time to wait: 0 or less, NaN, infinite, not readable.
    """
    headers = headers_of(error)
    text = headers.get("retry-after", "")
    asked = (
        _positive(_number(headers.get("retry-after-ms", "")), 1000.0),
        _positive(_number(text)),
        _positive(_until(text, headers.get("date", ""), wall_clock)),
        *(_positive(_read(link, "retry_after")) for link in _links(error)),
    )
    return next((seconds for seconds in asked if seconds is not None), None)


def is_quota(error: BaseException) -> bool:
    """Whether the account's quota or balance is used up, which waiting does not mend; by the answer's code or type."""
    return quota_code(error) is not None


def quota_code(error: BaseException) -> str | None:
    """Which of the known codes says that the quota is used up: ``"insufficient_quota"`` and the like."""
    if status_of(error) not in _MAY_BE_QUOTA:
        return None
    for link in _links(error):
        # Statically: aiohttp's `code` is a property that warns, and what is computed is no code of an answer.
        own = {name: getattr_static(link, name, None) for name in ("code", "type")}
        for body in (own, _read(link, "body"), _json(_read(link, "response"))):
            for part in _parts(body):
                for name in ("code", "type"):
                    if (code := _known_code(part.get(name))) is not None:
                        return code
    return None


def is_unknown_host(error: BaseException) -> bool:
    """Whether a host's name does not exist, as opposed to one that can't be resolved at the moment."""
    return any(isinstance(link, socket.gaierror) and link.errno in _UNKNOWN_HOST for link in _links(error))


def host_of(error: BaseException) -> str | None:
    """The host a failed request went to, without user and password, where the error tells."""
    for link in _links(error):
        host = _read(link, "host")
        if not (isinstance(host, str) and host):
            host = _host(_read(_read(link, "request"), "url"))
        if host:
            return str(host)[:_VALUE_CHARS]
    return None


def _links(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, nearest first; the errors of a group are what it came from."""
    seen: set[int] = set()
    pending = [error]
    while pending and len(seen) < _LINKS:
        link = pending.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            pending.extend(link.exceptions[:_LINKS])
        origin = link.__cause__ if link.__cause__ is not None else link.__context__
        if origin is not None:
            pending.append(origin)


def _read(thing: Any, name: str) -> Any:
    if thing is None:
        return None
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign class
        return None


def _status(link: BaseException) -> int | None:
    response = _read(link, "response")
    for thing, name in ((response, "status_code"), (response, "status"), (link, "status_code"), (link, "status")):
        if (status := _valid_status(_read(thing, name))) is not None:
            return status
    # Many exceptions have a `code` that is no HTTP status; those of urllib and Google's clients have one of these too.
    if response is not None or _read(link, "headers") is not None:
        return _valid_status(_read(link, "code"))
    return None


def _valid_status(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and 100 <= value <= 599 else None


def _headers(link: BaseException) -> dict[str, str]:
    for thing in (_read(link, "response"), link):
        try:
            pairs = list(islice(_read(thing, "headers").items(), _HEADERS))
            found: dict[str, str] = {}
            for name, value in pairs:
                if isinstance(name, str) and isinstance(value, (str, int, float)):
                    found.setdefault(name.lower(), str(value)[:_VALUE_CHARS])
        except Exception:  # noqa: BLE001 - no mapping, or a foreign one that fails
            continue
        if found:
            return found
    return {}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _positive(value: Any, a_second: float = 1.0) -> float | None:
    """A number as seconds, if that is a time one can wait; ``a_second`` is what a second is in the number's unit."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        seconds = float(value) / a_second
    except OverflowError:
        return None
    return seconds if 0 < seconds < math.inf else None


def _until(text: str, date: str, wall_clock: float | None) -> float | None:
    until, now = _timestamp(text), _timestamp(date)
    if now is None:
        now = wall_clock
    return None if until is None or now is None else until - now


def _timestamp(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date in any of its three forms (RFC 9110, section 5.6.7), to the year 9999."""
    import calendar  # with email.utils a fifth of `import stageflow`, for the rare server that answers with a date
    import email.utils

    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else float(calendar.timegm(parsed[:9]) - (parsed[9] or 0))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _json(response: Any) -> Any:
    """A response's body, if it has been read already and is of a size that an error has."""
    # `requests` reads a streamed body from the network when it is asked for; this is how it marks one not yet read.
    if response is None or _read(response, "_content") is False:
        return None
    content = _read(response, "content")
    if isinstance(content, bytes) and len(content) > _BODY_BYTES:
        return None
    try:
        body = response.json()
    except Exception:  # noqa: BLE001 - no JSON, not read yet, or no such method
        return None
    if iscoroutine(body):
        body.close()
        return None
    return body


def _parts(body: Any) -> Iterator[Mapping[str, Any]]:
    """Where services put an error's code: at the top, or in an object called error or detail."""
    if isinstance(body, Mapping):
        yield body
        for inner in (body.get("error"), body.get("detail")):
            if isinstance(inner, Mapping):
                yield inner


def _known_code(value: Any) -> str | None:
    if not isinstance(value, str) or len(value) > _VALUE_CHARS:
        return None
    return _QUOTA_CODES.get("".join(filter(str.isalnum, value)).lower())


def _host(url: Any) -> str | None:
    import urllib.parse  # here, as few runs meet an unknown host

    try:
        return urllib.parse.urlsplit(str(url)).hostname if url is not None else None
    except Exception:  # noqa: BLE001 - a foreign URL class, or no URL
        return None
