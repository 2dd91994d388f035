"""A process of the command, watched while it goes: what it has said, and how it ends."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["SECONDS", "Running"]

SECONDS: Final = 30.0
"""How long a condition may take to come true. It is met in a fraction of that, or never."""


class Running:
    """A process whose standard error is a file."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self.process = process
        self._stderr = stderr

    @property
    def err(self) -> str:
        """What it has said so far."""
        return self._stderr.read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the process does while it lives."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.err}"
            assert time.monotonic() < deadline, f"it did not come to that:\n{self.err}"
            time.sleep(0.005)

    def until_it_says(self, text: str) -> None:
        self.until(lambda: text in self.err)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self, seconds: float = SECONDS) -> int:
        """The exit code, which comes within so many seconds."""
        return self.process.wait(seconds)
