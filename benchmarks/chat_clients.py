"""The clients that benchmarks/llm_client.py compares, each in the form that is cheapest for it.

Each is an async context manager that opens its connections as they are needed, and yields a function that asks one
question and returns the text of the answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from workload import WrongAnswer

from stageflow.llm import Chat

__all__ = [
    "KEY_VARIABLE",
    "PADDING",
    "TOKENS",
    "Ask",
    "by_hand",
    "messages",
    "with_aiohttp",
    "with_httpx",
    "with_openai",
    "with_stageflow",
]

KEY_VARIABLE: Final = "BENCHMARK_KEY"
PADDING: Final = "x" * 300
SYSTEM: Final = {"role": "system", "content": "Answer briefly, and name your sources. " * 4}
TOKENS: Final = 170
"""What the server says of each call."""

Ask = Callable[[int], Awaitable[str]]
"""Asks one question and returns the text of the answer."""


def messages(number: int) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": f"question {number} {PADDING}"}]


def request(number: int) -> bytes:
    return orjson.dumps({"model": "m", "messages": messages(number), "max_tokens": 100})


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ[KEY_VARIABLE]}", "Content-Type": "application/json"}


class Call:
    """What a handler has as ``call``."""

    idempotency_key = "0123456789abcdef-17-generate"
    tokens = 0

    def report(self, *, tokens: int, input_tokens: int, output_tokens: int) -> None:
        self.tokens += tokens


@asynccontextmanager
async def with_stageflow(base_url: str) -> AsyncIterator[Ask]:
    async with Chat(base_url=base_url, model="m", api_key_env=KEY_VARIABLE) as chat:
        call = Call()

        async def ask(number: int) -> str:
            return (await chat.complete(messages(number), call=call, max_tokens=100)).text

        yield ask
        if call.tokens % TOKENS or not call.tokens:
            raise WrongAnswer(f"{call.tokens} tokens were reported, of answers that have {TOKENS}")


@asynccontextmanager
async def with_aiohttp(base_url: str) -> AsyncIterator[Ask]:
    import aiohttp

    url = f"{base_url}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers()) as session:

        async def ask(number: int) -> str:
            async with session.post(url, data=request(number)) as answer:
                if answer.status != 200:
                    raise WrongAnswer(f"aiohttp: status {answer.status}")
                return str(orjson.loads(await answer.read())["choices"][0]["message"]["content"])

        yield ask


class Bare(asyncio.Protocol):
    """As much of a client as this server needs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._read = b""
        self._loop = asyncio.get_running_loop()

    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        self._waiter = self._loop.create_future()
        self._transport.write(data)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if found and len(body) == int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self._read = b""
            self._waiter.set_result(body)

    def close(self) -> None:
        self._transport.abort()


@asynccontextmanager
async def by_hand(base_url: str) -> AsyncIterator[Ask]:
    loop = asyncio.get_running_loop()
    port = int(base_url.removesuffix("/v1").rpartition(":")[2])
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", *(f"{name}: {text}" for name, text in headers().items())]
    head = "\r\n".join([*lines, "Content-Length: "]).encode()
    idle: list[Bare] = []
    made: list[Bare] = []

    async def ask(number: int) -> str:
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(Bare, "127.0.0.1", port)
            made.append(connection)
        body = request(number)
        answer = await connection.ask(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        idle.append(connection)
        return str(orjson.loads(answer)["choices"][0]["message"]["content"])

    yield ask
    for connection in made:
        connection.close()


@asynccontextmanager
async def with_httpx(base_url: str) -> AsyncIterator[Ask]:
    import httpx

    url = f"{base_url}/chat/completions"
    async with httpx.AsyncClient(headers=headers(), timeout=None, trust_env=False) as client:

        async def ask(number: int) -> str:
            answer = await client.post(url, content=request(number))
            return str(orjson.loads(answer.content)["choices"][0]["message"]["content"])

        yield ask


@asynccontextmanager
async def with_openai(base_url: str) -> AsyncIterator[Ask]:
    import openai

    key = os.environ[KEY_VARIABLE]
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=None) as client:

        async def ask(number: int) -> str:
            said: Any = messages(number)
            answer = await client.chat.completions.create(model="m", messages=said, max_tokens=100)
            return answer.choices[0].message.content or ""

        yield ask
