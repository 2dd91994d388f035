"""An answer that comes as a stream of events, put together to what it would be in one piece.

1. Each event is looked at as it comes. One that can't be part of an answer, or is an error, spoils the stream: nothing
   more of it is read, since it would be paid for.
2. A stream is whole if each choice that was asked for has its ``finish_reason``, and ``[DONE]`` came behind them. All
   else is cut off, however it ended: what is without the one has lost text, and without the other perhaps its usage.
3. What was used is known as soon as an event says so; some services say it with each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from stageflow.llm.answers import Arrived, error_of
from stageflow.llm.errors import Unreachable
from stageflow.llm.sse import EventReader

__all__ = ["Gathered"]

_DONE: Final = b"[DONE]"
_OWN: Final = frozenset({"choices", "object", "usage"})
_CHOICES_OWN: Final = frozenset({"index", "delta", "message", "finish_reason", "logprobs"})
_DEEPEST: Final = 32
_ONCE: Final = frozenset({"role", "id", "type", "name"})
"""Texts that come whole; some services say them again with each part."""


class _Text(list[str]):
    """A text that comes in parts."""


class _Numbered(dict[int, Any]):
    """A list whose entries come in parts, each with its ``index``."""


class Gathered:
    """Takes a stream's bytes.

    Args:
        choices: So many were asked for.

    Attributes:
        began: Whether anything came that this could take: not so where the answer is no stream.
        is_over: Nothing that may still come is a part of it.
        is_spoiled: An event was no part of an answer.
        raw: What has come that says something of the whole: the usage, for one.
    """

    def __init__(self, choices: int = 1) -> None:
        self._wanted = choices
        self._reader = EventReader()
        self._choices: dict[int, dict[str, Any]] = {}
        self._spoiled_by: tuple[str, bytes] | None = None
        self.began = False
        self.is_over = False
        self.raw: dict[str, Any] = {"object": "chat.completion", "choices": []}

    @property
    def is_spoiled(self) -> bool:
        return self._spoiled_by is not None

    def feed(self, piece: bytes) -> None:
        """Take what has come."""
        self.began = True
        if self.is_over:
            return
        for name, data in self._reader.feed(piece):
            self._take(name, data)
            if self.is_over:
                return

    def whole(self, reply: Arrived, netloc: str, host: str, masked: Callable[[str], str]) -> dict[str, Any]:
        """What a service answers that was not asked for a stream.

        Args:
            reply: The answer that this was, without its body.
            netloc, host: Whom errors name.
            masked: Takes the key out of a text.

        Raises:
            Refused: The service put an error into it.
            BadAnswer: An event was no part of an answer.
            Unreachable: It ended before the answer did.
        """
        if self._spoiled_by is not None:
            # From here on no variable holds the event as it came: services quote the key.
            kind, data = self._spoiled_by
            self._spoiled_by = kind, masked(data.decode("utf-8", "replace")).encode()
            del data
            raise error_of(reply, kind, self._spoiled_by[1].decode(), netloc, host)
        if len(self._choices) < self._wanted or not all(each["finish_reason"] for each in self._choices.values()):
            raise Unreachable(f"no answer from {netloc}: the stream ended before the answer did", host=host)
        if not self.is_over:
            raise Unreachable(f"no answer from {netloc}: the stream ended without [DONE]", host=host)
        self.raw["choices"] = [_joined(choice) for _, choice in sorted(self._choices.items())]
        return self.raw

    def _take(self, name: bytes, data: bytes) -> None:
        if data[:1] == b"[" and data.strip() == _DONE:
            self.is_over = True
            return
        try:
            chunk = orjson.loads(data)
        except ValueError:
            if data and not data.isspace():  # nothing is a sign of life
                self._spoil("an event that is no JSON", data)
            return
        if isinstance(chunk, dict) and chunk.get("error"):
            self._spoil("an error", data)
        elif name == b"error":
            self._spoil("an error", b'{"error":%b}' % data)
        elif not isinstance(chunk, dict):
            self._spoil("an event that is no object", data)
        else:
            try:
                self._add(chunk)
            except (TypeError, ValueError, AttributeError):
                self._spoil("an event that is no part of an answer", data)

    def _spoil(self, kind: str, data: bytes) -> None:
        self._spoiled_by, self.is_over = (kind, data), True

    def _add(self, chunk: dict[str, Any]) -> None:
        raw = self.raw
        for name, value in chunk.items():
            if name not in _OWN and raw.get(name) is None:
                raw[name] = value
        if type(chunk.get("usage")) is dict:
            raw["usage"] = chunk["usage"]
        for part in chunk.get("choices") or ():
            self._add_choice(part)

    def _add_choice(self, part: dict[str, Any]) -> None:
        place = part.get("index", 0)
        if type(place) is not int or place < 0:
            raise ValueError("no index")
        choice = self._choices.get(place)
        if choice is None:
            choice = {"index": place, "message": {"role": "assistant", "content": None}, "finish_reason": None}
            self._choices[place] = choice
        delta = part.get("delta")
        if delta:
            _merge(choice["message"], delta)
        if part.get("finish_reason"):
            choice["finish_reason"] = part["finish_reason"]
        if part.get("logprobs"):
            _merge(choice.setdefault("logprobs", {}), part["logprobs"])
        for name in part.keys() - _CHOICES_OWN:
            choice[name] = part[name]


def _merge(into: dict[str, Any], delta: Mapping[str, Any], depth: int = 0) -> None:
    """Add what has come to what is there.

    Raises:
        TypeError, ValueError, AttributeError: It does not go with that, or is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ValueError("too deep")
    for name, value in delta.items():
        known = into.get(name)
        if value is None:
            into.setdefault(name, None)
        elif type(value) is str and name not in _ONCE:
            if known is None:
                into[name] = _Text((value,))
            elif type(known) is _Text:
                known.append(value)
            else:
                raise TypeError(name)
        elif type(value) is dict:
            if known is None:
                known = into[name] = {}
            elif type(known) is not dict:
                raise TypeError(name)
            _merge(known, value, depth + 1)
        elif type(value) is list:
            if known is None:
                known = into[name] = _Numbered()
            elif type(known) is not _Numbered:
                raise TypeError(name)
            _merge_list(known, value, depth + 1)
        elif type(value) is not str or not known or (value and name == "role"):
            into[name] = value


def _merge_list(known: _Numbered, values: list[Any], depth: int) -> None:
    for value in values:
        place = value.get("index") if type(value) is dict else None
        if type(place) is int:
            # A list says by its order what the index said.
            _merge(known.setdefault(place, {}), {name: value[name] for name in value if name != "index"}, depth)
        else:  # a whole entry, as those of logprobs are
            place = len(known)
            while place in known:
                place += 1
            known[place] = value


def _joined(value: Any) -> Any:
    """Plain values for what came in parts."""
    kind = type(value)
    if kind is _Text:
        return "".join(value)
    if kind is _Numbered:
        return [_joined(each) for _, each in sorted(value.items())]
    if kind is dict:
        return {name: _joined(each) for name, each in value.items()}
    return value
