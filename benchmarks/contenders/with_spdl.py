"""SPDL: stages on the loop of a background thread, made to feed a training loop.

Its cheapest form here: an async source, which needs no thread of its own; the statistics of its stages switched off;
and outputs handed to this thread 64 at a time, as it hands over batches. CPU time counts both threads.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

from workload import Item, Settings

from contenders.contender import Contender, Job, Take

BATCH = 64


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    from spdl.pipeline import PipelineBuilder

    async def source() -> AsyncIterator[Item]:
        for item in items:
            yield item

    builder = PipelineBuilder().add_source(source())
    for stage in job.stages:
        builder = builder.pipe(stage.work, concurrency=stage.workers)
    built = builder.aggregate(BATCH).add_sink(3).build(num_threads=1, task_hook_factory=lambda _: [])
    with _loops(settings), built.auto_stop():
        for batch in built.get_iterator():
            for output in batch:
                take(output)


@contextmanager
def _loops(settings: Settings) -> Iterator[None]:
    """Have SPDL, which makes its own loop, make one of the kind that all run on."""
    if settings.loop == "asyncio":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies, from Python 3.14 on; there is no other way in

        class Policy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self) -> asyncio.AbstractEventLoop:
                return settings.new_loop()

        asyncio.set_event_loop_policy(Policy())
        try:
            yield
        finally:
            asyncio.set_event_loop_policy(None)


CONTENDERS = [Contender("SPDL", run, library="spdl", distribution="spdl-core", fewer=5)]
