"""streamable: operations over iterators. ``map`` keeps the order, which is cheaper for it here."""

from __future__ import annotations

from collections.abc import Iterable

from workload import Item, Settings

from contenders.contender import Contender, Job, Take


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    from streamable import stream

    async def main() -> None:
        outputs = stream(items)
        for stage in job.stages:
            outputs = outputs.map(stage.work, concurrency=stage.workers)
        async for output in outputs:
            take(output)

    settings.run(main())


CONTENDERS = [Contender("streamable", run, library="streamable", distribution="streamable", fewer=2)]
