"""Records to a file of JSON lines, or to standard output."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO, Literal

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.adapters.jsonl.files import FileOutput
from stageflow.adapters.jsonl.order import OrderIndex
from stageflow.adapters.jsonl.streams import StreamOutput
from stageflow.adapters.jsonl.threads import in_thread
from stageflow.errors import RequestError
from stageflow.protocols import Entry

__all__ = ["JsonlSink"]

_STDOUT = ("-", "/dev/stdout")


class JsonlSink:
    """Writes one line per record, in the order in which records settle, at once: a slow record holds nothing back.

    A regular file is written as ``path.partial`` and gets its name when the run is complete; until then, and after an
    interrupted run, the partial file holds every line handed over so far. With ``order="input"`` the finished file is
    in the order of the input, lines of one record in the order in which they were written: the order of writing is
    noted in a nameless file beside it, and a file out of order is copied, sorted, at the end, in a thread and in
    bounded memory (see :class:`OrderIndex`); that takes the space of the output once more. Anything that is no
    regular file is written directly, as it comes.

    ``write`` does not wait for the disk, only for the page cache; for a pipe it waits for the reader, which is
    backpressure, and a cancellation then leaves it written in part.

    Args:
        path: The file as the user calls it; ``-`` is standard output.
        order: ``"input"`` sorts the finished file; ``"completion"`` leaves it as it was written.
        fresh: Rename what is in the way to ``path.1``, ``path.2``... rather than refuse; nothing is deleted.
        mode: Permissions of the file, less the umask.
        lenient: Write what JSON has no form for as its ``repr``, rather than refuse the record. For dead letters.
        partial: False: append to ``path`` itself, which is made with the first record. For dead letters.
        stream: Where ``-`` goes: a binary stream or a descriptor, which is not closed. ``None`` is descriptor 1.
    """

    def __init__(
        self,
        path: str,
        *,
        order: Literal["input", "completion"],
        fresh: bool = False,
        mode: int = 0o666,
        lenient: bool = False,
        partial: bool = True,
        stream: BinaryIO | int | None = None,
    ) -> None:
        assert partial or order == "completion", "only a file that gets its name at the end can be sorted"
        self.path = path
        self._order = order
        self._fresh = fresh
        self._mode = mode
        self._lenient = lenient
        self._partial = partial
        self._stream = stream
        self._output: FileOutput | StreamOutput | None = None
        self._index: OrderIndex | None = None

    @property
    def sorts(self) -> bool:
        """Whether it puts its lines into the order of the input by itself."""
        return self._order == "input" and self.regular

    @property
    def regular(self) -> bool:
        """Whether the output is, or will be, a regular file: one that a later run can find again."""
        return self.path not in _STDOUT and not _is_special(self.path)

    def open(self) -> None:
        """Claim the output.

        Raises:
            RequestError: Its directory can't be written to, or the output or a partial one exists; nothing was touched.
        """
        if self.path in _STDOUT:
            try:
                self._output = StreamOutput("stdout", 1 if self._stream is None else self._stream)
            except OSError as error:
                raise RequestError(f"cannot write to stdout: {error.strerror}") from error
        elif not self.regular:
            self._output = StreamOutput(self.path, self.path)
        else:
            output = FileOutput(
                self.path,
                partial=self._partial,
                fresh=self._fresh,
                mode=self._mode,
                option="-o" if self._partial else "--dead",
            )
            output.open()
            if self._order == "input":
                self._index = output.open_index()
            self._output = output

    def encode(self, record: Any) -> bytes:
        """``record`` as one line, with its LF.

        Raises:
            ResultError: JSON has no form for some value in it. Never, if lenient.
        """
        return encode_leniently(record) if self._lenient else encode_strictly(record)

    async def write(self, batch: Sequence[Entry]) -> None:
        """Append lines, in this order.

        Raises:
            BrokenOutput: Standard output or a FIFO lost its reader.
            StorageError: They can't be written. A regular file holds no half line then.
        """
        lines = [line for _, line in batch]
        data = b"".join(lines)
        if isinstance(self._output, StreamOutput):
            await self._output.write(data)
            return
        assert self._output is not None
        self._output.write(data)
        if self._index is not None:
            try:
                self._index.add([index for index, _ in batch], map(len, lines))
            except OSError as error:
                raise self._output.failure(error) from error

    async def close(self, *, complete: bool) -> None:
        """Make what was written durable and, if ``complete``, give the file its name; else it stays partial.

        A cancellation ends a sort early and leaves the partial file.

        Raises:
            StorageError: That failed; what was written stays in the partial file.
        """
        output, index = self._output, self._index
        self._output = self._index = None
        if isinstance(output, StreamOutput):
            await output.close(complete=complete)
        elif output is not None:
            stop = threading.Event()
            try:
                await in_thread(lambda: output.finish(index, complete=complete, stop=stop), stop=stop)
            finally:
                if index is not None:
                    index.close()


def _is_special(path: str) -> bool:
    """Whether something stands there that is neither a file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
