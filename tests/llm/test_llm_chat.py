"""Calls against servers on this machine: what is sent, what comes back, and what becomes of connections."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import orjson
import pytest
from scripted import CHOICE, KEY, VARIABLE, answering, on, reply

from stageflow.llm import BadAnswer, Chat, Unfinished, Usage
from stageflow.testing import TestServer

pytest.importorskip("httptools")

LOOPS = ("asyncio", "uvloop")
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}


class Call:
    """What handlers have as ``call``."""

    def __init__(self, idempotency_key: str = "run-7-generate") -> None:
        self.idempotency_key = idempotency_key
        self.tokens: list[int] = []
        self.parts: list[tuple[int, int]] = []

    def report(self, *, tokens: int, input_tokens: int, output_tokens: int) -> None:
        self.tokens.append(tokens)
        self.parts.append((input_tokens, output_tokens))


async def until(condition: Any) -> None:
    """Wait for something that happens in another task, or at the other end."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


class TestWhatIsSentAndWhatComesBack:
    def test_an_answer(self) -> None:
        async def work() -> None:
            body = {"id": "c-1", "choices": [CHOICE], "usage": USAGE}
            async with (
                answering(reply(body)) as asked,
                Chat(base_url=asked.url, model="m", api_key_env=VARIABLE, headers={"X-Title": "job"}) as chat,
            ):
                answer = await chat.complete([{"role": "system", "content": "Be brief."}], temperature=0, max_tokens=9)
            assert (answer.text, answer.finish_reason, answer.data) == ("hi", "stop", None)
            assert answer.usage == Usage(7, 5, 12, cached_tokens=3)
            assert answer.raw == body
            assert asked.paths == ["/v1/chat/completions"]
            messages = [{"role": "system", "content": "Be brief."}]
            assert asked.bodies == [{"model": "m", "messages": messages, "temperature": 0, "max_tokens": 9}]
            head = asked.heads[0]
            assert (head["authorization"], head["content-type"], head["x-title"]) == (
                f"Bearer {KEY}",
                "application/json",
                "job",
            )
            assert "idempotency-key" not in head

        on("asyncio", work)

    def test_a_text_is_one_message_and_options_win(self) -> None:
        async def work() -> None:
            async with answering(reply({"choices": [CHOICE]})) as asked, Chat(base_url=asked.url, model="m") as chat:
                await chat.complete("q", model="other")
            assert asked.bodies == [{"model": "other", "messages": [{"role": "user", "content": "q"}]}]
            assert "authorization" not in asked.heads[0]

        on("asyncio", work)

    def test_a_key_in_a_header_of_its_own_and_a_query_in_the_address(self) -> None:
        async def work() -> None:
            async with answering(reply({"choices": [CHOICE]})) as asked:
                settings: dict[str, Any] = {"model": "m", "api_key_env": VARIABLE, "api_key_header": "api-key"}
                async with Chat(base_url=f"{asked.url}/?api-version=2", **settings) as chat:
                    await chat.complete("q")
            assert asked.paths == ["/v1/chat/completions?api-version=2"]
            assert asked.heads[0]["api-key"] == KEY
            assert "authorization" not in asked.heads[0]

        on("asyncio", work)

    @pytest.mark.parametrize(
        ("content", "text"),
        [(None, ""), ([{"type": "thinking"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab")],
    )
    def test_contents_that_are_no_plain_text(self, content: Any, text: str) -> None:
        async def work() -> None:
            choice = {"message": {"content": content, "tool_calls": []}, "finish_reason": "tool_calls"}
            async with answering(reply({"choices": [choice]})) as asked, Chat(base_url=asked.url, model="m") as chat:
                answer = await chat.complete("q")
            assert (answer.text, answer.finish_reason, answer.usage) == (text, "tool_calls", None)

        on("asyncio", work)

    def test_an_answer_without_a_content_type_is_taken_as_what_it_is(self) -> None:
        async def work() -> None:
            body = orjson.dumps({"choices": [CHOICE]})
            bare = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            async with answering(bare) as asked, Chat(base_url=asked.url, model="m") as chat:
                assert (await chat.complete("q")).text == "hi"

        on("asyncio", work)

    @pytest.mark.parametrize("reason", ["length", "content_filter"])
    def test_an_answer_that_was_cut_off_is_returned_unless_it_must_finish(self, reason: str) -> None:
        async def work() -> None:
            body = {"choices": [{**CHOICE, "finish_reason": reason}], "usage": USAGE}
            async with answering(reply(body)) as asked, Chat(base_url=asked.url, model="m") as chat:
                assert (await chat.complete("q")).finish_reason == reason
                call = Call()
                with pytest.raises(Unfinished, match=f'"{reason}" after 5 tokens') as caught:
                    await chat.complete("q", call=call, must_finish=True)
                assert caught.value.answer is not None
                assert caught.value.answer.text == "hi"
                assert call.tokens == [12]

        on("asyncio", work)

    def test_a_refusal_is_no_end_either(self) -> None:
        async def work() -> None:
            choice = {"message": {"content": None, "refusal": "I'd rather not."}, "finish_reason": "stop"}
            async with answering(reply({"choices": [choice]})) as asked, Chat(base_url=asked.url, model="m") as chat:
                assert (await chat.complete("q")).refusal == "I'd rather not."
                with pytest.raises(Unfinished, match="I'd rather not"):
                    await chat.complete("q", must_finish=True)

        on("asyncio", work)

    def test_embeddings_come_in_the_order_of_their_texts(self) -> None:
        async def work() -> None:
            data = [{"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": [0.25]}]
            async with (
                answering(reply({"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}})) as asked,
                Chat(base_url=asked.url, model="e") as chat,
            ):
                call = Call()
                found = await chat.embed(["a", "b"], dimensions=1, call=call)
            assert found.vectors == [[0.25], [0.5]]
            assert found.usage == Usage(4, 0, 4)
            assert asked.paths == ["/v1/embeddings"]
            assert asked.bodies == [{"model": "e", "input": ["a", "b"], "dimensions": 1}]
            assert call.tokens == [4]

        on("asyncio", work)

    @pytest.mark.parametrize(
        "data",
        [
            [{"index": 0, "embedding": [1.0]}],
            [{"index": 0, "embedding": [1.0]}] * 2,
            [{"index": n, "embedding": [1.0]} for n in range(3)],
            [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}],
            [{"embedding": [1.0]}, {"embedding": [2.0]}],
            None,
            "no",
        ],
    )
    def test_other_embeddings_than_asked_for_are_none(self, data: Any) -> None:
        async def work() -> None:
            async with answering(reply({"data": data})) as asked, Chat(base_url=asked.url, model="e") as chat:
                with pytest.raises(BadAnswer, match="not one embedding for each of 2 texts"):
                    await chat.embed(["a", "b"])

        on("asyncio", work)


class TestWhatTheHandlersCallIsFor:
    def test_tokens_are_reported_and_the_key_names_the_request(self) -> None:
        async def work() -> None:
            async with (
                answering(reply({"choices": [CHOICE], "usage": USAGE})) as asked,
                Chat(base_url=asked.url, model="m") as chat,
            ):
                call = Call()
                for prompt in ("draft", "draft", "review"):
                    await chat.complete(prompt, call=call)
            assert call.tokens == [12, 12, 12]
            assert [sum(parts) for parts in call.parts] == call.tokens, "each kind is told, for they cost differently"
            keys = [head["idempotency-key"] for head in asked.heads]
            assert keys[0] == keys[1] != keys[2], "a request sent again is the same one, another is not"
            assert keys[0] == f"run-7-generate-{zlib.crc32(orjson.dumps(asked.bodies[0])):08x}"

        on("asyncio", work)

    def test_tokens_count_where_the_answer_is_of_no_use(self) -> None:
        async def work() -> None:
            async with (
                answering(reply({"choices": [], "usage": USAGE})) as asked,
                Chat(base_url=asked.url, model="m") as chat,
            ):
                call = Call()
                with pytest.raises(BadAnswer, match="no choices"):
                    await chat.complete("q", call=call)
                assert call.tokens == [12]

        on("asyncio", work)

    def test_the_calls_of_a_batch_report_once(self) -> None:
        async def work() -> None:
            body = {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 4, "total_tokens": 4}}
            async with answering(reply(body)) as asked, Chat(base_url=asked.url, model="e") as chat:
                calls = [Call("run-1-e"), Call("run-2-e")]
                await chat.embed("a", call=calls)
            assert [call.tokens for call in calls] == [[4], []]
            assert asked.heads[0]["idempotency-key"].startswith("run-1-e-")

        on("asyncio", work)

    @pytest.mark.parametrize(("name", "sent"), [("größe", "gr%C3%B6%C3%9Fe"), ("a\r\nX: y", "a%0D%0AX%3A%20y")])
    def test_a_stage_may_be_called_what_headers_can_not_say(self, name: str, sent: str) -> None:
        async def work() -> None:
            async with answering(reply({"choices": [CHOICE]})) as asked, Chat(base_url=asked.url, model="m") as chat:
                await chat.complete("q", call=Call(f"run-1-{name}"))
            assert asked.heads[0]["idempotency-key"].startswith(f"run-1-{sent}-")
            assert "x" not in asked.heads[0]

        on("asyncio", work)

    @pytest.mark.parametrize("usage", [None, [], "many", {"total_tokens": "7"}, {"total_tokens": -7}, {}])
    def test_a_usage_that_says_nothing_is_none_at_all(self, usage: Any) -> None:
        async def work() -> None:
            async with (
                answering(reply({"choices": [CHOICE], "usage": usage})) as asked,
                Chat(base_url=asked.url, model="m") as chat,
            ):
                call = Call()
                answer = await chat.complete("q", call=call)
            assert answer.usage is None
            assert call.tokens == []

        on("asyncio", work)


class TestConnections:
    @pytest.mark.parametrize("loop", LOOPS)
    def test_as_many_calls_are_in_progress_as_are_made(self, loop: str) -> None:
        resource = pytest.importorskip("resource")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if most != resource.RLIM_INFINITY and most < 4_500:
            pytest.skip(f"a process may have {most} files, and each connection has both its ends here")

        async def work() -> None:
            async with TestServer({"fault": [{"do": "hang"}]}) as server, Chat(base_url=server.url, model="m") as chat:
                calls = [asyncio.create_task(chat.complete("q")) for _ in range(2_000)]
                await until(lambda: server.stats.in_flight == 2_000)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

        on(loop, work)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_cancelled_call_leaves_no_connection_and_a_pool_that_works(self, loop: str) -> None:
        async def work() -> None:
            script = {"fault": [{"do": "hang", "calls": "1-50"}]}
            async with TestServer(script) as server, Chat(base_url=server.url, model="m") as chat:
                hanging = [asyncio.create_task(chat.complete("q")) for _ in range(50)]
                await until(lambda: server.stats.in_flight == 50)
                for task in hanging:
                    task.cancel()
                assert all(
                    isinstance(each, asyncio.CancelledError)
                    for each in await asyncio.gather(*hanging, return_exceptions=True)
                )
                await until(lambda: server.stats.in_flight == 0 and not server._connections)
                assert (await chat.complete("q")).text

        on(loop, work)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_cancelled_at_any_moment(self, loop: str) -> None:
        async def work() -> None:
            async with TestServer({"latency": [0.0, 0.01]}) as server, Chat(base_url=server.url, model="m") as chat:

                async def in_a_hurry(n: int) -> None:
                    for turn in range(8):
                        try:
                            async with asyncio.timeout((n * 8 + turn) % 23 / 2000):
                                await chat.complete("q")
                        except TimeoutError:
                            pass

                await asyncio.gather(*map(in_a_hurry, range(32)))
                answers = await asyncio.gather(*(chat.complete("q") for _ in range(64)))
                assert len(answers) == 64
                await until(lambda: server.stats.in_flight == 0)

        on(loop, work)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_connections_are_used_again_and_closed_at_the_end(self, loop: str) -> None:
        async def work() -> None:
            async with TestServer() as server:
                async with Chat(base_url=server.url, model="m") as chat:
                    for _ in range(20):
                        await chat.complete("q")
                    assert server.stats.connections == 1
                    http = chat._http
                assert http is not None
                assert not http._open, "leaving waits until they are closed"
                await until(lambda: not server._connections)

        on(loop, work)

    def test_a_connection_that_the_service_closed_meanwhile_is_no_failure(self) -> None:
        async def work() -> None:
            async with TestServer() as server, Chat(base_url=server.url, model="m") as chat:
                for count in range(1, 4):
                    await chat.complete("q")
                    assert server.stats.connections == count
                    for connection in tuple(server._connections):
                        connection.break_off()
                    await until(lambda: not server._connections)

        on("asyncio", work)

    def test_a_client_that_is_not_open_says_so(self) -> None:
        async def work() -> None:
            chat = Chat(base_url="http://127.0.0.1:1/v1", model="m")
            with pytest.raises(TypeError, match="not open"):
                await chat.complete("q")
            async with TestServer() as server:
                async with Chat(base_url=server.url, model="m") as chat:
                    with pytest.raises(TypeError, match="is open"):
                        await chat.__aenter__()
                with pytest.raises(TypeError, match="not open"):
                    await chat.embed("q")
                async with chat:
                    assert (await chat.complete("q")).text

        on("asyncio", work)

    def test_what_can_not_be_asked_is_a_mistake_of_the_job(self) -> None:
        async def work() -> None:
            async with TestServer() as server, Chat(base_url=server.url, model="m") as chat:
                for stream in (True, False):
                    with pytest.raises(TypeError):
                        await chat.complete("q", stream=stream, stop=object())
                assert server.stats.calls == 0

        on("asyncio", work)
