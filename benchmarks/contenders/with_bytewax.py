"""Bytewax: a dataflow in Rust that calls plain Python functions; an async one it does not await.

Where calls do nothing it is one worker and batches of 1,000, one call after the other: compare it with the bare loop.
Where calls wait, each stage hands whole batches to a pool of as many threads as it may have calls, and eight workers
share the pools, so that each of these has a batch while others are on their way: of 1 to 16 workers and batches of 64
to 1,000 this was the best. Between files it has connectors of its own, for text, which sync each batch to the disk. All
of it runs in this process, so its CPU time counts.

Source: bytewax/bytewax, issue 545 (async functions).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import orjson
from workload import Item, Settings

from contenders.contender import Contender, Job, Take

BATCH = 1_000
WORKERS, WAITING_BATCH = 8, 256


def run(job: Job, items: Iterable[Item], take: Take, settings: Settings) -> None:
    outputs: list[Item] = []
    (run_waiting if job.waits else run_at_once)(job, items, outputs)
    for output in outputs:
        take(output)


def run_at_once(job: Job, items: Iterable[Item], outputs: list[Item]) -> None:
    from bytewax import operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    flow = Dataflow("peers")
    stream = op.input("in", flow, TestingSource(items, BATCH))
    for number, stage in enumerate(job.stages):
        stream = op.map(f"stage-{number}", stream, stage.plain)
    op.output("out", stream, TestingSink(outputs))
    run_main(flow)


def run_waiting(job: Job, items: Iterable[Item], outputs: list[Item]) -> None:
    from bytewax import operators as op
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, cluster_main

    flow = Dataflow("peers")
    stream = op.redistribute("spread", op.input("in", flow, TestingSource(items, WAITING_BATCH)))
    with ExitStack() as pools:
        for number, stage in enumerate(job.stages):
            pool = pools.enter_context(ThreadPoolExecutor(stage.workers))
            stream = op.flat_map_batch(f"stage-{number}", stream, partial(pool.map, stage.plain))
        op.output("out", stream, TestingSink(outputs))
        cluster_main(flow, [], 0, worker_count_per_proc=WORKERS)


def files(job: Job, source: Path, sink: Path, settings: Settings) -> None:
    from bytewax import operators as op
    from bytewax.connectors.files import FileSink, FileSource
    from bytewax.dataflow import Dataflow
    from bytewax.testing import run_main

    flow = Dataflow("peers")
    stream = op.map("load", op.input("in", flow, FileSource(source)), orjson.loads)
    for number, stage in enumerate(job.stages):
        stream = op.map(f"stage-{number}", stream, stage.plain)
    lines = op.map("dump", stream, lambda item: ("all", orjson.dumps(item).decode()))
    op.output("out", lines, FileSink(sink))
    run_main(flow)


CONTENDERS = [
    Contender("Bytewax", run, library="bytewax", distribution="bytewax", files=files, in_turn=True),
]
