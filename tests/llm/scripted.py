"""A server that answers every request with the same bytes, whatever those are, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "CERTIFICATE",
    "CHOICE",
    "KEY",
    "VARIABLE",
    "Asked",
    "answering",
    "listening",
    "localhost_tls",
    "on",
    "reply",
]

VARIABLE, KEY = "SOME_SERVICES_SECRET", 'sk-live-4f"9a\\7c2e-abcdefgh'
"""A key with what JSON and repr write in other ways."""
CERTIFICATE = Path(__file__).with_name("localhost.pem")
CHOICE: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


@dataclass
class Asked:
    """What came: for each request its head, header by header, and its body."""

    url: str
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


def on(loop: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run on a loop of this kind, with a deadline."""

    async def limited() -> Any:
        async with asyncio.timeout(30):
            return await work()

    if loop == "uvloop":
        import uvloop

        return uvloop.run(limited())
    return asyncio.run(limited())


def reply(body: Any, status: int = 200, **headers: str) -> bytes:
    """A whole answer; names are written with underscores for dashes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"content-type": "application/json", "content-length": str(len(data))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} OK", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + data


def localhost_tls() -> ssl.SSLContext:
    """For a server that is localhost, to whom trusts its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def listening(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on this machine; yields its port. What it still does at the end is broken off."""
    open_ones: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones[task] = writer
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            del open_ones[task]

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_ones.values():
            writer.transport.abort()
        await asyncio.gather(*open_ones)
        await server.wait_closed()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Asked]:
    """Serve one request per connection."""
    asked = Asked("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        asked.paths.append(first.split()[1])
        asked.heads.append(head)
        asked.bodies.append(json.loads(await reader.readexactly(int(head["content-length"]))))
        writer.write(answer)

    async with listening(serve) as port:
        asked.url = f"http://127.0.0.1:{port}/v1"
        yield asked
