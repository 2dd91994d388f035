"""The door to aiostream: a job as one operator among others."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

__all__ = ["pipe_operator"]

Stream = Callable[[AsyncIterable[Any]], AsyncIterator[Any]]


def pipe_operator(stream: Stream) -> Any:
    """Wrap a function from records to output records so that ``|`` takes it.

    Args:
        stream: Makes the output stream of an input stream. It is closed as soon as the operators behind it have enough.

    Returns:
        What ``aiostream``'s own ``pipe.xxx(...)`` return: a function from stream to stream.
    """
    from aiostream import pipable_operator, streamcontext

    @pipable_operator
    async def stageflow(source: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async with streamcontext(source) as records, streamcontext(stream(records)) as outputs:
            async for output in outputs:
                yield output

    return stageflow.pipe()
