"""What do replicas on a cluster gain, what do they cost, and does a rate limit hold for all of them together?

    python benchmarks/cluster.py
    python benchmarks/cluster.py --quick

Needs ``stageflow[ray]``, and is no part of ``python -m benchmarks``: it starts a Ray cluster on this machine, which has
no network in it, and on which all replicas share the cores. So it says what the coordination costs, and not what a
cluster of many machines does.

* *Gain*: a diamond of stages that sleep, in one replica and in two. The rate is that of the calls of its slowest stage
  in the middle of the run, from when a tenth of them were made until nine tenths were: without the start and the end.
* *CPU*: what a replica's process spends per record, all its threads, against a run without a cluster; in the same
  stretch, each taken by the process itself as it makes its calls.
* *Rate*: calls of a stage under ``RateLimit(per_second=1000, burst=50)``, in the fullest second of all that begin with
  a call, in 1, 2 and 4 replicas together, from a second after the first call: over the limit.

* *Coordinator*: the CPU time of its process per report of a replica, with what the report says of four stages, and per
  look of the driver's, while there are 1,000 replicas: they are played by this process, over Ray.

Exits 1 where two replicas are less than 1.8 times as fast as one, a record costs more than 1.6 times the CPU it does
without a cluster, or the fullest second has more than 1.1 times the limit.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workload import Report as Table
from workload import Settings, WrongAnswer, in_turns, parse, ratio, write_records

from stageflow.cluster.messages import Report, ShardCommit
from stageflow.counters import StageCounters
from stageflow.events import StageSnapshot
from stageflow.replicas.messages import Asked, Beat, Open
from stageflow.work import StageAccount

GAIN: Final = 1.8
CPU: Final = 1.6
OVER_LIMIT: Final = 1.1

LIMIT: Final = 1000

JOB: Final = """
import asyncio, os, struct, time
from stageflow import Pipeline, RateLimit

pipeline = Pipeline("sleeping", key="id")
limit = {limit}
notes = {{}}

def note():
    pid = os.getpid()
    if pid not in notes:
        notes[pid] = os.open(f"{folder}/calls.{{pid}}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(notes[pid], struct.pack("dd", time.time(), time.process_time()))

@pipeline.stage(max_in_flight=16)
async def retrieve(n):
    await asyncio.sleep(0.002)
    return n

@pipeline.stage(max_in_flight=16)
async def classify(retrieve):
    await asyncio.sleep(0.002)
    return "open"

@pipeline.stage(max_in_flight=16)
async def entities(retrieve):
    await asyncio.sleep(0.002)
    return []

@pipeline.stage(max_in_flight=64, rate_limit=limit)
async def generate(classify, entities, n):
    note()
    await asyncio.sleep({seconds})
    return n + 1
"""


@dataclass(frozen=True, slots=True)
class Run:
    """The calls of a run: when each was made, in their order, and by process the CPU time it had spent by then."""

    times: list[float]
    spent: list[list[tuple[float, float]]]

    def _middle(self) -> tuple[float, float]:
        return self.times[len(self.times) // 10], self.times[len(self.times) * 9 // 10]

    @property
    def per_second(self) -> float:
        first, last = self._middle()
        return (bisect_left(self.times, last) - bisect_left(self.times, first)) / (last - first)

    @property
    def cpu(self) -> float:
        """Seconds per record."""
        first, last = self._middle()
        seconds, calls = 0.0, 0
        for each in self.spent:
            middle = [cpu for at, cpu in each if first <= at <= last]
            if len(middle) > 1:
                seconds += middle[-1] - middle[0]
                calls += len(middle) - 1
        return seconds / calls

    @property
    def fullest(self) -> int:
        """The most calls in a second, from a second after the first."""
        times = self.times[bisect_left(self.times, self.times[0] + 1.0) :]
        return max(bisect_left(times, at + 1.0) - number for number, at in enumerate(times))


class Workshop:
    """A folder with an input, and runs over it."""

    def __init__(self, folder: Path, address: str, loop: str) -> None:
        self.folder = folder
        self.address = address
        self.loop = loop

    def run(self, replicas: int, records: int, *, limit: str = "None", seconds: float = 0.02) -> Run:
        """One run; without replicas, one that knows of no cluster."""
        here = self.folder / "run"
        shutil.rmtree(here, ignore_errors=True)
        (here / "job").mkdir(parents=True)
        (here / "job" / "job.py").write_text(JOB.format(folder=here, limit=limit, seconds=seconds))
        write_records(here / "in.jsonl", records)
        words = ["run", "job/job.py", "in.jsonl", "--progress", "off", "--loop", self.loop]
        if replicas:
            words += ["-o", "out", "--engine", "ray", "--address", self.address, "--nodes", str(replicas)]
        else:
            words += ["-o", "out.jsonl"]
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, "-m", "stageflow", *words],
            cwd=here,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise WrongAnswer(f"it ended with {done.returncode}: {done.stderr}")
        parts = sorted((here / "out").glob("part-*")) if replicas else [here / "out.jsonl"]
        lines = sum(part.read_bytes().count(b"\n") for part in parts)
        spent = [list(struct.iter_unpack("dd", path.read_bytes())) for path in here.glob("calls.*")]
        times = sorted(at for each in spent for at, _ in each)
        if lines != records or len(times) != records or len(spent) > max(replicas, 1):
            raise WrongAnswer(f"{lines} lines and {len(times)} calls of {len(spent)} processes for {records} records")
        return Run(times, [[(at, cpu) for at, cpu in each] for each in spent])


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """A Ray cluster of one machine, by its address."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 80 << 20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, **small})
    try:
        yield found.address
    finally:
        found.shutdown()


def main(argv: list[str] | None = None) -> int:
    settings = parse(__doc__, argv)
    report = Table(
        "cluster",
        settings,
        {"replicas": "", "at work": "", "per second": ",.0f", "us of CPU": ".0f", "fullest": ",.0f"},
    )
    with tempfile.TemporaryDirectory() as folder, cluster(4) as address:
        shop = Workshop(Path(folder), address, settings.loop)
        gain(report, shop, settings)
        rate(report, shop, settings)
        coordinator(report, address, settings)
    return report.finish("all replicas on the cores of this machine; fullest: calls in a second, of 1,000 allowed")


def gain(report: Table, shop: Workshop, settings: Settings) -> None:
    records = settings.size(30_000, 12_000, 1_000)
    contenders = {str(count): lambda count=count: shop.run(count, records) for count in (0, 1, 2)}
    found = in_turns(contenders, rounds=settings.size(5, 2, 1), warm_up=False)
    for name, runs in found.items():
        report.row(
            replicas=name if name != "0" else "no cluster",
            per_second=statistics.median(run.per_second for run in runs),
            us_of_CPU=statistics.median(run.cpu for run in runs) * 1e6,
        )
    speed = {name: [run.per_second for run in runs] for name, runs in found.items()}
    spent = {name: [run.cpu for run in runs] for name, runs in found.items()}
    report.at_least("two replicas over one", ratio(speed["2"], speed["1"]), GAIN)
    report.at_most("CPU of a record in a replica, over no cluster", ratio(spent["1"], spent["0"]), CPU)


def rate(report: Table, shop: Workshop, settings: Settings) -> None:
    records = settings.size(20_000, 10_000, 1_000)
    limit = f"RateLimit(per_second={LIMIT}, burst=50)"
    for count in (1, 2, 4):
        run = shop.run(count, records, limit=limit)
        at_work = str(len(run.spent))
        report.row(replicas=f"{count}, limited", at_work=at_work, per_second=run.per_second, fullest=run.fullest)
        report.at_most(f"the fullest second of {count} replicas, over the limit", run.fullest / LIMIT, OVER_LIMIT)


REPLICAS: Final = 1000


def coordinator(report: Table, address: str, settings: Settings) -> None:
    import ray

    from stageflow.cluster.engines import CoordinatorSetup
    from stageflow.cluster.ray.actors import CoordinatorActor

    class Timed(CoordinatorActor):
        async def spent(self) -> float:
            return time.process_time()

    ray.init(address, log_to_driver=False, logging_level="error")
    try:
        with tempfile.TemporaryDirectory() as folder:
            setup = CoordinatorSetup(store=folder, shards=100_000, limits={"s0": 1000.0})
            actor = ray.remote(Timed).options(num_cpus=0).remote(setup, REPLICAS)
            told, looks = asyncio.run(_ask(actor, settings.size(5, 2, 1)))
    finally:
        ray.shutdown()
    report.row(replicas=f"coordinator, {REPLICAS:,}: a report", us_of_CPU=told * 1e6)
    report.row(replicas=f"coordinator, {REPLICAS:,}: a look", us_of_CPU=looks * 1e6)


async def _ask(actor: Any, rounds: int) -> tuple[float, float]:
    """The CPU seconds of the coordinator for a report, and for a look."""
    who = [f"replica {number}" for number in range(REPLICAS)]
    held: dict[str, dict[int, int]] = {name: {} for name in who}

    async def report(name: str, at: float) -> None:
        """What it was leased last is committed, and it asks for one more."""
        committed = tuple(ShardCommit(number, attempt, 1000, 1000) for number, attempt in held[name].items())
        limits = {"s0": Asked(0.001, True)}
        orders = await actor.exchange.remote(
            Report(who=name, at=at, held={}, asks=1, committed=committed, beat=_beat(), limits=limits)
        )
        held[name] = {lease.number: lease.attempt for lease in orders.leases}

    async def all_report(at: float) -> None:
        for first in range(0, REPLICAS, 50):
            await asyncio.gather(*(report(name, at) for name in who[first : first + 50]))

    await all_report(0.0)
    started = await actor.spent.remote()
    for number in range(rounds):
        await all_report(number + 1.0)
    between = await actor.spent.remote()
    cursor = (await actor.observe.remote(0, "")).cursor
    before = await actor.spent.remote()
    for _ in range(10):
        cursor = (await actor.observe.remote(cursor, "")).cursor
    after = await actor.spent.remote()
    return (between - started) / (rounds * REPLICAS), (after - before) / 10


def _beat() -> Beat:
    """Four stages, and times of calls in buckets."""
    stages, accounts = [], {}
    for number in range(4):
        counters = StageCounters()
        counters.passed = 10_000
        counters.calls += [0.001 * each for each in range(1, 100)]
        name = f"s{number}"
        stages.append(
            StageSnapshot(
                name=name, max_in_flight=64, queue_size=64, in_flight=64, queued=64, blocked=0, passed=10_000, dead=0
            )
        )
        accounts[name] = StageAccount(counters, 10_128, 64)
    return Beat(Open(500), 500, tuple(stages), accounts)


if __name__ == "__main__":
    sys.exit(main())
