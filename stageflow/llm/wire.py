"""The door of httptools: one connection, over which one request after another is sent and its answer read.

The library reads answers and nothing else; the connection is a protocol of the running loop's own. So a cancelled call
is a closed connection, at once, and a call costs a fraction of what a general client takes.

A connection is idle, or waits for one answer:

1. ``ask`` sends a request; the future it returns is that answer. Nothing else is sent before it is there.
2. It is there when its length, its chunks or, where it has neither, the end of the connection say so. What ends before
   is :class:`Broken`, however whole it looks; a stream of events says itself when it is over.
3. Bytes that nobody asked for end the connection: the next answer would be of something else.
4. An answer that is longer than may be is given up as soon as that is known, in its head, too.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from stageflow.errors import RequestError

if TYPE_CHECKING:
    from httptools import HttpResponseParser

__all__ = ["MOST_BYTES", "Broken", "Connection", "Parsing", "Reply", "Taker", "parsing", "reason_of"]

MOST_BYTES: Final = 67_108_864
"""So long may an answer be: 2,000 embeddings of 1,500 numbers each."""
_HEAD_BYTES: Final = 65_536
_IDLE_SECONDS: Final = 120.0
_CLOSING_SECONDS: Final = 1.0
"""What is over takes so long to end, or its connection is not worth the wait."""

Parsing = tuple[Callable[[Any], "HttpResponseParser"], tuple[type[Exception], ...]]
"""What makes a parser, and what it raises where there is no HTTP."""


class Broken(Exception):
    """No whole answer came; says why."""


class Taker(Protocol):
    """What takes a stream of events as it comes, in place of a body."""

    @property
    def is_over(self) -> bool:
        """Whether nothing that may still come is a part of it."""

    @property
    def is_spoiled(self) -> bool:
        """Whether nothing more is to be read."""

    def feed(self, piece: bytes) -> None: ...


class Reply:
    """An answer that came whole; what a :class:`Taker` took is not in its body."""

    __slots__ = ("_headers", "body", "status")

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.body = body
        self._headers = headers

    def header(self, name: str) -> str | None:
        """The first header of this name, which is in lower case."""
        wanted = name.encode()
        for found, value in self._headers:
            if found.lower() == wanted:
                return value.decode("latin-1")
        return None


def parsing() -> Parsing:
    """The library.

    Raises:
        RequestError: It is not installed.
    """
    try:
        from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
    except ImportError:
        raise RequestError(
            "stageflow.llm needs httptools, which is not installed", hint="pip install 'stageflow[llm]'"
        ) from None
    return HttpResponseParser, (HttpParserError, HttpParserUpgrade)


def reason_of(error: Exception) -> str:
    """What happened to a connection, in the system's words; asyncio's own have the address in them."""
    said = getattr(error, "verify_message", None) or getattr(error, "reason", None)  # of TLS
    if not said and isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        said = os.strerror(error.errno)
    return str(said or getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _has_come(file: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


_poll: Final = _has_come if hasattr(select, "poll") else None
"""Windows has none; there a connection that was closed just now fails its next call."""


class Connection(asyncio.Protocol):
    """A connection to a service.

    Args:
        lost: Called once, when it is closed at whichever end; perhaps not where opening it was given up.
        most_bytes: The longest that an answer may be, with its head.
        idle_seconds: So long may nothing come of a stream.

    Attributes:
        idle_since: By the loop's clock, when it was last put aside.
    """

    def __init__(
        self,
        parsing: Parsing,
        lost: Callable[[Connection], None],
        most_bytes: int = MOST_BYTES,
        idle_seconds: float = _IDLE_SECONDS,
    ) -> None:
        make, self._no_http = parsing
        self._parser = make(self)
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[Reply] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._status = 0
        self._stays = False
        self._most_bytes = most_bytes
        self._most_in_head = min(most_bytes, _HEAD_BYTES)
        self._left = 0
        self._idle_seconds = idle_seconds
        self._taker: Taker | None = None
        self._takes = False
        self._heard = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.idle_since = 0.0

    def ask(self, head: bytes, more: bytes, body: bytes, taker: Taker | None = None) -> asyncio.Future[Reply]:
        """Send a request: what all have in common up to the value of Content-Length, what this one has, its body.

        Args:
            taker: Takes the answer, where it is a stream of events.
        """
        waiter = self._loop.create_future()
        if self.is_closing:  # since it was opened a moment ago: nothing more is heard of it
            waiter.set_exception(Broken("the connection was closed"))
            return waiter
        # What is left of the answer before would else be the answer where the connection ends now.
        self._headers, self._body, self._status = [], [], 0
        self._left = self._most_in_head
        self._takes, self._taker = False, taker
        if taker is not None:
            self._heard = self._loop.time()
            self._timer = self._loop.call_later(self._idle_seconds, self._look)
        self._waiter = waiter
        self._transport.write(b"%b%d\r\n%b\r\n%b" % (head, len(body), more, body))
        return waiter

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return self._stays and self._waiter is None and not self.is_closing

    @property
    def is_closing(self) -> bool:
        """Whether it is closed, or as good as that."""
        return self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Whether nothing has come on it meanwhile, its end for instance, that the loop has not got round to yet."""
        if self.is_closing:
            return False
        return _poll is None or not _poll(self._transport.get_extra_info("socket").fileno())

    def abort(self) -> None:
        """Close it, whatever is going on."""
        self._stays = False
        self._transport.abort()

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        try:
            self._parser.feed_data(data)
        except self._no_http as error:
            # Behind a whole answer it does that one no harm.
            self._fail(f"what came is no HTTP ({error})")
            self.abort()
        if self._waiter is not None:
            if self._left < 0:
                self._fail(self._too_long())
                self.abort()
            elif self._taker is not None:
                self._go_on(self._taker)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stays = False
        if self._waiter is not None and (
            (exc is None and self._status >= 200 and not self._says_its_length()) or self._is_over()
        ):
            self._deliver()
        if exc is not None:
            self._fail(reason_of(exc))
        else:
            self._fail("it ended in the middle" if self._headers else "the connection was closed")
        self._lost(self)

    # What the parser tells

    def on_message_begin(self) -> None:
        self._headers, self._body, self._status = [], [], 0
        if self._waiter is None:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # others come behind the last chunk, and nobody reads them
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._left += self._most_bytes - self._most_in_head
            self._takes = self._taker is not None and self._status < 300 and self._has_events()

    def on_body(self, body: bytes) -> None:
        if self._takes:
            assert self._taker is not None
            self._taker.feed(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status >= 200:  # others are said beforehand
            self._stays = self._parser.should_keep_alive()
            self._deliver()

    def _says_its_length(self) -> bool:
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    def _has_events(self) -> bool:
        return any(
            name.lower() == b"content-type" and b"event-stream" in value.lower() for name, value in self._headers
        )

    # Streams

    def _go_on(self, taker: Taker) -> None:
        """Something has come of a stream."""
        self._heard = self._loop.time()
        if taker.is_spoiled:
            self._deliver()
            self.abort()
        elif taker.is_over:
            self._stop_timer()
            self._timer = self._loop.call_later(_CLOSING_SECONDS, self._look)

    def _is_over(self) -> bool:
        return self._takes and self._taker is not None and self._taker.is_over

    def _look(self) -> None:
        """The timer rang: has anything come meanwhile?"""
        self._timer = None
        left = self._heard + self._idle_seconds - self._loop.time()
        if self._is_over():
            self._deliver()
            self.abort()
        elif left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._fail(f"nothing came for {self._idle_seconds:g} s")
            self.abort()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # How a call ends

    def _too_long(self) -> str:
        if self._status < 200:
            return f"its head is longer than {self._most_in_head:,} bytes"
        return f"it is longer than {self._most_bytes:,} bytes (max_response_bytes)"

    def _deliver(self) -> None:
        if self._left < 0:
            self._fail(self._too_long())
            return
        self._stop_timer()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            waiter.set_result(Reply(self._status, self._headers, body))

    def _fail(self, reason: str) -> None:
        self._stop_timer()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(Broken(reason))
