"""Records to standard output, a FIFO or a device; dead letters also to a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.adapters.jsonl.files import FileOutput, is_file_name
from stageflow.adapters.jsonl.streams import StreamOutput
from stageflow.adapters.jsonl.threads import in_thread
from stageflow.errors import RequestError
from stageflow.protocols import Entry

__all__ = ["JsonlSink"]

_STDOUT = ("-", "/dev/stdout")


class JsonlSink:
    """Writes one line per record, in the order in which records settle, and as they settle.

    What is no regular file is written as it comes: ``write`` waits for the reader of a pipe, which is backpressure, and
    a cancellation then leaves it written in part. A regular file is made with the first record, so that a run without
    dead letters makes none, and ``write`` waits for the page cache only. Results that go to a file are written through
    a ledger instead, so that they can be resumed.

    Args:
        path: The file as the user calls it; ``-`` is standard output.
        fresh: Rename a file that is in the way to ``path.1``, ``path.2``... rather than refuse; nothing is deleted.
        mode: Permissions of the file, less the umask.
        lenient: Write what JSON has no form for as its ``repr``, rather than refuse the record. For dead letters.
        stream: Where ``-`` goes: a binary stream or a descriptor, which is not closed. ``None`` is descriptor 1.
    """

    def __init__(
        self,
        path: str,
        *,
        fresh: bool = False,
        mode: int = 0o666,
        lenient: bool = False,
        stream: BinaryIO | int | None = None,
    ) -> None:
        self.path = path
        self._fresh = fresh
        self._mode = mode
        self._lenient = lenient
        self._stream = stream
        self._output: FileOutput | StreamOutput | None = None

    def open(self) -> None:
        """Claim the output.

        Raises:
            RequestError: Its directory can't be written to, or the file exists; nothing was touched.
        """
        if self.path in _STDOUT:
            try:
                self._output = StreamOutput("stdout", 1 if self._stream is None else self._stream)
            except OSError as error:
                raise RequestError(f"cannot write to stdout: {error.strerror}") from error
        elif not is_file_name(self.path):
            self._output = StreamOutput(self.path, self.path)
        else:
            output = FileOutput(self.path, fresh=self._fresh, mode=self._mode)
            output.open()
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
        data = b"".join([line for _, line in batch])
        if isinstance(self._output, StreamOutput):
            await self._output.write(data, len(batch))
        else:
            assert self._output is not None
            self._output.write(data)

    async def close(self, *, complete: bool) -> None:
        """Make what was written durable.

        Raises:
            StorageError: That failed.
        """
        output, self._output = self._output, None
        if isinstance(output, StreamOutput):
            await output.close(complete=complete)
        elif output is not None:
            await in_thread(output.finish)
