"""Messages between two of our own processes: pickled, each with its length before it, over a pair of sockets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import pickle
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, Self

__all__ = ["Wire", "receive_first", "send_last", "unpickled"]

_LENGTH: Final = struct.Struct("!Q")


class Wire:
    """One end. Messages arrive whole and in the order in which they were sent.

    It is anonymous and between our own processes, so that pickling over it is safe.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def of(cls, end: socket.socket) -> Self:
        """Take over one end of a pair of sockets."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: Any) -> None:
        """Send a message; what the other end does not take yet is kept. To an end that is gone, nothing is sent."""
        if not self._writer.is_closing():
            data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            self._writer.writelines((_LENGTH.pack(len(data)), data))

    async def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: The other end is gone.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def close(self) -> None:
        """Send what is kept, and hang up."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):  # the other end was gone first
            await self._writer.wait_closed()

    def drop(self) -> None:
        """Hang up at once, whatever is kept."""
        self._writer.transport.abort()


def receive_first(end: socket.socket) -> Any:
    """The first message, before there is a loop. Blocks.

    Raises:
        EOFError: The other end is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size))
    return pickle.loads(_exactly(end, length))


def send_last(end: socket.socket, message: Any) -> None:
    """A message in the place of all others, where there will be no loop; and hang up. Blocks."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    with contextlib.suppress(OSError):  # the other end is gone
        end.sendall(_LENGTH.pack(len(data)) + data)
    end.close()


def _exactly(end: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = end.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def unpickled(data: bytes, renamed: Mapping[str, str]) -> Any:
    """A pickled value whose classes and functions may stand in a module that is called otherwise here."""
    return _Renaming(data, renamed).load() if renamed else pickle.loads(data)


class _Renaming(pickle.Unpickler):
    def __init__(self, data: bytes, renamed: Mapping[str, str]) -> None:
        super().__init__(io.BytesIO(data))
        self._renamed = renamed

    def find_class(self, module_name: str, global_name: str) -> Any:
        return super().find_class(self._renamed.get(module_name, module_name), global_name)
