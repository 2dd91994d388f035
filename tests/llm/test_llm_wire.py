"""Connections: where answers begin and end, which are used again, and how the service is reached."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted import CERTIFICATE, CHOICE, answering, listening, localhost_tls, on, reply

from stageflow import RequestError
from stageflow.llm import Chat, Unreachable
from stageflow.llm.route import Route
from stageflow.llm.wire import Broken, Connection, parsing

pytest.importorskip("httptools")

LOOPS = ("asyncio", "uvloop")
ANSWER = reply({"choices": [CHOICE]})
HEAD, _, BODY = ANSWER.partition(b"\r\n\r\n")


@asynccontextmanager
async def serving(*answers: bytes, pieces: int = 0, close: bool = False) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers the n-th request of each connection so; yields its URL and the requests by connection."""
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(seen)
        seen.append(0)
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            seen[place] += 1
            for start in range(0, len(answer), pieces or len(answer) or 1):
                writer.write(answer[start : start + (pieces or len(answer))])
                await asyncio.sleep(0)
        if not close:
            await reader.read()

    async with listening(serve) as port:
        yield f"http://127.0.0.1:{port}/v1", seen


def texts(*answers: bytes, calls: int = 1, loop: str = "asyncio", **how: Any) -> tuple[list[str], list[int]]:
    """What so many calls, one after another, come to."""

    async def work() -> tuple[list[str], list[int]]:
        async with serving(*answers, **how) as (url, seen), Chat(base_url=url, model="m") as chat:
            return [(await chat.complete("q")).text for _ in range(calls)], list(seen)

    found: tuple[list[str], list[int]] = on(loop, work)
    return found


class TestWhereAnAnswerEnds:
    @pytest.mark.parametrize("pieces", [1, 7, 64])
    def test_answers_come_in_any_pieces(self, pieces: int) -> None:
        assert texts(ANSWER, ANSWER, pieces=pieces, calls=2) == (["hi", "hi"], [2])

    @pytest.mark.parametrize("loop", LOOPS)
    def test_by_chunks(self, loop: str) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            BODY[:5],
            len(BODY) - 5,
            BODY[5:],
        )
        assert texts(chunked, chunked, calls=2, loop=loop) == (["hi", "hi"], [2])

    @pytest.mark.parametrize("loop", LOOPS)
    def test_by_the_end_of_the_connection(self, loop: str) -> None:
        bare = b"HTTP/1.1 200 OK\r\n\r\n" + BODY
        assert texts(bare, close=True, calls=2, loop=loop) == (["hi", "hi"], [1, 1])

    def test_what_is_said_beforehand_is_not_the_answer(self) -> None:
        early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ANSWER
        assert texts(early, early, calls=2) == (["hi", "hi"], [2])

    def test_another_protocol_is_no_answer(self) -> None:
        with pytest.raises(Unreachable):
            texts(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")


class TestWhichConnectionsAreUsedAgain:
    def test_one_that_the_service_wants_closed_is_not(self) -> None:
        closing = HEAD + b"\r\nConnection: close\r\n\r\n" + BODY
        assert texts(closing, ANSWER, calls=3) == (["hi"] * 3, [1, 1, 1])

    def test_an_old_kind_of_server_closes_after_each(self) -> None:
        old = ANSWER.replace(b"HTTP/1.1", b"HTTP/1.0")
        assert texts(old, ANSWER, calls=2) == (["hi", "hi"], [1, 1])

    def test_one_that_was_closed_without_a_word_is_not(self) -> None:
        assert texts(ANSWER, close=True, calls=3) == (["hi"] * 3, [1, 1, 1])

    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("rest", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
    def test_where_one_ends_the_answer_before_is_not_taken_for_the_next(self, rest: bytes, loop: str) -> None:
        with pytest.raises(Unreachable):
            texts(ANSWER, rest, close=True, calls=2, loop=loop)

    def test_an_answer_nobody_asked_for_is_nobodys_answer(self) -> None:
        wrong = reply({"choices": [{**CHOICE, "message": {"content": "another's"}}]})
        assert texts(ANSWER + wrong, calls=3) == (["hi"] * 3, [1, 1, 1])
        assert texts(ANSWER + b"garbage", calls=3) == (["hi"] * 3, [1, 1, 1])

    def test_one_that_was_idle_for_long_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stageflow.llm.http._IDLE_SECONDS", 0.0)
        assert texts(ANSWER, ANSWER, calls=2) == (["hi", "hi"], [1, 1])

    @pytest.mark.parametrize("loop", LOOPS)
    def test_one_that_is_closed_as_soon_as_it_is_open(self, loop: str) -> None:
        with pytest.raises(Unreachable):
            texts(close=True, loop=loop)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_nothing_is_waited_for_on_one_that_is_closed(self, loop: str) -> None:
        async def work() -> None:
            async with serving(ANSWER) as (url, _):
                port, heard = int(url.removesuffix("/v1").rpartition(":")[2]), []
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(parsing(), heard.append), "127.0.0.1", port
                )
                connection.abort()
                for _ in range(2):
                    with pytest.raises(Broken, match="was closed"):
                        await connection.ask(b"POST / HTTP/1.1\r\nContent-Length: ", b"", b"")
                    await asyncio.sleep(0)
                assert heard == [connection]
                assert not connection.is_usable

        on(loop, work)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_one_that_is_lost_before_it_is_used_is_not_waited_for_at_the_end(
        self, loop: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = Route.connect

        async def connect(self: Route, make: Any) -> Connection:
            connection = await right(self, make)
            connection.abort()
            await asyncio.sleep(0.01)  # the loop tells of it in its next turn
            return connection

        monkeypatch.setattr(Route, "connect", connect)
        with pytest.raises(Unreachable, match="was closed"):
            texts(ANSWER, loop=loop)

    def test_closing_ends_the_calls_in_progress(self) -> None:
        async def work() -> None:
            async with serving(b"") as (url, seen):
                chat = Chat(base_url=url, model="m")
                async with chat:
                    waiting = asyncio.create_task(chat.complete("q"))
                    while not any(seen):  # noqa: ASYNC110 - what is waited for tells nobody
                        await asyncio.sleep(0.005)
                with pytest.raises(Unreachable):
                    await waiting

        on("asyncio", work)


class TestTheWayThere:
    def test_addresses_are_tried_in_turn_and_the_good_one_is_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            asked, loop = [], asyncio.get_running_loop()

            async def lookup(host: str, *_: Any, **__: Any) -> list[Any]:
                asked.append(host)
                return [(0, 0, 0, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1", "127.0.0.1")]

            monkeypatch.setattr(loop, "getaddrinfo", lookup)
            async with answering(ANSWER) as server:  # at 127.0.0.1 alone
                url = server.url.replace("127.0.0.1", "service.test")
                async with Chat(base_url=url, model="m") as chat:
                    answers = await asyncio.gather(*(chat.complete("q") for _ in range(20)))
                    assert [answer.text for answer in answers] == ["hi"] * 20
                    assert chat._http is not None
                    assert chat._http._route._addresses == ["127.0.0.1", "127.0.0.2"]
                assert server.heads[0]["host"] == url.split("/")[2]
            assert asked == ["service.test"], "one lookup is for all"

        on("asyncio", work)

    def test_a_name_that_is_unknown_is_asked_for_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            asked = []

            async def lookup(host: str, *_: Any, **__: Any) -> list[Any]:
                asked.append(host)
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
            async with Chat(base_url="http://service.test/v1", model="m") as chat:
                errors = await asyncio.gather(*(chat.complete("q") for _ in range(20)), return_exceptions=True)
            assert len(asked) == 1
            for error in errors:
                assert isinstance(error, Unreachable)
                assert isinstance(error.__cause__, socket.gaierror)
            assert len({id(error) for error in errors}) == 20

        on("asyncio", work)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxy yet."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


class TestProxies:
    def test_plain_requests_are_forwarded(self, proxied: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            async with answering(ANSWER) as asked:
                proxied.setenv("HTTP_PROXY", asked.url.removesuffix("/v1").replace("//", "//us%40er:pass@"))
                async with Chat(base_url="http://service.invalid/v1?v=1", model="m") as chat:
                    assert (await chat.complete("q")).text == "hi"
            assert asked.paths == ["http://service.invalid/v1/chat/completions?v=1"]
            assert asked.heads[0]["host"] == "service.invalid"
            assert asked.heads[0]["proxy-authorization"] == "Basic dXNAZXI6cGFzcw=="

        on("asyncio", work)

    def test_not_where_none_is_wanted(self, proxied: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            proxied.setenv("ALL_PROXY", "http://127.0.0.1:1")
            proxied.setenv("NO_PROXY", "127.0.0.1")
            async with answering(ANSWER) as asked, Chat(base_url=asked.url, model="m") as chat:
                assert (await chat.complete("q")).text == "hi"
            assert asked.paths == ["/v1/chat/completions"]

        on("asyncio", work)

    def test_one_of_another_kind_is_refused(self, proxied: pytest.MonkeyPatch) -> None:
        proxied.setenv("https_proxy", "socks5://user:hidden-word@127.0.0.1:1")
        with pytest.raises(RequestError, match="socks5") as caught:
            asyncio.run(Chat(base_url="https://service.invalid", model="m").__aenter__())
        assert "hidden-word" not in str(caught.value)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_proxy_that_refuses_a_tunnel(self, loop: str, proxied: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 407 Who are you?\r\n\r\n")

            async with listening(refuse) as port:
                proxied.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
                async with Chat(base_url="https://service.invalid/v1", model="m") as chat:
                    with pytest.raises(Unreachable, match=r"the proxy refused: HTTP/1\.1 407 Who are you"):
                        await chat.complete("q")

        on(loop, work)


@asynccontextmanager
async def serving_tls() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await reader.read()

    async with listening(serve, localhost_tls()) as port:
        yield port


class TestTls:
    @pytest.mark.parametrize("loop", LOOPS)
    def test_a_certificate_that_the_environment_trusts(self, loop: str, proxied: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            async with serving_tls() as port:
                settings = {"base_url": f"https://localhost:{port}/v1", "model": "m"}
                async with Chat(**settings) as chat:
                    with pytest.raises(Unreachable, match="self-signed"):
                        await chat.complete("q")
                proxied.setenv("SSL_CERT_FILE", str(CERTIFICATE))
                async with Chat(**settings) as chat:
                    assert (await chat.complete("q")).text == "hi"

        on(loop, work)

    @pytest.mark.parametrize("loop", LOOPS)
    def test_through_a_tunnel(self, loop: str, proxied: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            wishes = []

            async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                wishes.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
                there, back = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

                async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                    while data := await source.read(65_536):
                        target.write(data)
                    target.close()
                    await target.wait_closed()

                await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

            async with serving_tls() as port, listening(proxy) as door:
                proxied.setenv("SSL_CERT_FILE", str(CERTIFICATE))
                proxied.setenv("HTTPS_PROXY", f"http://127.0.0.1:{door}")
                async with Chat(base_url="https://localhost:7777/v1", model="m") as chat:
                    assert (await chat.complete("q")).text == "hi"
            assert wishes == [b"CONNECT localhost:7777 HTTP/1.1"]

        on(loop, work)


def test_a_route_says_whether_its_proxy_sees_the_requests(proxied: pytest.MonkeyPatch) -> None:
    from stageflow.llm.endpoint import endpoint_of

    proxied.setenv("ALL_PROXY", "http://user@127.0.0.1:1")
    assert Route(endpoint_of("http://service.invalid")).is_forwarded
    assert not Route(endpoint_of("https://service.invalid")).is_forwarded
    assert Route(endpoint_of("http://service.invalid")).proxy_headers() == {"Proxy-Authorization": "Basic dXNlcjo="}
