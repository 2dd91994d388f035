"""The door of jsonschema_rs: what a model is asked to say, and whether it did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NoReturn

import orjson

from stageflow.errors import RequestError
from stageflow.llm.answers import Answer
from stageflow.llm.errors import SchemaMismatch

__all__ = ["Schema", "schema_of"]

_SAID_CHARS: Final = 200
_KEPT: Final = 64
"""A job has a few. One that makes a new one for each record pays for each."""


class Schema:
    """A JSON schema that answers are to fit.

    Attributes:
        response_format: What the service is told, as JSON.
    """

    __slots__ = ("_validator", "response_format")

    def __init__(self, text: bytes) -> None:
        schema = orjson.loads(text)
        self._validator = _validator(schema)
        said = {"name": _name(schema), "schema": orjson.Fragment(text), "strict": _is_strict(schema)}
        self.response_format = orjson.Fragment(orjson.dumps({"type": "json_schema", "json_schema": said}))

    def check(self, answer: Answer, host: str) -> Any:
        """The value that the answer's text is.

        Raises:
            SchemaMismatch: It is no JSON, or another value than asked for.
        """
        try:
            value = orjson.loads(answer.text)
        except ValueError as error:
            problem = f"the model's answer is no JSON: {error}"
        else:
            misfit = next(self._validator.iter_errors(value), None)
            if misfit is None:
                return value
            place = "".join(f"[{part!r}]" for part in misfit.instance_path)
            problem = f"the model's answer does not fit the schema{' at ' if place else ''}{place}: "
            problem += misfit.message[:_SAID_CHARS]
        raise SchemaMismatch(problem, answer=answer, host=host)


def schema_of(schema: Mapping[str, Any]) -> Schema:
    """The schema that a mapping is; the same one for the same content.

    Raises:
        TypeError: It is none. To the engine that is a mistake in the job, which no retry mends.
        RequestError: The library is not installed.
    """
    if not isinstance(schema, Mapping):
        raise TypeError(f"schema= is a JSON schema as a mapping, not {type(schema).__name__}")
    return _compiled(orjson.dumps(schema if isinstance(schema, dict) else dict(schema)))


@lru_cache(maxsize=_KEPT)
def _compiled(text: bytes) -> Schema:
    return Schema(text)


def _validator(schema: dict[str, Any]) -> Any:
    try:
        import jsonschema_rs
    except ImportError:
        raise RequestError(
            "schema= needs jsonschema-rs, which is not installed", hint="pip install 'stageflow[llm]'"
        ) from None
    try:
        return jsonschema_rs.validator_for(schema, retriever=_nowhere)
    except ValueError as error:
        raise TypeError(f"schema= is no JSON schema: {_shortened(str(error))}") from None


def _shortened(said: str) -> str:
    """Without its middle: it begins with what is wrong, an address of any length may follow, and the reason is last."""
    half = _SAID_CHARS // 2
    return said if len(said) <= _SAID_CHARS else f"{said[:half]} ... {said[-half:]}"


def _nowhere(address: str) -> NoReturn:
    """A schema that refers to an address would have each process that uses it ask there, or read a file."""
    raise ValueError("a schema refers to nothing outside itself")


def _name(schema: dict[str, Any]) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title") or ""))[:64] or "answer"


def _is_strict(part: Any) -> bool:
    """Whether services can hold a model to it from the first token on.

    OpenAI's rule: each object names all its fields as required and allows no others; where that is not so, to ask for
    it is an error.
    """
    if isinstance(part, list):
        return all(map(_is_strict, part))
    if not isinstance(part, dict):
        return True
    if part.get("type") == "object" or "properties" in part:
        fields = part.get("properties")
        if not isinstance(fields, dict) or part.get("additionalProperties") is not False:
            return False
        if set(fields) != set(part.get("required") or ()):
            return False
        part = {**part, "properties": list(fields.values())}
    return all(map(_is_strict, part.values()))
