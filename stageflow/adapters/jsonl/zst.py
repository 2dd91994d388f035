"""Zstandard as a stream: any number of frames, a bounded step at a time. The door to its library.

Python 3.14 brings the library as ``compression.zstd``; before that it is the same code as ``backports.zstd``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from stageflow.errors import InputDamaged, RequestError

__all__ = ["MAGIC", "ZstdReader", "zstd_library"]

MAGIC = b"\x28\xb5\x2f\xfd"

_RAW_BYTES = 128 * 1024
_SKIPPABLE = b"\x2a\x4d\x18"
"""The last three bytes of what a frame without data begins with; the first one is 0x50 to 0x5F."""

_HINT = "the complete lines before were processed; get the file again, and the same command goes on"


def zstd_library(name: str) -> Any:
    """The library.

    Args:
        name: The file that needs it.

    Raises:
        RequestError: It is not installed.
    """
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise RequestError(f"{name} takes Zstandard", hint="pip install 'stageflow[zst]'") from None
    return zstd


class ZstdReader:
    """Decompresses what ``read_raw`` gives, never more at once than is asked for: a bomb takes time, not memory.

    A stream that ends early gives all that can be had of it before it raises. The arguments are those of
    :class:`~stageflow.adapters.jsonl.gz.GzipReader`.

    Raises:
        RequestError: The library is not installed.
    """

    def __init__(self, read_raw: Callable[[int], bytes], name: str, warn: Callable[[str], object]) -> None:
        self._library = zstd_library(name)
        self._read_raw = read_raw
        self._name = name
        self._warn = warn
        self._raw = b""
        self._taken = 0
        self._frame: Any = None
        self._ended = False

    @property
    def consumed(self) -> int:
        """Compressed bytes used so far."""
        return self._taken - len(self._raw)

    def read(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes of the text; ``b""`` at its end.

        Raises:
            RequestError: It is not Zstandard.
            InputDamaged: It ends early, or holds what can't be decompressed.
        """
        if self._frame is None:
            self._begin()
        while not self._ended:
            if self._frame.eof:
                self._go_on()
                continue
            try:
                text: bytes = self._frame.decompress(self._raw, size)
            except self._library.ZstdError as error:
                raise InputDamaged(f"{self._name} is damaged ({error})", hint=_HINT) from error
            self._raw = self._frame.unused_data if self._frame.eof else b""
            if text:
                return text
            if not self._frame.eof and self._frame.needs_input and not self._take():
                raise InputDamaged(f"{self._name} ends early (unexpected end of Zstandard data)", hint=_HINT)
        return b""

    def _begin(self) -> None:
        self._have(len(MAGIC))
        if not _begins_frame(self._raw):
            hint = "it is empty" if not self._raw else "rename it if it is plain text: only its name says Zstandard"
            raise RequestError(f"{self._name} is not Zstandard", hint=hint)
        self._frame = self._library.ZstdDecompressor()

    def _go_on(self) -> None:
        """Behind a frame: another one, or the end."""
        self._have(len(MAGIC))
        if _begins_frame(self._raw):
            self._frame = self._library.ZstdDecompressor()
            return
        self._ended = True
        if self._raw:
            self._warn(f"{self._name}: what follows the Zstandard data is none, and was ignored")

    def _have(self, size: int) -> None:
        while len(self._raw) < size and self._take():
            pass

    def _take(self) -> bool:
        more = self._read_raw(_RAW_BYTES)
        self._taken += len(more)
        self._raw += more
        return bool(more)


def _begins_frame(raw: bytes) -> bool:
    return raw.startswith(MAGIC) or (raw[:1] != b"" and raw[0] & 0xF0 == 0x50 and raw[1:4] == _SKIPPABLE)
