"""Server-sent events out of bytes that come in any pieces.

Lines end in LF, CR or both; a CR that ends a piece and an LF that begins the next are one end. A blank line ends an
event; what is not followed by one is none. Nothing is decoded here: a character may be cut anywhere.

Source: WHATWG, "HTML Living Standard", 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from typing import Final

__all__ = ["Event", "EventReader"]

Event = tuple[bytes, bytes]
"""Its name, mostly empty, and its data."""

_MARK: Final = b"\xef\xbb\xbf"


class EventReader:
    """Reads one stream."""

    __slots__ = ("_after_cr", "_begun", "_data", "_line", "_name")

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._after_cr = False
        self._begun = False

    def feed(self, piece: bytes) -> list[Event]:
        """The events that end in this piece."""
        if self._after_cr and piece:
            self._after_cr = False
            if piece[:1] == b"\n":
                piece = piece[1:]
        if b"\n" not in piece and b"\r" not in piece:
            if piece:
                self._line.append(piece)
            return []
        self._after_cr = piece.endswith(b"\r")
        lines = b"".join((*self._line, piece)).splitlines()
        # What is kept is a list, so that a long line in many pieces is copied once.
        self._line = [] if piece.endswith((b"\n", b"\r")) else [lines.pop()]
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_MARK)
        events: list[Event] = []
        for line in lines:
            if line:
                self._take(line)
            else:
                if self._data:
                    events.append((self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data)))
                self._name, self._data = b"", []
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")  # a comment has an empty field
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ")
