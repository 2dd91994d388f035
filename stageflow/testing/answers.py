"""What the test server answers: a function of the prompt and the seed, so that a test can know it beforehand.

A token is four characters, begun ones included: so much for the rule of thumb that providers give for English.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from hashlib import shake_128
from math import sqrt
from typing import Any, Final

import orjson

from stageflow.testing.schemas import value_for

__all__ = ["TOKEN_CHARS", "answer_text", "count_tokens", "embedding_of", "prompt_of"]

TOKEN_CHARS: Final = 4
_WORDS: Final = re.findall(
    r"\w+",
    "a about above after all also and any as at be because been before both but by can come could day do each even"
    " find first for from get give go good great have he her here how if in into it its just know like long look"
    " made make many may more most much must my never new no not now of on",
)
assert len(_WORDS) == 64


def count_tokens(text: str) -> int:
    """How many tokens the test server counts for a text."""
    return (len(text) + TOKEN_CHARS - 1) // TOKEN_CHARS


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of all messages of a chat, one per line; of a message in parts, its texts."""
    return "\n".join([_text_of(message.get("content")) for message in messages])


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return ""


def answer_text(
    prompt: str, *, seed: int = 0, tokens: tuple[int, int] = (16, 16), form: Mapping[str, Any] | None = None
) -> str:
    """The answer to a prompt.

    Args:
        tokens: At least and at most so many; a text of words has so many, drawn from the prompt.
        form: The ``response_format`` of the request. With a JSON schema the answer is JSON that fits it, of any length.
    """
    least, most = tokens
    said = f"{seed} {prompt}".encode()
    kind = form.get("type") if form else None
    if kind in ("json_object", "json_schema"):
        assert form is not None
        schema = (form.get("json_schema") or {}).get("schema") if kind == "json_schema" else None
        words = _words(said, least)
        value = {"answer": words} if schema is None else value_for(schema, shake_128(said).digest(256), words)
        return orjson.dumps(value).decode()
    if most > least:
        least += int.from_bytes(shake_128(said + b" length").digest(4), "big") % (most - least + 1)
    return _words(said, least)


def _words(said: bytes, tokens: int) -> str:
    chars = tokens * TOKEN_CHARS
    drawn = shake_128(said).digest(chars // 2 + 1)  # a word and its space have two characters or more
    text = " ".join([_WORDS[byte & 63] for byte in drawn[: chars // 4 + 4]])
    if len(text) < chars:
        text = " ".join([_WORDS[byte & 63] for byte in drawn])
    # To end in a space would be to count a character that clients strip.
    return text[:chars] if text[chars - 1 : chars] != " " else text[: chars - 1] + "."


def embedding_of(text: str, *, seed: int = 0, dimensions: int = 64) -> array[float]:
    """A vector of length 1 in single precision, which two texts share only if they are equal."""
    drawn = array("h", shake_128(f"{seed} {text}".encode()).digest(2 * dimensions))
    length = sqrt(sum([value * value for value in drawn])) or 1.0
    return array("f", [value / length for value in drawn])
