"""What a contender is, and what it is given to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from workload import Item, Settings

from stageflow import Pipeline

__all__ = ["QUEUE_SIZE", "Contender", "Files", "Job", "Run", "Stage", "Take"]

QUEUE_SIZE: Final = 64

Take = Callable[[Item], object]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the work: it fills in what it has to say in an item, and returns the item.

    Args:
        work: As an async function.
        plain: The same as a plain function, for who cannot await.
        workers: How many calls may be in progress at once.
    """

    work: Callable[[Item], Awaitable[Item]]
    plain: Callable[[Item], Item]
    workers: int


@dataclass(frozen=True, slots=True)
class Job:
    """The same work, in the words of all contenders.

    Args:
        stages: In a row.
        pipeline: Makes what stageflow runs: its functions return their result, they do not fill in an item.
        waits: Calls take time, so that there is something to do meanwhile.
    """

    stages: Sequence[Stage]
    pipeline: Callable[[], Pipeline]
    waits: bool


Run = Callable[[Job, Iterable[Item], Take, Settings], None]
Files = Callable[[Job, Path, Path, Settings], None]


@dataclass(frozen=True)
class Contender:
    """One way to run a job.

    Args:
        name: In the table.
        run: Records from memory to memory: it takes a job, the items, what to do with each output, and the settings.
        library: The module to import, or None where there is nothing to install.
        distribution: Under this name it is installed.
        kind: ``"ours"``, ``"by hand"`` or ``"peer"``; for the picture.
        fewer: The costlier ones get one in so many records, so that all take about as long.
        files: Records from file to file, where it brings means of its own; else :attr:`run` between two open files.
        concurrent: It can have more than one call in progress.
        in_turn: Where calls do not wait, it makes one after the other.
    """

    name: str
    run: Run
    library: str | None = None
    distribution: str = ""
    kind: str = "peer"
    fewer: int = 1
    files: Files | None = None
    concurrent: bool = True
    in_turn: bool = False

    @property
    def installed(self) -> bool:
        """Whether there is something to import; nothing is imported."""
        return self.library is None or importlib.util.find_spec(self.library) is not None

    def missing(self) -> str:
        """Why it cannot run here, or nothing."""
        if self.library is None:
            return ""
        if not self.installed:
            return "not installed"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs, about a Python they were not written for
                importlib.import_module(self.library)
        except ImportError as error:
            return f"does not import here: {error}"
        return ""

    @property
    def version(self) -> str:
        """Of what is installed; nothing where it is not, as in a tree that one runs from."""
        try:
            return importlib.metadata.version(self.distribution) if self.distribution else ""
        except importlib.metadata.PackageNotFoundError:
            return ""

    def run_files(self, job: Job, source: Path, sink: Path, settings: Settings) -> None:
        """Run the job from a JSONL file to another."""
        if self.files is not None:
            self.files(job, source, sink, settings)
            return
        with source.open("rb") as lines, sink.open("wb") as output:

            def write(item: Item) -> None:
                output.write(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE))

            self.run(job, map(orjson.loads, lines), write, settings)
