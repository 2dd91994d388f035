"""Answers that come as streams: put together to what they would be in one piece, and never whole where they are not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import KEY, VARIABLE, answering, listening, on

from stageflow import Pipeline, RateLimit, Retry, SettingError
from stageflow.llm import BadAnswer, Chat, Refused, SchemaMismatch, ServiceError, Unfinished, Unreachable, Usage
from stageflow.policies.http import quota_code, retry_after, status_of
from stageflow.policies.retry import retryable_by_default
from stageflow.testing import TestServer

pytest.importorskip("httptools")

LOOPS = ("asyncio", "uvloop")
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
DONE = "[DONE]"


def chunk(delta: Any = None, finish: str | None = None, place: int = 0, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": place, "delta": delta, "finish_reason": finish}]
    return {"id": "c-1", "object": "chat.completion.chunk", "model": "m-7", "choices": choices, **more}


HELLO: list[Any] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Grüße, "}),
    chunk({"content": "日本 🎉"}),
    chunk({}, "stop"),
    chunk(usage=USAGE),
    DONE,
]


def events(*said: Any) -> bytes:
    """What a service sends; texts as they are, all else as JSON."""
    texts = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in said)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def head(*lines: str, status: int = 200, kind: str = "text/event-stream; charset=utf-8") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} OK", f"Content-Type: {kind}", *lines, "", ""]).encode()


def whole(body: bytes, *lines: str) -> bytes:
    """An answer that HTTP calls whole."""
    return head("Transfer-Encoding: chunked", *lines) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Call:
    """What handlers have as ``call``."""

    idempotency_key = "k"

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def report(self, *, tokens: int, input_tokens: int, output_tokens: int) -> None:
        assert tokens == input_tokens + output_tokens
        self.tokens.append(tokens)


def asked(answer: bytes, call: Any = None, loop: str = "asyncio", settings: Any = None, **options: Any) -> Any:
    """What a call comes to that is answered so, and what was asked."""

    async def work() -> Any:
        given = {"stream": True, **(settings or {})}
        async with answering(answer) as server, Chat(base_url=server.url, model="m", **given) as chat:
            return await chat.complete("q", call=call, **options), server.bodies[0]

    return on(loop, work)


def failure(answer: bytes, call: Any = None, **more: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        asked(answer, call, **more)
    assert caught.value.__context__ is None
    return caught.value


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


class TestWhole:
    @pytest.mark.parametrize("loop", LOOPS)
    def test_it_is_what_it_would_be_in_one_piece(self, loop: str) -> None:
        call = Call()
        answer, body = asked(whole(events(*HELLO)), call, loop, temperature=0)
        assert (answer.text, answer.finish_reason, answer.usage) == ("Grüße, 日本 🎉", "stop", Usage(7, 2, 9))
        assert answer.raw == {
            "id": "c-1",
            "object": "chat.completion",
            "model": "m-7",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Grüße, 日本 🎉"},
                    "finish_reason": "stop",
                }
            ],
            "usage": USAGE,
        }
        assert call.tokens == [9]
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        assert body["temperature"] == 0

    def test_cut_at_every_place(self) -> None:
        """The whole answer, its head too, in two pieces."""
        answer, wanted = whole(events(*HELLO).replace(b"\n", b"\r\n")), "Grüße, 日本 🎉"

        async def work() -> None:
            place = 0

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while request := await reader.readuntil(b"\r\n\r\n"):
                    length = request.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
                    writer.write(answer[:place])
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    writer.write(answer[place:])

            async with listening(serve) as port, Chat(base_url=f"http://127.0.0.1:{port}/v1", model="m") as chat:
                for place in range(len(answer)):
                    assert (await chat.complete("q", stream=True)).text == wanted, place

        on("asyncio", work)

    def test_the_test_servers_answers_are_the_same_both_ways_and_one_connection_does(self) -> None:
        async def work() -> None:
            async with TestServer() as server, Chat(base_url=server.url, model="m", stream=True) as chat:
                for n in range(20):
                    streamed = await chat.complete(f"q{n}", n=2)
                    plain = await chat.complete(f"q{n}", n=2, stream=False)
                    assert streamed.text == plain.text == server.answer(f"q{n}")
                    assert streamed.usage == plain.usage
                    for choices in (streamed.raw["choices"], plain.raw["choices"]):
                        assert [(each["index"], each["finish_reason"]) for each in choices] == [
                            (0, "stop"),
                            (1, "stop"),
                        ]
                        assert [each["message"]["content"] for each in choices] == [plain.text] * 2
                assert server.stats.connections == 1
                assert server.stats.outcomes == {"ok": 40}

        on("asyncio", work)

    def test_calls_of_tools(self) -> None:
        def tool(place: int, **said: Any) -> dict[str, Any]:
            return chunk({"tool_calls": [{"index": place, **said}]})

        answer, _ = asked(
            whole(
                events(
                    chunk({"role": "assistant", "content": None}),
                    tool(0, id="call_1", type="function", function={"name": "find", "arguments": ""}),
                    tool(0, function={"arguments": '{"x":'}),
                    tool(1, id="call_2", type="function", function={"name": "keep", "arguments": "{}"}),
                    tool(0, id="call_1", type="function", function={"name": None, "arguments": "1}"}),
                    chunk({}, "tool_calls"),
                    DONE,
                )
            )
        )
        assert (answer.text, answer.finish_reason) == ("", "tool_calls")
        assert answer.tool_calls == [
            {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"x":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "keep", "arguments": "{}"}},
        ]

    def test_refusals_thoughts_and_logprobs(self) -> None:
        def with_logprobs(token: str) -> dict[str, Any]:
            part = chunk({"reasoning_content": token, "refusal": token.upper()})
            part["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": -1.0}], "refusal": None}
            return part

        answer, _ = asked(whole(events(with_logprobs("a"), with_logprobs("b"), chunk({}, "stop"), DONE)))
        assert answer.refusal == "AB"
        choice = answer.raw["choices"][0]
        assert choice["message"]["reasoning_content"] == "ab"
        assert [each["token"] for each in choice["logprobs"]["content"]] == ["a", "b"]

    def test_a_schema_and_an_end_that_is_none_are_as_without_a_stream(self) -> None:
        pytest.importorskip("jsonschema_rs")
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

        def saying(text: str, reason: str = "stop") -> bytes:
            half = len(text) // 2
            return whole(
                events(chunk({"content": text[:half]}), chunk({"content": text[half:]}), chunk({}, reason), DONE)
            )

        assert asked(saying('{"n": 7}'), schema=schema)[0].data == {"n": 7}
        with pytest.raises(SchemaMismatch):
            asked(saying('{"n": "7"}'), schema=schema)
        with pytest.raises(Unfinished, match="length"):
            asked(saying('{"n": ', "length"), schema=schema)

    @pytest.mark.parametrize(
        "said",
        [
            [chunk(prompt_filter_results=[]), *HELLO],  # Azure's first
            [*HELLO[:2], "", *HELLO[2:]],
            [*HELLO[:-2], chunk(usage=None), DONE],
            [*HELLO, "what comes behind the end"],
        ],
        ids=["filters", "nothing", "no usage", "behind the end"],
    )
    def test_what_does_it_no_harm(self, said: list[Any]) -> None:
        assert asked(whole(events(*said)))[0].text == "Grüße, 日本 🎉"

    def test_comments_are_signs_of_life_and_nothing_else(self) -> None:
        body = b": PROCESSING\n\n" + events(*HELLO).replace(b"\n\n", b"\n\n: ping\n\n")
        assert asked(whole(body))[0].text == "Grüße, 日本 🎉"

    def test_a_service_that_knows_no_streams_or_no_options(self) -> None:
        said = json.dumps(
            {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}
        ).encode()
        call = Call()
        answer, body = asked(
            head(f"Content-Length: {len(said)}", kind="application/json") + said, call, stream_options=None
        )
        assert answer.text == "hi"
        assert call.tokens == [9]
        assert "stream_options" not in body

    def test_a_call_outranks_the_client(self) -> None:
        async def work() -> None:
            async with TestServer() as server, Chat(base_url=server.url, model="m") as chat:
                assert (await chat.complete("q", stream=True)).raw["object"] == "chat.completion"
            async with answering(whole(events(*HELLO))) as asked:
                async with Chat(base_url=asked.url, model="m", stream=True) as chat:
                    with pytest.raises(BadAnswer):  # it was answered with a stream all the same
                        await chat.complete("q", stream=False)
                assert "stream" not in asked.bodies[0]
                assert "stream_options" not in asked.bodies[0]

        on("asyncio", work)

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("end", ["stays", "closes", "resets"])
    def test_behind_done_the_connection_may_do_what_it_likes(self, end: str, loop: str) -> None:
        async def work() -> None:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole(events(*HELLO))[: -len(b"\r\n0\r\n\r\n")])
                await writer.drain()
                if end == "stays":
                    await reader.read()
                elif end == "resets":
                    await asyncio.sleep(0.05)
                    writer.transport.abort()

            async with listening(serve) as port, Chat(base_url=f"http://127.0.0.1:{port}/v1", model="m") as chat:
                start = time.monotonic()
                assert (await chat.complete("q", stream=True)).usage == Usage(7, 2, 9)
                assert time.monotonic() - start < 10, "not as long as a stream may be silent"

        on(loop, work)


def cuts() -> Iterator[bytes]:
    """A stream that ends in many places before it says that it is done."""
    body = events(*HELLO)
    for ending in ("in order", "cut"):
        for place in range(0, len(body) - 1, 7):
            part = b"%x\r\n%b\r\n" % (place, body[:place]) if place else b""
            answer = head("Transfer-Encoding: chunked") + part + (b"0\r\n\r\n" if ending == "in order" else b"")
            yield answer


class TestNotWhole:
    def test_one_that_ends_early_is_cut_off_however_it_ends(self) -> None:
        for answer in cuts():
            error = failure(answer)
            nothing_came = answer.endswith(b"\r\n\r\n0\r\n\r\n")
            assert type(error) is (BadAnswer if nothing_came else Unreachable), answer
            assert retryable_by_default(error)

    @pytest.mark.parametrize(
        "said",
        [
            [*HELLO[:3], DONE],  # a gateway that closes what broke off behind it
            [chunk({"content": "x"}), chunk({"content": None}, "", 0), DONE],
            [chunk({}, "stop", 1), DONE, chunk({}, "stop")],
            [DONE],
        ],
        ids=["no finish_reason", "an empty one", "of another choice", "nothing"],
    )
    def test_done_is_not_enough(self, said: list[Any]) -> None:
        options = {"n": 2} if len(said) == 3 and said[-1] != DONE else {}
        error = failure(whole(events(*said)), **options)
        assert isinstance(error, Unreachable)
        assert "ended before the answer did" in str(error)

    def test_each_choice_has_to_finish(self) -> None:
        two = [chunk({"content": "a"}), chunk({}, "stop"), chunk({"content": "b"}, None, 1)]
        assert isinstance(failure(whole(events(*two)), n=2), Unreachable)
        assert isinstance(failure(whole(events(*two[:2])), n=2), Unreachable), "one has not even begun"
        assert asked(whole(events(*two, chunk({}, "stop", 1), DONE)), n=2)[0].text == "a"

    @pytest.mark.parametrize("end", ["", "0\r\n\r\n"], ids=["cut", "in order"])
    @pytest.mark.parametrize("count", [4, 5], ids=["finish_reason", "usage"])
    def test_without_done_something_may_be_lost_however_much_came(self, count: int, end: str) -> None:
        part, call = events(*HELLO[:count]), Call()
        error = failure(head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (len(part), part) + end.encode(), call)
        assert isinstance(error, Unreachable)
        assert call.tokens == ([9] if count == 5 else [])
        if end:
            assert "without [DONE]" in str(error)

    @pytest.mark.parametrize(
        ("spoiled", "said"),
        [
            ('{"choices": [', "an event that is no JSON: "),
            ("\ufffd", "an event that is no JSON: "),
            ("[1]", "an event that is no object: "),
            ("7", "an event that is no object: "),
            ({"choices": [7]}, "no part of an answer: "),
            ({"choices": 7}, "no part of an answer: "),
            (chunk({}, None, -1), "no part of an answer: "),
            (chunk({"content": {"a": 1}}), "no part of an answer: "),
            (chunk({"content": [{"text": "x"}]}), "no part of an answer: "),
            (chunk(7), "no part of an answer: "),
            (
                chunk({"tool_calls": [{"index": 0, "function": "f"}, {"index": 0, "function": {}}]}),
                "no part of an answer: ",
            ),
        ],
    )
    def test_an_event_that_is_none_spoils_it(self, spoiled: Any, said: str) -> None:
        call = Call()
        error = failure(whole(events(*HELLO[:2], chunk(usage=USAGE), spoiled, *HELLO[2:])), call)
        assert isinstance(error, BadAnswer)
        assert said in str(error)
        assert status_of(error) == 200
        assert retryable_by_default(error)
        assert call.tokens == [9], "a failed attempt is paid for, too"

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("event", ["no JSON", {"error": "broke off"}])
    def test_nothing_is_read_behind_it(self, event: Any, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stageflow.llm.wire._CLOSING_SECONDS", 100.0)

        async def work() -> None:
            left = asyncio.Event()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole(events(*HELLO[:2], event))[: -len(b"0\r\n\r\n")])
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1_000_000)
                left.set()

            async with listening(serve) as port, Chat(base_url=f"http://127.0.0.1:{port}/v1", model="m") as chat:
                with pytest.raises((BadAnswer, Refused)):
                    await chat.complete("q", stream=True)
                await left.wait()

        on(loop, work)

    def test_what_is_nested_too_deeply_spoils_it(self) -> None:
        deep: Any = {"x": 1}
        for _ in range(900):
            deep = {"x": deep}
        answer = whole(events(chunk({"content": "", "a": deep}), *HELLO))
        assert isinstance(failure(answer), BadAnswer)

    @pytest.mark.parametrize(
        ("event", "status", "retried"),
        [
            ({"error": {"message": "overloaded", "code": 529}}, 529, True),
            ({"error": {"message": "broke off", "type": "server_error"}}, None, True),
            ({"error": "out of memory"}, None, True),
            ({"id": "c", "choices": [{"delta": {}, "finish_reason": "error"}], "error": {"code": 502}}, 502, True),
            ({"error": {"message": "no", "code": 401}}, 401, False),
            ({"error": {"code": "insufficient_quota"}}, None, False),
        ],
    )
    def test_an_event_that_is_an_error(self, event: Any, status: int | None, retried: bool) -> None:
        error = failure(whole(events(*HELLO[:2], event, DONE), "Retry-After: 3"))
        assert isinstance(error, Refused)
        assert status_of(error) == status
        assert retryable_by_default(error) is retried
        assert (quota_code(error) == "insufficient_quota") is ("insufficient" in str(event))
        assert retry_after(error) == 3.0

    @pytest.mark.parametrize(
        "data", ['{"message": "overloaded"}', '"overloaded"', '{"error": {"message": "overloaded"}}']
    )
    def test_an_event_of_the_name_error(self, data: str) -> None:
        error = failure(whole(events(*HELLO[:2]) + f"event: error\ndata: {data}\n\n".encode() + events(*HELLO[2:])))
        assert isinstance(error, Refused)
        assert "overloaded" in str(error)

    def test_the_key_is_taken_out_of_what_an_event_quotes(self) -> None:
        settings = {"api_key_env": VARIABLE}
        for event in ({"error": {"message": f"you sent {KEY}"}}, f"no JSON {KEY}"):
            error = failure(whole(events(event)), settings=settings)
            assert KEY not in str(error) + repr(error.body)
            assert "***" in str(error)

    def test_an_error_status_is_no_stream_whatever_its_type(self) -> None:
        body = b'{"error": {"message": "busy"}}'
        answer = head(f"Content-Length: {len(body)}", status=503) + body
        assert str(failure(answer)).endswith(": busy")

    def test_one_without_a_byte(self) -> None:
        assert isinstance(failure(head("Content-Length: 0")), BadAnswer)


class TestSilence:
    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("sent", [0, 50, 600])
    def test_a_stream_in_which_nothing_comes_is_given_up(self, sent: int, loop: str) -> None:
        async def work() -> None:
            left = []

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole(events(HELLO[0], chunk(usage=USAGE), *HELLO))[:sent])
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1_000_000)
                left.append(1)

            settings: dict[str, Any] = {"model": "m", "stream": True, "idle_timeout": 0.2}
            call = Call()
            async with listening(serve) as port, Chat(base_url=f"http://127.0.0.1:{port}/v1", **settings) as chat:
                with pytest.raises(Unreachable, match=r"nothing came for 0\.2 s") as caught:
                    await chat.complete("q", call=call)
                assert retryable_by_default(caught.value)
                assert call.tokens == ([9] if sent == 600 else [])
                while not left:  # noqa: ASYNC110 - what is waited for tells nobody
                    await asyncio.sleep(0.005)

        on(loop, work)

    def test_one_that_is_slow_lasts_as_long_as_it_takes(self) -> None:
        async def work() -> None:
            script = {"token_seconds": 0.1, "answer_tokens": 20}
            settings: dict[str, Any] = {"model": "m", "stream": True, "idle_timeout": 1.0}
            async with TestServer(script) as server, Chat(base_url=server.url, **settings) as chat:
                start = time.monotonic()
                assert (await chat.complete("q")).text == server.answer("q")
                assert time.monotonic() - start > 2.0, "longer than it may be silent"

        on("asyncio", work)

    def test_a_call_that_was_cancelled_says_what_it_used_so_far(self) -> None:
        async def work() -> None:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole(events(chunk(usage=USAGE)))[:-7])
                await reader.read()

            call = Call()
            async with listening(serve) as port, Chat(base_url=f"http://127.0.0.1:{port}/v1", model="m") as chat:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await chat.complete("q", stream=True, call=call)
            assert call.tokens == [9]

        on("asyncio", work)

    @pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "60", None])
    def test_times_that_are_none(self, value: Any) -> None:
        with pytest.raises(SettingError, match="idle_timeout"):
            Chat(base_url="http://h/v1", model="m", idle_timeout=value)


FAULTS = ("reset_body", "cut_body", "truncated_json", "invalid_json", "error_event", "stall", "no_done", "error")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_job_whose_streams_break_in_every_way_settles_each_record_once(loop: str) -> None:
    async def work() -> None:
        faults: list[dict[str, Any]] = [{"do": do, "share": 0.04} for do in FAULTS]
        faults += [{"do": "truncated_json", "share": 0.04, "clean": True, "at": 1.0}]
        async with TestServer({"fault": faults, "latency": [0.0, 0.005], "token_seconds": 0.001}, seed=7) as server:
            pipeline = Pipeline("ask", key="n")

            @pipeline.resource
            async def chat() -> Any:
                async with Chat(base_url=server.url, model="m", stream=True, idle_timeout=0.5) as chat:
                    yield chat

            limit = RateLimit(tokens_per_minute=60_000_000)

            @pipeline.stage(max_in_flight=50, rate_limit=limit, retry=Retry(attempts=20, base=0.001))
            async def generate(n: int, chat: Chat, call: Any) -> str:
                return (await chat.complete(f"question {n}", call=call)).text

            out: list[Any] = []
            report = await pipeline.run([{"n": n} for n in range(300)], out)
            stats = server.stats
            assert report.exit_code == 0, f"seed {server.seed}"
            assert sorted(record["n"] for record in out) == list(range(300))
            assert all(record["generate"] == server.answer(f"question {record['n']}") for record in out)
            assert stats.outcomes["ok"] == 300
            assert stats.outcomes.keys() == {*FAULTS, "ok"}
            assert stats.duplicates == 0
            # What arrived whole was reported, and what was known of failed attempts.
            told = [cell for (outcome, *_), cell in stats.cells.items() if outcome in ("ok", "no_done")]
            assert report.stages["generate"].tokens == sum(cell.tokens_in + cell.tokens_out for cell in told)

    on(loop, work)
