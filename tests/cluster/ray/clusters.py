"""A Ray cluster for tests, and runs on it, each driven by a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

SECONDS = 60.0
"""By when something has happened that a test waits for."""

QUIET = {
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every address is one of this machine alone
}


@dataclass(frozen=True)
class Machines:
    """A cluster on this machine.

    Attributes:
        logs: Of all its machines.
        raylets: The process that stands for each of them, but for the head.
        session: Of all its processes.
    """

    address: str
    logs: Path
    raylets: list[int]
    session: int
    env: Mapping[str, str]

    def lose(self, raylet: int) -> None:
        """Have a machine fail, with all that runs on it."""
        for pid in (raylet, *children_of(raylet)):
            os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """Have all machines fail."""
        for pid in of_session(self.session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self, name: str) -> list[int]:
        """Those of its processes that Ray calls so."""
        return [pid for pid in of_session(self.session) if command_of(pid).startswith(f"ray::{name}")]


@contextmanager
def machines(folder: Path, count: int, cpus: int) -> Iterator[Machines]:
    """Have a cluster."""
    env = {**os.environ, **QUIET, "RAY_TMPDIR": str(folder)}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "machines.py"), str(count), str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield Machines(told["address"], Path(told["logs"]), told["raylets"], process.pid, env)
    finally:
        try:
            process.communicate("", timeout=30)
        finally:
            process.kill()
            process.wait()
            for pid in of_session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Begun:
    """A run that was started."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def told(self) -> str:
        """What it has told so far."""
        return self.path.read_text()


class Workbench:
    """A job and its input in a folder, and runs of it on a cluster."""

    def __init__(self, folder: Path, cluster: Machines) -> None:
        self.folder = folder
        self.cluster = cluster
        self._begun: list[Begun] = []

    def write(self, job: str, records: Iterable[Mapping[str, Any]]) -> None:
        (self.folder / "job").mkdir(exist_ok=True)
        (self.folder / "job" / "job.py").write_text(textwrap.dedent(job))
        (self.folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def begin(self, *more: str, output: str = "out", env: Mapping[str, str] | None = None) -> Begun:
        """Start a run, in which all who wait do so for a shorter time than usual."""
        words = ["run", "job/job.py", "in.jsonl", "-o", output, "--engine", "ray", "--address", self.cluster.address]
        told = self.folder / f"told-{len(self._begun)}.txt"
        with told.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "hasty.py"), *words, "--progress", "log", *more],
                cwd=self.folder,
                env={**self.cluster.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
        begun = Begun(process, told)
        self._begun.append(begun)
        return begun

    def run(self, *more: str, output: str = "out", env: Mapping[str, str] | None = None) -> tuple[int, str]:
        return self.ended(self.begin(*more, output=output, env=env))

    def ended(self, begun: Begun) -> tuple[int, str]:
        """Its exit code, and what it told."""
        try:
            code = begun.process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            begun.process.kill()
            raise AssertionError(f"it did not end: {begun.told}") from None
        return code, begun.told

    def command(self, *words: str) -> tuple[int, str]:
        """The exit code of a command that knows of no cluster, and what it told."""
        done = subprocess.run(
            [sys.executable, "-m", "stageflow", *words],
            cwd=self.folder,
            env={**os.environ, **QUIET},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stderr

    def close(self) -> None:
        for begun in self._begun:
            begun.process.kill()
            begun.process.wait()

    # What there is

    def output(self, output: str = "out") -> bytes:
        """What was written, in the order of the input."""
        return b"".join(path.read_bytes() for path in sorted((self.folder / output).glob("part-*")))

    def ids(self, output: str = "out") -> list[int]:
        return [json.loads(line)["id"] for line in self.output(output).splitlines()]

    def letters(self, output: str = "out") -> list[dict[str, Any]]:
        paths = sorted((self.folder / output / "dead").glob("part-*"))
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    def dead_of(self, output: str) -> list[dict[str, Any]]:
        """The dead letters beside a file, without what differs from run to run."""
        found = [json.loads(line) for line in (self.folder / f"{output}.dead.jsonl").read_text().splitlines()]
        for letter in found:
            del letter["at"], letter["error"]["trace"]
        return found

    def commits(self, output: str = "out") -> int:
        """How many shards are done."""
        return len(list((self.folder / output / "_stageflow" / "commits").glob("*.json")))

    def calls(self) -> list[tuple[int, int]]:
        """The calls of a stage that notes them: the process, and the id of the record."""
        found = []
        for path in self.folder.glob("calls.*"):
            found += [(int(path.suffix[1:]), int(line)) for line in path.read_text().splitlines()]
        return found

    def replicas(self) -> set[int]:
        """The processes that have made calls, and that have not ended."""
        return {pid for path in self.folder.glob("calls.*") if is_there(pid := int(path.suffix[1:]))}


def until(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Wait until there is something true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)
    return found


def is_there(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def of_session(session: int) -> list[int]:
    """The processes of a session, without the one that began it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):
            if pid != session and int(path.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(pid)
    return found


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
