"""Handlers for worker processes: they are found there by the name of this module."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Particular(Exception):
    """Can be pickled, but not unpickled: its constructor wants more than it hands on."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"{what} ({code})")


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("no")

    def __reduce__(self) -> Any:
        raise ValueError("never")


def raises(n: int, how: str) -> int:
    match how:
        case "exit":
            sys.exit(7)
        case "interrupt":
            raise KeyboardInterrupt
        case "stop":
            raise StopIteration(n)
        case "close":
            raise GeneratorExit
        case "cancel":
            raise asyncio.CancelledError
        case "particular":
            raise Particular("no such thing", 5)
    return n


def returns(how: str) -> Any:
    return {"lock": Unshowable()} if how == "unshowable" else how


def dies(n: int, how: str) -> int:
    """Ends its own process, or answers with its number."""
    if how == "exit":
        os._exit(3)
    if how:
        os.kill(os.getpid(), signal.Signals[how])
    return os.getpid()


def dies_once(n: int, mark: str) -> int:
    """Ends its own process the first time."""
    if mark and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def hangs(n: int, hang: bool, mark: str) -> int:
    """Writes down its process, and stays there for good."""
    if hang:
        Path(mark).write_text(str(os.getpid()))
        signal.pause()
    return os.getpid()


def in_folder(params: Any) -> Iterator[str]:
    """A resource that leaves a mark when it is opened and when it is closed."""
    Path(params.folder, f"open {os.getpid()}").touch()
    yield params.folder
    Path(params.folder, f"closed {os.getpid()}").touch()


def takes_folder(n: int, in_folder: str) -> int:
    return n


def broken(params: Any) -> None:
    if params.how == "exit":
        sys.exit("no model")
    raise LookupError("no model")


def takes_broken(n: int, broken: None) -> int:
    return n
