"""What a service's answer means: an :class:`Answer`, :class:`Embeddings`, or the error that it is.

Plain functions of what came. The first test is for what nearly always comes; what else it may be is asked only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from stageflow.llm.errors import BadAnswer, Refused, Unfinished

__all__ = [
    "Answer",
    "Arrived",
    "Embeddings",
    "Usage",
    "answer_of",
    "embeddings_of",
    "error_of",
    "finished",
    "json_of",
    "usage_of",
]

_SAID_CHARS: Final = 300
_CODE_CHARS: Final = 80
_SHOWN_BYTES: Final = 500
"""Of an answer that is none: enough to see whose page it is."""
_HEADERS: Final = (
    "retry-after",
    "retry-after-ms",
    "date",
    "content-type",
    "x-request-id",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)
_UNFINISHED: Final = frozenset({"length", "content_filter"})


class Arrived(Protocol):
    """An answer as it came."""

    status: int
    body: bytes

    def header(self, name: str) -> str | None: ...


@dataclass(slots=True)
class Usage:
    """What a call used, as the service counts it.

    Attributes:
        prompt_tokens, completion_tokens: In and out.
        total_tokens: Both, or what the service says it is.
        cached_tokens: How many of those in were known already; some services charge less for them.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0


@dataclass(slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: Of the first choice; empty where it said nothing, as with calls of tools.
        finish_reason: ``"stop"``, ``"length"``, ``"content_filter"``, ``"tool_calls"``, or what else the service says.
        usage: ``None`` where the service does not tell.
        raw: All of it, decoded.
        data: With ``schema=`` the value that the text is, checked.
    """

    text: str
    finish_reason: str | None
    usage: Usage | None
    raw: dict[str, Any]
    data: Any = None

    @property
    def tool_calls(self) -> list[Any]:
        """The calls of tools that the model asks for, as they are in ``raw``."""
        return self.raw["choices"][0]["message"].get("tool_calls") or []

    @property
    def refusal(self) -> str | None:
        """What the model said instead of an answer, where it refused."""
        said = self.raw["choices"][0]["message"].get("refusal")
        return said if isinstance(said, str) and said else None


@dataclass(slots=True)
class Embeddings:
    """One vector for each text, in their order.

    Attributes:
        vectors: Lists of floats; or texts, where ``encoding_format="base64"`` was asked for.
        usage: ``None`` where the service does not tell.
        raw: All of it, decoded.
    """

    vectors: list[Any]
    usage: Usage | None
    raw: dict[str, Any]


def json_of(reply: Arrived, netloc: str, host: str, masked: Callable[[str], str]) -> dict[str, Any]:
    """The object that an answer holds.

    Args:
        netloc, host: Whom errors name.
        masked: Takes the key out of a text.

    Raises:
        Refused: It has an error status, or holds an error.
        BadAnswer: It holds no object.
    """
    found = _object_in(reply)
    if not isinstance(found, str):
        return found
    # From here on no variable holds the answer as it came: services quote the key.
    raise error_of(reply, found, masked(reply.body.decode("utf-8", "replace")), netloc, host)


def _object_in(reply: Arrived) -> dict[str, Any] | str:
    """The object of an answer that all is well with, or what there is in its place."""
    kind = reply.header("content-type")
    # Nearly all say just this; one that says nothing may be right.
    if kind != "application/json" and kind is not None and "json" not in kind.lower():
        return kind
    if not 200 <= reply.status < 300:
        return "an error"
    try:
        body = orjson.loads(reply.body)
    except ValueError:
        return "no JSON"
    return body if isinstance(body, dict) and not body.get("error") else "no object"


def error_of(reply: Arrived, kind: str, text: str, netloc: str, host: str) -> Refused | BadAnswer:
    """The error that an answer is.

    Args:
        kind: What it is instead of an object.
        text: What it holds, without the key.
        netloc, host: Whom the error names.
    """
    try:
        body = orjson.loads(text)
    except ValueError:
        body = None
    status, headers = _status(reply.status, body), _kept(reply)
    if status is None or not 200 <= status < 300:
        moved = ": it has moved; base_url is to say where to" if status is not None and 300 <= status < 400 else ""
        message = f"{status or 'an error'} from {netloc}{moved}{_said(body)}"
        return Refused(message, status=status, headers=headers, body=body, host=host)
    first = text[:_SHOWN_BYTES].encode()[:_SHOWN_BYTES].decode("utf-8", "ignore")
    shown = f"{first!r}" + ("..." if len(text) > len(first) else "")
    return BadAnswer(
        f"{status} from {netloc}, but {kind}: {shown}", status=status, headers=headers, body=body, host=host
    )


def _kept(reply: Arrived) -> dict[str, str]:
    """The headers that are of use where something went wrong."""
    return {name: value for name in _HEADERS if (value := reply.header(name)) is not None}


def _status(status: int, body: Any) -> int | None:
    """That of the answer. Gateways that find out late say 200, and put it into the error, or none at all."""
    if not 200 <= status < 300 or not isinstance(body, dict) or not body.get("error"):
        return status
    code = body["error"].get("code") if isinstance(body["error"], dict) else None
    return code if type(code) is int and 400 <= code <= 599 else None


def _said(body: Any) -> str:
    """What the service says is wrong, and the code for it."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    part: Mapping[str, Any] = error if isinstance(error, dict) else body
    message = next((said for said in (part.get("message"), part.get("detail"), error) if isinstance(said, str)), "")
    code = part.get("code") or part.get("type")
    said = f": {message[:_SAID_CHARS]}" if message else ""
    return f"{said} ({code[:_CODE_CHARS]})" if isinstance(code, str) and code not in message else said


def answer_of(raw: dict[str, Any], netloc: str, host: str) -> Answer:
    """A chat completion.

    Raises:
        BadAnswer: It has no choice, or one that says nothing a text can be made of.
    """
    try:
        choice = raw["choices"][0]
        content = choice["message"].get("content")
        reason = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        content = reason = choice = None
    if choice is None or not isinstance(content, str):
        content = _text(choice, content, netloc, host)
    return Answer(content, reason if isinstance(reason, str) else None, usage_of(raw), raw)


def _text(choice: Any, content: Any, netloc: str, host: str) -> str:
    """Of an answer that is no plain text: none at all, or parts."""
    if choice is None:
        raise BadAnswer(f"200 from {netloc}, but no choices", status=200, host=host)
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(text for part in content if isinstance(text := part.get("text"), str))
    raise BadAnswer(f"200 from {netloc}, but its content is no text", status=200, host=host)


def usage_of(raw: dict[str, Any]) -> Usage | None:
    """What the call used, where the service tells."""
    told = raw.get("usage")
    if type(told) is not dict:
        return None
    into, out = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    total = _count(told.get("total_tokens")) or into + out
    if total == 0:  # no call is for nothing
        return None
    details = told.get("prompt_tokens_details")
    return Usage(into, out, total, _count(details.get("cached_tokens")) if type(details) is dict else 0)


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def finished(answer: Answer) -> Answer:
    """The same answer.

    Raises:
        Unfinished: The model did not come to its end, or refused.
    """
    if answer.finish_reason in _UNFINISHED:
        used = f" after {answer.usage.completion_tokens} tokens" if answer.usage is not None else ""
        raise Unfinished(f'the model did not finish: "{answer.finish_reason}"{used}', answer=answer)
    if answer.refusal is not None:
        raise Unfinished(f"the model refused: {answer.refusal[:_SAID_CHARS]}", answer=answer)
    return answer


def embeddings_of(raw: dict[str, Any], texts: int, netloc: str, host: str) -> Embeddings:
    """The embeddings of so many texts.

    Raises:
        BadAnswer: There are not as many, or it is not clear whose they are.
    """
    try:
        found = {part["index"]: part["embedding"] for part in raw["data"]}
        vectors = [found[place] for place in range(texts)]
        whole = len(raw["data"]) == texts and all(isinstance(vector, (list, str)) and vector for vector in vectors)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise BadAnswer(f"200 from {netloc}, but not one embedding for each of {texts} texts", status=200, host=host)
    return Embeddings(vectors, usage_of(raw), raw)
