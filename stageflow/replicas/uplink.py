"""The output of a replica's run: commits go over the wire, and are safe when the fleet has written them."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

from stageflow.adapters.jsonl.encode import encode_leniently, encode_strictly
from stageflow.commit import Commit, LetterPlace, OpenRequest, Resumption
from stageflow.ends import Ends
from stageflow.errors import ResultError
from stageflow.replicas.messages import Committed, Open, Setup
from stageflow.replicas.wire import Wire

__all__ = ["Uplink"]


class Uplink:
    """Commits over the wire; see :class:`stageflow.ends.RunOutput`.

    Args:
        opened: How many records are open; ``bad``: how many lines were unreadable.
        closed: Called when all that settled has been written, with whether it was all there is to do.
    """

    def __init__(
        self,
        wire: Wire,
        run: str,
        *,
        opened: Callable[[], Open],
        bad: Callable[[], int],
        closed: Callable[[bool], None],
    ) -> None:
        self._wire = wire
        self._run = run
        self._opened = opened
        self._bad = bad
        self._closed = closed
        self._answer: asyncio.Future[None] | None = None

    def ends(self, setup: Setup) -> Ends:
        """A run's end that is here."""
        return Ends(
            output=self,
            dead=None,
            encode=encode_strictly if setup.as_lines else _pickled,
            encode_letter=encode_leniently if setup.letters_as_lines else _letter_pickled,
            durable=setup.durable,
            notes=(),
            paths={},
            retrying=setup.retrying,
        )

    def open(self, request: OpenRequest) -> Resumption:
        return Resumption(run=self._run)

    async def write(self, commit: Commit) -> None:
        """Send a commit, and wait until it is safe."""
        self._answer = asyncio.get_running_loop().create_future()
        self._wire.send(Committed(commit, self._opened(), self._bad()))
        await self._answer

    def written(self) -> None:
        """The commit is safe."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def read_letter(self, place: LetterPlace) -> bytes:
        raise AssertionError("letters are read by the fleet")

    def give_up_waiting(self) -> None:
        """It waits for the fleet, which knows better."""

    async def close(self, *, complete: bool, ended: bool = True) -> None:
        """All that settled has been written."""
        self._closed(complete)


def _pickled(record: Any) -> bytes:
    try:
        return pickle.dumps(record, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise ResultError(f"a value that can't leave its process: {error}") from error


def _letter_pickled(letter: Any) -> bytes:
    try:
        return _pickled(letter)
    except ResultError:
        return _pickled(json.loads(encode_leniently(letter)))
