"""The test server on the wire: what each fault looks like to a client, and that it keeps up with many of them."""

from __future__ import annotations

import asyncio
import json
import random
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import pytest

from stageflow.testing import TestServer

T = TypeVar("T")
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
STREAM = BODY[:-1] + b', "stream": true, "stream_options": {"include_usage": true}}'


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[T]]], T]:
    """Runs what is returned by a function on an event loop: the server depends on what transports do."""

    def run(start: Callable[[], Any]) -> Any:
        async def main() -> Any:
            async with asyncio.timeout(20):
                return await start()

        factory = None
        if request.param == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return run


def request(body: bytes = BODY, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def fault(do: str, **options: Any) -> dict[str, Any]:
    """A script with one fault, that strikes the first call."""
    return {"fault": [{"do": do, "calls": 1, **options}]}


class Client:
    """A connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                parts.append(await self.reader.readexactly(size))
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return int(head[0].split()[1]), headers, b"".join(parts)
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"]))

    async def ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(sent)
        return await self.answer()


@asynccontextmanager
async def connected(server: TestServer) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def events(body: bytes) -> list[Any]:
    """What a stream says, but for ``[DONE]``."""
    *said, done, end = body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in said]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)  # the server counts, and tells nobody


def test_it_answers_and_keeps_the_connection(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(seed=3) as server, connected(server) as client:
            assert server.url == f"http://127.0.0.1:{server.port}/v1"
            for _ in range(3):
                status, headers, body = await client.ask(request())
                assert status == 200
                assert headers["content-type"] == "application/json"
                assert json.loads(body)["choices"][0]["message"]["content"] == server.answer("hello")
            assert (server.stats.calls, server.stats.connections) == (3, 1)

    on_loop(main)


def test_requests_in_any_pieces_and_in_one(on_loop: Any) -> None:
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"5;x=y\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: 1\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])

    async def main() -> None:
        async with TestServer({"latency": 0.001}) as server, connected(server) as client:
            client.writer.write((request() + chunked) * 5)
            pipelined = [await client.answer() for _ in range(10)]
            assert len({body.partition(b"choices")[2] for _, _, body in pipelined}) == 1
            numbers = [int(json.loads(body)["id"].rpartition("-")[2]) for _, _, body in pipelined]
            assert numbers == list(range(1, 11)), "in their order"
            for sent in (request(), chunked):
                for at in range(0, len(sent), 7):
                    client.writer.write(sent[at : at + 7])
                    await asyncio.sleep(0)
                assert (await client.answer())[0] == 200

    on_loop(main)


def test_a_flood_of_pipelined_requests_is_read_no_faster_than_answered(on_loop: Any) -> None:
    large = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 100_000}]}).encode()

    async def main() -> None:
        async with TestServer({"latency": 0.002}) as server, connected(server) as client:
            client.writer.write(request(large) * 30)
            for _ in range(30):
                assert (await client.answer())[0] == 200
                (connection,) = server._connections
                assert len(connection._buffer) < 700_000, "of 3 MB"
            assert len(connection._buffer) == 0

    on_loop(main)


def test_a_stream(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer() as server, connected(server) as client:
            for sent in (request(STREAM), request(STREAM.replace(b"include_usage", b"other"))):
                _, headers, body = await client.ask(sent)
                assert headers["content-type"].startswith("text/event-stream")
                said = events(body)
                deltas = [each["choices"][0]["delta"].get("content", "") for each in said if each["choices"]]
                assert "".join(deltas) == server.answer("hello")
                assert [c["choices"][0]["finish_reason"] for c in said if c["choices"]] == [None] * 17 + ["stop"]
                usage = [each["usage"] for each in said if "usage" in each]
                assert len(usage) == (b"include_usage" in sent)
            assert usage == []

    on_loop(main)


def test_a_stream_takes_its_time_between_events(on_loop: Any) -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        script = {"token_seconds": 0.005, "latency": 0.02}
        async with TestServer(script) as server, connected(server) as client:
            start = loop.time()
            client.writer.write(request(STREAM))
            await client.reader.readuntil(b"\n\n")
            first = loop.time() - start
            while not (await client.reader.readuntil(b"\n\n")).endswith(b"[DONE]\n\n"):
                pass
            assert first >= 0.019
            return loop.time() - start - first

    assert on_loop(main) >= 0.08, "17 events after the first"


def test_what_is_asked_of_the_server_itself(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer({"models": ["a", "b"]}) as server, connected(server) as client:

            async def get(path: str, method: str = "GET") -> tuple[int, Any]:
                status, _, body = await client.ask(f"{method} {path} HTTP/1.1\r\n\r\n".encode())
                return status, json.loads(body)

            assert await get("/health") == (200, {"status": "ok"})
            assert [model["id"] for model in (await get("/v1/models?limit=5"))[1]["data"]] == ["a", "b"]
            assert (await get("/nowhere"))[0] == 404
            assert (await get("/v1/chat/completions"))[0] == 405
            assert await get("/stats") == (200, server.stats.as_dict())
            assert server.stats.calls == 0

    on_loop(main)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, 431),
    ],
)
def test_what_is_no_request(on_loop: Any, sent: bytes, status: int) -> None:
    async def main() -> None:
        async with TestServer() as server, connected(server) as client:
            assert (await client.ask(sent))[0] == status
            assert await client.reader.read() == b"", "closed behind it"

    on_loop(main)


def test_no_bytes_are_too_strange(on_loop: Any) -> None:
    seed = random.randrange(10**9)
    draw = random.Random(seed)

    async def main() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with TestServer() as server:
            for _ in range(150):
                sent = bytearray(request(draw.choice([BODY, STREAM])))
                for _ in range(draw.randint(1, 4)):
                    at = draw.randrange(len(sent))
                    sent[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
                async with connected(server) as client:
                    client.writer.write(bytes(sent))
                    client.writer.write_eof()
                    with suppress(ConnectionError):
                        await client.reader.read()
            await until(lambda: server.stats.in_flight == 0)
        assert failures == [], f"seed {seed}"

    on_loop(main)


def test_the_wish_to_close_and_to_continue(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer() as server, connected(server) as client:
            sent = request(BODY, "/v1/chat/completions", "Expect: 100-continue")
            client.writer.write(sent[: -len(BODY)])
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(BODY))[0] == 200
            _, headers, _ = await client.ask(request(BODY, "/v1/chat/completions", "Connection: close"))
            assert headers["connection"] == "close"
            assert await client.reader.read() == b""

    on_loop(main)


# Faults on the wire


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("do", ["reset_before", "reset_after", "reset_body"])
def test_resets(on_loop: Any, do: str, body: bytes) -> None:
    async def main() -> None:
        async with TestServer(fault(do), seed=1) as server:
            async with connected(server) as client:
                sent = request(body)
                client.writer.write(sent[:-1] if do == "reset_before" else sent)  # it does not wait for the last byte
                if do == "reset_body":
                    head = await client.reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200")
                    assert await client.reader.read(10_000) != b""
                with pytest.raises(ConnectionResetError):
                    await client.reader.readexactly(1_000_000)
            async with connected(server) as client:
                assert (await client.ask(request(body)))[0] == 200
            assert server.stats.outcomes == {do: 1, "ok": 1}
            assert bool(server.stats.lost_tokens_out) is (do != "reset_before")

    on_loop(main)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_body_that_ends_before_its_length(on_loop: Any, body: bytes, at: float) -> None:
    async def main() -> None:
        async with TestServer(fault("cut_body", at=at)) as server, connected(server) as client:
            with pytest.raises(asyncio.IncompleteReadError):
                await client.ask(request(body))

    on_loop(main)


def test_a_stream_that_is_truncated_looks_whole_to_http(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("truncated_json", at=1.0)) as server, connected(server) as client:
            status, _, body = await client.ask(request(STREAM))
            assert status == 200
            assert b"[DONE]" not in body
            assert b'"finish_reason":"stop"' not in body
            with pytest.raises(json.JSONDecodeError):
                json.loads(body.split(b"\n\n")[-1].removeprefix(b"data: "))
            assert (await client.ask(request(STREAM)))[2].endswith(b"data: [DONE]\n\n"), "the connection is kept"

    on_loop(main)


def test_a_stream_may_end_between_two_events(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("truncated_json", clean=True)) as server, connected(server) as client:
            _, _, body = await client.ask(request(STREAM))
            *said, end = body.decode().split("\n\n")
            assert end == ""
            assert [json.loads(each.removeprefix("data: "))["choices"][0]["finish_reason"] for each in said] == [
                None
            ] * 10

    on_loop(main)


def test_a_stream_with_an_event_that_is_no_json(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("invalid_json")) as server, connected(server) as client:
            with pytest.raises(json.JSONDecodeError):
                events((await client.ask(request(STREAM)))[2])

    on_loop(main)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_body_that_stalls_is_never_whole(on_loop: Any, body: bytes, at: float) -> None:
    async def main() -> None:
        async with TestServer(fault("stall", at=at)) as server:
            async with connected(server) as client:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.ask(request(body))
                assert server.stats.in_flight == 1
            await until(lambda: server.stats.in_flight == 0)
            assert server.stats.outcomes == {"stall": 1}
            assert (server.stats.tokens_out, server.stats.lost_tokens_out) == (0, 16)

    on_loop(main)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_stream_that_breaks_off_with_an_error(on_loop: Any, at: float) -> None:
    async def main() -> None:
        script = fault("error_event", at=at, code="overloaded", message="no more")
        async with TestServer(script) as server, connected(server) as client:
            _, _, body = await client.ask(request(STREAM))
            *good, last = [json.loads(each.removeprefix("data: ")) for each in body.decode().split("\n\n")[:-1]]
            assert last == {
                "error": {"message": "no more", "type": "server_error", "param": None, "code": "overloaded"}
            }
            assert good
            assert all("choices" in each for each in good)
            assert (await client.ask(request(STREAM)))[2].endswith(b"data: [DONE]\n\n"), "the connection is kept"
            assert server.stats.outcomes == {"error_event": 1, "ok": 1}
            assert server.stats.lost_tokens_out == 16

    on_loop(main)


def test_an_error_where_an_answer_should_be(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("error_event")) as server, connected(server) as client:
            status, _, body = await client.ask(request())
            assert status == 200
            assert json.loads(body)["error"]["type"] == "server_error"

    on_loop(main)


def test_a_stream_that_does_not_say_that_it_is_done(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("no_done")) as server, connected(server) as client:
            short = (await client.ask(request(STREAM)))[2]
            assert b"[DONE]" not in short
            assert b'"finish_reason":"stop"' in short
            assert b'"usage"' in short
            assert (await client.ask(request(STREAM)))[2].endswith(b"data: [DONE]\n\n")
            assert server.stats.outcomes == {"no_done": 1, "ok": 1}
            assert server.stats.tokens_out == server.stats.lost_tokens_out == 16

    on_loop(main)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_wrong_content_type(on_loop: Any, body: bytes) -> None:
    async def main() -> None:
        async with TestServer(fault("content_type")) as server, connected(server) as client:
            told = [(await client.ask(request(body)))[1]["content-type"] for _ in range(2)]
            assert told[0] == "text/html" != told[1]
            assert server.stats.outcomes == {"content_type": 1, "ok": 1}
            assert server.stats.tokens_out == server.stats.lost_tokens_out == 16

    on_loop(main)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
def test_a_slow_body_trickles_and_arrives(on_loop: Any, body: bytes) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with TestServer(fault("slow_body", bytes=100, pause=0.005)) as server, connected(server) as client:
            start = loop.time()
            status, _, said = await client.ask(request(body))
            assert status == 200
            assert loop.time() - start >= 0.005 * (len(said) // 100)
            assert server.stats.outcomes == {"slow_body": 1}
            assert server.stats.tokens_out == 16

    on_loop(main)


def test_a_hang_lasts_until_the_client_leaves(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer(fault("hang")) as server:
            async with connected(server) as client:
                client.writer.write(request())
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.reader.read(1)
                assert server.stats.in_flight == 1
            await until(lambda: server.stats.in_flight == 0)
            assert server.stats.outcomes == {"hang": 1}

    on_loop(main)


def test_a_client_that_leaves_is_counted(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer({"latency": 60}) as server:
            async with connected(server) as client:
                client.writer.write(request())
                await until(lambda: server.stats.in_flight == 1)
            await until(lambda: server.stats.in_flight == 0)
            assert server.stats.outcomes == {"abandoned": 1}

    on_loop(main)


def test_leaving_breaks_off_what_is_being_answered(on_loop: Any) -> None:
    async def main() -> None:
        async with TestServer({"latency": 60}) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request())
            await until(lambda: server.stats.in_flight == 1)
        assert server.stats.in_flight == 0
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        async with TestServer(port=server.port) as again:
            assert again.url == server.url

    on_loop(main)


def test_many_at_once(on_loop: Any) -> None:
    """As many connections as the limit of open files leaves room for, two ends each."""
    count = min(1500, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100) // 2)
    script = {"fault": [{"do": "hang", "calls": f"1-{count}"}]}

    async def call(server: TestServer, leave: asyncio.Event) -> int:
        async with connected(server) as client:
            client.writer.write(request())
            await leave.wait()
        async with connected(server) as client:
            return (await client.ask(request()))[0]

    async def main() -> None:
        leave = asyncio.Event()
        async with TestServer(script) as server:
            calls = [asyncio.create_task(call(server, leave)) for _ in range(count)]
            await until(lambda: server.stats.in_flight == count)
            leave.set()
            assert await asyncio.gather(*calls) == [200] * count
            await until(lambda: server.stats.in_flight == 0)
            assert server.stats.most_in_flight >= count
            assert server.stats.outcomes == {"hang": count, "ok": count}
            assert server.stats.connections == 2 * count

    on_loop(main)
