"""Structured output: what the service is asked for, and what is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from scripted import CHOICE, answering, on, reply

from stageflow.llm import Answer, Chat, SchemaMismatch, Unfinished
from stageflow.llm.schema import schema_of
from stageflow.policies.retry import retryable_by_default
from stageflow.testing import TestServer

pytest.importorskip("httptools")
pytest.importorskip("jsonschema_rs")

SCHEMA = {
    "title": "A verdict!",
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "spans": {"type": "array", "items": {"$ref": "#/$defs/span"}}},
    "required": ["label", "spans"],
    "additionalProperties": False,
    "$defs": {
        "span": {
            "type": "object",
            "properties": {"at": {"type": "integer"}},
            "required": ["at"],
            "additionalProperties": False,
        }
    },
}


def said(text: str, reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{**CHOICE, "message": {"content": text}, "finish_reason": reason}]}


def answered(text: str, reason: str = "stop") -> Answer:
    async def work() -> Answer:
        async with answering(reply(said(text, reason))) as asked, Chat(base_url=asked.url, model="m") as chat:
            return await chat.complete("q", schema=SCHEMA)

    found: Answer = on("asyncio", work)
    return found


def test_an_answer_that_fits_is_decoded() -> None:
    value = {"label": "yes", "spans": [{"at": 3}]}
    assert answered(json.dumps(value)).data == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("maybe", "is no JSON"),
        ('```json\n{"label": "yes", "spans": []}\n```', "is no JSON"),
        ('{"label": "yes"}', '"spans" is a required property'),
        ('{"label": "yes", "spans": [{"at": "3"}]}', "at ['spans'][0]['at']"),
        ('{"label": "yes", "spans": [], "more": 1}', "more"),
    ],
)
def test_one_that_does_not_is_tried_again(text: str, problem: str) -> None:
    with pytest.raises(SchemaMismatch) as caught:
        answered(text)
    assert problem in str(caught.value)
    assert retryable_by_default(caught.value)
    assert caught.value.answer is not None
    assert caught.value.answer.text == text


def test_a_message_is_short_whatever_the_answer_holds() -> None:
    with pytest.raises(SchemaMismatch) as caught:
        answered(json.dumps({"label": "x" * 100_000, "spans": []}))
    assert len(str(caught.value)) < 400


def test_an_answer_that_was_cut_off_is_not_asked_for_again() -> None:
    with pytest.raises(Unfinished, match="length"):
        answered('{"label": "y', "length")


def test_what_the_service_is_asked_for() -> None:
    async def work() -> None:
        answer = reply(said('{"label": "no", "spans": []}'))
        async with answering(answer) as asked, Chat(base_url=asked.url, model="m") as chat:
            await chat.complete("q", schema=SCHEMA)
            await chat.complete("q", schema=SCHEMA, response_format={"type": "json_object"})
        first, own = (body["response_format"] for body in asked.bodies)
        assert first == {
            "type": "json_schema",
            "json_schema": {"name": "A_verdict_", "schema": SCHEMA, "strict": True},
        }
        assert own == {"type": "json_object"}

    on("asyncio", work)


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {}, "required": [], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, False),
        # A field may have the name of a keyword.
        (
            {
                "properties": {"properties": {"type": "string"}},
                "required": ["properties"],
                "additionalProperties": False,
            },
            True,
        ),
        ({"type": "string"}, True),
    ],
)
def test_services_are_asked_to_be_strict_where_they_can_be(schema: dict[str, Any], strict: bool) -> None:
    told = json.loads(orjson.dumps(schema_of(schema).response_format))
    assert told["json_schema"]["strict"] is strict
    assert told["json_schema"]["name"] == "answer"


def test_a_schema_is_compiled_once_for_its_content() -> None:
    assert schema_of({"type": "string", "minLength": 3}) is schema_of({"type": "string", "minLength": 3})
    changing = {"type": "string"}
    before = schema_of(changing)
    changing["type"] = "integer"
    assert schema_of(changing) is not before


@pytest.mark.parametrize("schema", [{"type": "strnig"}, {"$ref": "#/$defs/none"}, [], "x"])
def test_what_is_no_schema_is_a_mistake_of_the_job(schema: Any) -> None:
    with pytest.raises(TypeError, match="schema= is") as caught:
        schema_of(schema)
    assert not retryable_by_default(caught.value)


def test_a_schema_has_no_files_read(tmp_path: Path) -> None:
    elsewhere = tmp_path / ("a-long-name" * 20) / "text.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text('{"type": "string"}')
    with pytest.raises(TypeError, match="nothing outside itself"):
        schema_of({"$ref": elsewhere.as_uri()})


def test_the_test_server_answers_what_fits() -> None:
    async def work() -> None:
        async with TestServer() as server, Chat(base_url=server.url, model="m") as chat:
            for n in range(20):
                data = (await chat.complete(f"q{n}", schema=SCHEMA)).data
                assert data["label"] in ("yes", "no")

    on("asyncio", work)
