"""A service says what remains of its limit, and the stage keeps to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stageflow import Pipeline, RateLimit, Retry
from stageflow.llm import Chat
from stageflow.testing import TestServer

pytest.importorskip("httptools")

LIMITS = [{"requests_per_minute": 60 * 40, "burst_seconds": 1.0, "retry_after_as": "ms"}]


async def refused(*, records: int = 160, settings: dict[str, Any] | None = None, **options: Any) -> int:
    """How many calls the service refuses that takes 40 a second."""
    async with TestServer({"limit": LIMITS}) as server:
        pipeline, out = Pipeline("ask", key="n"), list[Any]()

        @pipeline.resource
        async def chat() -> Any:
            async with Chat(base_url=server.url, model="m", **options) as chat:
                yield chat

        @pipeline.stage(max_in_flight=16, retry=Retry(attempts=1000, base=0.01), **(settings or {}))
        async def generate(n: int, chat: Chat, call: Any) -> str:
            return (await chat.complete(f"question {n}", call=call)).text

        report = await pipeline.run([{"n": n} for n in range(records)], out)
        assert report.written == records
        return server.stats.calls - records


def test_with_what_the_service_says_it_is_hardly_refused() -> None:
    # The first calls start before any answer has come.
    assert asyncio.run(refused()) <= 8


def test_it_can_be_switched_off_in_the_client_and_in_the_limit() -> None:
    assert asyncio.run(refused(heeds_limits=False)) > 8
    assert asyncio.run(refused(settings={"rate_limit": RateLimit(per_second=1000, adaptive=False)})) > 8
