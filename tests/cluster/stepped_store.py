"""A store in memory that stops before each of its steps, for somebody to end the process there or let another go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator


class Killed(BaseException):
    """The process has ended."""


class SteppedStore:
    """Objects in memory, as those of a bucket: a publication is a copy and a deletion.

    Args:
        objects: Shared by the processes that use it.
        before: Called before each step.
    """

    url = "memory"

    def __init__(self, objects: dict[str, bytes], before: Callable[[], None] = lambda: None) -> None:
        self.objects = objects
        self._before = before
        self.reads = 0

    def check(self) -> None:
        """It can be written."""

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._before()
        yield from sorted((name, len(data)) for name, data in self.objects.items() if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        self._before()
        self.reads += 1
        if name not in self.objects:
            raise FileNotFoundError(2, "there is no such object", name)
        return self.objects[name]

    def put(self, name: str, data: bytes) -> None:
        self._before()
        self.objects[name] = data

    def create(self, name: str, data: bytes) -> bool:
        self._before()
        return self.objects.setdefault(name, data) is data

    def publish(self, source: str, target: str) -> None:
        self._before()
        if source in self.objects:
            self.objects[target] = self.objects[source]
            self.delete(source)
        elif target not in self.objects:
            raise FileNotFoundError(2, "there is no such object", source)

    def delete(self, name: str) -> None:
        self._before()
        self.objects.pop(name, None)


def killed_before(step: int) -> Callable[[], None]:
    """Ends the process before a step, counted from 0."""
    steps = itertools.count()

    def before() -> None:
        if next(steps) >= step:
            raise Killed

    return before


class Turns:
    """Lets processes, as threads, take one step at a time, in an order that is given."""

    def __init__(self) -> None:
        self._threads: dict[int, threading.Thread] = {}
        self._go: dict[int, threading.Semaphore] = {}
        self._stopped: dict[int, threading.Semaphore] = {}
        self._killed: set[int] = set()
        self._ended: set[int] = set()
        self.errors: list[BaseException] = []

    def start(self, number: int, body: Callable[[Callable[[], None]], None]) -> None:
        """Start a process, up to its first step.

        Args:
            body: What it does; it is given what to call before each step.
        """
        self._go[number], self._stopped[number] = threading.Semaphore(0), threading.Semaphore(0)

        def before() -> None:
            self._stopped[number].release()
            self._go[number].acquire()
            if number in self._killed:
                raise Killed

        def run() -> None:
            try:
                body(before)
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells of it
                self.errors.append(error)
            finally:
                self._ended.add(number)
                self._stopped[number].release()

        self._threads[number] = threading.Thread(target=run, daemon=True)
        self._threads[number].start()
        self._wait(number)

    def step(self, number: int, *, kill: bool = False) -> None:
        """Let a process take its next step, or end it there."""
        if number not in self._threads:
            return
        if kill:
            self._killed.add(number)
        self._go[number].release()
        self._wait(number)

    def finish(self) -> None:
        """Let all go on to their ends, one after the other."""
        while self._threads:
            self.step(next(iter(self._threads)))

    def _wait(self, number: int) -> None:
        assert self._stopped[number].acquire(timeout=30), "a process neither took its step nor ended"
        if number in self._ended:
            self._threads.pop(number).join()
