"""Rate limits, on the virtual clock: how many calls start in any window, and what the wait for a permit counts as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from service import ApiError, Service, most_in_any, records, run, run_here

from stageflow import Pipeline, RateLimit, Retry, drop
from stageflow.engine.gate import Gate
from stageflow.engine.limiter import Limiter
from stageflow.events import Event, RunStarted, Snapshot
from stageflow.testing import run_virtual

LIMITS = {
    "one a second": (RateLimit(per_second=1), 1.0, 1),
    "five a second": (RateLimit(per_second=5), 5.0, 5),
    "90 a minute": (RateLimit(per_minute=90), 1.5, 2),
    "a burst of 20": (RateLimit(per_second=2, burst=20), 2.0, 20),
    "one in ten seconds": (RateLimit(per_minute=6), 0.1, 1),
}
WINDOWS = (0.0, 0.1, 1.0, 3.3, 10.0, 60.0)


def within(times: list[float], rate: float, burst: float) -> bool:
    return all(most_in_any(times, window) <= rate * window + burst + 1e-6 for window in WINDOWS)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_two_stages_that_share_a_limit_keep_it_together(limit: str, seed: int | None) -> None:
    shared, rate, burst = LIMITS[limit]
    draw = Random(str(seed))
    pipeline, starts = Pipeline("limits"), list[float]()

    async def call(i: int) -> Any:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(draw.choice([0.0, 0.01, 0.5, 4.0]))
        if draw.random() < 0.1:
            raise ApiError(503)
        if draw.random() < 0.02:
            raise ApiError(429, {"Retry-After": draw.choice(["0.5", "3"])})
        return drop("drawn") if draw.random() < 0.1 else i

    pipeline.add_stage("left", call, rate_limit=shared, max_in_flight=8, retry=9)
    pipeline.add_stage("right", call, rate_limit=shared, max_in_flight=3, retry=9)
    pipeline.add_stage("below", lambda left: left, run="inline")
    outcome = run(pipeline, records(150), seed=seed)
    print(f"seed {seed}: {len(starts)} calls")
    assert within(starts, rate, burst)
    # What the limit allows is used: the whole time but for pauses, in which the bucket fills once.
    assert len(starts) >= 0.6 * rate * outcome.ended


def test_a_burst_after_idling_is_no_more_than_the_bucket() -> None:
    service, pipeline = Service(seconds=0.1), Pipeline("limits")

    async def source() -> Any:
        for i in range(100):
            if i == 50:
                await asyncio.sleep(1000)
            yield {"i": i}

    @pipeline.stage(rate_limit=RateLimit(per_second=2, burst=10), max_in_flight=64)
    async def generate(i: int) -> None:
        await service.call()

    run(pipeline, source())
    assert within(service.starts, 2, 10)
    later = [start for start in service.starts if start >= 1000]
    assert len(later) == 50
    assert later[:11] == [later[0]] * 10 + [later[0] + 0.5]


def test_a_pause_is_no_reason_to_save_up_permits() -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "30"}) if number == 2 else None, seconds=0.0)
    pipeline = Pipeline("limits")

    @pipeline.stage(rate_limit=RateLimit(per_second=1, burst=1), max_in_flight=16, retry=5)
    async def generate(i: int) -> None:
        await service.call()

    run(pipeline, records(40))
    assert service.starts == [0.0, 1.0, *(31.0 + place for place in range(39))]


def test_a_call_that_waits_for_tokens_saves_up_no_permit() -> None:
    starts: list[float] = []
    pipeline = Pipeline("limits")

    @pipeline.stage(rate_limit=RateLimit(per_second=1, burst=1, tokens_per_minute=6000), max_in_flight=16)
    async def generate(i: int, call: Any) -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.5)
        call.report(tokens=3000 if i == 0 else 1)  # the first one owes half a minute

    run(pipeline, records(60))
    assert within(starts, 1, 1)


def test_a_record_that_was_given_up_while_it_waited_is_not_called_with_and_its_permit_is_used() -> None:
    paid: list[tuple[float, int]] = []
    pipeline = Pipeline("limits")

    @pipeline.stage(rate_limit=RateLimit(per_second=1, burst=1), max_in_flight=4)
    async def generate(i: int) -> None:
        paid.append((asyncio.get_running_loop().time(), i))

    @pipeline.stage(max_in_flight=64)
    async def moderate(i: int) -> Any:
        await asyncio.sleep(0.5)
        return drop("blocked") if i % 2 else True

    outcome = run(pipeline, records(20))
    # Half of those that were waited with at first had been dropped at 0.5; each left its permit to the next one.
    assert [start for start, _ in paid] == [float(second) for second in range(10)]
    assert sorted(i for _, i in paid) == list(range(0, 20, 2))
    assert outcome.report.stages["generate"].cancelled == 10
    assert (outcome.report.written, outcome.report.dropped) == (10, 10)


def test_a_permit_that_nobody_used_is_there_for_the_next_record() -> None:
    paid: list[tuple[float, int]] = []
    pipeline = Pipeline("limits")

    async def source() -> Any:
        yield {"i": 0}
        yield {"i": 1}
        await asyncio.sleep(12.0)
        yield {"i": 2}

    @pipeline.stage(rate_limit=RateLimit(per_minute=6))
    async def generate(i: int) -> None:
        paid.append((asyncio.get_running_loop().time(), i))

    @pipeline.stage
    async def moderate(i: int) -> Any:
        await asyncio.sleep(0.5)
        return drop("blocked") if i == 1 else True

    run(pipeline, source())
    assert paid == [(0.0, 0), (12.0, 2)]  # the permit of 10.0 was for the record that had been dropped


def test_a_permit_that_is_given_back_lets_no_two_calls_start_at_once() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        gate = Gate(Limiter(RateLimit(per_second=1, burst=1), loop.time), loop.time)
        starts: list[float] = []

        async def call() -> None:
            await gate.wait()
            starts.append(loop.time())

        await gate.wait()
        await gate.wait()
        calls = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.sleep(0.5)
        gate.give_back(0.0)
        await asyncio.gather(*calls)
        return starts

    assert run_virtual(main()) == [2.0, 3.0, 4.0]


# Tokens


def use(
    tokens: Callable[[int], int], limit: RateLimit, count: int, **settings: Any
) -> tuple[list[tuple[float, int]], float]:
    """What calls of five seconds use, and when they start; and when the last one has ended."""
    used: list[tuple[float, int]] = []
    pipeline = Pipeline("limits")

    async def generate(i: int, call: Any) -> None:
        used.append((asyncio.get_running_loop().time(), tokens(i)))
        await asyncio.sleep(5.0)
        call.report(tokens=tokens(i))

    pipeline.add_stage("generate", generate, rate_limit=limit, **settings)
    outcome = run(pipeline, records(count))
    assert outcome.report.stages["generate"].tokens == sum(number for _, number in used)
    return used, outcome.ended


TOKENS: dict[str, Callable[[int], int]] = {
    "all alike": lambda i: 1000,
    "small": lambda i: 100,
    "large": lambda i: 5000,
    "mixed": lambda i: Random(i).randint(1, 4000),
    "growing": lambda i: 200 + i,
    "shrinking": lambda i: 4000 - i,
}


@pytest.mark.parametrize("kind", TOKENS)
def test_in_the_long_run_tokens_are_used_at_the_limit_the_first_calls_included(kind: str) -> None:
    limit, count = 60_000, 3000 if kind != "small" else 12_000
    used, _ = use(TOKENS[kind], RateLimit(tokens_per_minute=limit), count, max_in_flight=64)
    last = used[-1][0]
    assert last > 10 * 60
    # The tokens of the last calls flow in behind them.
    assert sum(tokens for start, tokens in used if start < last) / last * 60 == pytest.approx(limit, rel=0.02)


def test_tokens_are_counted_without_a_limit_too() -> None:
    pipeline = Pipeline("limits")

    @pipeline.stage
    async def generate(i: int, call: Any) -> None:
        call.report(tokens=3)
        if i % 2:
            await asyncio.sleep(1.0)
        call.report(tokens=4)

    assert run(pipeline, records(1000)).report.stages["generate"].tokens == 7000


def test_calls_that_do_not_wait_report_their_tokens_too() -> None:
    pipeline = Pipeline("limits")

    @pipeline.stage(rate_limit=RateLimit(tokens_per_minute=600))
    async def generate(i: int, call: Any) -> None:
        call.report(tokens=5)

    outcome = run(pipeline, records(1000))
    assert outcome.report.stages["generate"].tokens == 5000
    assert outcome.ended == pytest.approx(5000 / 10, rel=0.02)


# What the wait is counted as


def test_the_wait_for_a_permit_is_counted_by_itself() -> None:
    service, pipeline = Service(seconds=2.0), Pipeline("limits")

    @pipeline.stage(rate_limit=RateLimit(per_minute=6), max_in_flight=4, timeout=3.0)
    async def generate(i: int) -> None:
        await service.call()

    outcome = run(pipeline, records(31))
    stage = outcome.report.stages["generate"]
    assert service.starts == pytest.approx([10.0 * place for place in range(31)])
    assert outcome.report.exit_code == 0  # a wait of up to forty seconds, and a timeout of three
    assert (stage.retries, stage.dead) == (0, 0)
    assert stage.p50 == pytest.approx(2.0, rel=0.09)
    assert stage.p95 == pytest.approx(2.0, rel=0.09)
    workers = stage.max_in_flight * outcome.report.seconds
    assert stage.busy * workers == pytest.approx(31 * 2.0)
    assert stage.waiting > 0.5
    assert stage.busy + stage.blocked + stage.waiting + stage.starved == pytest.approx(1.0)


# Nothing but refusals


class Watch:
    snapshot: Callable[[], Snapshot]

    def on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.snapshot = event.snapshot


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_stage_that_is_only_refused_neither_spins_nor_stalls_in_silence(seed: int | None) -> None:
    service = Service(lambda number, now: ApiError(429, {"Retry-After": "7"}), seconds=0.5)
    pipeline, watch = Pipeline("limits"), Watch()

    @pipeline.stage(max_in_flight=8, retry=Retry(4))
    async def generate(i: int) -> None:
        await service.call()

    async def main() -> None:
        running = asyncio.create_task(run_here(pipeline, records(40), listeners=[watch]))
        for second in range(100):
            await asyncio.sleep(1.0 if second else 0.75)
            (stage,) = watch.snapshot().stages
            assert stage.paused > 0 or service.in_progress > 0
            assert stage.in_flight == service.in_progress
        outcome = await running
        assert outcome.warnings == ['stage "generate" waits 7 s: the service said so']
        assert outcome.report.exit_code == 3
        assert outcome.report.dead == 40
        assert outcome.dead[0]["error"]["message"] == "status 429"
        assert {letter["attempts"] for letter in outcome.dead} == {4}
        assert len(service.starts) == 4 * 40
        assert most_in_any(service.starts, 7.0) <= 8

    run_virtual(main(), seed=seed)


def test_refusals_without_a_time_are_waited_out_record_by_record() -> None:
    service = Service(lambda number, now: ApiError(429), seconds=0.0)
    pipeline = Pipeline("limits")

    @pipeline.stage(max_in_flight=1, retry=Retry(6, base=1.0))
    async def generate(i: int) -> None:
        await service.call()

    outcome = run(pipeline, records(100))
    assert len(service.starts) == 600
    assert outcome.warnings == []
    assert outcome.report.dead == 100
    assert outcome.ended > 16 / 4  # the last wait alone is up to 16 s
