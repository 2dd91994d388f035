"""Whatever the stages do, the limits, the delays and the schedule: what a run must hold to.

As ``test_engine_properties``, with everything that a stage can be and that can befall a call: children, batches,
retries, timeouts, stand-ins, ways out, permits. Each of 300 seeds draws a job and a schedule; a failure prints the
smallest job that still fails under that seed. See ``strategies_flow`` for what the contract leaves to timing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from flow_runs import (
    EPS,
    SEEDS,
    Check,
    Job,
    Planned,
    Run,
    SteadyRetry,
    balances,
    holds,
    holds_anew,
    place_of,
    run,
    run_of,
    text_of,
    whenever_time_moves,
)
from strategies_flow import (
    DELAYS,
    TIMEOUT,
    Flow,
    Key,
    message_of,
    random_flow,
)

from stageflow import Batch, Pipeline, degrade
from stageflow.channel import END
from stageflow.engine.run import Engine
from stageflow.events import Event
from stageflow.testing import run_virtual

# What must hold


def output_is_right(done: Run) -> None:
    """Every line is there exactly once, with the results that direct computation gives, and children are in order."""
    flow, dead = done.job.flow, {letter["index"] for letter in done.dead}
    written: defaultdict[int, list[str]] = defaultdict(list)
    for line in done.output:
        written[line["id"]].append(text_of(flow, line))
    for index, number in enumerate(flow.records):
        lines = {text_of(flow, line): key for key, line in done.job.right[number].lines.items()}
        if flow.on_partial == "drop" and index in dead:
            lines = {}
        assert sorted(written[number]) == sorted(lines), f"record {number}"
        keys = [lines[text] for text in written[number]]
        for level in {level for _, level in keys}:
            places = [place for place, each in keys if each == level]
            assert places == sorted(places), f"children of record {number} are out of order"
    for line in done.output:
        right = next(iter(done.job.right[line["id"]].lines.values()))
        names = ["id", *(stage.name for stage in flow.stages), "_stageflow"]
        assert list(line) == [name for name in names if name in line], right


def letters_are_right(done: Run) -> None:
    """Who must be dead is, nobody else, each item once; and a letter says what is true of its item."""
    job, flow = done.job, done.job.flow
    seen: set[Key] = set()
    for letter in done.dead:
        number, name = flow.records[letter["index"]], letter["stage"]
        right, stage = job.right[number], flow.by_name[name]
        key = (place_of(flow, letter), flow.level[name])
        assert key not in seen, f"two dead letters of {key}"
        seen.add(key)
        assert name in right.letters.get(key, ()), f"{name} is no stage at which {key} fails"
        node, fate = job.nodes[key], flow.fate(name, key[0])
        assert letter["record"] == {"id": number}
        assert set(stage.depends_on) <= letter["results"].keys()
        assert letter["results"] == {above: node.results[above] for above in letter["results"]}
        hung = fate.hangs and fate.bad >= stage.attempts
        assert letter["error"]["type"] == ("AttemptTimeout" if hung else "Planned")
        assert letter["error"]["message"] in (f"Timeout after {TIMEOUT:g} s", message_of(name, key[0]))
        assert letter["retryable"]
        expected_attempts = min(fate.bad, stage.attempts - 1) + 1
        assert letter["attempts"] == expected_attempts or (
            stage.batch and stage.attempts <= letter["attempts"] <= stage.attempts + 1
        )
    certain = {key for right in job.right.values() for key in right.certain}
    assert certain <= seen, f"{certain - seen} should be dead"
    # A failure outranks a drop, whichever was first: whose handler has failed for good is dead.
    assert job.failed <= {key[0][0] for key in seen}


def account_balances(done: Run) -> None:
    """The report adds up, per stage and for the run, and says what the handlers saw."""
    job, flow, report = done.job, done.job.flow, done.report
    dead = {letter["index"] for letter in done.dead}
    written = {flow.records.index(line["id"]) for line in done.output} - dead
    assert report.read == len(flow.records)
    assert (report.dead, report.written) == (len(dead), len(written))
    assert (report.dropped, report.not_done) == (report.read - len(dead) - len(written), 0)
    assert (report.stopped, report.exit_code) == (None, 3 if dead else 0)
    assert sum(stage.dead for stage in report.stages.values()) == len(done.dead)
    for name, said in report.stages.items():
        balances(said)
        nodes = [node for node in job.nodes.values() if node.level == flow.level[name] and name in node.ran]
        assert said.received <= len(nodes), said
        assert said.retries >= sum(len(tries) - 1 for (of, _), tries in job.attempts.items() if of == name), said
        if not any(right.letters or node.stops for right in job.right.values() for node in right.tree.family()):
            outcomes = Counter(node.notes[name][0] for node in nodes if name in node.notes)
            assert said.received == said.passed == len(nodes), said
            assert (said.degraded, said.skipped) == (outcomes["degraded"], outcomes["skipped"]), said


def items_keep_their_identity(done: Run) -> None:
    """One key per item and stage, the same for each attempt; attempts count from 1, and no more than the policy's.

    Who was in a batch that failed is tried once more, alone, beyond what its own policy allows.
    """
    job, flow = done.job, done.job.flow
    assert all(len(keys) == 1 for keys in job.keys.values())
    assert len(set.union(set(), *job.keys.values())) == len(job.keys)
    for (name, place), tries in job.attempts.items():
        stage = flow.by_name[name]
        assert tries == list(range(1, len(tries) + 1)), f"attempts of {name} {place}: {tries}"
        assert len(tries) <= stage.attempts + (stage.batch is not None), f"attempts of {name} {place}: {tries}"
    for node in job.nodes.values():
        above = [job.nodes[node.place[:depth], node.level[: depth - 1]] for depth in range(1, len(node.place))]
        if any(each.stops for each in (*above, node)):
            continue
        for name in node.ran - node.dead:
            stage, fate = flow.by_name[name], flow.fate(name, node.place)
            right = list(range(1, min(fate.bad, stage.attempts - 1) + 2)) if fate.wanted else []
            tries = job.attempts.get((name, node.place), [])
            assert tries == right or (stage.batch and fate.wanted and tries), (
                f"attempts of {name} {node.place}: {tries}"
            )


def limits_hold(done: Run) -> None:
    """No more calls, queued items, members of a batch, permits or open records than allowed."""
    job, flow, report = done.job, done.job.flow, done.report
    for stage in flow.stages:
        seen, said = job.calls[stage.name], report.stages[stage.name]
        assert seen.peak <= stage.max_in_flight, f"{seen.peak} calls at once in {said}"
        assert said.peak_in_flight <= stage.max_in_flight, said
        assert said.peak_depth <= stage.queue_size, said
    for name, size in job.sizes:
        batch = flow.by_name[name].batch
        assert batch is not None
        assert size <= batch[0], f"a batch of {size} in {name}"
    for limit, starts in job.starts.items():
        rate = flow.rates[limit]
        for first, began in enumerate(starts):
            for last in range(first, len(starts)):
                allowed = rate * (starts[last] - began) + max(1.0, rate)
                assert last - first + 1 <= allowed + EPS, f"{last - first + 1} calls within {starts[last] - began} s"
    default = sum(stage.max_in_flight + stage.queue_size for stage in flow.stages)
    assert report.max_open_records == (flow.max_open_records or default)
    assert report.peak_open <= report.max_open_records


def every_second_is_somebodys(done: Run) -> None:
    """At any time something is in progress: a call, a wait before an attempt, a gathering, a wait for a permit.

    So no run takes longer than all of these one after the other.
    """
    job, flow, report = done.job, done.job.flow, done.report
    seconds = job.seconds + flow.unhurried * sum(flow.delay("source", (number,)) for number in flow.records)
    for stage in flow.stages:
        said = report.stages[stage.name]
        visits = said.received + said.retries
        seconds += said.retries * stage.backoff
        seconds += visits * stage.batch[1] if stage.batch else 0.0
        seconds += visits / flow.rates[stage.limit] if stage.limit is not None else 0.0
    assert done.seconds <= seconds + EPS


CHECKS: list[Check] = [
    output_is_right,
    letters_are_right,
    account_balances,
    items_keep_their_identity,
    limits_hold,
    every_second_is_somebodys,
]


@pytest.mark.parametrize("check", CHECKS)
def test_every_run(check: Check) -> None:
    holds(check)


def test_in_asyncios_own_order_too() -> None:
    def check(flow: Flow, seed: int) -> None:
        done = run(flow, None)
        for each in CHECKS:
            each(done)

    holds_anew(check)


def test_output_does_not_depend_on_limits() -> None:
    """Neither on the seed: both sides are compared as they are, without ``expected`` in between."""

    def check(flow: Flow, seed: int) -> None:
        # Whether all of a record is left out because of a failure beside a drop is up to timing.
        kept = replace(flow, on_partial="keep")
        wide = tuple(replace(stage, max_in_flight=64, queue_size=64, limit=None) for stage in flow.stages)
        one = run_of(seed) if kept == random_flow(seed) else run(kept, seed)
        other = run(replace(kept, stages=wide, max_open_records=None), None)
        assert sorted(text_of(flow, line) for line in one.output) == sorted(
            text_of(flow, line) for line in other.output
        )

    holds_anew(check)


def test_a_run_can_be_repeated_exactly() -> None:
    def check(flow: Flow, seed: int) -> None:
        one, other = run(flow, seed), run(flow, seed)
        assert one.output == other.output
        assert [letter["index"] for letter in one.dead] == [letter["index"] for letter in other.dead]
        assert one.report == other.report

    holds_anew(check, range(100))


# Runs that end early


def stop_accounts(grace: float, seeds: Iterable[int] = SEEDS) -> None:
    """Every failure stops the run. A record is written with all its lines or is not done; nothing is a dead letter."""

    def check(flow: Flow, seed: int) -> None:
        # A generator that fails behind its first yield is a failure whatever stands in for one that fails before.
        fatal = {stage.name for stage in flow.stages if stage.on_error == "dead_letter" or stage.fans_out}
        strict = tuple(replace(each, on_error="abort") if each.name in fatal else each for each in flow.stages)
        done = run(replace(flow, stages=strict), seed, grace=grace)
        report, right_of = done.report, done.job.right
        written = {line["id"] for line in done.output}
        assert not done.dead
        assert (report.written, report.dead) == (len(written), 0)
        assert report.read == report.written + report.dropped + report.not_done <= len(flow.records)
        for said in report.stages.values():
            balances(said)
        for number in written:
            lines = right_of[number].lines.values()
            assert not right_of[number].certain
            assert sorted(text_of(flow, line) for line in done.lines_of(number)) == sorted(
                text_of(flow, line) for line in lines
            )
        if any(right.certain for right in right_of.values()):
            assert report.exit_code == 4
        if not any(right.letters for right in right_of.values()):
            assert (report.exit_code, report.not_done) == (0, 0)

    holds_anew(check, seeds)


@pytest.mark.parametrize("grace", [0.0, 2.5, 1e6])
def test_a_run_that_is_stopped_accounts_for_what_it_did_not_do(grace: float) -> None:
    stop_accounts(grace)


def test_whoever_leaves_the_stream_early_leaves_nothing_behind() -> None:
    """What came is right, and no task (``LeftBehind``), call, resource or timer is left."""

    def check(flow: Flow, seed: int) -> None:
        job = Job(flow)
        taken: list[dict[str, Any]] = []

        async def main() -> None:
            async with aclosing(job.pipeline.stream(job.source(), dead=[], **job.options())) as lines:
                async for line in lines:
                    taken.append(line)
                    if len(taken) > seed % 5:
                        break
            await job.assert_over()

        run_virtual(main(), seed=seed)
        for line in taken:
            right = job.right[line["id"]].lines.values()
            assert text_of(flow, line) in [text_of(flow, each) for each in right]

    holds_anew(check)


def test_a_cancelled_run_leaves_nothing_behind() -> None:
    """Cancelled at any moment, at one where something else happens above all."""

    def check(flow: Flow, seed: int) -> None:
        job = Job(flow)
        output: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []

        async def main() -> None:
            run = asyncio.create_task(job.pipeline.run(job.source(), output, dead=dead, **job.options()))
            await asyncio.sleep((0.0, 0.001, 1.0, 2.0, 3.001, TIMEOUT, TIMEOUT + 1.0)[seed % 7])
            run.cancel()
            await asyncio.wait([run])
            assert run.cancelled() or not run.exception()
            await job.assert_over()

        run_virtual(main(), seed=seed)
        assert len({(letter["index"], place_of(flow, letter), letter["stage"]) for letter in dead}) == len(dead)
        for line in output:
            right = job.right[line["id"]].lines.values()
            assert text_of(flow, line) in [text_of(flow, each) for each in right]

    holds_anew(check)


@pytest.mark.parametrize("batch", [None, Batch(2)])
@pytest.mark.parametrize("instead", ["returns", "raises"])
def test_a_handler_that_keeps_its_cancellation_to_itself_is_the_last_one(instead: str, batch: Batch | None) -> None:
    """No call follows one in which the run was cancelled, whatever that one says, and nothing of it is kept."""

    async def fail(id: int) -> None:  # noqa: A002 - the field is called so
        await asyncio.sleep(1.0)
        raise Planned("stops the run")

    async def deaf(id: Any) -> Any:  # noqa: A002 - the field is called so
        started.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            if instead == "raises":
                raise Planned("not a cancellation") from None
        return id

    started: list[float] = []
    for seed in range(100):
        started.clear()
        pipeline = Pipeline("deaf")
        pipeline.add_stage("deaf", deaf, max_in_flight=2, queue_size=1, batch=batch, retry=3)
        pipeline.add_stage("fail", fail, on_error="abort")
        output: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        report = run_virtual(
            pipeline.run([{"id": number} for number in range(9)], output, dead=dead, grace=0.0), seed=seed
        )
        assert (output, dead, report.not_done, report.seconds) == ([], [], report.read, 1.0), f"seed {seed}"
        assert max(started) < 1.0, f"seed {seed}"
        for said in report.stages.values():
            balances(said)


# Who waits for what


def test_who_waits_for_the_next_attempt_holds_nobody_up() -> None:
    """Where every further attempt is a thousand hours away, records that need none are written within the hour."""

    def check(flow: Flow, seed: int) -> None:
        slow = replace(flow, stages=tuple(replace(stage, backoff=3.6e6) for stage in flow.stages))
        slow = replace(slow, on_partial="keep", max_open_records=len(flow.records) + 1)

        async def main() -> tuple[Job, dict[int, float]]:
            job, written = Job(slow), dict[int, float]()
            clock = asyncio.get_running_loop().time
            await job.pipeline.run(
                job.source(), lambda line: written.setdefault(line["id"], clock()), dead=[], **job.options()
            )
            await job.assert_over()
            return job, written

        job, written = run_virtual(main(), seed=seed)
        for number, right in job.right.items():
            fates = [slow.fate(name, node.place) for node in right.tree.family() for name in node.ran]
            if right.lines and not any(fate.bad for fate in fates):
                assert written[number] < 3600

    holds_anew(check)


def test_nobody_rests_while_something_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever time moves, no receiver is parked at a channel that holds something, and no place for one is vacant.

    A finished item for which there is no room below takes up the place of one.
    """
    engines: list[Engine] = []
    enter = Engine.__aenter__

    async def remember(self: Engine) -> Engine:
        engines[:] = [self]
        return await enter(self)

    monkeypatch.setattr(Engine, "__aenter__", remember)
    wrong: list[str] = []

    def look() -> None:
        for engine in engines:
            for name, pool in engine.pools.items():
                waiting = [item for item in (*pool.channel.again, *pool.channel.items) if item is not END]
                lodging = len(pool.lodging.since)
                if lodging + pool.busy > pool.stage.max_in_flight:
                    wrong.append(f"{name}: {lodging} items with no room below, and {pool.busy} busy workers")
                if lodging + pool.busy == pool.stage.max_in_flight:
                    continue
                if pool.channel.parked and (waiting or pool.channel.items):
                    wrong.append(f"{name}: {len(waiting)} items and {len(pool.channel.parked)} parked receivers")
                if waiting and pool.workers < pool.stage.max_in_flight:
                    wrong.append(f"{name}: {len(waiting)} items and only {pool.workers} workers")

    def check(flow: Flow, seed: int) -> None:
        job = Job(flow)
        wrong.clear()

        async def main() -> None:
            whenever_time_moves(look)
            await job.pipeline.run(job.source(), [], dead=[], **job.options())
            engines.clear()

        run_virtual(main(), seed=seed)
        assert not wrong

    holds_anew(check)


class Batches:
    """A batch stage behind one that lets items through at random moments, and what its handler saw of time."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draw = draw = random.Random(seed)
        self.size, self.within, self.workers = draw.randint(1, 4), draw.choice((0.0, 0.5, 2.0)), draw.randint(1, 3)
        self.there: dict[int, float] = {}
        self.waits: list[tuple[float, float]] = []
        self.busy: list[tuple[float, int]] = [(0.0, 0)]

    def run(self) -> None:
        draw, output = self.draw, list[dict[str, Any]]()
        pipeline = Pipeline("batches")
        pipeline.add_stage("first", self.first, max_in_flight=draw.randint(1, 4), queue_size=draw.randint(1, 4))
        pipeline.add_stage(
            "gathered",
            self.gathered,
            batch=Batch(self.size, within=self.within),
            max_in_flight=self.workers,
            queue_size=max(self.size, draw.randint(1, 4)),
            retry=SteadyRetry(99, base=1.0),
        )
        records = [{"id": number} for number in range(draw.randint(0, 15))]
        run_virtual(pipeline.run(records, output, dead=[]), seed=self.seed)
        assert sorted(line["id"] for line in output) == [record["id"] for record in records]

    async def first(self, id: int) -> int:  # noqa: A002 - the field is called so
        await asyncio.sleep(self.draw.choice(DELAYS))
        self.there[id] = asyncio.get_running_loop().time()
        return id

    async def gathered(self, first: list[int]) -> list[int]:
        clock = asyncio.get_running_loop().time
        self.waits += [(self.there[number], clock()) for number in first]
        self.busy.append((clock(), self.busy[-1][1] + 1))
        try:
            await asyncio.sleep(self.draw.choice(DELAYS))
            if self.draw.random() < 0.2:
                raise Planned("now and then")
            return first
        finally:
            self.busy.append((clock(), self.busy[-1][1] - 1))
            # Alone in its call it comes back after the wait. From a batch it stays with the worker, for its own turn.
            self.there.update(dict.fromkeys(first, clock() + 1.0 if len(first) == 1 else inf))

    def idle(self, since: float, until: float) -> float:
        """For how much of that time a worker was there and did not call."""
        spells = pairwise([*self.busy, (until, 0)])
        return sum(max(0.0, min(b, until) - max(a, since)) for (a, count), (b, _) in spells if count < self.workers)


def test_no_batch_waits_longer_than_it_may() -> None:
    """From when an item is there until its call begins, no worker is idle for longer than ``within`` altogether."""
    for seed in SEEDS:
        batches = Batches(seed)
        batches.run()
        for since, until in batches.waits:
            idle = batches.idle(since, until)
            assert idle <= batches.within + EPS, f"seed {seed}: waited from {since} to {until}, idle for {idle} of it"


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch", [None, Batch(1)])
def test_what_comes_back_behind_the_end_finds_all_workers(workers: int, batch: Batch | None) -> None:
    """The input has ended when six records come back at one moment, and those that wait for them are the last here."""

    async def work(id: Any, call: Any) -> Any:  # noqa: A002 - the field is called so
        attempt = call[0].attempt if batch else call.attempt
        if attempt == 1:
            raise Planned("at first")
        await asyncio.sleep(3.0)
        return id

    for seed in range(100):
        pipeline = Pipeline("behind the end")
        pipeline.add_stage("work", work, max_in_flight=workers, batch=batch, retry=SteadyRetry(2, base=1.0))
        report = run_virtual(pipeline.run([{"id": number} for number in range(6)], [], dead=[]), seed=seed)
        assert (report.written, report.seconds) == (6, 1.0 + 18.0 / workers), f"seed {seed}"


class Deaf:
    """Hears of warnings and tells nobody."""

    def on_event(self, event: Event) -> None: ...


@pytest.mark.parametrize("on_error", ["degrade", "retry"])
def test_a_stage_waits_for_what_becomes_of_a_call_that_was_left_behind(on_error: str) -> None:
    """The stage below is closed only then, though all workers but those left behind have long met the end."""

    async def stubborn(id: int, call: Any) -> int:  # noqa: A002 - the field is called so
        if id == 0 and call.attempt == 1:
            for _ in range(2):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(100)
        return id

    async def stand_in(error: Exception) -> int:
        await asyncio.sleep(50)
        return 0

    async def below(above: int) -> int:
        await asyncio.sleep(1)
        return above

    for seed in range(100):
        pipeline = Pipeline("left behind")
        settings: dict[str, Any] = {"on_error": degrade(stand_in)} if on_error == "degrade" else {"retry": 2}
        pipeline.add_stage("above", stubborn, timeout=1, max_in_flight=2, **settings)
        pipeline.add_stage("below", below)
        output: list[dict[str, Any]] = []
        source = [{"id": number} for number in range(3)]
        report = run_virtual(pipeline.run(source, output, dead=[], listeners=[Deaf()]), seed=seed)
        assert sorted(line["below"] for line in output) == [0, 1, 2], f"seed {seed}"
        assert report.stages["above"].abandoned == 1
        for said in report.stages.values():
            balances(said)
