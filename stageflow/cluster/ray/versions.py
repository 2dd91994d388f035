"""What has to be the same on all machines of a cluster."""

from __future__ import annotations

import platform
from dataclasses import dataclass

__all__ = ["Versions"]


@dataclass(frozen=True, slots=True)
class Versions:
    """Of a process: Python's, by which bytecode and pickles differ, and Ray's. Stageflow itself is sent along."""

    python: str
    ray: str

    @classmethod
    def here(cls) -> Versions:
        """Those of this process."""
        import ray

        return cls(platform.python_version(), ray.__version__)

    def suits(self, other: Versions) -> bool:
        """Whether two such processes understand each other."""
        return self.ray == other.ray and self._minor == other._minor

    @property
    def _minor(self) -> list[str]:
        return self.python.split(".")[:2]

    def __str__(self) -> str:
        return f"Python {self.python} and Ray {self.ray}"
