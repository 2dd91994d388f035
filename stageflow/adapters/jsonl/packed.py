"""Compressed text as a stream of members, a bounded step at a time, and in the user's words what is wrong with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from stageflow.errors import InputDamaged, RequestError

__all__ = ["PackedReader"]

_HINT: Final = "the complete lines before were processed; get the file again, and the same command goes on"


class PackedReader(ABC):
    """Decompresses what ``read_raw`` gives, never more at once than is asked for: a bomb takes time, not memory.

    A stream that ends early gives all that can be had of it before it raises. Where its data is damaged in the middle,
    up to one step before the damage is lost.

    Args:
        read_raw: Reads at most so many bytes; ``b""`` at the end.
        name: The file as the user calls it.
        warn: Told of what is ignored.
    """

    form: ClassVar[str]
    """What users call it."""

    raw_bytes: ClassVar[int]
    magic_bytes: ClassVar[int]
    """How much is read at once, and how much it takes to tell where a member begins."""

    padding: ClassVar[bytes] = b""
    """Bytes that may stand between two members."""

    def __init__(self, read_raw: Callable[[int], bytes], name: str, warn: Callable[[str], object]) -> None:
        self._read_raw = read_raw
        self._name = name
        self._warn = warn
        self._raw = b""
        self._taken = 0
        self._member: Any = None
        self._ended = False

    @abstractmethod
    def _begins(self) -> bool:
        """Whether a member begins where the stream stands."""

    @abstractmethod
    def _new(self) -> Any:
        """What decompresses a member."""

    @abstractmethod
    def _step(self, size: int) -> bytes:
        """At most ``size`` bytes of the member's text, perhaps none; what was not used of the raw bytes stays.

        Raises:
            ValueError: The data is damaged; it says how.
        """

    @abstractmethod
    def _starved(self) -> bool:
        """Whether there is nothing more to be had of the member without more raw bytes."""

    @property
    def consumed(self) -> int:
        """Compressed bytes used so far."""
        return self._taken - len(self._raw)

    def read(self, size: int) -> bytes:
        """At least one and at most ``size`` bytes of the text; ``b""`` at its end.

        Raises:
            RequestError: It is not what its name says.
            InputDamaged: It ends early, or holds what can't be decompressed.
        """
        if self._member is None:
            self._begin()
        while not self._ended:
            if self._member.eof:
                self._go_on()
                continue
            try:
                # Also without anything new to take: the last step may have left output behind.
                text = self._step(size)
            except ValueError as error:
                raise InputDamaged(f"{self._name} is damaged ({error})", hint=_HINT) from error
            if text:
                return text
            if not self._member.eof and self._starved() and not self._take():
                raise InputDamaged(f"{self._name} ends early (unexpected end of {self.form} data)", hint=_HINT)
        return b""

    def _begin(self) -> None:
        while len(self._raw) < self.magic_bytes and self._take():
            pass
        if not self._begins():
            hint = "it is empty" if not self._raw else f"rename it if it is plain text: only its name says {self.form}"
            raise RequestError(f"{self._name} is not {self.form}", hint=hint)
        self._member = self._new()

    def _go_on(self) -> None:
        """Behind a member: another one, or the end. What is neither is not ours."""
        while True:
            self._raw = self._raw.lstrip(self.padding)
            if len(self._raw) >= self.magic_bytes or not self._take():
                break
        if self._begins():
            self._member = self._new()
            return
        self._ended = True
        if self._raw:
            self._warn(f"{self._name}: what follows the {self.form} data is no {self.form}, and was ignored")

    def _take(self) -> bool:
        more = self._read_raw(self.raw_bytes)
        self._taken += len(more)
        self._raw += more
        return bool(more)
