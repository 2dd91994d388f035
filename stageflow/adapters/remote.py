"""Objects behind ``s3://``, ``gs://``, ``az://`` and ``https://``, read by ranges. The door to obstore.

An object is known by its tag, or by its size and time where it has none, and every range is asked for on the condition
that the tag is still the same: what is read is one version of it, or an error. So it is as lasting as a file, and a run
goes on in the middle. A server that gives no ranges, or says neither tag nor time, is read as a pipe is: once, from the
beginning.

Keys come from where the tools of each service look for them, the environment above all, and never stand in an address.
"""

from __future__ import annotations

import datetime
import errno
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from stageflow.commit import InputIdentity
from stageflow.errors import RequestError

__all__ = ["SCHEMES", "RemoteObject"]

T = TypeVar("T")

SCHEMES: Final = ("s3", "gs", "az", "https", "http")

_FIRST_BYTES: Final = 256 * 1024
_MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes per request: few where only the beginning is looked at, and soon so many that the requests cost nothing."""

_RETRIES: Final = 5
_RETRY_SECONDS: Final = 60.0


class RemoteObject:
    """One object, as :class:`~stageflow.adapters.media.Medium`.

    Args:
        path: Its address.

    Raises:
        RequestError: The address is of another kind, or holds what may be a key; or obstore is not installed.
    """

    def __init__(self, path: str) -> None:
        self.path = self.name = path
        parts = urlsplit(path)
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise RequestError(f"can't read from {parts.scheme}://", hint=f"give a file, or an address of {known}")
        web = parts.scheme in ("http", "https")
        if "@" in parts.netloc or (web and (parts.query or parts.fragment)):
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise RequestError(
                f"the address {shown} goes on with what may be a key, which would be kept with the run",
                hint="give keys in the environment, or fetch it first and give the file",
            )
        key = path.split("://", 1)[1].partition("/")[2]
        # In an address of the web a space is %20; a key in a bucket may well hold a percent sign.
        self._key = unquote(key) if web else key
        if not parts.netloc or not self._key:
            raise RequestError(f"{path} names no object", hint="for instance s3://bucket/folder/in.jsonl")
        self._library = _library(path)
        self._base = f"{parts.scheme}://{parts.netloc}"

    @cached_property
    def _store(self) -> Any:
        retry = {"max_retries": _RETRIES, "retry_timeout": datetime.timedelta(seconds=_RETRY_SECONDS)}
        options = {"allow_http": True} if self._base.startswith("http://") else None
        try:
            return self._library.store.from_url(self._base, client_options=options, retry_config=retry)
        except Exception as error:
            raise OSError(errno.EINVAL, _first_line(error)) from error

    def check(self) -> None:
        """See that it is there and may be read.

        Raises:
            OSError: It is not.
        """
        self.open().head(1)

    @cached_property
    def lasting(self) -> bool:
        """Whether it has a tag or a time, and comes in ranges."""
        try:
            opened = self.open()
        except OSError:
            return False
        return opened.identity is not None

    def open(self) -> RemoteBytes:
        """Ask what it is now. Nothing of it is read yet.

        Raises:
            OSError: It is not there, or may not be read.
        """
        return RemoteBytes(self._library, self._store, self._key, self.path)


class RemoteBytes:
    """The bytes of one version of an object."""

    def __init__(self, library: Any, store: Any, key: str, path: str) -> None:
        self._library = library
        self._store = store
        self._key = key
        self._path = path
        self._position = 0
        self._buffer = b""
        self._buffer_at = 0
        self._next_bytes = _FIRST_BYTES
        self._stream: Iterator[Any] | None = None
        self._meta: Any = self._asked(lambda: library.head(store, key))
        self._size: int = self._meta["size"]
        self._beginning = self._first()
        if self._beginning is not None:
            self._buffer = self._beginning

    @property
    def identity(self) -> InputIdentity | None:
        """What it is, if ranges of it can be had and its versions be told apart."""
        tag, when = self._meta.get("e_tag"), self._meta.get("last_modified")
        known = tag or (when is not None and when.timestamp() > 0)
        if self._beginning is None or not known:
            return None
        at = 0 if tag else round(when.timestamp() * 1e9)
        return InputIdentity(self._path, 0, 0, self._size, at, 0, version=tag or "untagged")

    def _first(self) -> bytes | None:
        """The first bytes; ``None`` where there are no ranges to be had."""
        if not self._size:
            return b""
        try:
            return self._range(0, min(_FIRST_BYTES, self._size))
        except _NoRanges:
            return None

    def head(self, size: int) -> bytes:
        """The first bytes."""
        return (self._beginning or b"")[:size]

    def read(self, size: int) -> bytes:
        """Some bytes, mostly of those that were asked for before."""
        if self._beginning is None:
            return self._read_stream(size)
        at = self._position - self._buffer_at
        if not 0 <= at < len(self._buffer):
            if self._position >= self._size:
                return b""
            end = min(self._position + max(self._next_bytes, size), self._size)
            self._buffer, self._buffer_at, at = self._range(self._position, end), self._position, 0
            self._next_bytes = min(2 * self._next_bytes, _MOST_BYTES)
        data = self._buffer[at : at + size]
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        """Go on there."""
        self._position = position

    def close(self) -> None:
        """Nothing is held."""

    def _read_stream(self, size: int) -> bytes:
        if self._stream is None:
            self._stream = iter(self._asked(lambda: self._library.get(self._store, self._key)).stream())
        stream = self._stream
        while not self._buffer:
            chunk = self._asked(lambda: next(stream, None))
            if chunk is None:
                return b""
            self._buffer = bytes(chunk)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _range(self, start: int, end: int) -> bytes:
        options: dict[str, Any] = {"range": (start, end)}
        if tag := self._meta.get("e_tag"):
            options["if_match"] = tag
        data = self._asked(lambda: bytes(self._library.get(self._store, self._key, options=options).bytes()))
        if len(data) != end - start:
            raise OSError(errno.EIO, f"{len(data):,} bytes came where {end - start:,} were asked for")
        return data

    def _asked(self, ask: Callable[[], T]) -> T:
        """Ask the service.

        Raises:
            OSError: With what it said, in one line.
        """
        kinds = self._library.exceptions
        try:
            return ask()
        except (kinds.NotFoundError, FileNotFoundError) as error:
            raise OSError(errno.ENOENT, "there is no such object") from error
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError, PermissionError) as error:
            raise OSError(errno.EACCES, "it may not be read with the keys in the environment") from error
        except kinds.PreconditionError as error:
            raise OSError(errno.ESTALE, "it was changed while it was read") from error
        except OSError:
            raise
        except Exception as error:
            if isinstance(error, (kinds.NotSupportedError, NotImplementedError)) or "ange request" in str(error):
                raise _NoRanges(errno.EOPNOTSUPP, "it comes in one piece only") from error
            raise OSError(errno.EIO, _first_line(error)) from error


class _NoRanges(OSError):
    """The server gives all of it or nothing."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _library(path: str) -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise RequestError(f"{path} takes obstore", hint="pip install 'stageflow[remote]'") from None
    return obstore
