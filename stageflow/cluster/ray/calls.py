"""A call of the coordinator, which may be away for a moment: whoever asks tries again by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

__all__ = ["answered"]

AWAY_SECONDS: Final = 60.0
"""Ray starts a coordinator that is lost again in a second or two, and reading the commits takes it a while."""

_PAUSES: Final = 0.05, 0.5
"""The first pause before another try, and the longest, in seconds. A coordinator that is back waits for two beats to be
told who has what: nobody may come later."""


async def answered(call: Callable[[], Awaitable[Any]], seconds: float = AWAY_SECONDS) -> Any:
    """Make a call until it is answered.

    What was answered is no longer asked, and a call whose answer was lost is made twice: it has to be safe to repeat.

    Raises:
        RayActorError: It was away for ``seconds``.
        RayError: It was there, and failed.
    """
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    pause, longest = _PAUSES
    while True:
        try:
            return await call()
        except (ActorUnavailableError, ActorDiedError):
            if loop.time() + pause > until:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
