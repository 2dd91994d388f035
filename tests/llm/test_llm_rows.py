"""What a service can do to a job that asks it by ``stageflow.llm``: the rows of the table of faults that need a client.

Real sockets on this machine; the records of a job, and what became of them.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from scripted import CHOICE, listening, localhost_tls, on, reply

from stageflow import Pipeline, Retry, SettingError
from stageflow.llm import Chat, Unreachable

pytest.importorskip("httptools")

CLEAN, SOME_DEAD, STOPPED = 0, 3, 4
LOOPS = ("asyncio", "uvloop")
GOOD = reply({"choices": [CHOICE]})
BLOCK = b"x" * 65_536
MANY = 50_000_000

Answer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass
class Ended:
    """A run against a server."""

    report: Any = None
    out: list[Any] = field(default_factory=list)
    dead: list[Any] = field(default_factory=list)
    requests: int = 0
    seconds: float = 0.0

    @property
    def messages(self) -> set[str]:
        return {letter["error"]["message"] for letter in self.dead}


def ran(
    answer: Callable[[int], bytes | Answer],
    records: int = 4,
    *,
    loop: str = "asyncio",
    scheme: str = "http",
    settings: dict[str, Any] | None = None,
    **stage: Any,
) -> Ended:
    """A job of one stage, three attempts for each record, against a server that answers its n-th request so."""
    ended = Ended()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        ended.requests += 1
        said = answer(ended.requests)
        if isinstance(said, bytes):
            writer.write(said)
            await writer.drain()
        else:
            await said(writer)

    async def work() -> None:
        tls = localhost_tls() if scheme == "https" else None
        async with listening(serve, tls) as port:
            pipeline = Pipeline("ask", key="n")

            @pipeline.resource
            async def chat() -> Any:
                given = {"base_url": f"{scheme}://localhost:{port}/v1", "model": "m", **(settings or {})}
                async with Chat(**given) as chat:
                    yield chat

            @pipeline.stage(**{"max_in_flight": 2, "retry": Retry(3, base=0.001), **stage})
            async def generate(n: int, chat: Chat, call: Any) -> str:
                return (await chat.complete(f"question {n}", call=call)).text

            start = time.monotonic()
            source = [{"n": n} for n in range(records)]
            ended.report = await pipeline.run(source, ended.out, dead=ended.dead, max_failure_rate=1.0)
            ended.seconds = time.monotonic() - start

    on(loop, work)
    return ended


@pytest.fixture(autouse=True)
def unproxied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


PAGE = ("<html>" + "é" * 150 + "".join(f"<p>line {n}</p>" for n in range(100))).encode()
JSON = json.dumps({"choices": [{**CHOICE, "message": {"content": "y" * 1000}}]}).encode()
GARBAGE = {
    "HTML": reply(PAGE, content_type="text/html"),
    "HTML that says it is JSON": reply(PAGE),
    "truncated JSON": reply(JSON[:700]),
    "empty body": reply(b""),
}


@pytest.mark.real_clock
@pytest.mark.parametrize("what", GARBAGE)
def test_row_88_an_answer_that_is_none_is_tried_again_and_may_be_one_then(what: str) -> None:
    ended = ran(lambda number: GARBAGE[what] if number % 2 else GOOD, 1)
    assert (ended.report.exit_code, ended.requests) == (CLEAN, 2)
    assert ended.out == [{"n": 0, "generate": "hi"}]


@pytest.mark.real_clock
@pytest.mark.parametrize("what", GARBAGE)
def test_row_88_one_that_stays_so_is_dead_with_its_first_500_bytes(what: str) -> None:
    ended = ran(lambda _: GARBAGE[what])
    assert (ended.report.exit_code, ended.requests) == (SOME_DEAD, 12)
    assert sorted(letter["record"]["n"] for letter in ended.dead) == [0, 1, 2, 3]
    assert {letter["attempts"] for letter in ended.dead} == {3}
    (message,) = ended.messages
    body = GARBAGE[what].partition(b"\r\n\r\n")[2]
    first = body[:500].decode()
    assert f"{first!r}" + ("..." if len(body) > 500 else "") in message
    assert "200 from localhost:" in message


@pytest.mark.real_clock
@pytest.mark.parametrize("loop", LOOPS)
def test_row_90_a_certificate_that_nobody_trusts(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    ended = ran(lambda _: GOOD, loop=loop, scheme="https")
    assert ended.requests == 0, "nothing was said to whom it may be"
    assert (ended.report.exit_code, len(ended.dead)) == (SOME_DEAD, 4)
    assert all("self-signed certificate" in message for message in ended.messages)
    assert ended.seconds < 10


@pytest.mark.real_clock
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["no TLS", "cut", "silent"])
def test_row_90_a_port_that_speaks_no_tls(how: str, loop: str) -> None:
    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            if how == "no TLS":
                writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            elif how == "silent":
                await reader.read()

        async with listening(serve) as port, Chat(base_url=f"https://localhost:{port}/v1", model="m") as chat:
            start = time.monotonic()
            # One that is silent is the stage's timeout's to end.
            with pytest.raises(TimeoutError if how == "silent" else Unreachable):
                async with asyncio.timeout(0.5 if how == "silent" else None):
                    await chat.complete("q")
            assert time.monotonic() - start < 10

    on(loop, work)


@pytest.mark.real_clock
def test_row_90_a_redirect_to_itself_is_not_followed() -> None:
    ended = ran(lambda _: reply(b"", 302, location="/v1/chat/completions"))
    assert (ended.report.exit_code, len(ended.dead), ended.requests) == (SOME_DEAD, 4, 12)
    assert all(message.startswith("302 from localhost:") for message in ended.messages)
    assert all("base_url is to say where to" in message for message in ended.messages)


class Endless:
    """Sends block after block, so many bytes; counts what was taken from it."""

    def __init__(self, start: bytes, block: bytes, most: int = MANY) -> None:
        self._start, self._block, self._most = start, block, most
        self.sent: list[int] = []

    async def __call__(self, writer: asyncio.StreamWriter) -> None:
        writer.write(self._start)
        place = len(self.sent)
        self.sent.append(0)
        for _ in range(self._most // len(self._block)):
            writer.write(self._block)
            await writer.drain()
            self.sent[place] += len(self._block)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOO_LONG = {
    "a header of 50 MB": (OK + b"X-A: ", BLOCK),
    "a name of 50 MB": (OK, BLOCK),
    "50 MB of headers": (OK, b"X-A: aaaaaaaaaaaaaaaaaaa\r\n" * 2_500),
    "50 MB that come beforehand": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1_600),
    "50 MB in chunks": (CHUNKED, chunked(BLOCK)),
    "50 MB until the connection ends": (OK + b"\r\n", BLOCK),
    "50 MB of a stated length": (OK + b"Content-Length: %d\r\n\r\n" % (MANY * 2), BLOCK),
    "50 MB behind the last chunk": (CHUNKED + b"0\r\n", b"X-A: aaaaaaaaaaaaaaaaaaa\r\n" * 2_500),
    "chunks with 50 MB of extensions": (CHUNKED + b"1;", BLOCK),
    "an event of 50 MB": (EVENTS, chunked(BLOCK)),
    "50 MB of comments": (EVENTS, chunked(b": ping\n" * 9_000)),
    "50 MB of events": (EVENTS, chunked(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n' * 1_000)),
}


@pytest.mark.real_clock
@pytest.mark.parametrize("what", TOO_LONG)
def test_row_90_what_is_longer_than_may_be_is_given_up(what: str) -> None:
    endless = Endless(*TOO_LONG[what])
    ran(lambda _: GOOD, 1)  # what is imported for a run is no part of it
    tracemalloc.start()
    try:
        ended = ran(
            lambda _: endless, 2, settings={"max_response_bytes": 500_000, "stream": b"event" in TOO_LONG[what][0]}
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (ended.report.exit_code, len(ended.dead)) == (SOME_DEAD, 2)
    assert all("longer than" in message and "bytes" in message for message in ended.messages), ended.messages
    # The sockets of both ends hold a few more.
    assert max(endless.sent) < MANY / 4
    assert peak < 8_000_000
    assert ended.seconds < 20


@pytest.mark.real_clock
def test_row_90_a_gzip_bomb_is_not_opened() -> None:
    bomb = gzip.compress(b"{" + bytes(100_000_000), 9)
    assert len(bomb) < 200_000
    ran(lambda _: GOOD, 1)
    tracemalloc.start()
    try:
        ended = ran(lambda _: reply(bomb, content_encoding="gzip"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (ended.report.exit_code, len(ended.dead), ended.requests) == (SOME_DEAD, 4, 12)
    assert all("but no JSON: " in message for message in ended.messages)
    assert peak < 8_000_000


@pytest.mark.parametrize("length", range(-3, 4))
def test_row_90_the_longest_answer_is_one_of_just_so_many_bytes(length: int) -> None:
    ended = ran(lambda _: GOOD, 1, settings={"max_response_bytes": len(GOOD) + length}, retry=None)
    assert ended.report.exit_code == (CLEAN if length >= 0 else SOME_DEAD)


@pytest.mark.parametrize("value", [0, -1, 1e6, "1", None, True])
def test_row_90_lengths_that_are_none(value: Any) -> None:
    with pytest.raises(SettingError, match="max_response_bytes"):
        Chat(base_url="http://h/v1", model="m", max_response_bytes=value)


@pytest.mark.real_clock
@pytest.mark.parametrize("loop", LOOPS)
def test_row_90_long_answers_in_many_pieces_are_taken_where_they_may_be(loop: str) -> None:
    text = "".join(itertools.islice(itertools.cycle("äbc🎉"), 3_000_000))
    body = json.dumps({"choices": [{**CHOICE, "message": {"content": text}}]}, ensure_ascii=False).encode()
    ended = ran(lambda _: reply(body), 1, loop=loop, settings={"max_response_bytes": len(body) + 200})
    assert ended.out == [{"n": 0, "generate": text}]
