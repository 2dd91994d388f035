"""Stages with ``cache=True``: what is found is not called for, what is called for is kept, and nothing else differs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stageflow import DefinitionError, Pipeline, Price, RateLimit, RunReport, degrade, done, drop
from stageflow.cache import ResultCache
from stageflow.events import Event, Warned
from stageflow.report.summary import summary_text
from stageflow.testing import run_virtual

MILLION = 1_000_000


class Bench:
    """Runs jobs with one cache, and keeps what was called, written and told.

    Handlers have closed over it, so it is as it was whenever a run begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[Any] = []
        self.out: list[dict[str, Any]] = []
        self.dead: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.seconds = 0.0

    def on_event(self, event: Event) -> None:
        if isinstance(event, Warned):
            self.warnings.append(event.message)

    def run(self, handle: Callable[..., Any], records: list[Any], *, options: Any = None, **settings: Any) -> RunReport:
        """One stage, ``answer``, and one below it."""
        pipeline = Pipeline("job", key="id", prices={"m": Price(input=1.0, output=1.0)})
        pipeline.add_stage("answer", handle, **{"cache": True, **settings})
        pipeline.add_stage("below", lambda answer: answer, run="inline")
        return self.run_job(pipeline, records, **(options or {}))

    def run_job(self, pipeline: Pipeline, records: list[Any], **options: Any) -> RunReport:
        self.calls, self.out, self.dead, self.warnings, self.seconds = [], [], [], [], 0.0

        async def timed() -> RunReport:
            given: dict[str, Any] = {"cache": self.path, "dead": self.dead, "listeners": [self], **options}
            report = await pipeline.run(records, self.out, **given)
            self.seconds = asyncio.get_running_loop().time()
            return report

        return run_virtual(timed())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def records(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "x": n} for n in range(count)]


def slowly(bench: Bench) -> Callable[..., Any]:
    async def answer(x: int) -> dict[str, Any]:
        bench.calls.append(x)
        await asyncio.sleep(1.0)
        return {"é": [x, None, True, 1.5, "text"]}

    return answer


def test_what_was_called_for_is_found_by_the_next_run(bench: Bench) -> None:
    first = bench.run(slowly(bench), records(40))
    written = bench.out
    assert (len(bench.calls), first.stages["answer"].calls, first.stages["answer"].cached) == (40, 40, 0)
    second = bench.run(slowly(bench), records(50))
    stage = second.stages["answer"]
    assert bench.calls == list(range(40, 50))
    assert (stage.received, stage.passed, stage.cached, stage.calls) == (50, 50, 40, 10)
    assert sorted(bench.out, key=lambda line: line["x"])[:40] == sorted(written, key=lambda line: line["x"])
    assert bench.seconds == 1.0
    assert "answer: 40 of 50 from the cache, 10 calls" in summary_text(second)
    assert second.stages["below"].cached is None


def test_without_a_cache_nothing_is_found_nor_kept(bench: Bench) -> None:
    bench.run(slowly(bench), records(3))
    report = bench.run(slowly(bench), records(5), options={"cache": False})
    assert (len(bench.calls), report.stages["answer"].cached) == (5, None)
    assert "from the cache" not in summary_text(report)
    bench.run(slowly(bench), records(5))
    assert sorted(bench.calls) == [3, 4]


def test_only_what_the_handler_takes_is_part_of_the_key(bench: Bench) -> None:
    bench.run(slowly(bench), [{"x": 1, "other": 1}])
    bench.run(slowly(bench), [{"x": 1, "other": 2}])
    assert bench.calls == []
    bench.run(slowly(bench), [{"x": 1.0}, {"x": "1"}, {"x": True}])
    assert len(bench.calls) == 3


def test_a_field_that_is_absent_is_not_its_default(bench: Bench) -> None:
    async def answer(x: int, tags: Any = ()) -> list[Any]:
        bench.calls.append(tags)
        return [x, *tags]

    bench.run(answer, [{"x": 1}, {"x": 1, "tags": []}, {"x": 1, "tags": ["a"]}])
    assert len(bench.calls) == 3
    bench.run(answer, [{"x": 1}, {"x": 1, "tags": []}, {"x": 1, "tags": ["a"]}])
    assert bench.calls == []


def test_two_stages_of_one_function_are_two_samples(bench: Bench) -> None:
    async def ask(x: int) -> int:
        bench.calls.append(x)
        return len(bench.calls)

    pipeline = Pipeline("votes")
    for name in ("a", "b"):
        pipeline.add_stage(name, ask, cache=True)
    bench.run_job(pipeline, [{"x": 1}])
    (line,) = bench.out
    assert line["a"] != line["b"]
    bench.run_job(pipeline, [{"x": 1}])
    assert (bench.calls, bench.out) == ([], [line])


def test_ways_out_are_kept_and_failures_are_not(bench: Bench) -> None:
    async def answer(x: int) -> Any:
        bench.calls.append(x)
        if x == 0:
            return done("canned")
        if x == 1:
            return drop("spam")
        raise ValueError("no")

    def run() -> tuple[Any, ...]:
        report = bench.run(answer, records(3))
        stage = report.stages["answer"]
        return report.dropped, report.dead, stage.passed, stage.dropped, stage.dead, stage.cancelled, bench.out

    before = run()
    assert (before[:6], sorted(bench.calls)) == ((1, 1, 1, 1, 1, 0), [0, 1, 2])
    assert (run(), bench.calls) == (before, [2])


@pytest.mark.parametrize("on_error", ["skip", degrade(0)], ids=["skip", "degrade"])
def test_what_stands_in_is_not_kept(bench: Bench, on_error: Any) -> None:
    async def answer(x: int) -> int:
        bench.calls.append(x)
        raise ValueError("no")

    for _ in range(2):
        report = bench.run(answer, records(2), on_error=on_error)
        assert (len(bench.calls), report.written, report.stages["answer"].cached) == (2, 2, 0)


def test_a_later_attempt_is_kept(bench: Bench) -> None:
    async def answer(x: int, call: Any) -> int:
        bench.calls.append(x)
        if call.attempt < 3:
            raise ValueError("not yet")
        return x

    report = bench.run(answer, records(2), retry=3)
    assert (len(bench.calls), report.stages["answer"].retries) == (6, 4)
    bench.run(answer, records(2), retry=3)
    assert bench.calls == []


def test_a_slow_disk_is_waited_for_and_is_no_part_of_the_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[float] = []

    async def keep(self: ResultCache, key: bytes, stage: str, value: bytes) -> None:
        await asyncio.sleep(5.0)
        kept.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(ResultCache, "keep", keep)
    report = bench.run(slowly(bench), records(3), timeout=2.0)
    assert (report.written, report.dead, kept, bench.seconds) == (3, 0, [6.0] * 3, 6.0)
    assert report.stages["answer"].p95 == pytest.approx(1.0, rel=0.09)


def test_what_is_no_plain_value_is_called_for_each_time_and_told_once(bench: Bench) -> None:
    async def pair(x: int) -> Any:
        bench.calls.append(x)
        return (x, x)

    async def takes_a_pair(x: Any) -> Any:
        bench.calls.append(x)
        return 1

    for handle, given, does in (
        (pair, [{"x": 1}, {"x": 2}], "returns a value"),
        (takes_a_pair, [{"x": (1, 2)}, {"x": {3}}], 'is called with "x"'),
    ):
        for _ in range(2):
            bench.run(handle, given)
            assert len(bench.calls) == 2
            assert bench.warnings == [
                f'stage "answer" {does} that is no plain JSON: such calls are made each time, whatever its cache holds'
            ]


def test_what_is_found_takes_no_permit_and_no_money(bench: Bench) -> None:
    async def answer(x: int, call: Any) -> int:
        bench.calls.append(x)
        call.report(input_tokens=MILLION)
        return x

    settings = {"rate_limit": RateLimit(per_second=1, burst=1), "model": "m", "max_tokens": (MILLION, 0)}
    first = bench.run(answer, records(5), **settings)
    assert (bench.seconds, first.cost) == (4.0, 5.0)
    again = bench.run(answer, records(7), options={"budget": 2.0}, **settings)
    assert (again.written, again.stopped, again.cost, bench.seconds) == (7, None, 2.0, 1.0)
    assert sorted(bench.calls) == [5, 6]


def test_what_is_found_says_nothing_of_a_service_that_fails(bench: Bench) -> None:
    """Ten programming errors in the first ten calls stop the run, however much was found before."""

    async def answer(x: int) -> int:
        bench.calls.append(x)
        if x >= 200:
            raise TypeError("a mistake")
        return x

    bench.run(answer, records(200), max_in_flight=1)
    report = bench.run(answer, records(400), max_in_flight=1)
    assert (report.exit_code, report.dead, report.stages["answer"].cached) == (4, 0, 200)


def test_when_is_asked_for_what_is_found_too(bench: Bench) -> None:
    allowed = {0, 1, 2}

    async def answer(x: int) -> int:
        bench.calls.append(x)
        return x

    async def wanted(x: int) -> bool:
        return x in allowed

    bench.run(answer, records(3), when=wanted)
    allowed.remove(1)
    report = bench.run(answer, records(4), when=lambda x: x in allowed)
    assert (bench.calls, report.stages["answer"].skipped, report.stages["answer"].cached) == ([], 2, 2)
    assert [line["answer"] for line in sorted(bench.out, key=lambda line: line["x"])] == [0, None, 2, None]

    def broken(x: int) -> bool:
        raise KeyError("no")

    report = bench.run(answer, records(2), when=broken)
    assert (report.dead, bench.calls) == (2, [])


def test_of_call_what_the_function_names_is_part_of_the_key(bench: Bench) -> None:
    async def reports(x: int, call: Any) -> int:
        bench.calls.append(x)
        call.report(tokens=1)
        return x

    async def by_key(x: int, call: Any) -> Any:
        bench.calls.append(x)
        return call.key

    one, other = [{"id": "a", "x": 1}], [{"id": "b", "x": 1}]
    bench.run(reports, one)
    bench.run(reports, other)
    assert bench.calls == []
    bench.run(by_key, one)
    bench.run(by_key, other)
    assert (bench.calls, bench.out[0]["answer"]) == ([1], "b")


def test_threads_have_a_cache_too(bench: Bench) -> None:
    def answer(x: int) -> int:
        bench.calls.append(x)
        return x

    bench.run(answer, records(3))
    bench.run(answer, records(3))
    assert bench.calls == []


def test_the_results_of_stages_before_are_part_of_the_key(bench: Bench) -> None:
    found = {"a": ["one"], "b": ["two"]}

    async def retrieve(x: str) -> list[str]:
        return found[x]

    async def answer(retrieve: list[str]) -> str:
        bench.calls.append(retrieve)
        return retrieve[0]

    pipeline = Pipeline("job")
    pipeline.add_stage("retrieve", retrieve)
    pipeline.add_stage("answer", answer, cache=True)
    given = [{"x": "a"}, {"x": "b"}]
    bench.run_job(pipeline, given)
    bench.run_job(pipeline, given)
    assert bench.calls == []
    found["b"] = ["new"]
    bench.run_job(pipeline, given)
    assert bench.calls == [["new"]]


def test_a_record_given_up_elsewhere_is_not_counted_as_found(bench: Bench) -> None:
    async def answer(x: int) -> int:
        return x

    async def fails(x: int) -> int:
        raise ValueError("no")

    pipeline = Pipeline("branches")
    pipeline.add_stage("answer", answer, cache=True)
    pipeline.add_stage("fails", fails)
    for _ in range(2):
        report = bench.run_job(pipeline, records(20))
        stage = report.stages["answer"]
        assert report.dead == 20
        assert stage.received == stage.passed + stage.cancelled
        assert stage.cached is not None
        assert stage.cached <= stage.passed


def test_a_full_channel_below_holds_back_what_is_found(bench: Bench) -> None:
    async def below(answer: int) -> int:
        await asyncio.sleep(1.0)
        return answer

    async def answer(x: int) -> int:
        return x

    pipeline = Pipeline("job")
    pipeline.add_stage("answer", answer, cache=True, max_in_flight=4, queue_size=4)
    pipeline.add_stage("below", below, max_in_flight=2, queue_size=1)
    bench.run_job(pipeline, records(40))
    report = bench.run_job(pipeline, records(40))
    assert (report.written, report.stages["answer"].cached, bench.seconds) == (40, 40, 20.0)
    assert report.stages["below"].peak_depth == 1


def test_a_forecast_counts_what_was_found_as_if_it_had_been_called_for(bench: Bench) -> None:
    async def answer(x: int, call: Any) -> int:
        await asyncio.sleep(1.0)
        call.report(input_tokens=MILLION)
        return x

    settings: dict[str, Any] = {"model": "m", "max_in_flight": 4}
    bench.run(answer, records(8), **settings)
    report = bench.run(answer, records(500), options={"limit": 10}, **settings)
    assert report.cost == 2.0
    assert report.forecast is not None
    assert (report.forecast.cost, report.forecast.seconds) == (500.0, 125.0)
    # Nothing was called: nobody knows what that would take.
    assert bench.run(answer, records(500), options={"limit": 8}, **settings).forecast is None


@pytest.mark.parametrize("seed", range(10))
def test_a_cancelled_run_balances_and_keeps_what_was_paid_for(tmp_path: Path, seed: int) -> None:
    calls: list[int] = []

    async def answer(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(1.0)
        return x

    pipeline = Pipeline("job")
    pipeline.add_stage("answer", answer, cache=True, max_in_flight=4)

    async def cut_short() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await pipeline.run(records(100), [], cache=tmp_path / "cache")

    run_virtual(cut_short(), seed=seed)
    assert len(calls) == 12
    calls.clear()  # what a function has closed over is part of what it is known by
    report = run_virtual(pipeline.run(records(100), [], cache=tmp_path / "cache"), seed=seed)
    assert report.stages["answer"].cached == 8, f"seed {seed}"


def test_no_stage_has_a_cache_for_the_one_that_was_named(bench: Bench) -> None:
    bench.run(slowly(bench), records(1), cache=False)
    assert bench.warnings == [f"no stage has cache=True: nothing is kept in {bench.path}"]
    assert not bench.path.exists()


def test_a_cache_that_can_not_work_is_refused() -> None:
    from stageflow import Batch

    async def several(x: int) -> Any:
        yield x

    async def one(x: int) -> int:
        return x

    @dataclass
    class Context:
        x: int

    filled = Pipeline("job", context=Context)
    filled.add_stage("answer", one, cache=True)
    with pytest.raises(DefinitionError, match="fills in a context, and can't have a cache"):
        filled.plan()
    typed: dict[str, Any] = {"Pipeline": Pipeline, "one": one}
    exec(compile("job = Pipeline()\njob.add_stage('answer', one, cache=True)", "<stdin>", "exec"), typed)
    with pytest.raises(DefinitionError, match="was defined at a prompt, and can't have a cache"):
        typed["job"].plan()
    for handle, settings, why in (
        (several, {}, "is a generator, and can't have a cache"),
        (one, {"batch": Batch(2)}, "takes batches, and can't have a cache"),
    ):
        pipeline = Pipeline("job")
        pipeline.add_stage("answer", handle, cache=True, **settings)
        with pytest.raises(DefinitionError, match=why):
            pipeline.plan()
