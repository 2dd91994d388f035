"""One file of all that a run past one machine has made, as a run on one machine would have written it.

A file gets its name when it is whole, the dead letters first, so results that are there have theirs beside them. What
is there already is compared, and left as it is where it is the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Final

from stageflow.adapters.forms import form_of
from stageflow.cluster.commits import Commits
from stageflow.cluster.parts import Parts
from stageflow.cluster.plan import ShardPlan
from stageflow.cluster.status import failed_shards, plan_in
from stageflow.errors import RequestError, StageflowError, StorageError
from stageflow.files import is_url
from stageflow.ledger.disk import Disk
from stageflow.ledger.form import Copy
from stageflow.protocols import Form
from stageflow.report.text import counted
from stageflow.stores import store_of

__all__ = ["merge"]

_FAILED: Final = 3
_HINT: Final = "choose another -o, or pass --fresh to keep it under another name"


def merge(url: str, path: str, *, fresh: bool, tell: Callable[[str], None]) -> int:
    """Write the results of a complete run into a file, and its dead letters beside it.

    Args:
        path: The file; its suffix says what it is made into.
        fresh: Rename what is in the way rather than refuse.
        tell: Called with what the user should know.

    Returns:
        The exit code: 3 where shards have failed, whose records are in neither file.

    Raises:
        RequestError: There is no complete run, or there are other files.
        StorageError: What was committed is not there any more, or can't be written down.
    """
    form = form_of(path)
    store = store_of(url)
    plan = plan_in(store)
    commits = Commits(store).repair()
    if left := len(plan.shards) - len(commits):
        raise RequestError(
            f"{url} is not complete: {left:,} of its {counted(len(plan.shards), 'shard')} are not done",
            hint="go on with the run by its command; stageflow status tells how far it is",
        )
    parts = Parts(store, plan, commits)
    letters = _Target(f"{path}.dead.jsonl", parts.letters, mode=0o600)
    results = _Target(path, parts.results, mode=0o666, form=form)
    notes = _write([results, letters] if parts.dead_lines else [results], letters, plan, fresh=fresh)
    for note in notes:
        tell(f"stageflow: note: {note}")
    dead = f", {counted(parts.dead_lines, 'dead letter')} into {letters.shown}" if parts.dead_lines else ""
    tell(f"stageflow: merged {counted(len(commits), 'shard')}: {counted(parts.out_lines, 'line')} into {path}{dead}")
    failed = failed_shards(plan, commits)
    if failed:
        tell("\n".join((f"stageflow: {failed[0]}", *failed[1:])))
    if parts.uncounted:
        tell("  the lines of what failed can't be counted: dead letters after it have no line, and too low an index")
    return _FAILED if failed else 0


class _Differs(Exception):
    """What is there is not what would be written."""


@dataclass(eq=False)
class _Target:
    """A file to be.

    Args:
        shown: As the user calls it.
        lines: Begins to read what goes into it, whole lines, several at a time.
        form: What the lines are made into.
    """

    shown: str
    lines: Callable[[], Iterator[bytes]]
    mode: int
    form: Form | None = None

    def __post_init__(self) -> None:
        self.path = os.path.realpath(self.shown)

    @property
    def stands(self) -> bool:
        return os.path.lexists(self.path)

    def make(self, write: Callable[[bytes], object]) -> list[str]:
        """Make it, and return what the user should know."""
        if self.form is None:
            for some in self.lines():
                write(some)
            return []
        try:
            return self.form.make(self._each_line, write)
        except (OSError, StageflowError, _Differs):
            raise
        except Exception as error:  # whatever a library has against what it is given
            raise StorageError(f"cannot make {self.shown}: {error}", hint="a name in .jsonl takes anything") from error

    def _each_line(self) -> Iterator[bytes]:
        for some in self.lines():
            yield from (line + b"\n" for line in some.split(b"\n")[:-1])

    def compare(self) -> None:
        """See that it is what is there.

        Raises:
            RequestError: It isn't.
        """
        try:
            with open(self.path, "rb") as file:

                def same(data: bytes) -> None:
                    if file.read(len(data)) != data:
                        raise _Differs

                self.make(same)
                if file.read(1):
                    raise _Differs
        except _Differs:
            raise RequestError(f"{self.shown} exists, and holds something else", hint=_HINT) from None
        except OSError as error:
            raise RequestError(f"cannot read {self.shown}: {error.strerror}") from error


def _write(targets: list[_Target], letters: _Target, plan: ShardPlan, *, fresh: bool) -> list[str]:
    """Write what is not there, all of it or nothing; return what the user should know.

    Raises:
        RequestError: Something is in the way: dead letters, too, where there are none to write.
        StorageError: It can't be written.
    """
    disk = Disk()
    for target in targets:
        _refuse(target, plan, disk)
    standing = [target for target in dict.fromkeys((*targets, letters)) if target.stands]
    if fresh:
        _set_aside([target.path for target in standing], disk)
    elif letters in standing and letters not in targets:
        raise RequestError(f"{letters.shown} exists, and there are no dead letters", hint=_HINT)
    missing = [target for target in targets if not target.stands]
    for target in targets:
        if target not in missing:
            target.compare()
    notes: list[str] = []
    try:
        with ExitStack() as copies:  # which get their names in turn, the one that was begun last first
            for target in missing:
                copy = copies.enter_context(Copy(disk, target.path, target.mode))
                notes += target.make(copy.write)
        disk.sync_directory(os.path.dirname(targets[0].path))
    except OSError as error:
        raise StorageError(f"cannot write {targets[0].shown}: {error.strerror or error}") from error
    return notes


def _refuse(target: _Target, plan: ShardPlan, disk: Disk) -> None:
    """Refuse a file that can't be one, or is somebody else's.

    Raises:
        RequestError: With why.
    """
    if target.shown == "-" or is_url(target.shown):
        raise RequestError(f"can't merge into {target.shown}", hint="give a file")
    if target.stands and not os.path.isfile(target.path):
        raise RequestError(f"cannot write to {target.shown}: it is no file")
    if os.path.lexists(f"{target.path}.ledger"):
        raise RequestError(f"{target.shown} is the output of another run", hint="choose another -o")
    if target.path in [file.place for file in plan.files]:
        raise RequestError("the merged file and the input are the same file", hint="choose another -o")
    try:
        disk.try_directory(os.path.dirname(target.path))
    except OSError as error:
        raise RequestError(f"cannot write to {os.path.dirname(target.shown) or '.'}: {error.strerror}") from error


def _set_aside(paths: list[str], disk: Disk) -> None:
    """Give each another name: ``out.jsonl.1``, one number for all."""
    free = next(number for number in count(1) if not any(os.path.lexists(f"{path}.{number}") for path in paths))
    for path in paths:
        disk.rename(path, f"{path}.{free}")
