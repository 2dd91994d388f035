"""Gzip as a stream."""

from __future__ import annotations

import zlib
from typing import Any, Final

from stageflow.adapters.jsonl.packed import PackedReader

__all__ = ["MAGIC", "GzipReader"]

MAGIC: Final = b"\x1f\x8b"

_GZIP_ONLY: Final = 16 + zlib.MAX_WBITS


class GzipReader(PackedReader):
    """Decompresses gzip; see :class:`PackedReader`. Zeros between members are padding, as tape drives make it."""

    form = "gzip"
    raw_bytes = 64 * 1024
    magic_bytes = len(MAGIC)
    padding = b"\0"

    def _begins(self) -> bool:
        return self._raw.startswith(MAGIC)

    def _new(self) -> Any:
        return zlib.decompressobj(_GZIP_ONLY)

    def _step(self, size: int) -> bytes:
        member = self._member
        try:
            text: bytes = member.decompress(self._raw, size)
        except zlib.error as error:
            raise ValueError(_reason(error)) from error
        self._raw = member.unused_data if member.eof else member.unconsumed_tail
        return text

    def _starved(self) -> bool:
        return not self._raw


def _reason(error: zlib.error) -> str:
    # "Error -3 while decompressing data: incorrect data check"
    said = str(error).rpartition(": ")[2]
    return "its checksum does not match" if said in ("incorrect data check", "incorrect length check") else said
