"""A pool of connections: requests out, whole answers in, whatever fails as one exception.

1. A call takes a connection that is idle, the one used last, or opens another. There is no limit on how many.
2. When its answer is whole, the connection is put aside, if both ends want to keep it.
3. A call that fails or is cancelled closes its connection: what is still to come on it belongs to nobody.
4. Nothing is sent twice. A connection that the service has closed is taken out as soon as that is known, and each is
   looked at before it is used again. One that is closed just then fails its call: what was asked may have been done.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from stageflow.llm.endpoint import Endpoint
from stageflow.llm.errors import Unreachable
from stageflow.llm.route import Route
from stageflow.llm.wire import Broken, Connection, Reply, Taker, parsing, reason_of

__all__ = ["Http"]

_FILES: Final = 65_536
_IDLE_SECONDS: Final = 30.0
"""Services close what has been idle for a minute or so, some sooner; what is that old is not worth the risk."""
_REASON_CHARS: Final = 200


class Http:
    """A pool of connections to one service.

    Args:
        headers: Makes what goes with each request, the key too; so there is no variable here that holds it.
        most_bytes, idle_seconds: See :class:`~stageflow.llm.wire.Connection`.

    Raises:
        RequestError: The library is not installed, or the proxy is of a kind that is not spoken here.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Callable[[], Mapping[str, str]],
        paths: tuple[str, ...],
        *,
        most_bytes: int,
        idle_seconds: float,
    ) -> None:
        self._parsing = parsing()
        self._most_bytes = most_bytes
        self._idle_seconds = idle_seconds
        self._endpoint = endpoint
        self._route = Route(endpoint)
        self._heads = {path: self._head(path, headers) for path in paths}
        self._idle: dict[Connection, None] = {}
        self._open: set[Connection] = set()
        self._empty: asyncio.Future[None] | None = None
        self._closed = False
        _allow_connections()

    async def post(self, path: str, body: bytes, idempotency_key: str | None, taker: Taker | None = None) -> Reply:
        """Send a request and wait for the end of its answer, however long that takes.

        Args:
            taker: Takes the answer, where it is a stream of events.

        Raises:
            Unreachable: No whole answer came.
        """
        more = b"" if idempotency_key is None else b"Idempotency-Key: %b\r\n" % idempotency_key.encode()
        connection = self._take() or await self._connect()
        try:
            reply = await connection.ask(self._heads[path], more, body, taker)
        except BaseException as error:
            connection.abort()
            if not isinstance(error, Broken):
                raise
            problem = self._problem(str(error))
        else:
            if connection.is_usable:
                connection.idle_since = asyncio.get_running_loop().time()
                self._idle[connection] = None
            else:
                connection.abort()
            return reply
        # Outside, so that what is raised has no context.
        raise problem

    async def close(self) -> None:
        """Close all connections, and wait until they are; a call in progress fails."""
        self._closed = True
        if self._open:
            self._empty = asyncio.get_running_loop().create_future()
            for connection in tuple(self._open):
                connection.abort()
            await self._empty

    def _take(self) -> Connection | None:
        """The idle connection that was used last: it is the least likely to be closed at the other end."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if asyncio.get_running_loop().time() - connection.idle_since < _IDLE_SECONDS and connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        try:
            connection = await self._route.connect(self._make)
        except OSError as error:
            problem = self._problem(reason_of(error))
            if isinstance(error, socket.gaierror):
                problem.__cause__ = error  # whether the name is unknown, or a name server had a bad moment
        else:
            if not self._closed:
                if not connection.is_closing:
                    self._open.add(connection)
                return connection
            connection.abort()
            problem = self._problem("the client was closed")
        raise problem

    def _make(self) -> Connection:
        return Connection(self._parsing, self._lost, self._most_bytes, self._idle_seconds)

    def _lost(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._open.discard(connection)
        if self._empty is not None and not self._open and not self._empty.done():
            self._empty.set_result(None)

    def _problem(self, reason: str) -> Unreachable:
        return Unreachable(
            f"no answer from {self._endpoint.netloc}: {reason[:_REASON_CHARS]}", host=self._endpoint.host
        )

    def _head(self, path: str, headers: Callable[[], Mapping[str, str]]) -> bytes:
        """A request's head up to the value of its Content-Length."""
        forwarded = self._route.is_forwarded
        target = self._endpoint.url(path) if forwarded else self._endpoint.target(path)
        return "\r\n".join(
            [
                f"POST {target} HTTP/1.1",
                f"Host: {self._endpoint.netloc}",
                "User-Agent: stageflow",
                "Accept: application/json, text/event-stream",
                "Accept-Encoding: identity",  # answers are small, and time is what they take
                *(f"{name}: {value}" for name, value in headers().items()),
                *(f"{name}: {value}" for name, value in (self._route.proxy_headers() if forwarded else {}).items()),
                "Content-Length: ",
            ]
        ).encode()


def _allow_connections() -> None:
    """Let the process have as many files as it may: the usual limit of 1,024 is less than many stages have calls."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(most, _FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
