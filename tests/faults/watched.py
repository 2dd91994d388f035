"""The command in a process of its own, watched while it goes: what it says, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from accounts import ROOT
from ledgers import committed
from running import Running

__all__ = ["FAULTY", "Runs", "Watched"]

FAULTY: Final = Path(__file__).parent / "durable" / "faulty_command.py"
"""The command with faults put into it; see there."""


class Watched(Running):
    """A process of the command whose standard output is kept, too."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        super().__init__(process, err)
        self._out = out

    @property
    def out(self) -> str:
        return self._out.read_text()


class Runs:
    """A folder with ``job.py`` and ``in.jsonl``, and the runs in it; what still runs at the end is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._started: list[Watched] = []

    def job(self, text: str, records: int | Iterable[Mapping[str, Any]] = 40) -> None:
        """Write the job and its input, ``{"n": 0}``, ``{"n": 1}``... where a number is given."""
        if isinstance(records, int):
            records = [{"n": n} for n in range(records)]
        (self.path / "job.py").write_text(text)
        (self.path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def start(
        self, *options: str, output: str = "out.jsonl", input_: str = "in.jsonl", faulty: bool = False, **given: Any
    ) -> Watched:
        """Start it and go on.

        Args:
            faulty: With the faults that the environment asks for.
            given: For ``Popen``; ``environment`` is added to this process's.
        """
        number = len(self._started)
        out, err = self.path / f"stdout{number}", self.path / f"stderr{number}"
        command = [sys.executable, *([str(FAULTY)] if faulty else ["-m", "stageflow"])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **given.pop("environment", {})}
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            process = subprocess.Popen(
                [*command, "run", "job.py", input_, "-o", output, *options],
                cwd=self.path,
                env=environment,
                **{"stdout": stdout, "stderr": stderr, **given},
            )
        self._started.append(Watched(process, out, err))
        return self._started[-1]

    def run(self, *options: str, **given: Any) -> Watched:
        """Start it and wait for its end."""
        watched = self.start(*options, **given)
        watched.ends()
        return watched

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a file; none where it does not exist yet."""
        path = self.path / name
        data = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in data.split(b"\n")[:-1]]

    def numbers(self, name: str = "out.jsonl.partial") -> list[int]:
        """The records that were written, by their field ``n``."""
        return [line["n"] for line in self.lines(name)]

    def committed(self, name: str = "out.jsonl") -> list[int]:
        """The records that are settled, by the lines of the ledger."""
        return committed(self.path / f"{name}.ledger")

    def names(self) -> set[str]:
        """What stands in the folder, but for what the tests put there."""
        ours = ("stdout", "stderr", "job.py", "in.jsonl", "__pycache__", "begun")
        return {path.name for path in self.path.iterdir() if not path.name.startswith(ours)}

    def begun(self) -> int:
        """How many records a job has begun that makes a file for each."""
        return sum(path.name.startswith("begun") for path in self.path.iterdir())

    def command(self, *options: str, output: str = "out.jsonl") -> str:
        """The command as it was typed."""
        return shlex.join(["stageflow", "run", "job.py", "in.jsonl", "-o", output, *options])

    def close(self) -> None:
        for watched in self._started:
            if watched.process.poll() is None:
                watched.process.send_signal(signal.SIGCONT)
                watched.process.kill()
            watched.process.wait()
            for pipe in (watched.process.stdin, watched.process.stdout, watched.process.stderr):
                if pipe is not None:
                    pipe.close()
