"""stageflow, as a user runs it: between files with its ledger, and with the output in the order of the input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from workload import Item, Settings

from contenders.contender import Contender, Job, Take


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    outputs: list[Item] = []
    settings.run(job.pipeline().run(items, outputs))
    for output in outputs:
        take(output)


def files(job: Job, source: Path, sink: Path, settings: Settings) -> None:
    job.pipeline().run_sync(str(source), str(sink), loop=settings.loop)


CONTENDERS = [Contender("stageflow", run, distribution="stageflow", kind="ours", files=files)]
