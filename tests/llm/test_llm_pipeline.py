"""Jobs whose stages ask a model: every record settles, whatever the service does."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import KEY, VARIABLE, on

from stageflow import Batch, Pipeline, RateLimit, Retry, degrade
from stageflow.llm import Chat, Unfinished
from stageflow.testing import TestServer

pytest.importorskip("httptools")
pytest.importorskip("jsonschema_rs")

LOOPS = ("asyncio", "uvloop")
LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}},
    "required": ["label"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def job(server: TestServer, **settings: Any) -> Pipeline:
    """A job with one stage that asks the server."""
    pipeline = Pipeline("ask", key="n")

    @pipeline.resource
    async def chat() -> Any:
        async with Chat(base_url=server.url, model="m", api_key_env=VARIABLE) as chat:
            yield chat

    @pipeline.stage(**settings)
    async def generate(n: int, chat: Chat, call: Any) -> str:
        return (await chat.complete(f"question {n}", call=call)).text

    return pipeline


@pytest.mark.parametrize("loop", LOOPS)
def test_a_service_that_limits_its_callers_is_waited_for(loop: str) -> None:
    async def work() -> None:
        limits = [{"requests_per_minute": 60 * 200, "burst_seconds": 0.1, "retry_after_as": "ms"}]
        async with TestServer({"limit": limits}) as server:
            out: list[Any] = []
            pipeline = job(server, max_in_flight=32, retry=Retry(attempts=50, base=0.01))
            report = await pipeline.run([{"n": n} for n in range(150)], out)
            assert report.exit_code == 0
            stats = server.stats
            assert stats.outcomes["ok"] == 150
            assert stats.outcomes["limited"] > 0
            assert stats.retry_after_ignored == 0
            assert stats.duplicates == 0
            for record in out:
                assert record["generate"] == server.answer(f"question {record['n']}")
        assert sorted(record["n"] for record in out) == list(range(150))

    on(loop, work)


def test_all_faults_at_once_settle_every_record_and_pay_for_none_twice() -> None:
    kinds = ("rate_limit", "error", "reset_before", "reset_after", "reset_body", "cut_body", "truncated_json")
    kinds += ("invalid_json", "content_type", "empty_choices")

    async def work() -> None:
        faults = [
            {"do": do, "share": 0.03, **({"retry_after": 0.02, "retry_after_as": "ms"} if do == "rate_limit" else {})}
            for do in kinds
        ]
        async with TestServer({"fault": faults, "latency": [0.0, 0.005]}, seed=5) as server:
            out: list[Any] = []
            limit = RateLimit(tokens_per_minute=60_000_000)
            pipeline = job(server, max_in_flight=50, rate_limit=limit, retry=Retry(attempts=20, base=0.001))
            report = await pipeline.run([{"n": n} for n in range(400)], out)
            stats = server.stats
            assert report.exit_code == 0, f"seed {server.seed}"
            assert sorted(record["n"] for record in out) == list(range(400))
            assert stats.outcomes["ok"] == 400
            assert stats.duplicates == 0
            assert len(stats.outcomes) == len(kinds) + 1
            # What arrived whole was reported, and nothing else.
            assert report.stages["generate"].tokens == stats.tokens_in + stats.tokens_out

    on("asyncio", work)


def test_a_stage_that_gives_up_on_a_call_frees_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with TestServer({"fault": [{"do": "hang", "calls": "1-10"}]}) as server:
            out: list[Any] = []
            pipeline = job(server, max_in_flight=10, timeout=0.2, retry=Retry(attempts=2, base=0.001))
            report = await pipeline.run([{"n": n} for n in range(10)], out)
            assert report.exit_code == 0
            assert len(out) == 10
            assert server.stats.in_flight == 0

    on("asyncio", work)


@pytest.mark.parametrize("fault", ["unauthorized", "quota"])
def test_what_no_record_gets_past_stops_the_run_without_losing_one(fault: str) -> None:
    async def work() -> None:
        async with TestServer({"fault": [{"do": fault, "calls": "6-"}]}) as server:
            out: list[Any] = []
            dead: list[Any] = []
            pipeline = job(server, max_in_flight=1, retry=5)
            report = await pipeline.run([{"n": n} for n in range(50)], out, dead=dead)
            assert report.exit_code == 4
            assert (len(out), dead) == (5, [])
            assert server.stats.calls < 10

    on("asyncio", work)


def test_a_key_that_is_not_set_ends_it_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from stageflow import DefinitionError

    monkeypatch.delenv(VARIABLE)

    async def work() -> None:
        async with TestServer() as server:
            with pytest.raises(DefinitionError, match=f"{VARIABLE} is not set") as caught:
                await job(server).run([{"n": 1}], [])
            assert caught.value.hint == "it holds the service's key"

    on("asyncio", work)


def test_a_whole_job_with_structured_output_and_embeddings() -> None:
    async def work() -> None:
        script = {"fault": [{"do": "length", "share": 0.3, "path": "chat/completions"}]}
        async with TestServer(script, seed=3) as server:
            pipeline = Pipeline("job", key="n")

            @pipeline.resource
            async def chat() -> Any:
                async with Chat(base_url=server.url, model="m") as chat:
                    yield chat

            @pipeline.stage(batch=Batch(size=8), max_in_flight=4)
            async def embed(n: list[int], chat: Chat, call: Any) -> list[Any]:
                return (await chat.embed([f"text {each}" for each in n], call=call, dimensions=4)).vectors

            @pipeline.stage(on_error=degrade(lambda error, *_: {"label": None, "cut": isinstance(error, Unfinished)}))
            async def classify(n: int, chat: Chat, call: Any) -> Any:
                return (await chat.complete(f"is it {n}?", schema=LABEL, call=call)).data

            out: list[Any] = []
            report = await pipeline.run([{"n": n} for n in range(100)], out)
            assert report.exit_code == 0
            assert len(out) == 100
            for record in out:
                assert record["embed"] == pytest.approx(server.embedding(f"text {record['n']}", 4))
            labels = [record["classify"] for record in out]
            assert {label["label"] for label in labels} == {"yes", "no", None}
            assert all(label["cut"] for label in labels if label["label"] is None)

    on("asyncio", work)


def test_an_answer_can_be_a_result_as_it_is(tmp_path: Path) -> None:
    async def work() -> None:
        async with TestServer() as server:
            pipeline = Pipeline("job")

            @pipeline.resource
            async def chat() -> Any:
                async with Chat(base_url=server.url, model="m") as chat:
                    yield chat

            @pipeline.stage
            async def generate(chat: Chat) -> Any:
                return await chat.complete("q")

            await pipeline.run([{"n": 1}], tmp_path / "out.jsonl")
        record = json.loads((tmp_path / "out.jsonl").read_text())
        assert record["generate"]["text"]
        assert record["generate"]["usage"]["total_tokens"] > 0

    on("asyncio", work)


def test_no_key_gets_into_the_files_of_a_run(tmp_path: Path) -> None:
    async def work() -> None:
        fault = {"do": "error", "status": 400, "message": f"you sent {KEY}", "share": 0.5}
        async with TestServer({"fault": [fault]}) as server:
            report = await job(server).run([{"n": n} for n in range(40)], tmp_path / "out.jsonl")
            assert report.exit_code == 3

    on("asyncio", work)
    written = {path.name: path.read_text("utf-8", "replace") for path in tmp_path.iterdir()}
    assert "you sent ***" in written["out.jsonl.dead.jsonl"]
    for text in written.values():
        assert KEY not in text
        assert json.dumps(KEY)[1:-1] not in text


def test_calls_that_were_cancelled_with_their_run_are_not_left_behind() -> None:
    async def work() -> None:
        async with TestServer({"fault": [{"do": "hang"}]}) as server:
            run = asyncio.create_task(job(server, max_in_flight=20).run([{"n": n} for n in range(20)], []))
            deadline = time.monotonic() + 20
            while server.stats.in_flight < 20:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            while server.stats.in_flight:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)

    on("asyncio", work)
