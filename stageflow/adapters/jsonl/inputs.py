"""The bytes of an input as it is read from its file: decompressed, and not beyond a limit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from stageflow.adapters.jsonl.gz import MAGIC, GzipReader
from stageflow.errors import InputDamaged, RunStopped

__all__ = ["InputText", "holds_gzip"]

_SKIP_BYTES = 1024 * 1024


def holds_gzip(descriptor: int, path: str) -> bool:
    """Whether an input is read as gzip: it begins like it (a regular file), or is named so."""
    if path == "-":
        return False
    if path.endswith(".gz"):
        return True
    return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.pread(descriptor, len(MAGIC), 0) == MAGIC


class InputText:
    """An opened input. Positions and sizes are those of the decompressed text.

    Args:
        descriptor: What to read.
        owned: Whether :meth:`close` closes it.
        path: The file as the user calls it; ``-`` is standard input.
        max_bytes: How much of the text may be read in all, seeking included; ``None``: any amount.
        warn: Told of what is ignored.
    """

    def __init__(
        self, descriptor: int, owned: bool, path: str, max_bytes: int | None, warn: Callable[[str], object]
    ) -> None:
        self._descriptor = descriptor
        self._owned = owned
        self._max_bytes = max_bytes
        self._position = 0
        self._gzip = GzipReader(self._raw, path, warn) if holds_gzip(descriptor, path) else None
        self._from = self._gzip.read if self._gzip else self._raw

    @property
    def compression(self) -> float | None:
        """Bytes of text per byte of the file, as far as it was read; ``None`` where nothing is compressed."""
        return self._position / max(self._gzip.consumed, 1) if self._gzip else None

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
        if self._gzip is None:
            os.lseek(self._descriptor, position - 1, os.SEEK_SET)
            self._position = position - 1
        while self._position < position - 1:
            if not self.read(min(_SKIP_BYTES, position - 1 - self._position)):
                break
        last = self.read(1)
        if not last:
            raise InputDamaged("the input is shorter than it was", hint="run with --fresh to start anew")
        return last == b"\n"

    def close(self) -> None:
        """Close the descriptor, if it is this one's to close."""
        if self._owned:
            os.close(self._descriptor)

    def _raw(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def _end_or_stop(self) -> bytes:
        if self._from(1):
            raise RunStopped(
                f"the input is larger than --max-input-bytes {self._max_bytes}",
                hint="allow more, and the same command goes on",
            )
        return b""
