"""Calls that take long are made a second time: when, within which limits, and what becomes of both."""

from __future__ import annotations

import asyncio
import random
import sys
from bisect import bisect_right
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest
from hedged_jobs import KNOWN, PATIENCE, Answers, Service, now

from stageflow import Hedge, Pipeline, RateLimit, Retry, RunReport, done, drop
from stageflow.engine.run import Engine
from stageflow.engine.watch import _place_of
from stageflow.errors import AttemptTimeout
from stageflow.testing import run_virtual

SLOW = KNOWN + 20
"""The record whose first call is slow, where only one is: enough is known when it begins."""


def one_slow(first: Any, second: Any, usual: Any = 1.0) -> Answers:
    """All calls take a second but those for one record."""
    return lambda x, which: usual if x != SLOW else (first if which == 1 else second)


class Run:
    """A run over so many records, as far as it got."""

    def __init__(
        self, service: Service, pipeline: Pipeline, *, records: int = SLOW + 1, seed: int | None = None
    ) -> None:
        self.output: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        source = [{"x": x} for x in range(records)]
        self.report: RunReport = run_virtual(pipeline.run(source, self.output, dead=self.dead), seed=seed)
        self.stage = self.report.stages["answer"]
        self.results = {record["x"]: record["answer"] for record in self.output}
        began, *_ = service.begun.get(SLOW, [0.0])
        self.begun = [at - began for at in service.begun[SLOW]]
        self.ended = [at - began for at in service.ended[SLOW]]

    @property
    def counts(self) -> tuple[int, int]:
        return self.stage.hedged, self.stage.hedges_won


def run(answers: Answers, *, records: int = SLOW + 1, max_in_flight: int = 4, **settings: Any) -> tuple[Run, Service]:
    service = Service(answers)
    return Run(service, service.pipeline(max_in_flight=max_in_flight, **settings), records=records), service


# Which of the two counts


def test_a_second_call_is_made_after_the_quantile_and_its_answer_counts() -> None:
    done, service = run(one_slow(50.0, 1.0))
    assert done.begun == [0.0, pytest.approx(PATIENCE)]
    assert done.ended == [pytest.approx(PATIENCE + 1.0)] * 2
    assert done.results[SLOW] == 2
    assert service.cut == {SLOW: 1}
    assert done.counts == (1, 1)
    assert done.stage.passed == done.report.written == SLOW + 1
    assert done.stage.busy == pytest.approx((SLOW * 1.0 + (PATIENCE + 1.0) + 1.0) / (4 * done.report.seconds))


def test_the_first_call_counts_where_it_is_first() -> None:
    done, service = run(one_slow(1.5, 1.0))
    assert done.begun == [0.0, pytest.approx(PATIENCE)]
    assert done.ended == [pytest.approx(1.5)] * 2
    assert done.results[SLOW] == 1
    assert service.cut == {SLOW: 1}
    assert done.counts == (1, 0)


def test_a_call_that_answers_in_time_is_made_once() -> None:
    done, service = run(lambda x, which: 1.0, records=300)
    assert done.counts == (0, 0)
    assert all(len(begun) == 1 for begun in service.begun.values())


def test_nothing_is_made_twice_before_it_is_known_how_long_calls_take() -> None:
    done, _ = run(lambda x, which: 50.0 if x == KNOWN - 1 else 1.0, records=KNOWN)
    assert done.counts == (0, 0)


def test_both_calls_have_one_idempotency_key() -> None:
    _, service = run(one_slow(50.0, 1.0))
    first, second = service.keys[SLOW]
    assert first == second
    assert len({key for keys in service.keys.values() for key in keys}) == SLOW + 1


def test_both_calls_see_the_context_of_their_worker() -> None:
    mine: ContextVar[int] = ContextVar("mine")
    seen: list[int | None] = []

    def answers(x: int, which: int) -> float:
        if x == SLOW:
            seen.append(mine.get(None))
        elif x < KNOWN // 2:
            mine.set(x)
        return 50.0 if x == SLOW and which == 1 else 1.0

    done, _ = run(answers, records=SLOW + 20)  # a stage that is full: the place is another worker's
    assert done.counts == (1, 1)
    assert seen[0] == seen[1] is not None


def test_who_watches_the_loop_knows_whose_call_it_is() -> None:
    told: list[tuple[str, str]] = []

    async def holds_the_loop(call: Any) -> None:
        told.append(_place_of(sys._getframe()))
        await asyncio.sleep(50.0 if len(told) == 1 else 1.0)

    run(one_slow(holds_the_loop, holds_the_loop))
    assert [who for who, _ in told] == ['stage "answer"'] * 2


@pytest.mark.parametrize(("way", "dropped"), [(done("early"), 0), (drop("spam"), 1)])
def test_a_second_call_may_leave_the_ordinary_way(way: Any, dropped: int) -> None:
    async def leaves(call: Any) -> Any:
        return way

    run_, _ = run(one_slow(50.0, leaves))
    assert run_.report.dropped == dropped
    assert run_.results.get(SLOW) == (None if dropped else "early")
    assert run_.counts == (1, 1)


def test_when_is_not_asked_a_second_time() -> None:
    asked: list[int] = []
    service = Service(one_slow(50.0, 1.0))

    def when(x: int) -> bool:
        asked.append(x)
        return x != 5

    done = Run(service, service.pipeline(when=when, max_in_flight=4))
    assert sorted(asked) == list(range(SLOW + 1))
    assert done.counts == (1, 1)
    assert done.stage.skipped == 1


# Failures


def fails(seconds: float, error: BaseException) -> Any:
    async def failing(call: Any) -> None:
        await asyncio.sleep(seconds)
        raise error

    return failing


def test_a_second_call_that_fails_leaves_the_first_to_go_on() -> None:
    done, _ = run(one_slow(9.0, fails(1.0, ValueError("second"))))
    assert done.ended == [pytest.approx(PATIENCE + 1.0), pytest.approx(9.0)]
    assert done.results[SLOW] == 1
    assert done.counts == (1, 0)


def test_a_first_call_that_fails_leaves_the_second_to_go_on() -> None:
    done, service = run(one_slow(fails(2.0, ValueError("first")), 4.0))
    assert done.ended == [pytest.approx(2.0), pytest.approx(PATIENCE + 4.0)]
    assert done.results[SLOW] == 2
    assert done.counts == (1, 1)
    assert done.stage.dead == 0
    assert service.cut == {}


@pytest.mark.parametrize("earlier", ["first", "second"])
def test_where_both_fail_the_first_failure_is_the_items(earlier: str) -> None:
    times = {"first": 5.0, "second": 5.0} | {earlier: 2.0}
    answers = one_slow(
        fails(times["first"], ValueError("first")), fails(times["second"] - PATIENCE, ValueError("second"))
    )
    done, _ = run(answers)
    assert [letter["error"]["message"] for letter in done.dead] == [earlier]
    assert done.counts == (1, 0)
    assert max(done.ended) == pytest.approx(5.0)


def test_a_call_that_fails_before_it_takes_long_is_not_made_twice_but_tried_again() -> None:
    done, _ = run(one_slow(fails(0.5, ValueError("early")), 1.0), retry=Retry(2, base=1.0, cap=1.0))
    assert done.results[SLOW] == 2
    assert (done.stage.retries, *done.counts) == (1, 0, 0)


def test_each_attempt_may_be_made_twice() -> None:
    def answers(x: int, which: int) -> Any:
        if x != SLOW:
            return 1.0
        return {1: fails(3.0, OSError("a")), 2: fails(3.0, OSError("b")), 3: 50.0, 4: 1.0}[which]

    done, _ = run(answers, retry=2)
    assert done.results[SLOW] == 4
    assert (done.stage.retries, *done.counts) == (1, 2, 1)


def test_an_exit_in_either_call_is_the_items_failure() -> None:
    done, _ = run(one_slow(fails(2.0, SystemExit(3)), fails(2.0, KeyboardInterrupt())))
    (letter,) = done.dead
    assert "SystemExit" in letter["error"]["message"]
    assert done.report.written == SLOW


def test_a_call_that_cancels_itself_fails_alone() -> None:
    async def gives_up(call: Any) -> None:
        await asyncio.sleep(2.0)
        raise asyncio.CancelledError

    done, _ = run(one_slow(gives_up, 4.0))
    assert done.results[SLOW] == 2
    done, _ = run(one_slow(gives_up, gives_up))
    # What befell it from outside is tried once more, and the third call is usual again.
    assert done.stage.retries == 1


class TooMany(Exception):
    """As a service says it that asks to be left alone."""

    status_code = 429

    def __init__(self) -> None:
        super().__init__("429")
        self.headers = {"Retry-After": "20"}


def test_a_service_that_wants_to_be_left_alone_is_though_the_other_call_succeeds() -> None:
    done, service = run(one_slow(fails(2.5, TooMany()), 4.0), records=SLOW + 20, max_in_flight=2)
    assert done.results[SLOW] == 2
    said = service.begun[SLOW][0] + 2.5
    later = [at for begun in service.begun.values() for at in begun if at > said]
    assert later
    assert min(later) == pytest.approx(said + 20.0)


# Limits


def assert_kept(extra: float, service: Service) -> None:
    """At no time there were more second calls than that share of the first ones."""
    firsts, seconds = service.calls()
    for made, at in enumerate(seconds, 1):
        assert made <= extra * bisect_right(firsts, at), f"at {at} s"


def test_a_stage_is_never_fuller_and_a_second_call_comes_before_the_next_item() -> None:
    def answers(x: int, which: int) -> float:
        return 50.0 if x in (SLOW, SLOW + 1) and which == 1 else 1.0

    done, service = run(answers, records=SLOW + 40, max_in_flight=4)
    assert service.peak == done.stage.peak_in_flight == 4
    assert done.counts == (2, 2)
    # All places are taken when the two become slow, and free when the others' calls of a second end.
    assert done.begun == [0.0, pytest.approx(2.0)]
    assert done.report.seconds == pytest.approx((SLOW + 40 + 4) / 4 + 0.0, abs=1.5)


def test_a_stage_with_one_worker_makes_no_second_call() -> None:
    done, service = run(one_slow(50.0, 1.0), max_in_flight=1)
    assert done.counts == (0, 0)
    assert service.peak == 1


def test_the_share_of_second_calls_is_kept() -> None:
    def answers(x: int, which: int) -> float:
        return 50.0 if x >= SLOW and x % 4 == 0 and which == 1 else 1.0

    done, service = run(answers, records=400, max_in_flight=16, hedge=0.05)
    firsts, seconds = service.calls()
    assert len(firsts) == 400
    assert len(seconds) == done.stage.hedged >= 8
    assert_kept(0.05, service)


def test_a_second_call_waits_for_no_permit() -> None:
    limit = RateLimit(per_second=2.0, burst=1)
    done, service = run(one_slow(50.0, 1.0), rate_limit=limit, records=SLOW + 60, max_in_flight=16)
    begun = sorted(at for each in service.begun.values() for at in each)
    assert min(b - a for a, b in pairwise(begun)) >= 0.5 - 1e-6
    # While others wait for their permit it is theirs.
    assert done.counts == (1, 1)
    assert begun[-1] == service.begun[SLOW][1]


def test_a_second_call_takes_the_permit_that_is_there() -> None:
    limit = RateLimit(per_second=2.0, burst=1)
    done, _ = run(one_slow(50.0, 1.0), rate_limit=limit, max_in_flight=16)
    assert done.begun == [0.0, pytest.approx(PATIENCE)]
    assert done.counts == (1, 1)


def telling(seconds: float, tokens: int = 100) -> Any:
    async def tells(call: Any) -> None:
        call.report(tokens=tokens)
        await asyncio.sleep(seconds)

    return tells


def test_a_second_call_is_made_when_there_are_tokens_for_it() -> None:
    """A hundred tokens a second, and calls of a hundred that take a fifth of that."""
    limit = RateLimit(tokens_per_minute=6_000)
    answers = one_slow(telling(50.0), telling(0.2), telling(0.2))
    done, _ = run(answers, rate_limit=limit)
    assert done.counts == (1, 1)
    asked = 0.2 * PATIENCE  # and as long again each time
    assert done.begun == [0.0, pytest.approx(5 * asked, rel=0.05)]
    assert 4 * asked < 1.0 <= done.begun[1]


def test_what_a_second_call_did_not_use_of_its_tokens_comes_back() -> None:
    """A record that comes after it finds enough for its call."""
    over = asyncio.Event()

    async def uses_nothing(call: Any) -> None:
        call.report(tokens=0)
        await asyncio.sleep(0.2)
        over.set()

    service = Service(one_slow(telling(50.0), uses_nothing, telling(0.2)))
    pipeline = service.pipeline(max_in_flight=4, rate_limit=RateLimit(tokens_per_minute=6_000))

    async def source() -> Any:
        for x in range(SLOW + 1):
            yield {"x": x}
        await over.wait()
        yield {"x": SLOW + 1}

    report = run_virtual(pipeline.run(source(), []))
    assert report.stages["answer"].hedges_won == 1
    assert service.begun[SLOW + 1] == [pytest.approx(service.ended[SLOW][0])]


def test_finished_items_without_room_below_keep_their_places() -> None:
    service = Service(lambda x, which: 50.0 if x == SLOW and which == 1 else 1.0)
    pipeline = service.pipeline(max_in_flight=4)

    async def below(answer: Any, x: int) -> int:
        await asyncio.sleep(30.0 if x > 20 else 0.1)
        return x

    pipeline.add_stage("below", below, max_in_flight=1, queue_size=1)
    done = Run(service, pipeline, records=SLOW + 10)
    assert done.report.written == SLOW + 10
    assert service.peak <= 4
    assert done.counts in ((0, 0), (1, 1))


def test_a_record_that_was_given_up_elsewhere_is_not_asked_for_again() -> None:
    begun = asyncio.Event()

    async def slow(call: Any) -> None:
        begun.set()
        await asyncio.sleep(50.0)

    service = Service(one_slow(slow, 1.0))
    pipeline = service.pipeline(max_in_flight=4)

    async def beside(x: int) -> int:
        if x == SLOW:
            await begun.wait()
            raise ValueError("beside")
        return x

    pipeline.add_stage("beside", beside)
    done = Run(service, pipeline)
    assert done.counts == (0, 0)
    assert [letter["index"] for letter in done.dead] == [SLOW]
    assert done.stage.cancelled == 1


def test_the_place_of_a_second_call_that_fails_is_the_next_items() -> None:
    done, service = run(one_slow(9.0, fails(1.0, OSError())), records=SLOW + 20, max_in_flight=2)
    assert done.begun == [0.0, pytest.approx(2.0)]
    later = [service.begun[x][0] - service.begun[SLOW][0] for x in range(SLOW + 1, SLOW + 20)]
    assert later[:4] == [pytest.approx(at) for at in (0.0, 1.0, 3.0, 4.0)]


def test_the_place_of_a_second_call_that_fails_is_that_of_another_second_call() -> None:
    """Nobody looks for the next item meanwhile: there is none."""

    def answers(x: int, which: int) -> Any:
        if x < SLOW:
            return 1.0
        return 9.0 if which == 1 else fails(0.5, OSError())

    async def source() -> Any:
        for x in range(SLOW + 2):
            yield {"x": x}
        await asyncio.sleep(SLOW + 60.0)

    service = Service(answers)
    report = run_virtual(service.pipeline(max_in_flight=3).run(source(), []))
    begun, again = service.begun[SLOW]
    assert again - begun == pytest.approx(PATIENCE)
    begun, again = service.begun[SLOW + 1]
    assert again - begun == pytest.approx(PATIENCE + 0.5)
    assert report.stages["answer"].hedged == 2


# Ends


def test_the_timeout_is_that_of_the_attempt_and_ends_both() -> None:
    done, service = run(one_slow(50.0, 60.0), timeout=10.0)
    assert done.ended == [pytest.approx(10.0)] * 2
    assert service.cut == {SLOW: 2}
    (letter,) = done.dead
    assert letter["error"]["message"] == "Timeout after 10 s"
    assert letter["error"]["type"] == AttemptTimeout.__name__
    assert done.counts == (1, 0)
    assert done.stage.abandoned == 0


def test_an_attempt_whose_time_is_over_has_timed_out_though_one_call_had_failed_before() -> None:
    done, service = run(one_slow(fails(2.0, ValueError("first")), 60.0), timeout=10.0)
    (letter,) = done.dead
    assert letter["error"]["message"] == "Timeout after 10 s"
    assert service.cut == {SLOW: 1}


def test_an_attempt_that_timed_out_is_tried_again() -> None:
    done, service = run(lambda x, which: 50.0 if x == SLOW and which < 3 else 1.0, timeout=10.0, retry=2)
    assert done.results[SLOW] == 3
    assert service.cut == {SLOW: 2}
    assert (done.stage.retries, *done.counts) == (1, 1, 0)


def stays(seconds: float) -> Any:
    """A call that swallows its cancellation, and stays for so long."""

    async def staying(call: Any) -> None:
        end = now() + seconds
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                continue

    return staying


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_loser_that_does_not_end_is_left_behind_after_the_grace(seed: int | None) -> None:
    service = Service(one_slow(stays(100.0), 1.0))
    done = Run(service, service.pipeline(max_in_flight=4), records=SLOW + 40, seed=seed)
    assert done.results[SLOW] == 2
    assert done.stage.abandoned == 1
    assert done.report.written == SLOW + 40
    assert done.counts == (1, 1)


@pytest.mark.parametrize("timeout", [2.5, 3.5, 6.0])
def test_a_result_is_kept_though_the_time_is_over_while_the_loser_ends(timeout: float) -> None:
    done, _ = run(one_slow(stays(4.0), 1.0), timeout=timeout)
    assert done.results[SLOW] == 2
    assert done.ended[-1] == pytest.approx(4.0)
    assert done.stage.abandoned == 0


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_two_calls_that_outlive_their_timeout_are_left_behind(seed: int | None) -> None:
    service = Service(one_slow(stays(500.0), stays(500.0)))
    done = Run(service, service.pipeline(max_in_flight=4, timeout=10.0), records=SLOW + 100, seed=seed)
    (letter,) = done.dead
    assert letter["error"]["message"] == "Timeout after 10 s"
    assert done.stage.abandoned == 2
    assert done.report.written == SLOW + 99
    assert done.report.seconds < 100


def test_a_loser_may_take_its_time_to_clean_up() -> None:
    cleaned: list[float] = []

    async def cleans_up(call: Any) -> None:
        try:
            await asyncio.sleep(50.0)
        finally:
            await asyncio.sleep(2.0)
            cleaned.append(now())

    done, service = run(one_slow(cleans_up, 1.0))
    assert done.results[SLOW] == 2
    assert cleaned == [pytest.approx(service.begun[SLOW][0] + PATIENCE + 3.0)]
    assert done.stage.abandoned == 0


@pytest.mark.parametrize("seconds", [0.5, PATIENCE / 2, PATIENCE, 1.5, 2.0])
@pytest.mark.parametrize("clean_up", [0.0, 1.0])
def test_the_end_of_the_run_ends_both(seconds: float, clean_up: float, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Engine] = []
    enter = Engine.__aenter__

    async def remember(self: Engine) -> Engine:
        engines.append(self)
        return await enter(self)

    monkeypatch.setattr(Engine, "__aenter__", remember)
    disturbed: list[float] = []

    async def hangs(call: Any) -> None:
        try:
            await asyncio.sleep(1000.0)
        finally:
            try:
                await asyncio.sleep(clean_up)
            except asyncio.CancelledError:
                disturbed.append(now())

    async def main() -> None:
        service = Service(one_slow(hangs, hangs))
        source = [{"x": x} for x in range(SLOW + 1)]
        task = asyncio.create_task(service.pipeline(max_in_flight=4).run(source, []))
        await asyncio.sleep(SLOW / 4 + 0.25)
        await asyncio.sleep(service.begun[SLOW][0] + seconds - now())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert service.flying == 0
        pool = engines[0].pools["answer"]
        assert (pool.busy, pool.counters.in_flight) == (1, 1), "that of the worker, which was cancelled with its item"
        assert pool.counters.cancelled == 1
        assert disturbed == []

    run_virtual(main())


# The whole of it


def tail(seed: int, share: float, times: float) -> Answers:
    chance = random.Random(seed)
    return lambda x, which: chance.uniform(0.9, 1.1) * (times if chance.random() < share else 1.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_tail_of_two_in_a_hundred_is_cut_by_three_in_a_hundred_more_calls(seed: int) -> None:
    """A service with 2 % of its calls fifty times as slow: the slowest half in a hundred is three times as fast."""
    records, times = 8_000, {}
    for hedge in (None, Hedge(extra=0.03)):
        service = Service(tail(seed, 0.02, 50.0))
        done = Run(service, service.pipeline(hedge, max_in_flight=32), records=records)
        took = sorted(ended[-1] - service.begun[x][0] for x, ended in service.ended.items())
        times[hedge is not None] = took[int(0.995 * records)]
        made = sum(map(len, service.begun.values()))
        assert made == records + done.stage.hedged
        assert made <= 1.03 * records
        assert service.peak <= 32
        assert done.report.written == records
    assert times[False] > 3 * times[True], f"seed {seed}"
