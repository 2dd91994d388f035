"""A run that is killed again and again, and an auditor who works out from the input alone what must come of it.

The auditor shares nothing with stageflow: it reads the files as a user would, and the notes that the job took of its
calls. After each start that came to its end it asserts that the output holds each result once, in the order of the
input; that the dead letters are exactly those of the records that fail; and that of the records begun before a kill
no more were done again than can have been open at it.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from accounts import ROOT
from fates import PAD, breaks, children, dies, drops

__all__ = ["OPEN_RECORDS", "Life", "Start", "expected_letters", "expected_lines"]

HERE: Final = Path(__file__).parent
OPEN_RECORDS: Final = 48
"""Records admitted and not yet written: the most that one kill can make be done again."""

SECONDS: Final = 60.0
"""Within which a start ends, one way or the other."""


# The auditor


def record(n: int) -> dict[str, Any]:
    return {"n": n, "pad": PAD}


def expected_lines(count: int, *, healed: bool = False) -> list[dict[str, Any]]:
    """The output lines of the first ``count`` records, in order."""
    return [
        record(n) | {"look": n * 2, "split": place, "work": [n, place]}
        for n in range(count)
        if not drops("look", n) and not dies("look", n, healed=healed)
        for place in range(children(n))
        if not drops("work", n, place) and not dies("work", n, place, healed=healed)
    ]


def expected_letters(count: int, *, healed: bool = False) -> list[dict[str, Any]]:
    """What of each dead letter can be foretold, by record, stage and message."""
    found = []
    for n in range(count):
        if drops("look", n):
            continue
        if dies("look", n, healed=healed):
            found.append(_letter(n, "look", {}, f"cannot look at {n}"))
            continue
        for place in range(children(n)):
            if not drops("work", n, place) and dies("work", n, place, healed=healed):
                results = {"look": n * 2, "split": place}
                found.append(_letter(n, "work", results, f"cannot work on {n}, {place}"))
        if breaks(n, healed=healed):
            found.append(_letter(n, "split", {"look": n * 2}, f"breaks at {n}"))
    return sorted(found, key=_place)


def _letter(n: int, stage: str, results: dict[str, Any], message: str) -> dict[str, Any]:
    return {
        "index": n,
        "line": n + 1,
        "path": "in.jsonl",
        "stage": stage,
        "record": record(n),
        "results": results,
        "error": {"type": "ValueError", "message": message},
        "attempts": 1,
        "retryable": True,
    }


def _place(letter: dict[str, Any]) -> tuple[Any, ...]:
    return letter["index"], letter["stage"], letter["error"]["message"]


# The runs


@dataclass
class Start:
    """One start of the command, while it goes and afterwards.

    Attributes:
        options: What it was asked for besides.
        calls: Where the job noted its calls.
        code: How it ended; negative for a signal.
    """

    options: tuple[str, ...]
    process: subprocess.Popen[bytes]
    calls: Path
    err: Path
    code: int | None = None

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def inputs(self) -> set[int]:
        """The records for which any call was made."""
        return {int(line.split()[1]) for line in self._lines()}

    def made(self) -> int:
        """How many calls."""
        return len(self._lines())

    def _lines(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@dataclass
class Life:
    """One output, over all the starts it takes.

    Args:
        records: How many the input has.
        random: For what is not decided by the test.
        seed: Told when something fails.
    """

    path: Path
    records: int
    seed: int = 0
    loop: str = "auto"
    order: str = "input"
    random: random.Random = field(init=False)
    starts: list[Start] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.path.mkdir(exist_ok=True)
        for name in ("fates.py", "lives.py"):
            shutil.copy(HERE / name, self.path)
        text = "".join(json.dumps(record(n), ensure_ascii=False) + "\n" for n in range(self.records))
        (self.path / "in.jsonl").write_text(text)

    @property
    def kills(self) -> int:
        return sum(start.killed for start in self.starts)

    def begin(self, *options: str, pass_fds: tuple[int, ...] = (), **environment: str) -> Start:
        """Start the command and go on."""
        number = len(self.starts)
        calls, err = self.path / f"calls{number}", self.path / f"err{number}"
        command = [sys.executable, str(HERE / "faulty_command.py"), "run", "lives.py", "in.jsonl", "-o", "out.jsonl"]
        more = ["--progress", "off", "--max-open-records", str(OPEN_RECORDS), "--fsync", "interval=0.05"]
        more += ["--loop", self.loop, "--order", self.order]
        with open(err, "wb") as stderr:
            process = subprocess.Popen(
                [*command, *more, *options],
                cwd=self.path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "CALLS": calls.name, **environment},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=pass_fds,
            )
        self.starts.append(Start(options, process, calls, err))
        return self.starts[-1]

    def end(self, start: Start) -> Start:
        """Wait for the end of a start, which is complete or killed."""
        try:
            start.code = start.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            start.process.kill()
            start.process.wait()
            raise AssertionError(f"seed {self.seed}: start {len(self.starts)} hung\n{start.err.read_text()}") from None
        assert start.code in (0, 3, -signal.SIGKILL), f"seed {self.seed}: {start.code}\n{start.err.read_text()}"
        assert "Traceback" not in start.err.read_text()
        return start

    def run(self, *options: str, **environment: str) -> Start:
        return self.end(self.begin(*options, **environment))

    def killed_at(self, moment: str, nth: int, *options: str, **environment: str) -> Start:
        """A start that ends itself when a moment comes for the ``nth`` time, if it does."""
        return self.run(*options, KILL_AT=f"{moment}:{nth}", **environment)

    def killed_after(self, seconds: float, *options: str, **environment: str) -> Start:
        """A start that is killed so long after it began to open its outputs, unless it has ended."""
        reading, writing = os.pipe()
        try:
            start = self.begin(*options, pass_fds=(writing,), TELL_OPENING=str(writing), **environment)
            os.close(writing)
            ready, _, _ = select.select([reading], [], [], SECONDS)
            assert ready, f"seed {self.seed}: it did not open its outputs\n{start.err.read_text()}"
        finally:
            os.close(reading)
        time.sleep(seconds)  # the moment of the kill is what is drawn at random
        start.process.kill()
        return self.end(start)

    # What must hold

    def audit(self, count: int | None = None, *, healed: bool = False) -> None:
        """Assert that a complete run wrote what it must, for its first ``count`` records."""
        count = self.records if count is None else count
        names = {path.name for path in self.path.iterdir() if path.name.startswith("out.jsonl")}
        letters = expected_letters(count, healed=healed)
        assert names - {"out.jsonl.dead.jsonl"} == {"out.jsonl", "out.jsonl.ledger"}, f"seed {self.seed}"
        lines = self.lines("out.jsonl")
        if self.order != "input":
            lines.sort(key=lambda line: (line["n"], line["split"]))
        assert lines == expected_lines(count, healed=healed), f"seed {self.seed}"
        assert sorted(map(_known, self.lines("out.jsonl.dead.jsonl")), key=_place) == letters, f"seed {self.seed}"

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line] if path.exists() else []

    def done_again(self) -> Iterator[int]:
        """For each kill the number of records begun before it, in that start, that a later start began once more.

        Of those asked for the same: a retry does again what is done.
        """
        later: dict[tuple[str, ...], set[int]] = {}
        for start in reversed(self.starts):
            inputs = start.inputs()
            if start.killed:
                yield len(inputs & later.get(start.options, set()))
            later.setdefault(start.options, set()).update(inputs)

    def audit_calls(self) -> None:
        """Assert that no kill made more be done again than was open."""
        for number in self.done_again():
            assert number <= OPEN_RECORDS, f"seed {self.seed}: {number} records were done again after one kill"


def _known(letter: dict[str, Any]) -> dict[str, Any]:
    """A dead letter without what nobody can foretell."""
    error = {name: value for name, value in letter["error"].items() if name != "trace"}
    return {name: value for name, value in letter.items() if name not in ("at", "retry")} | {"error": error}
