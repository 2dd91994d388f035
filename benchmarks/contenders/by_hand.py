"""What an expert writes without a library: worker pools over ``asyncio.Queue``, and the loop that nothing can beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import workload
from workload import Item, Settings, Step

from contenders.contender import QUEUE_SIZE, Contender, Job, Run, Take


def pools(way: Callable[..., Any]) -> Run:
    def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
        steps = [Step(stage.work, stage.workers) for stage in job.stages]
        settings.run(way(items, steps, QUEUE_SIZE, take))

    return run


def bare_loop(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    settings.run(workload.bare_loop(items, [stage.work for stage in job.stages], take))


CONTENDERS = [
    Contender("by hand, tuned", pools(workload.hand_tuned), kind="by hand"),
    Contender("by hand", pools(workload.hand_written), kind="by hand"),
    Contender("bare loop", bare_loop, kind="by hand", concurrent=False, in_turn=True),
]
