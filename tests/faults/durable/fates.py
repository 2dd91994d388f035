"""What becomes of each record of the harness's job: decided by its number alone, so that anybody can work it out.

The job imports this from its own folder, and the auditor from here; neither knows the other.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["PAD", "breaks", "children", "dies", "drops", "latency"]

PAD: Final = "é" * 100
"""So that lines are long enough to be torn."""


def draw(*key: object) -> float:
    """A number in [0, 1) that looks random and is the same for the same key, in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") / 2**64


def latency(stage: str, *place: int) -> float:
    """Seconds that a call takes: mostly one or two milliseconds, now and then thirty, so that records overtake."""
    found = draw("latency", stage, *place)
    return 0.03 if found > 0.97 else found * 0.003


def drops(stage: str, *place: int) -> bool:
    return draw("drops", stage, *place) < 0.06


def dies(stage: str, *place: int, healed: bool = False) -> bool:
    """Whether a call fails; of those that do, a third still does when the service is healed."""
    found = draw("dies", stage, *place)
    return found < (0.02 if healed else 0.06)


def children(n: int) -> int:
    """How many children a record has, 0 to 3."""
    return int(draw("children", n) * 4)


def breaks(n: int, *, healed: bool = False) -> bool:
    """Whether the generator fails behind its last child."""
    return not healed and draw("breaks", n) < 0.04
