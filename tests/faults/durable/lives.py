"""The job of the crash harness: fan-out, dead letters, drops, and a note of every call. It runs in a copy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from fates import breaks, children, dies, drops, latency

from stageflow import Pipeline, drop

pipeline = Pipeline("lives", key="n")
calls = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
healed = os.path.exists("healed")


def called(stage: str, *place: int) -> None:
    os.write(calls, f"{stage} {' '.join(map(str, place))}\n".encode())


@pipeline.stage(max_in_flight=16)
async def look(n: int) -> Any:
    called("look", n)
    await asyncio.sleep(latency("look", n))
    if drops("look", n):
        return drop("not wanted")
    if dies("look", n, healed=healed):
        raise ValueError(f"cannot look at {n}")
    return n * 2


@pipeline.stage(max_in_flight=16)
async def split(n: int, look: int) -> AsyncIterator[int]:
    called("split", n)
    for place in range(children(n)):
        await asyncio.sleep(latency("split", n, place))
        yield place
    if breaks(n, healed=healed):
        raise ValueError(f"breaks at {n}")


@pipeline.stage(max_in_flight=32)
async def work(n: int, split: int) -> Any:
    called("work", n, split)
    await asyncio.sleep(latency("work", n, split))
    if drops("work", n, split):
        return drop("not wanted")
    if dies("work", n, split, healed=healed):
        raise ValueError(f"cannot work on {n}, {split}")
    return [n, split]
