"""The ways to run a job that :mod:`peers` compares: ours, those written by hand, and other libraries.

One module per library, which alone imports it, and only when it runs: to list the contenders loads none of them. Each
is written as its own users write it, in the form that is cheapest for it here; its docstring says what was chosen and
what that form does not do.
"""

from __future__ import annotations

from typing import Final

from contenders import (
    by_hand,
    with_aiostream,
    with_bytewax,
    with_pypeln,
    with_spdl,
    with_stageflow,
    with_streamable,
)
from contenders.contender import Contender

__all__ = ["CONTENDERS", "any_installed", "from_extra"]

CONTENDERS: Final = (
    *with_stageflow.CONTENDERS,
    *by_hand.CONTENDERS,
    *with_streamable.CONTENDERS,
    *with_pypeln.CONTENDERS,
    *with_aiostream.CONTENDERS,
    *with_spdl.CONTENDERS,
    *with_bytewax.CONTENDERS,
)


def from_extra() -> list[Contender]:
    """Those that the extra ``bench`` installs; aiostream comes with stageflow."""
    return [each for each in CONTENDERS if each.library not in (None, "aiostream")]


def any_installed() -> bool:
    """Whether there is anything to compare with that does not come with stageflow."""
    return any(each.installed for each in from_extra())
