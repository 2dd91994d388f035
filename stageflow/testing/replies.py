"""From what a service has to say to the bytes on the wire, and how a fault mutilates them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final

import orjson

from stageflow.testing.answers import TOKEN_CHARS, embedding_of
from stageflow.testing.capacity import Limit
from stageflow.testing.faults import Fault
from stageflow.testing.wire import chunk, http_date, response_head

__all__ = [
    "Delivery",
    "Reply",
    "chat_reply",
    "deliver",
    "embeddings_reply",
    "error_reply",
    "limit_headers",
    "wait_headers",
]

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_BROKEN_OFF: Final = {"reset_body": "reset", "cut_body": "close", "stall": "hang"}
"""Faults within the body, and what becomes of the connection there."""


@dataclass(slots=True)
class Reply:
    """An answer as the service means it.

    Args:
        body: Of one that is not streamed.
        events: The events of one that is; the last is ``[DONE]``.
        headers: More headers, each with its line end.
    """

    status: int
    body: bytes = b""
    events: list[bytes] | None = None
    headers: str = ""
    content_type: str = _JSON


@dataclass(slots=True)
class Delivery:
    """The bytes of an answer, and how they go out.

    Args:
        pieces: Written one after the other, each ``pause`` seconds after the one before.
        ending: What becomes of the connection: ``"keep"``, ``"close"``, ``"reset"``, or ``"hang"``: nothing more is
            ever said.
    """

    pieces: list[bytes] = field(default_factory=list)
    pause: float = 0.0
    ending: str = "keep"


# What is said


def error_reply(status: int, kind: str, code: str | None, message: str, headers: str = "") -> Reply:
    """An error as OpenAI's API words it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Reply(status, orjson.dumps({"error": error}), headers=headers)


def wait_headers(seconds: float, way: str, wall: float) -> str:
    """The header that asks to be left alone for so long.

    Args:
        way: ``"seconds"`` (whole ones, rounded up), ``"ms"``, ``"date"`` or ``"none"``.
        wall: The time that ``Date`` says.
    """
    if way == "ms":
        return f"retry-after-ms: {ceil(seconds * 1000)}\r\n"
    if way == "seconds":
        return f"Retry-After: {ceil(seconds)}\r\n"
    return f"Retry-After: {http_date(int(wall) + ceil(seconds))}\r\n" if way == "date" else ""


def limit_headers(limit: Limit) -> str:
    """What is left of a rate limit, as of its last call."""
    lines = []
    for of, bucket in (("requests", limit.requests), ("tokens", limit.tokens)):
        if bucket is not None:
            lines += [
                f"x-ratelimit-limit-{of}: {int(bucket.per_minute)}\r\n"
                f"x-ratelimit-remaining-{of}: {bucket.left()}\r\n"
                f"x-ratelimit-reset-{of}: {_duration(bucket.until_full())}\r\n"
            ]
    return "".join(lines)


def _duration(seconds: float) -> str:
    """As these headers have it: ``12ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


def chat_reply(
    number: int,
    created: int,
    model: str,
    contents: list[str | None],
    reasons: list[str],
    usage: dict[str, Any],
    stream: Mapping[str, Any] | None,
) -> Reply:
    """A chat completion.

    Args:
        contents, reasons: The text and ``finish_reason`` of each choice; with none of them ``choices`` is empty.
        stream: The ``stream_options`` of a streamed one.
    """
    start = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": created, "model": model}
    if stream is None:
        choices = [
            {
                "index": place,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for place, (text, reason) in enumerate(zip(contents, reasons, strict=True))
        ]
        return Reply(200, orjson.dumps({**start, "choices": choices, "usage": usage, "system_fingerprint": None}))
    start["object"] = "chat.completion.chunk"
    events = [_event(start, [])] if not contents else []
    for place, text in enumerate(contents):
        events += _choice_events(start, place, text or "", reasons[place])
    if stream.get("include_usage"):
        events.append(_event(start, [], usage))
    return Reply(200, events=[*events, b"data: [DONE]\n\n"], content_type=_EVENTS)


def _choice_events(start: dict[str, Any], place: int, text: str, reason: str) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text[at : at + TOKEN_CHARS]} for at in range(0, len(text), TOKEN_CHARS)]
    events = [_event(start, [{"index": place, "delta": delta, "finish_reason": None}]) for delta in deltas]
    return [*events, _event(start, [{"index": place, "delta": {}, "finish_reason": reason}])]


def _event(start: dict[str, Any], choices: list[Any], usage: dict[str, Any] | None = None) -> bytes:
    said = {**start, "choices": choices} if usage is None else {**start, "choices": choices, "usage": usage}
    return b"data: %b\n\n" % orjson.dumps(said)


def embeddings_reply(
    texts: list[str], model: str, usage: dict[str, Any], *, seed: int, dimensions: int, base64: bool
) -> Reply:
    """An embedding of each text."""
    data = []
    for place, text in enumerate(texts):
        vector = embedding_of(text, seed=seed, dimensions=dimensions)
        said = b64encode(vector.tobytes()).decode() if base64 else vector.tolist()
        data.append({"object": "embedding", "index": place, "embedding": said})
    return Reply(200, orjson.dumps({"object": "list", "data": data, "model": model, "usage": usage}))


# How it goes out


def deliver(reply: Reply, fault: Fault | None, *, close: bool, token_seconds: float) -> Delivery:
    """The reply as bytes, after the fault has had its way with it.

    Args:
        close: The client wants the connection closed behind it.
        token_seconds: From one event of a stream to the next.
    """
    do = "" if fault is None else fault.do
    if do == "content_type":
        assert fault is not None
        reply.content_type = fault.content_type
    elif do == "invalid_json":
        _garble(reply)
    elif do == "truncated_json":
        assert fault is not None
        _truncate(reply, fault)
    elif do == "error_event":
        assert fault is not None
        _break_off(reply, fault)
    elif do == "no_done" and reply.events is not None:
        reply.events = reply.events[:-1]
    if reply.events is None:
        parts = [reply.body]
        head = response_head(reply.status, reply.content_type, len(reply.body), reply.headers, close=close)
    else:
        parts = [*map(chunk, reply.events), b"0\r\n\r\n"]
        head = response_head(reply.status, reply.content_type, None, reply.headers, close=close)
    if do in _BROKEN_OFF:
        assert fault is not None
        sent = _first(parts, fault.at)
        return Delivery([head + b"".join(sent)], ending=_BROKEN_OFF[do])
    ending = "close" if close else "keep"
    if do == "slow_body":
        assert fault is not None
        whole = b"".join(parts)
        pieces = [whole[at : at + fault.bytes] for at in range(0, len(whole), fault.bytes)]
        return Delivery([head, *pieces], fault.pause, ending)
    if token_seconds and reply.events is not None:
        # The first event goes with the head, and the end of the body with the last one.
        return Delivery([head + parts[0], *parts[1:-2], b"".join(parts[-2:])], token_seconds, ending)
    return Delivery([head + b"".join(parts)], 0.0, ending)


def _first(parts: list[bytes], share: float) -> list[bytes]:
    """So much of a body, and never all of it."""
    whole = b"".join(parts)
    return [whole[: min(int(len(whole) * share), len(whole) - 1)]]


def _garble(reply: Reply) -> None:
    if reply.events is None:
        reply.body = b"<html><body>upstream says hello</body></html>"
    else:
        middle = len(reply.events) // 2
        reply.events = [*reply.events[:middle], b"data: {'choices': [oops\n\n", *reply.events[middle:]]


def _truncate(reply: Reply, fault: Fault) -> None:
    """End the body early, in a way that HTTP itself does not show."""
    if reply.events is None:
        reply.body = reply.body[: max(1, min(int(len(reply.body) * fault.at), len(reply.body) - 1))]
    else:
        finish = next(place for place, event in enumerate(reply.events) if b'"finish_reason":"' in event)
        kept = max(1, min(int(len(reply.events) * fault.at), finish - 1))
        cut = reply.events[kept]
        reply.events = [*reply.events[:kept], *([] if fault.clean else [cut[: len(cut) // 2]])]


def _break_off(reply: Reply, fault: Fault) -> None:
    """An error in the place of what is still to come, as of a service that finds out late."""
    message = fault.message or "The server had an error while processing your request"
    error = error_reply(200, "server_error", fault.code, message).body
    if reply.events is None:
        reply.body = error
    else:
        reply.events = [*reply.events[: max(1, int((len(reply.events) - 1) * fault.at))], b"data: %b\n\n" % error]
