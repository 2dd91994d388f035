"""The official client talks to the test server, and a job is rehearsed against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stageflow import Pipeline, Retry
from stageflow.testing import TestServer

openai = pytest.importorskip("openai")

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def opened(script: Any = None, *, seed: int = 0, **options: Any) -> AsyncIterator[tuple[TestServer, Any]]:
    """A server, and the official client for it, which does not retry by itself."""
    given = {"api_key": "any", "max_retries": 0, "timeout": 10.0, **options}
    async with TestServer(script, seed=seed) as server, openai.AsyncOpenAI(base_url=server.url, **given) as client:
        yield server, client


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_completion() -> None:
    async def main() -> None:
        async with opened(seed=4) as (server, client):
            said = await client.chat.completions.create(model="m", messages=HELLO)
            assert said.choices[0].message.content == server.answer("hello")
            assert said.choices[0].finish_reason == "stop"
            assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (2, 16)
            assert (server.stats.tokens_in, server.stats.tokens_out) == (2, 16)
            assert [model.id async for model in client.models.list()] == ["m"]

    run(main)


def test_a_stream() -> None:
    async def main() -> None:
        async with opened() as (server, client):
            options = {"stream": True, "stream_options": {"include_usage": True}}
            events = [e async for e in await client.chat.completions.create(model="m", messages=HELLO, **options)]
            text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
            assert text == server.answer("hello")
            assert events[-1].usage.total_tokens == 18

    run(main)


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_embeddings(encoding: str) -> None:
    async def main() -> None:
        async with opened() as (server, client):
            said = await client.embeddings.create(model="e", input=["a", "b"], encoding_format=encoding)
            if encoding == "float":
                assert [each.embedding for each in said.data] == [server.embedding("a"), server.embedding("b")]
            said = await client.embeddings.create(model="e", input="a", dimensions=12)
            assert said.data[0].embedding == server.embedding("a", 12)

    run(main)


def test_structured_output() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Verdict(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        grade: int = pydantic.Field(ge=1, le=5)
        reasons: list[str]
        final: bool | None

    async def main() -> None:
        async with opened({"fault": [{"do": "length", "calls": 2}]}) as (_, client):
            given = {"model": "m", "messages": HELLO, "response_format": Verdict}
            said = await client.chat.completions.parse(**given)
            assert 1 <= said.choices[0].message.parsed.grade <= 5
            with pytest.raises(openai.LengthFinishReasonError):
                await client.chat.completions.parse(**given)

    run(main)


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ({"do": "rate_limit", "retry_after": 1}, "RateLimitError", "rate_limit_exceeded"),
        ({"do": "quota"}, "RateLimitError", "insufficient_quota"),
        ({"do": "unauthorized"}, "AuthenticationError", "invalid_api_key"),
        ({"do": "error", "status": 503}, "InternalServerError", None),
        ({"do": "error", "status": 403}, "PermissionDeniedError", None),
        ({"do": "error", "status": 422}, "UnprocessableEntityError", None),
        ({"do": "reset_before"}, "APIConnectionError", None),
        ({"do": "reset_after"}, "APIConnectionError", None),
        ({"do": "hang"}, "APITimeoutError", None),
        ({"do": "delay", "seconds": 5}, "APITimeoutError", None),
    ],
    ids=str,
)
def test_errors(fault: dict[str, Any], error: str, code: str | None) -> None:
    async def main() -> None:
        seconds = 0.3 if error == "APITimeoutError" else 10.0
        async with opened({"fault": [{**fault, "calls": 1}]}) as (_, client):
            with pytest.raises(getattr(openai, error)) as caught:
                await client.chat.completions.create(model="m", messages=HELLO, timeout=seconds)
            assert type(caught.value).__name__ == error
            assert caught.value.code == code
            await client.chat.completions.create(model="m", messages=HELLO)

    run(main)


def test_what_the_official_client_keeps_to() -> None:
    async def main() -> None:
        fault = {"do": "rate_limit", "retry_after": 0.03, "retry_after_as": "ms", "share": 0.3}
        async with opened({"fault": [fault]}, max_retries=9) as (server, client):
            create = client.chat.completions.create
            asked = [{"role": "user", "content": f"question {n}"} for n in range(50)]
            await asyncio.gather(*(create(model="m", messages=[message]) for message in asked))
            assert server.stats.retry_after_sent > 5
            assert server.stats.retry_after_ignored == 0
            assert server.stats.outcomes["ok"] == 50

    run(main)


FAULTS = (
    *({"do": do, "share": 0.03} for do in ("reset_before", "reset_after", "reset_body", "cut_body", "invalid_json")),
    *({"do": "error", "status": status, "share": 0.03} for status in (500, 503)),
    {"do": "rate_limit", "share": 0.03, "retry_after": 0.02, "retry_after_as": "ms"},
)
"""One call in four."""


def test_a_job_is_rehearsed() -> None:
    async def main() -> None:
        script = {"latency": [0.0, 0.01], "fault": FAULTS, "prices": {"m": {"input": 1, "output": 4}}}
        async with opened(script, seed=7) as (server, client):
            pipeline = Pipeline("rehearsal", key="id")
            spent: list[int] = []

            @pipeline.stage(max_in_flight=50, retry=Retry(attempts=12, base=0.005, cap=0.02))
            async def generate(query: str, call: Any) -> str:
                key = {"Idempotency-Key": call.idempotency_key}
                messages = [{"role": "user", "content": query}]
                said = await client.chat.completions.create(model="m", messages=messages, extra_headers=key)
                spent.append(said.usage.prompt_tokens + 4 * said.usage.completion_tokens)
                return str(said.choices[0].message.content)

            records = [{"id": n, "query": f"question {n}"} for n in range(300)]
            written: list[dict[str, Any]] = []
            report = await pipeline.run(records, written, dead=(dead := []))
            assert (report.written, dead) == (300, []), dead[:1]
            assert all(record["generate"] == server.answer(record["query"]) for record in written)
            stats = server.stats
            assert set(stats.outcomes) <= {"ok", *(fault["do"] for fault in FAULTS)}
            assert stats.repeats > 30, "of about 95"
            assert stats.outcomes["ok"] == 300
            assert stats.calls == 300 + stats.repeats
            assert (stats.duplicates, stats.retry_after_ignored) == (0, 0)
            assert stats.cost == pytest.approx(sum(spent) / 1e6)

    run(main)
