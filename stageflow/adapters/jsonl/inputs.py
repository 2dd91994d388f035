"""The bytes of an input as it is read from its medium: decompressed, and not beyond a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from stageflow.adapters.jsonl.gz import MAGIC as GZIP_MAGIC
from stageflow.adapters.jsonl.gz import GzipReader
from stageflow.adapters.jsonl.zst import MAGIC as ZSTD_MAGIC
from stageflow.adapters.jsonl.zst import ZstdReader
from stageflow.adapters.media import Opened
from stageflow.errors import InputDamaged, RunStopped

__all__ = ["CODECS", "InputText", "codec_of"]

_SKIP_BYTES = 1024 * 1024

CODECS: Final = {"gz": (GZIP_MAGIC, (".gz",)), "zst": (ZSTD_MAGIC, (".zst", ".zstd"))}
"""By codec, how a file of it begins and how its name ends."""


class _Reader(Protocol):
    """What decompresses."""

    @property
    def consumed(self) -> int: ...

    def read(self, size: int, /) -> bytes: ...


_READERS: Final[dict[str, Callable[[Callable[[int], bytes], str, Callable[[str], object]], _Reader]]] = {
    "gz": GzipReader,
    "zst": ZstdReader,
}


def codec_of(opened: Opened, path: str) -> str:
    """How an input is compressed: it begins like that (where looking takes nothing from it), or is named so."""
    if path == "-":
        return "plain"
    for codec, (_, suffixes) in CODECS.items():
        if path.endswith(suffixes):
            return codec
    head = opened.head(4)
    return next((codec for codec, (magic, _) in CODECS.items() if head.startswith(magic)), "plain")


class InputText:
    """An opened input. Positions and sizes are those of the decompressed text.

    Args:
        opened: What to read; it is closed with this.
        path: The file as the user calls it; ``-`` is standard input.
        max_bytes: How much of the text may be read in all, seeking included; ``None``: any amount.
        warn: Told of what is ignored.

    Raises:
        RequestError: What decompresses it is not installed.
    """

    def __init__(self, opened: Opened, path: str, max_bytes: int | None, warn: Callable[[str], object]) -> None:
        self._opened = opened
        self._max_bytes = max_bytes
        self._position = 0
        codec = codec_of(opened, path)
        self._codec = _READERS[codec](opened.read, path, warn) if codec != "plain" else None
        self._from = self._codec.read if self._codec else opened.read

    @property
    def compression(self) -> float | None:
        """Bytes of text per byte of the file, as far as it was read; ``None`` where nothing is compressed."""
        return self._position / max(self._codec.consumed, 1) if self._codec else None

    def read(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes; ``b""`` at the end.

        Raises:
            OSError: Reading failed.
            RequestError: It is not what it should be.
            InputDamaged: It ends before it should.
            RunStopped: There is more than ``max_bytes``; everything before was read.
        """
        if self._max_bytes is not None:
            size = min(size, self._max_bytes - self._position)
            if size <= 0:
                return self._end_or_stop()
        text = self._from(size)
        self._position += len(text)
        return text

    def fill(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer at the end only. Raises as :meth:`read`."""
        text = self.read(size)
        while text and len(text) < size and (more := self.read(size - len(text))):
            text += more
        return text

    def seek(self, position: int) -> bool:
        """Go to a later position; return whether the text before it ends with LF, or is empty.

        Compressed text has no places to jump to: it is decompressed and thrown away up to there.

        Raises:
            InputDamaged: It ends before that.
        """
        if position == 0:
            return True
        if self._codec is None:
            self._opened.seek(position - 1)
            self._position = position - 1
        while self._position < position - 1:
            if not self.read(min(_SKIP_BYTES, position - 1 - self._position)):
                break
        last = self.read(1)
        if not last:
            raise InputDamaged("the input is shorter than it was", hint="run with --fresh to start anew")
        return last == b"\n"

    def close(self) -> None:
        """Close what is read."""
        self._opened.close()

    def _end_or_stop(self) -> bytes:
        if self._from(1):
            raise RunStopped(
                f"the input is larger than --max-input-bytes {self._max_bytes}",
                hint="allow more, and the same command goes on",
            )
        return b""
