"""pypeln: its ``task`` stages, worker pools over queues on one loop.

Its queues are without a bound unless told otherwise. Here they have the bound that all have: what reads a file through
unbounded ones holds the file in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from workload import Item, Settings

from contenders.contender import QUEUE_SIZE, Contender, Job, Take


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopit, which it needs, reads its version from the old pkg_resources
        import pypeln as pl

    async def main() -> None:
        outputs: Any = items
        for stage in job.stages:
            outputs = pl.task.map(stage.work, outputs, workers=stage.workers, maxsize=QUEUE_SIZE)
        async for output in outputs:
            take(output)

    settings.run(main())


CONTENDERS = [Contender("pypeln", run, library="pypeln", distribution="pypeln", fewer=5)]
