"""Dead letters that other processes wrote, where the source is several: put in which of them each record stands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from stageflow.commit import Commit, LetterPlace, OpenRequest, Resumption
from stageflow.ends import Ends, RunOutput
from stageflow.protocols import Entry, Sink

__all__ = ["placed"]

Place = Callable[[int], tuple[str | None, int | None]]

_BEGINNING: Final = re.compile(rb'\{"index":(\d+),"line":(null|\d+),"path":(?:null|"(?:[^"\\]|\\.)*"),')
"""How a letter begins."""


def placed(ends: Ends, place: Place) -> Ends:
    """The same ends, to which letters go with the file and the line that ``place`` tells of an index."""

    def encode_letter(letter: Mapping[str, Any]) -> Any:
        path, line = place(letter["index"])
        return ends.encode_letter({**letter, "path": path, "line": letter["line"] if line is None else line})

    dead = _PlacedSink(ends.dead, place) if ends.dead is not None else None
    return replace(ends, output=_PlacedOutput(ends.output, place), dead=dead, encode_letter=encode_letter)


def _line(letter: Any, place: Place) -> Any:
    """The letter as a line with its place in it; the rest of the line stays byte for byte what it was."""
    found = _BEGINNING.match(letter) if isinstance(letter, bytes) else None
    if found is None:
        return letter
    path, line = place(int(found[1]))
    if line is None and found[2] != b"null":
        line = int(found[2])
    place_in = json.dumps({"line": line, "path": path}, ensure_ascii=False, separators=(",", ":"))
    beginning = b'{"index":%s,%s,' % (found[1], place_in[1:-1].encode(errors="surrogateescape"))
    return beginning + letter[found.end() :]


class _PlacedOutput:
    """An output that puts them in as letters come by."""

    def __init__(self, output: RunOutput, place: Place) -> None:
        self._output = output
        self._place = place

    def open(self, request: OpenRequest) -> Resumption:
        return self._output.open(request)

    async def write(self, commit: Commit) -> None:
        commit.letters = [_line(letter, self._place) for letter in commit.letters]
        await self._output.write(commit)

    def read_letter(self, place: LetterPlace) -> bytes:
        return self._output.read_letter(place)

    def give_up_waiting(self) -> None:
        self._output.give_up_waiting()

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        await self._output.close(complete=complete, ended=ended)


class _PlacedSink:
    """The same for a sink of dead letters."""

    def __init__(self, sink: Sink, place: Place) -> None:
        self._sink = sink
        self._place = place

    def open(self) -> None:
        self._sink.open()

    def encode(self, record: Any) -> Any:
        return self._sink.encode(record)

    async def write(self, batch: Sequence[Entry]) -> None:
        await self._sink.write([(index, _line(letter, self._place)) for index, letter in batch])

    async def close(self, *, complete: bool) -> None:
        await self._sink.close(complete=complete)
