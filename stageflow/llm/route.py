"""How to reach the service: its addresses, TLS, and the proxy that the environment names."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from stageflow.errors import RequestError
from stageflow.llm.endpoint import Endpoint
from stageflow.llm.wire import Connection

if TYPE_CHECKING:
    import ssl

__all__ = ["Route"]

_KNOWN_SECONDS: Final = 60.0
"""So long is a name's answer good for: a thousand connections at once would else be a thousand lookups."""
_UNKNOWN_SECONDS: Final = 1.0
_NEXT_SECONDS: Final = 3.0
"""After which the next address is tried, where there is one: not every network that has IPv6 leads anywhere."""
_PROXY_HEAD_BYTES: Final = 65_536
_SAID_BYTES: Final = 80


class Route:
    """The way to one service.

    Raises:
        RequestError: The environment names a proxy of a kind that is not spoken here.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._proxy = _proxy_of(endpoint)
        self._tls: ssl.SSLContext | None = None
        if endpoint.is_https:
            import ssl  # a tenth of a second, which a service on this machine does not need

            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        self._asking = asyncio.Lock()
        self._addresses: list[str] = []
        self._unknown: OSError | None = None
        self._good_until = 0.0

    @property
    def is_forwarded(self) -> bool:
        """Whether requests go to a proxy as they are, and name the service in full."""
        return self._proxy is not None and self._tls is None

    def proxy_headers(self) -> dict[str, str]:
        """What a proxy wants to see before it does anything."""
        if self._proxy is None or not self._proxy.username:
            return {}
        user = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
        return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}

    async def connect(self, make: Callable[[], Connection]) -> Connection:
        """Open a connection; a cancelled attempt leaves nothing open.

        Raises:
            OSError: There is none to be had.
        """
        *others, last = await self._resolved()
        for address in others:
            try:
                async with asyncio.timeout(_NEXT_SECONDS):
                    return await self._connect(make, address)
            except (OSError, TimeoutError):
                self._put_last(address)
        return await self._connect(make, last)

    async def _connect(self, make: Callable[[], Connection], address: str) -> Connection:
        loop = asyncio.get_running_loop()
        name = self._endpoint.host if self._tls is not None else None
        if self._proxy is None or self._tls is None:
            port = self._first.port or (443 if self._tls is not None else 80)
            _, connection = await loop.create_connection(make, address, port, ssl=self._tls, server_hostname=name)
            return connection
        tunnel = await self._tunnel(address)
        try:
            _, connection = await loop.create_connection(make, sock=tunnel, ssl=self._tls, server_hostname=name)
        except BaseException:
            tunnel.close()
            raise
        return connection

    async def _tunnel(self, address: str) -> socket.socket:
        """A connection through the proxy, as it is before anything was said to the service."""
        loop = asyncio.get_running_loop()
        tunnel = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            tunnel.setblocking(False)
            await loop.sock_connect(tunnel, (address, self._first.port or 80))
            await loop.sock_sendall(tunnel, self._wish())
            head = b""
            while b"\r\n\r\n" not in head:
                read = await loop.sock_recv(tunnel, 4096)
                if not read or len(head) > _PROXY_HEAD_BYTES:
                    raise ConnectionError("the proxy broke off")
                head += read
            if head.split(None, 2)[1:2] != [b"200"]:
                said = head[:_SAID_BYTES].partition(b"\r")[0].decode("latin-1")
                raise ConnectionError(f"the proxy refused: {said}")
        except BaseException:
            tunnel.close()
            raise
        return tunnel

    def _wish(self) -> bytes:
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        target = f"{host}:{self._endpoint.port or 443}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        lines += [f"{name}: {value}" for name, value in self.proxy_headers().items()]
        return "\r\n".join([*lines, "", ""]).encode()

    @property
    def _first(self) -> SplitResult | Endpoint:
        """Whom to connect to."""
        return self._proxy if self._proxy is not None else self._endpoint

    async def _resolved(self) -> list[str]:
        """The addresses, at least one, the one to try first in front."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._good_until:
            async with self._asking:
                if loop.time() >= self._good_until:
                    await self._resolve(loop)
        if self._unknown is not None:
            raise type(self._unknown)(*self._unknown.args)
        return self._addresses

    async def _resolve(self, loop: asyncio.AbstractEventLoop) -> None:
        host = self._first.host if isinstance(self._first, Endpoint) else self._first.hostname
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            self._unknown, self._good_until = error, loop.time() + _UNKNOWN_SECONDS
        else:
            self._addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
            self._unknown, self._good_until = None, loop.time() + _KNOWN_SECONDS

    def _put_last(self, address: str) -> None:
        if self._addresses[0] == address:
            self._addresses = [*self._addresses[1:], address]


def _proxy_of(endpoint: Endpoint) -> SplitResult | None:
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # rarely needed, and not small

    proxies = getproxies_environment()
    named = proxies.get("https" if endpoint.is_https else "http") or proxies.get("all")
    if not named or proxy_bypass(endpoint.netloc):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    if parts.scheme != "http" or not parts.hostname:
        raise RequestError(
            f'the environment names a proxy of the kind "{parts.scheme}", which is not spoken here',
            hint="a proxy's address begins with http://; NO_PROXY names what needs none",
        )
    return parts
