"""Gzip as a stream: any number of members, a bounded step at a time, and in the user's words what is wrong with it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from stageflow.errors import InputDamaged, RequestError

__all__ = ["MAGIC", "GzipReader"]

MAGIC = b"\x1f\x8b"

_RAW_BYTES = 64 * 1024
_GZIP_ONLY = 16 + zlib.MAX_WBITS
_HINT = "the complete lines before were processed; get the file again, and the same command goes on"


class GzipReader:
    """Decompresses what ``read_raw`` gives, never more at once than is asked for: a bomb takes time, not memory.

    A stream that ends early gives all that can be had of it before it raises. Where its data is damaged in the middle,
    up to one step before the damage is lost.

    Args:
        read_raw: Reads at most so many bytes; ``b""`` at the end.
        name: The file as the user calls it.
        warn: Told of what is ignored.
    """

    def __init__(self, read_raw: Callable[[int], bytes], name: str, warn: Callable[[str], object]) -> None:
        self._read_raw = read_raw
        self._name = name
        self._warn = warn
        self._raw = b""
        self._taken = 0
        self._member: Any = None
        self._ended = False

    @property
    def consumed(self) -> int:
        """Compressed bytes used so far."""
        return self._taken - len(self._raw)

    def read(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes of the text; ``b""`` at its end.

        Raises:
            RequestError: It is not gzip.
            InputDamaged: It ends early, or holds what can't be decompressed.
        """
        if self._member is None:
            self._begin()
        while not self._ended:
            if self._member.eof:
                self._go_on()
                continue
            try:
                # Also without anything new to take: the last step may have left output behind.
                text: bytes = self._member.decompress(self._raw, size)
            except zlib.error as error:
                raise InputDamaged(f"{self._name} is damaged ({_reason(error)})", hint=_HINT) from error
            self._raw = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if text:
                return text
            if not self._member.eof and not self._raw and not self._take():
                raise InputDamaged(f"{self._name} ends early (unexpected end of gzip data)", hint=_HINT)
        return b""

    def _begin(self) -> None:
        while len(self._raw) < len(MAGIC) and self._take():
            pass
        if not self._raw.startswith(MAGIC):
            hint = "it is empty" if not self._raw else "rename it if it is plain text: only its name says gzip"
            raise RequestError(f"{self._name} is not gzip", hint=hint)
        self._member = zlib.decompressobj(_GZIP_ONLY)

    def _go_on(self) -> None:
        """Behind a member: another one, or the end. Zeros are padding, as tape drives make it; more is not ours."""
        while True:
            self._raw = self._raw.lstrip(b"\0")
            if len(self._raw) >= len(MAGIC) or not self._take():
                break
        if self._raw.startswith(MAGIC):
            self._member = zlib.decompressobj(_GZIP_ONLY)
            return
        self._ended = True
        if self._raw:
            self._warn(f"{self._name}: what follows the gzip data is no gzip, and was ignored")

    def _take(self) -> bool:
        more = self._read_raw(_RAW_BYTES)
        self._taken += len(more)
        self._raw += more
        return bool(more)


def _reason(error: zlib.error) -> str:
    # "Error -3 while decompressing data: incorrect data check"
    said = str(error).rpartition(": ")[2]
    return "its checksum does not match" if said in ("incorrect data check", "incorrect length check") else said
