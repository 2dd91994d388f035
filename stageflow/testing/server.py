"""The test server: an OpenAI-compatible service on this machine that fails by script.

One protocol object per connection, timers instead of tasks: what is measured against it is the client.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self, cast

from stageflow.testing.answers import embedding_of
from stageflow.testing.replies import error_reply
from stageflow.testing.script import Script, read_script, script_of
from stageflow.testing.service import Service, Turn
from stageflow.testing.tally import Stats
from stageflow.testing.wire import BadRequest, body_of, head_of, response_head

__all__ = ["TestServer"]

_BACKLOG: Final = 4096
_BUFFERED_BYTES: Final = 262_144
"""So much is read ahead of a call that is not answered yet: requests that were pipelined behind it."""
_RESET_SECONDS: Final = 0.01
"""Between half a body and the reset: a reset may overtake what was sent before it."""
_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class TestServer:
    """An OpenAI-compatible server for tests and rehearsals: deterministic answers, and faults by script.

    An async context manager on the loop that runs; leaving it breaks off whatever is still being answered. It answers
    ``/v1/chat/completions`` (also ``stream``), ``/v1/embeddings``, ``/v1/models``, ``/health`` and ``/stats``::

        async with TestServer({"fault": [{"do": "rate_limit", "share": 0.1, "retry_after": 2}]}, seed=1) as server:
            client = openai.AsyncOpenAI(base_url=server.url, api_key="any")
            ...
            assert server.stats.retry_after_ignored == 0

    Args:
        script: A file of TOML or JSON lines, what such a file says as a mapping, or a :class:`Script`. Without one it
            answers at once, and always.
        seed: Instead of the script's. The same seed and the same calls give the same answers and faults.
        host: The address it listens on. It asks nobody who they are: only this machine's own by default.
        port: 0: one that is free.

    Attributes:
        stats: What it has counted so far.

    Raises:
        RequestError: The script is refused.
        OSError: It can't listen there; raised on entering.
    """

    __test__ = False  # to pytest, a class named like this is one of tests

    def __init__(
        self,
        script: Script | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        seed: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        if script is None:
            script = Script()
        elif isinstance(script, str | os.PathLike):
            script = read_script(script)
        elif not isinstance(script, Script):
            script = script_of(script)
        self.script = script
        self._service = Service(script, seed)
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._closing = False
        self._connections: set[_Connection] = set()
        self._empty: asyncio.Future[None] | None = None

    @property
    def stats(self) -> Stats:
        return self._service.stats

    @property
    def seed(self) -> int:
        """What answers, faults and latencies are drawn by."""
        return self._service.seed

    @property
    def port(self) -> int:
        """Where it listens, or did."""
        assert self._server is not None, "not open"
        return self._port

    @property
    def address(self) -> str:
        """Host and port."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def url(self) -> str:
        """What clients call the base URL: it ends in ``/v1``."""
        assert self._server is not None, "not open"
        return f"http://{self.address}/v1"

    def answer(self, prompt: str, response_format: Mapping[str, Any] | None = None) -> str:
        """What it answers to messages whose contents, one per line, are ``prompt``."""
        return self._service.answer(prompt, response_format)

    def embedding(self, text: str, dimensions: int | None = None) -> list[float]:
        """The embedding it answers for a text."""
        return embedding_of(text, seed=self.seed, dimensions=dimensions or self.script.dimensions).tolist()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._closing = False
        self._server = await loop.create_server(
            lambda: _Connection(self, self._service, loop),
            self._host,
            self._port,
            backlog=_BACKLOG,
        )
        self._port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "not open"
        self._server.close()
        self._closing = True
        if self._connections:
            self._empty = asyncio.get_running_loop().create_future()
            for connection in tuple(self._connections):
                connection.break_off()
            await self._empty
        await self._server.wait_closed()

    def _made(self, connection: _Connection) -> None:
        self._connections.add(connection)
        self.stats.connections += 1
        if self._closing:
            connection.break_off()  # it was accepted while the server closed, which would wait for it

    def _lost(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)


class _Connection(asyncio.Protocol):
    """A client's connection: requests come in any pieces, and are answered one by one in their order."""

    def __init__(self, server: TestServer, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._service = service
        self._loop = loop
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._turn: Turn | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True
        self._writing = True
        self._ended = False
        self._continued = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._turn is not None:
            self._service.end(self._turn, self._loop.time(), whole=False)
            self._turn = None
        self._server._lost(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._turn is None:
            self._serve()
        elif len(self._buffer) > _BUFFERED_BYTES and self._reading:
            self._reading = False
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._serve()

    def break_off(self) -> None:
        """Close it as it is."""
        self._transport.abort()

    # Requests

    def _serve(self) -> None:
        """Answer what there is of requests, up to the first that takes time."""
        while self._turn is None and self._writing and not self._ended and self._buffer:
            try:
                if not self._begin():
                    break
            except BadRequest as bad:
                self._refuse(bad)
        if not self._reading and self._turn is None and not self._ended:
            self._reading = True
            self._transport.resume_reading()

    def _begin(self) -> bool:
        """Begin to answer the request that the buffer begins with, if it is all there."""
        head = head_of(self._buffer)
        if head is None:
            return False
        if self._service.resets(head):
            self._reset()
            return True
        found = body_of(self._buffer, head)
        if found is None:
            if head.continues and not self._continued:
                self._continued = True
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        body, end = found
        del self._buffer[:end]
        self._continued = False
        turn = self._turn = self._service.begin(head, body, self._loop.time())
        if turn.delay > 0:
            self._timer = self._loop.call_later(turn.delay, self._deliver, 0)
        else:
            self._write(turn, 0)
        return True

    def _refuse(self, bad: BadRequest) -> None:
        reply = error_reply(bad.status, "invalid_request_error", None, bad.message)
        head = response_head(bad.status, reply.content_type, len(reply.body), "", close=True)
        self._transport.write(head + reply.body)
        self._close()

    # Answers

    def _deliver(self, place: int) -> None:
        """A timer rang: go on with the answer, and with what waits behind it."""
        self._timer = None
        assert self._turn is not None
        self._write(self._turn, place)
        if self._buffer or not self._reading:
            self._serve()

    def _write(self, turn: Turn, place: int) -> None:
        delivery = turn.delivery
        if place < len(delivery.pieces):
            self._transport.write(delivery.pieces[place])
        if place + 1 < len(delivery.pieces):
            self._timer = self._loop.call_later(delivery.pause, self._deliver, place + 1)
        elif delivery.ending != "hang":
            self._turn = None
            self._service.end(turn, self._loop.time(), whole=True)
            if delivery.ending == "reset":
                self._ended = True
                self._timer = self._loop.call_later(_RESET_SECONDS if delivery.pieces else 0, self._reset)
            elif delivery.ending == "close":
                self._close()

    def _close(self) -> None:
        self._ended = True
        self._buffer.clear()
        self._transport.close()

    def _reset(self) -> None:
        self._ended = True
        self._buffer.clear()
        connection: socket.socket = self._transport.get_extra_info("socket")
        # To close a socket that lingers for no time sends a reset rather than an end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self._transport.abort()
