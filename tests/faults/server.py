"""An HTTP server on this machine that answers by script: it refuses, trickles, stalls and breaks connections.

It serves one request per connection, on the loop that runs it, and never listens on any other address than 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

__all__ = [
    "FaultServer",
    "Reply",
    "cut_chunked",
    "early_close",
    "ok",
    "reset_mid_body",
    "slow_loris",
    "stall_until",
    "status",
]

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes an answer, or what there is of it. The connection is closed behind it."""

_BODY = json.dumps({"answer": "x" * 100}).encode()


class FaultServer:
    """An async context manager; leaving it breaks off whatever is still being answered.

    Args:
        script: Gets the number of the request, from 1, and says how it is answered.

    Attributes:
        arrived: When each request was read, by the clock of ``time.monotonic``: uvloop's own is as of its turn.
        in_progress: Requests that are being answered.
    """

    def __init__(self, script: Callable[[int], Reply]) -> None:
        self.arrived: list[float] = []
        self.in_progress = 0
        self._script = script
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None, "not open"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None, "not open"
        self._server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.in_progress += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.arrived.append(time.monotonic())
            await self._script(len(self.arrived))(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            self.in_progress -= 1
            writer.close()


def _head(code: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {code} {code}", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def status(code: int, headers: dict[str, str] | None = None, body: Any = None) -> Reply:
    """A whole answer."""
    data = json.dumps(body).encode()

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(code, {"Content-Length": str(len(data)), **(headers or {})}) + data)

    return reply


def ok() -> Reply:
    """What the client hoped for."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"Content-Length": str(len(_BODY))}) + _BODY)

    return reply


def reset_mid_body() -> Reply:
    """Half of the body, then a reset of the connection rather than its end."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"Content-Length": str(len(_BODY))}) + _BODY[:50])
        await writer.drain()
        connection: socket.socket = writer.get_extra_info("socket")
        # To close a socket that lingers for no time sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return reply


def early_close() -> Reply:
    """Less than the ``Content-Length`` said, and an orderly end."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"Content-Length": str(len(_BODY))}) + _BODY[:50])

    return reply


def cut_chunked() -> Reply:
    """A chunk that ends in its middle, and no last one."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"Transfer-Encoding": "chunked"}) + b"%x\r\n" % len(_BODY) + _BODY[:50])

    return reply


def slow_loris(seconds: float = 1.0) -> Reply:
    """A body of which each byte takes so long: never so long that a read times out."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"Content-Length": str(len(_BODY))}))
        for place in range(len(_BODY)):
            writer.write(_BODY[place : place + 1])
            await writer.drain()
            await asyncio.sleep(seconds)

    return reply


def stall_until(recovered: asyncio.Event) -> Reply:
    """Nothing at all until the server has recovered; then an answer."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        await recovered.wait()
        await ok()(writer)

    return reply
