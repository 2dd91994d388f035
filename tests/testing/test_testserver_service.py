"""The service behind the test server, without sockets and with times as numbers: what it says and what it counts."""

from __future__ import annotations

import itertools
import json
import math
import random
from email.utils import parsedate_to_datetime
from heapq import heapreplace
from typing import Any, ClassVar

import pytest

from stageflow.policies.http import retry_after
from stageflow.testing.answers import answer_text, count_tokens
from stageflow.testing.capacity import Bucket, Capacity, CapacityRule
from stageflow.testing.schemas import value_for
from stageflow.testing.script import script_of
from stageflow.testing.service import Service, Turn
from stageflow.testing.wire import head_of

NOON = 1_700_000_000.25
CHAT = "/v1/chat/completions"


class Caller:
    """Calls a service by hand; ``now`` is where its clock stands."""

    def __init__(self, *faults: dict[str, Any], seed: int = 0, **script: Any) -> None:
        self.service = Service(script_of({**script, "fault": list(faults)}), seed, clock=lambda: NOON)
        self.stats = self.service.stats
        self.now = 0.0

    def begin(self, prompt: str = "hello", *, key: str = "", path: str = CHAT, bearer: str = "k", **more: Any) -> Turn:
        said = {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}
        body = json.dumps({name: value for name, value in said.items() if value is not None}).encode()
        lines = [f"POST {path} HTTP/1.1", f"Authorization: Bearer {bearer}"]
        lines += [f"Idempotency-Key: {key}"] if key else []
        head = head_of(bytearray("\r\n".join([*lines, "", ""]).encode()))
        assert head is not None
        return self.service.begin(head, body, self.now)

    def end(self, turn: Turn, *, whole: bool = True) -> None:
        self.service.end(turn, self.now, whole=whole)

    def call(self, prompt: str = "hello", **more: Any) -> Said:
        """A call to its end, which takes its delay."""
        turn = self.begin(prompt, **more)
        self.now += turn.delay
        self.end(turn)
        return Said(turn)


class Said:
    """An answer, read off its bytes."""

    def __init__(self, turn: Turn) -> None:
        head, _, self.raw = b"".join(turn.delivery.pieces).partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        self.status = int(line.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def text(self) -> str:
        return str(self.body["choices"][0]["message"]["content"])

    @property
    def asked_to_wait(self) -> float | None:
        """As stageflow reads it."""

        class Failed(Exception):
            headers = self.headers

        return retry_after(Failed())


class TestAnswers:
    def test_they_are_functions_of_the_prompt_and_the_seed(self) -> None:
        one, other = Caller(seed=1), Caller(seed=2)
        assert one.call("a").text == one.call("a").text == one.service.answer("a") == answer_text("a", seed=1)
        assert one.call("a").text != one.call("b").text
        assert one.call("a").text != other.call("a").text

    def test_all_messages_and_all_parts_are_the_prompt(self) -> None:
        parts = [{"type": "text", "text": "x"}, {"type": "image_url"}, {"type": "text", "text": "y"}]
        said = Caller().call(messages=[{"role": "system", "content": "s"}, {"role": "user", "content": parts}])
        assert said.text == answer_text("s\nx  y")

    def test_usage_is_that_of_the_texts(self) -> None:
        caller = Caller(answer_tokens=[5, 50])
        lengths = set()
        for n in range(200):
            said = caller.call(f"question {n}")
            usage = said.body["usage"]
            assert usage["prompt_tokens"] == count_tokens(f"question {n}")
            assert usage["completion_tokens"] == count_tokens(said.text)
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert said.text == said.text.strip()
            lengths.add(usage["completion_tokens"])
        assert min(lengths) == 5
        assert max(lengths) == 50

    def test_max_tokens_cuts_and_says_so(self) -> None:
        caller = Caller()
        for name in ("max_tokens", "max_completion_tokens"):
            said = caller.call(**{name: 3}).body
            assert said["choices"][0]["finish_reason"] == "length"
            assert said["usage"]["completion_tokens"] == 3
        assert caller.call(max_tokens=16).body["choices"][0]["finish_reason"] == "stop"

    def test_several_choices(self) -> None:
        said = Caller().call(n=3).body
        assert [choice["index"] for choice in said["choices"]] == [0, 1, 2]
        assert said["usage"]["completion_tokens"] == 48

    def test_embeddings_have_length_one_and_differ(self) -> None:
        caller = Caller(dimensions=8)
        said = caller.call(path="/v1/embeddings", messages=None, input=["a", "b", "a"]).body
        first, second, third = (each["embedding"] for each in said["data"])
        assert first == third != second
        assert [len(first), len(second)] == [8, 8]
        assert math.hypot(*first) == pytest.approx(1.0)
        assert said["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        assert len(caller.call(path="/v1/embeddings", input="a", dimensions=5).body["data"][0]["embedding"]) == 5

    @pytest.mark.parametrize(
        ("given", "status", "message"),
        [
            ({"model": None}, 400, "you must provide a model parameter"),
            ({"model": "other"}, 404, "The model `other` does not exist"),
            ({"messages": []}, 400, "'messages'"),
            ({"messages": ["hi"]}, 400, "'messages'"),
            ({"n": 0.5}, 400, "'n'"),
            ({"max_tokens": -1}, 400, "'max_tokens'"),
            ({"response_format": "json"}, 400, "'response_format'"),
            ({"path": "/v1/embeddings", "input": ""}, 400, "'input'"),
            ({"path": "/v1/embeddings"}, 400, "'input'"),
            ({"path": "/v1/embeddings", "input": [""]}, 400, "'input'"),
        ],
    )
    def test_what_the_api_refuses(self, given: dict[str, Any], status: int, message: str) -> None:
        caller = Caller(models=["m"])
        said = caller.call(**given)
        assert said.status == status
        assert message in said.body["error"]["message"]
        assert caller.stats.outcomes == {"bad_request": 1}
        assert caller.stats.tokens_in == 0

    def test_no_request_is_too_strange(self) -> None:
        seed = random.randrange(10**9)
        draw = random.Random(seed)
        caller = Caller()
        values: list[Any] = [None, True, -1, 2, 0.5, "x", "", [], {}, [[]], [{}], {"type": "x"}, ["a", 3], [7]]
        names = ["model", "messages", "n", "max_tokens", "response_format", "stream", "stream_options", "input"]
        names += ["dimensions", "encoding_format"]
        words = ["type", "properties", "items", "enum", "anyOf", "allOf", "$ref", "minItems", "minimum", "maxLength"]
        statuses = set()
        for _ in range(3000):
            given = {name: draw.choice(values) for name in draw.sample(names, 2)}
            if draw.random() < 0.5:
                schema = {word: draw.choice([*values, "string", "array", "integer"]) for word in draw.sample(words, 3)}
                given["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
            path = draw.choice([CHAT, "/v1/embeddings"])
            try:
                statuses.add(Said(caller.begin(**given, path=path)).status)
            except Exception as error:
                error.add_note(f"{path} {given}, seed {seed}")
                raise
        assert statuses == {200, 400}


class TestSchemas:
    SCHEMAS: tuple[Any, ...] = (
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
        {"type": "array", "items": {"type": "number", "minimum": 2, "maximum": 3}, "minItems": 3, "maxItems": 4},
        {"enum": ["x", "y"]},
        {"const": 5},
        {"type": ["string", "null"]},
        {"type": "integer", "minimum": 10, "exclusiveMaximum": 12},
        {"type": "integer", "multipleOf": 7, "minimum": 1},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-6},
        {"type": "string", "minLength": 40, "maxLength": 44},
        {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        {"allOf": [{"properties": {"a": {"type": "null"}}}, {"properties": {"b": {"const": 1}}, "required": ["b"]}]},
        {"allOf": [{"properties": {}, "required": ["a"]}, {"properties": {}, "required": ["b"]}]},
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "boolean"}}},
        {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False, "maxItems": 2},
    )

    @pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
    def test_the_value_fits(self, schema: Any) -> None:
        for n in range(50):
            value = value_for(schema, random.Random(n).randbytes(64), "some words to choose from")
            assert fits(value, schema, schema), (value, n)

    def test_a_schema_that_holds_itself_ends(self) -> None:
        tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "minItems": 0}}}
        linked = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
        wide = {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefgh"}}
        for schema in (tree, {**linked, "required": ["next"]}, {"$ref": "#"}, wide):
            for n in range(20):
                json.dumps(value_for(schema, random.Random(n).randbytes(64), "words"))

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "array", "items": {"type": "array", "minItems": 5000}, "minItems": 5000},
            {"type": "array", "minItems": 10**12},
            {"type": "string", "minLength": 10**12},
            {"type": "object", "properties": {name: {"$ref": "#"} for name in "abc"}, "required": ["a", "b", "c"]},
            {"type": "integer", "minimum": "x"},
            {"type": "object", "properties": 3},
        ],
        ids=str,
    )
    def test_one_that_nothing_can_be_made_of_is_refused(self, schema: Any) -> None:
        said = Caller().call(response_format={"type": "json_schema", "json_schema": {"schema": schema}})
        assert said.status == 400
        assert "schema" in said.body["error"]["message"]

    def test_an_answer_is_json_that_fits(self) -> None:
        schema = self.SCHEMAS[0]
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        caller = Caller()
        value = json.loads(caller.call(response_format=form).text)
        assert fits(value, schema, schema)
        assert isinstance(json.loads(caller.call(response_format={"type": "json_object"}).text), dict)
        assert caller.service.answer("hello", form) == json.dumps(value, separators=(",", ":"))


TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}


def fits(value: Any, schema: Any, root: Any) -> bool:
    """A second opinion on the few words that the schemas above use."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "allOf" in schema:
        return all(fits(value, part, root) for part in schema["allOf"])
    if "anyOf" in schema:
        return any(fits(value, part, root) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if "properties" in schema:
        known = schema["properties"]
        told = [fits(value[name], known[name], root) for name in value.keys() & known.keys()]
        return set(schema.get("required", ())) <= value.keys() and all(told)
    if schema["type"] == "array":
        first = schema.get("prefixItems", [])
        return schema.get("minItems", 0) <= len(value) <= schema["maxItems"] and all(
            fits(each, part, root) for each, part in zip(value, [*first, *[schema["items"]] * 9], strict=False)
        )
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, TYPES[name]) and (name == "boolean") is isinstance(value, bool) for name in types):
        return False
    size = len(value) if isinstance(value, str) else value if isinstance(value, (int, float)) else 0
    return (
        size >= schema.get("minimum", schema.get("minLength", -math.inf))
        and size <= schema.get("maximum", schema.get("maxLength", math.inf))
        and size > schema.get("exclusiveMinimum", -math.inf)
        and size < schema.get("exclusiveMaximum", math.inf)
        and size % schema.get("multipleOf", 1 if "integer" in types else size or 1) == 0
    )


class TestErrors:
    @pytest.mark.parametrize(
        ("fault", "status", "kind", "code"),
        [
            ({"do": "rate_limit"}, 429, "requests", "rate_limit_exceeded"),
            ({"do": "quota"}, 429, "insufficient_quota", "insufficient_quota"),
            ({"do": "unauthorized"}, 401, "invalid_request_error", "invalid_api_key"),
            ({"do": "error"}, 500, "server_error", None),
            (
                {"do": "error", "status": 529, "code": "overloaded", "message": "later"},
                529,
                "server_error",
                "overloaded",
            ),
            ({"do": "error", "status": 422}, 422, "invalid_request_error", None),
        ],
    )
    def test_their_bodies(self, fault: dict[str, Any], status: int, kind: str, code: str | None) -> None:
        caller = Caller({**fault, "after": 0.5})
        said = caller.call()
        assert said.status == status
        error = said.body["error"]
        assert (error["type"], error["code"]) == (kind, code)
        assert error["message"] == fault.get("message", error["message"]) != ""
        assert said.asked_to_wait is None
        assert caller.now == 0.5
        assert caller.stats.outcomes == {fault["do"]: 1}

    @pytest.mark.parametrize(("way", "seconds"), [("seconds", 3.0), ("ms", 2.345), ("date", 3.0), ("none", None)])
    def test_retry_after_is_read_as_it_was_meant(self, way: str, seconds: float | None) -> None:
        fault = {"do": "error", "status": 503, "retry_after": 2.345, "retry_after_as": way}
        said = Caller(fault, clock_offset=3600).call()
        assert said.asked_to_wait == seconds
        assert parsedate_to_datetime(said.headers["date"]).timestamp() == int(NOON) + 3600

    @pytest.mark.parametrize("text", ["-1", "abc", "inf", "1e9", "Fri, 31 Dec 100000 23:59:59 GMT"])
    def test_retry_after_as_it_stands(self, text: str) -> None:
        caller = Caller({"do": "rate_limit", "retry_after": text})
        assert caller.call().headers["retry-after"] == text
        assert caller.stats.retry_after_sent == 0, "it is no time that one could keep to"


class TestContent:
    def test_empty_choices_length_and_content_filter(self) -> None:
        caller = Caller(
            *({"do": do, "calls": n} for n, do in enumerate(("empty_choices", "length", "content_filter"), 1))
        )
        empty, length, filtered = (caller.call().body for _ in range(3))
        assert empty["choices"] == []
        assert length["choices"][0]["finish_reason"] == "length"
        assert length["choices"][0]["message"]["content"] == answer_text("hello")[:32]
        assert filtered["choices"][0] == {
            "index": 0,
            "message": {"role": "assistant", "content": None, "refusal": None},
            "logprobs": None,
            "finish_reason": "content_filter",
        }
        tokens = [each["usage"]["completion_tokens"] for each in (empty, length, filtered)]
        assert tokens == [0, 8, 0]
        assert caller.stats.tokens_out == sum(tokens)
        assert caller.stats.lost_tokens_out == 0, "their usage arrived: a client can know of it"

    def test_embeddings_may_be_empty_too(self) -> None:
        said = Caller({"do": "empty_choices"}).call(path="/v1/embeddings", input="a").body
        assert said["data"] == []

    def test_what_is_garbled_is_worked_for_and_lost(self) -> None:
        caller = Caller(*({"do": do, "calls": n} for n, do in enumerate(("truncated_json", "invalid_json"), 1)))
        for _ in range(2):
            said = caller.call("hello")
            assert said.status == 200
            assert int(said.headers["content-length"]) == len(said.raw)
            with pytest.raises(json.JSONDecodeError):
                json.loads(said.raw)
        assert caller.stats.tokens_out == 0
        assert caller.stats.lost_tokens_out == 32
        assert caller.stats.lost_tokens_in == 4


class TestRateLimits:
    def test_a_bucket_gives_its_burst_and_then_its_rate(self) -> None:
        bucket = Bucket(per_minute=60, burst=3)
        for _ in range(3):
            assert bucket.wait(10.0, 1) == 0
            bucket.take(1)
        assert bucket.wait(10.0, 1) == 1.0
        assert bucket.wait(10.5, 1) == 0.5
        assert bucket.wait(11.0, 1) == 0
        assert bucket.wait(1000.0, 1) == 0
        assert bucket.left() == 3, "no more than the burst"
        bucket.take(5)
        assert bucket.wait(1000.0, 100) == 5.0, "what is larger than the bucket waits for a full one"

    def test_calls_beyond_it_are_told_when_to_come(self) -> None:
        caller = Caller(limit=[{"requests_per_minute": 60, "burst_seconds": 2}])
        first = caller.call()
        assert first.headers["x-ratelimit-limit-requests"] == "60"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "1s"
        caller.call()
        refused = caller.call()
        assert refused.status == 429
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert refused.asked_to_wait == 1.0
        caller.now = 1.0
        assert caller.call().status == 200
        assert caller.stats.outcomes == {"ok": 3, "limited": 1}
        assert caller.stats.retry_after_ignored == 0

    def test_tokens(self) -> None:
        caller = Caller(limit=[{"tokens_per_minute": 1800, "burst_seconds": 2, "retry_after_as": "ms"}])
        assert [caller.call().status for _ in range(4)] == [200, 200, 200, 429], "60 tokens, 18 a call"
        assert caller.call().asked_to_wait == 0.4, "12 more at 30 a second"
        assert (caller.stats.tokens_out, caller.stats.lost_tokens_out) == (48, 0), "what is refused costs nothing"

    def test_of_one_model(self) -> None:
        caller = Caller(limit=[{"model": "m", "requests_per_minute": 1}])
        assert [caller.call(model=name).status for name in ("m", "m", "o", "o")] == [200, 429, 200, 200]

    def test_of_all_models_and_of_one(self) -> None:
        limits = [{"requests_per_minute": 60, "burst_seconds": 3}, {"model": "m", "requests_per_minute": 1}]
        caller = Caller(limit=limits)
        told = [caller.call(model=name).status for name in ("m", "m", "o", "o", "o")]
        assert told == [200, 429, 200, 200, 429], "one that is refused takes nothing of the other"


class TestCapacity:
    def test_a_queue_serves_first_come_first_served(self) -> None:
        draw = random.Random(5)
        for _ in range(50):
            places = draw.randint(1, 5)
            capacity = Capacity(CapacityRule(in_flight=places))
            free, now = [0.0] * places, 0.0
            for _ in range(100):
                now += draw.expovariate(1.0)
                seconds = draw.uniform(0, 8)
                end = max(now, free[0]) + seconds  # a plain queue: the place that is free first
                heapreplace(free, end)
                assert capacity.begin(now, seconds) == pytest.approx(end - now)
                capacity.end()

    def test_slow_takes_more_the_more_there_are(self) -> None:
        capacity = Capacity(CapacityRule(in_flight=2, beyond="slow", power=2))
        assert [capacity.begin(0.0, 1.0) for _ in range(4)] == [1.0, 1.0, 2.25, 4.0]
        for _ in range(4):
            capacity.end()
        assert capacity.begin(0.0, 1.0) == 1.0

    def test_refuse(self) -> None:
        caller = Caller(capacity={"in_flight": 2, "beyond": "refuse"}, latency=1)
        first, second, third = (caller.begin() for _ in range(3))
        assert [turn.outcome for turn in (first, second, third)] == ["ok", "ok", "over_capacity"]
        assert (first.delay, third.delay) == (1.0, 0.0)
        for turn in (third, first, second):
            caller.end(turn)
        assert caller.call().status == 200
        assert caller.stats.most_in_flight == 3
        assert caller.stats.lost_tokens_out == 0
        assert caller.stats.in_flight == 0

    def test_a_queue_in_front_of_the_service(self) -> None:
        caller = Caller(capacity={"in_flight": 2}, latency=1)
        assert [caller.begin().delay for _ in range(6)] == [1, 1, 2, 2, 3, 3]


PRICES = {"m": {"input": 1.0, "output": 10.0}, "*": {"input": 100.0}}


class TestCounts:
    def test_money_is_that_of_what_arrived(self) -> None:
        caller = Caller({"do": "reset_body", "calls": 3}, {"do": "error", "calls": 4}, prices=PRICES)
        for name in ("m", "other", "m", "m"):
            caller.call("x" * 40, model=name)
        stats = caller.stats
        assert (stats.tokens_in, stats.tokens_out) == (20, 32)
        assert stats.cost == pytest.approx((10 * 1 + 16 * 10 + 10 * 100) / 1e6)
        assert stats.lost_cost == pytest.approx((10 * 1 + 16 * 10) / 1e6)
        assert stats.outcomes == {"ok": 2, "reset_body": 1, "error": 1}
        told = stats.as_dict()
        assert told["models"]["m"] == {"calls": 3, "tokens_in": 10, "tokens_out": 16, "cost": pytest.approx(170e-6)}
        assert told["keys"]["key 1"]["calls"] == 4
        json.dumps(told)

    def test_a_client_that_leaves(self) -> None:
        caller = Caller(prices=PRICES)
        caller.end(caller.begin(key="a"), whole=False)
        assert caller.stats.outcomes == {"abandoned": 1}
        assert caller.stats.cost == 0
        assert caller.stats.lost_cost > 0
        caller.call(key="a")
        assert (caller.stats.repeats, caller.stats.duplicates) == (1, 0)

    @pytest.mark.parametrize("draw_by", ["key", "body", "number"])
    def test_paid_twice(self, draw_by: str) -> None:
        caller = Caller({"do": "error", "calls": 1}, draw_by=draw_by)
        for key in ("a", "a", "a", "b", ""):
            caller.call(key=key)
        assert (caller.stats.repeats, caller.stats.duplicates) == (2, 1)
        caller = Caller({"do": "empty_choices", "calls": 1}, {"do": "length", "calls": 2}, draw_by=draw_by)
        for _ in range(3):
            caller.call(key="a")
        assert (caller.stats.repeats, caller.stats.duplicates) == (2, 0), "there was reason to ask again"
        hedge = [caller.begin(key="c"), caller.begin(key="c")]
        for turn in hedge:
            caller.end(turn)
        assert (caller.stats.repeats, caller.stats.duplicates) == (3, 1), "two at once, both answered"

    def test_keys_are_told_apart_and_not_kept(self) -> None:
        caller = Caller()
        for bearer in ("sk-secret", "sk-other", "sk-secret"):
            caller.call(bearer=bearer)
        told = caller.stats.as_dict()
        assert {name: each["calls"] for name, each in told["keys"].items()} == {"key 1": 2, "key 2": 1}
        assert "secret" not in json.dumps(told)

    @pytest.mark.parametrize("key", ["a", ""])
    def test_coming_back_too_early(self, key: str) -> None:
        caller = Caller({"do": "rate_limit", "retry_after": 2, "calls": "1-3"})
        caller.call(key=key)
        caller.now = 1.9
        caller.call(key=key)
        assert caller.stats.retry_after_ignored == 1
        caller.now = 3.9
        caller.call(key=key)
        assert caller.stats.retry_after_ignored == 1, "2 s after the second"
        caller.now = 5.9
        assert caller.call(key=key).status == 200
        assert (caller.stats.retry_after_sent, caller.stats.retry_after_ignored) == (3, 1)

    def test_a_date_may_be_kept_to_by_the_second(self) -> None:
        caller = Caller({"do": "rate_limit", "retry_after": 2, "retry_after_as": "date", "calls": "1-2"})
        caller.call()
        caller.now = 1.75  # a quarter of the second of the answer had gone by
        caller.call()
        assert caller.stats.retry_after_ignored == 0
        caller.now += 1.7
        caller.call()
        assert caller.stats.retry_after_ignored == 1

    def test_other_calls_while_the_caller_should_wait(self) -> None:
        caller = Caller({"do": "rate_limit", "retry_after": 2, "calls": 1})
        caller.call("a")
        for now, prompt, more in (
            (0.2, "b", {}),  # may have been under way
            (1.0, "c", {"bearer": "another"}),
            (1.0, "d", {"model": "another"}),
            (2.0, "e", {}),
        ):
            caller.now = now
            caller.call(prompt, **more)
        assert caller.stats.during_retry_after == 0
        again = Caller({"do": "rate_limit", "retry_after": 2, "calls": 1})
        again.call("a")
        again.now = 1.0
        again.call("b")
        assert (again.stats.during_retry_after, again.stats.retry_after_ignored) == (1, 0)


class TestSameAgain:
    SCRIPT: ClassVar[dict[str, Any]] = {"latency": {"median": 1, "tail": 0.1, "times": 9}, "answer_tokens": [4, 40]}
    FAULTS: tuple[dict[str, Any], ...] = ({"do": "error", "share": 0.3}, {"do": "cut_body", "share": 0.2})

    def told(self, order: list[int], draw_by: str, key: str) -> dict[int, Any]:
        caller = Caller(*self.FAULTS, **self.SCRIPT, draw_by=draw_by, seed=5)
        found = {}
        for n in order:
            turn = caller.begin(f"q{n}", key=key.format(n))
            found[n] = (turn.outcome, turn.delay, turn.tokens_out)
        return found

    @pytest.mark.parametrize(("draw_by", "key"), [("key", "k{}"), ("body", ""), ("body", "k{}")])
    def test_in_any_order(self, draw_by: str, key: str) -> None:
        order = list(range(200))
        told = self.told(order, draw_by, key)
        random.Random(1).shuffle(order)
        assert self.told(order, draw_by, key) == told
        assert len({outcome for outcome, _, _ in told.values()}) == 3

    @pytest.mark.parametrize(("draw_by", "key"), [("key", ""), ("number", "k{}")])
    def test_in_the_same_order(self, draw_by: str, key: str) -> None:
        order = list(range(200))
        told = self.told(order, draw_by, key)
        assert self.told(order, draw_by, key) == told
        assert self.told(order[::-1], draw_by, key) != told

    def test_retries_of_a_key_fare_differently(self) -> None:
        for draw_by in ("key", "body"):
            caller = Caller({"do": "error", "share": 0.5}, draw_by=draw_by)
            outcomes = [caller.call(key="k").status for _ in range(40)]
            assert len(set(itertools.pairwise(outcomes))) == 4
