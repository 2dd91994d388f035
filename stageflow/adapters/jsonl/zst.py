"""Zstandard as a stream. The door to its library.

Python 3.14 brings the library as ``compression.zstd``; before that it is the same code as ``backports.zstd``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

from stageflow.adapters.jsonl.packed import PackedReader
from stageflow.errors import RequestError

__all__ = ["MAGIC", "ZstdReader", "zstd_library"]

MAGIC: Final = b"\x28\xb5\x2f\xfd"

_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""The last three bytes of what a frame without data begins with; the first one is 0x50 to 0x5F."""


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


class ZstdReader(PackedReader):
    """Decompresses Zstandard; see :class:`PackedReader`.

    Raises:
        RequestError: The library is not installed.
    """

    form = "Zstandard"
    raw_bytes = 128 * 1024
    magic_bytes = len(MAGIC)

    def __init__(self, read_raw: Callable[[int], bytes], name: str, warn: Callable[[str], object]) -> None:
        self._library = zstd_library(name)
        super().__init__(read_raw, name, warn)

    def _begins(self) -> bool:
        raw = self._raw
        return raw.startswith(MAGIC) or (raw[:1] != b"" and raw[0] & 0xF0 == 0x50 and raw[1:4] == _SKIPPABLE)

    def _new(self) -> Any:
        return self._library.ZstdDecompressor()

    def _step(self, size: int) -> bytes:
        frame = self._member
        try:
            text: bytes = frame.decompress(self._raw, size)
        except self._library.ZstdError as error:
            raise ValueError(str(error)) from error
        self._raw = frame.unused_data if frame.eof else b""
        return text

    def _starved(self) -> bool:
        return bool(self._member.needs_input)
