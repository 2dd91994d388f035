"""aiostream: operators over async iterators. ``map`` keeps the order, which is cheaper for it here."""

from __future__ import annotations

from collections.abc import Iterable

from workload import Item, Settings

from contenders.contender import Contender, Job, Take


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    from aiostream import pipe, stream

    async def main() -> None:
        outputs = stream.iterate(items)
        for stage in job.stages:
            outputs = outputs | pipe.map(stage.work, task_limit=stage.workers)
        async with outputs.stream() as streamer:
            async for output in streamer:
                take(output)

    settings.run(main())


CONTENDERS = [Contender("aiostream", run, library="aiostream", distribution="aiostream", fewer=10)]
