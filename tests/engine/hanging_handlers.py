"""Handlers for worker processes: they are found there by the name of this module."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def hangs(n: int, mark: str) -> int:
    """Write down this process and stay for good, or answer with it."""
    if mark:
        Path(mark).write_text(str(os.getpid()))
        signal.pause()
    return os.getpid()
