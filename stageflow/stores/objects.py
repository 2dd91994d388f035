"""A bucket behind ``s3://``, ``gs://`` or ``az://``, with what speaks their language. A door to obstore.

A name is created only once by a write on the condition that nothing is there, which these services keep, and a service
that speaks their language may not: :meth:`ObjectStore.check` tries it.

Keys come from where the tools of each service look for them, the environment above all, and never stand in an address.
"""

from __future__ import annotations

import datetime
import errno
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from stageflow.errors import RequestError

__all__ = ["SCHEMES", "ObjectStore"]

T = TypeVar("T")

SCHEMES: Final = ("s3", "gs", "az")

_PIECE_BYTES: Final = 64 * 1024 * 1024
"""More than this is sent in pieces. Those of what is never finished would stay, unseen and paid for: so few are."""

_PAGE: Final = 1000
_RETRIES: Final = 5
_RETRY_SECONDS: Final = 60.0


class ObjectStore:
    """Objects in a bucket, below the address.

    Args:
        url: ``s3://bucket/folder``.

    Raises:
        RequestError: The address names no bucket, or holds what may be a key; or obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise RequestError(
                f"the address {shown} goes on with what may be a key, which would be kept with the run",
                hint="give keys in the environment",
            )
        folder = parts.path.strip("/")
        if not parts.netloc or not all(_is_part(part) for part in folder.split("/") if folder):
            raise RequestError(f"{url} names no folder of a bucket", hint="for instance s3://bucket/folder")
        self._folder = f"{folder}/" if folder else ""
        self._library = _library(url)
        retry = {"max_retries": _RETRIES, "retry_timeout": datetime.timedelta(seconds=_RETRY_SECONDS)}
        try:
            self._store = self._library.store.from_url(f"{parts.scheme}://{parts.netloc}", retry_config=retry)
        except Exception as error:
            raise RequestError(f"cannot reach {url}: {_first_line(error)}") from error

    def check(self) -> None:
        """See that it can be written, and that it creates a name only once.

        Raises:
            RequestError: It can't, or it doesn't.
        """
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            once, twice, kept = self.create(probe, b"1"), self.create(probe, b"2"), self.read(probe)
            self.delete(probe)
        except OSError as error:
            raise RequestError(
                f"cannot write to {self.url}: {error.strerror}",
                hint="keys, region and endpoint are read from the environment",
            ) from error
        if (once, twice, kept) != (True, False, b"1"):
            raise RequestError(
                f"{self.url} creates a name twice, so two runs could do the same work",
                hint="choose a service that knows If-None-Match, or a folder",
            )

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The names that begin with the prefix, sorted, each with its size in bytes."""
        # The service takes whole folders for a prefix. What sorts before the rest of it need not come, either.
        folder, _, rest = prefix.rpartition("/")
        begin = f"{self._folder}{prefix[:-1]}" if len(rest) > 1 else None
        options = {"prefix": f"{self._folder}{folder}".rstrip("/") or None, "offset": begin, "chunk_size": _PAGE}
        pages = self._asked(lambda: iter(self._library.list(self._store, **options)))
        found, skipped = list[tuple[str, int]](), len(self._folder)
        while (page := self._asked(lambda: next(pages, None))) is not None:
            found += [(entry["path"][skipped:], entry["size"]) for entry in page]
        yield from sorted(entry for entry in found if entry[0].startswith(prefix))

    def read(self, name: str) -> bytes:
        """What is there.

        Raises:
            FileNotFoundError: Nothing.
        """
        key = self._key(name)
        return self._asked(lambda: bytes(self._library.get(self._store, key).bytes()))

    def put(self, name: str, data: bytes) -> None:
        """Write it, whatever was there."""
        key = self._key(name)
        self._asked(lambda: self._library.put(self._store, key, data, chunk_size=_PIECE_BYTES))

    def create(self, name: str, data: bytes) -> bool:
        """Write it if there is nothing of that name. Of all who try, at most one is told ``True``."""
        key, taken = self._key(name), self._library.exceptions.AlreadyExistsError
        try:
            self._asked(lambda: self._library.put(self._store, key, data, mode="create"), passing=(taken,))
        except taken:
            return False
        return True

    def publish(self, source: str, target: str) -> None:
        """Give it another name: a copy, made by the service, and a deletion. May be repeated.

        Raises:
            FileNotFoundError: Neither is there.
        """
        old, new = self._key(source), self._key(target)
        try:
            self._asked(lambda: self._library.copy(self._store, old, new))
        except FileNotFoundError:
            self._asked(lambda: self._library.head(self._store, new))
            return
        self.delete(source)

    def delete(self, name: str) -> None:
        """Take it away, if it is there."""
        key = self._key(name)
        with suppress(FileNotFoundError):
            self._asked(lambda: self._library.delete(self._store, key))

    def _key(self, name: str) -> str:
        if not all(map(_is_part, name.split("/"))):
            raise OSError(errno.EINVAL, f"{name!r} is no name in a store")
        return self._folder + name

    def _asked(self, ask: Callable[[], T], passing: tuple[type[Exception], ...] = ()) -> T:
        """Ask the service.

        Args:
            passing: What is an answer.

        Raises:
            OSError: With what it said, in one line.
        """
        kinds = self._library.exceptions
        try:
            return ask()
        except passing:
            raise
        except (kinds.NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such object or bucket") from error
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError, PermissionError) as error:
            raise PermissionError(errno.EACCES, "the keys in the environment do not allow it") from error
        except (kinds.NotSupportedError, NotImplementedError) as error:
            raise OSError(errno.EOPNOTSUPP, _first_line(error)) from error
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, _first_line(error)) from error


def _is_part(part: str) -> bool:
    return bool(part) and part not in (".", "..") and part.isprintable()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def _library(url: str) -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise RequestError(f"{url} takes obstore", hint="pip install 'stageflow[s3]'") from None
    return obstore
