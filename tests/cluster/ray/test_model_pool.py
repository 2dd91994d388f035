"""Calls that go several at a time to the model which has the fewest; and what becomes of those that a lost one had."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stageflow import DefinitionError, Pipeline, RequestError, SettingError, WorkerDied
from stageflow.cluster.ray.pool import ModelPool
from stageflow.cluster.sharded import _models
from stageflow.engine.deadlines import SWALLOW_GRACE
from stageflow.engine.targets import target_of
from stageflow.options import Options
from stageflow.testing import run_virtual

KILLER, HANGS, WRONG = -1, -2, -3
ANSWER_SECONDS = 1.0


class FakeModel:
    """Doubles numbers, a second for each message, one message after another; dies of ``KILLER``."""

    def __init__(self, back: Callable[[], Awaitable[object]] | None = None) -> None:
        self.got: list[tuple[float, list[int]]] = []
        self.open: list[list[int]] = []
        self.beside: list[tuple[list[int], list[int]]] = []  # messages that came while there was another
        self.deaths = 0
        self._back = back
        self._busy = asyncio.Lock()
        self._ended = asyncio.Event()

    async def calls(self, messages: list[bytes]) -> list[bytes]:
        numbers = [pickle.loads(message)[0][0] for message in messages]
        self.got.append((asyncio.get_running_loop().time(), numbers))
        self.open.append(numbers)
        self.beside += [(numbers, other) for other in self.open[:-1]]
        try:
            return await self._made(numbers)
        finally:
            self.open.remove(numbers)

    async def _made(self, numbers: list[int]) -> list[bytes]:
        deaths = self.deaths
        async with self._busy:
            if self.deaths > deaths:
                raise WorkerDied("worker died: with another")
            if HANGS in numbers:
                await self._ended.wait()
            await asyncio.sleep(ANSWER_SECONDS)
            if KILLER in numbers or HANGS in numbers:
                self.deaths += 1
                raise WorkerDied("worker died: signal 9")
        return [pickle.dumps(answer(number)) for number in numbers]

    async def back(self) -> None:
        if self._back is not None:
            await self._back()
        if self.deaths:
            await asyncio.sleep(3.0)

    async def end(self) -> None:
        self._ended.set()

    @property
    def sizes(self) -> list[int]:
        return [len(numbers) for _, numbers in self.got]


def answer(number: int) -> tuple[bool, Any, str]:
    return (True, ValueError("wrong"), "its trace") if number == WRONG else (False, 2 * number, "")


def played(play: Callable[..., Awaitable[Any]], models: int = 1, **settings: Any) -> Any:
    """What ``play`` returns, which gets a pool, and then the models."""

    async def main() -> Any:
        fakes = [FakeModel() for _ in range(models)]
        pool = ModelPool(fakes, **settings)
        await pool.check()
        await asyncio.sleep(0.001)
        try:
            return await play(pool, *fakes)
        finally:
            pool.close()

    return run_virtual(main())


def test_calls_of_a_moment_go_together_and_each_gets_its_own_answer() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        got = await asyncio.gather(*map(pool, range(40)))
        assert got == [2 * n for n in range(40)]
        assert model.sizes == [32, 8]

    played(play)


def test_a_full_message_waits_for_nobody_and_another_waits_five_milliseconds() -> None:
    async def play(pool: ModelPool, first: FakeModel, second: FakeModel) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        calls = [asyncio.ensure_future(pool(n)) for n in range(33)]
        await asyncio.sleep(0.003)
        calls.append(asyncio.ensure_future(pool(33)))
        await asyncio.gather(*calls)
        assert [(round(at - begun, 6), len(numbers)) for at, numbers in first.got] == [(0.0, 32)]
        assert [(round(at - begun, 6), numbers) for at, numbers in second.got] == [(0.005, [32, 33])]

    played(play, 2)


def test_the_model_with_the_fewest_calls_gets_the_next() -> None:
    async def play(pool: ModelPool, first: FakeModel, second: FakeModel) -> None:
        for _ in range(2):
            calls = [asyncio.ensure_future(pool(n)) for n in range(32 + 5)]
            await asyncio.sleep(0.1)
            calls.append(asyncio.ensure_future(pool(99)))
            await asyncio.gather(*calls)
        assert (first.sizes, second.sizes) == ([32, 32], [5, 1, 5, 1])

    played(play, 2)


def test_a_model_has_two_messages_at_most_and_calls_gather_meanwhile() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        calls = []
        for n in range(20):
            calls.append(asyncio.ensure_future(pool(n)))
            await asyncio.sleep(0.02)
        assert model.sizes == [1, 1]
        await asyncio.gather(*calls)
        assert model.sizes == [1, 1, 18]

    played(play)


def test_a_batch_of_the_stage_goes_alone_and_at_once() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(pool(1), pool(2))
        assert [(at - begun, numbers) for at, numbers in model.got] == [(0.0, [1]), (0.0, [2])]

    played(play, most=1, within=0.0)


def test_what_a_handler_raises_is_the_failure_of_its_call_alone() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        good, wrong = await asyncio.gather(pool(1), pool(WRONG), return_exceptions=True)
        assert good == 2
        assert isinstance(wrong, ValueError)
        assert "its trace" in wrong.__notes__[0]
        unsendable = await asyncio.gather(pool(lambda: 0), return_exceptions=True)
        assert isinstance(unsendable[0], Exception)
        assert model.sizes == [2]

    played(play)


@pytest.mark.parametrize("models", [1, 2])
def test_of_a_lost_message_only_the_call_that_kills_fails(models: int) -> None:
    async def play(pool: ModelPool, *fakes: FakeModel) -> None:
        numbers = [*range(40), KILLER, *range(50, 70)]
        got = await asyncio.gather(*map(pool, numbers), return_exceptions=True)
        assert [each for number, each in zip(numbers, got, strict=True) if number != KILLER] == [
            2 * number for number in numbers if number != KILLER
        ]
        assert isinstance(got[numbers.index(KILLER)], WorkerDied)
        assert sum(model.deaths for model in fakes) == 2  # with others, and alone
        assert await pool(7) == 14

    played(play, models)


def test_a_call_that_was_lost_is_the_only_one_that_its_model_has() -> None:
    async def play(pool: ModelPool, first: FakeModel, second: FakeModel) -> None:
        calls = [asyncio.ensure_future(pool(n)) for n in (*range(31), KILLER)]
        await asyncio.sleep(0.5)
        calls += [asyncio.ensure_future(pool(n)) for n in range(100, 164)]
        await asyncio.sleep(0.7)  # the first is lost, with two messages, and the second works on one
        calls += [asyncio.ensure_future(pool(n)) for n in range(200, 240)]
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert [each for each in got if isinstance(each, Exception)] == [got[31]]
        beside = [len(numbers) for model in (first, second) for pair in model.beside for numbers in pair]
        assert beside
        assert 1 not in beside
        assert max(first.got + second.got)[1][-1] >= 200  # who came later waits for those that were lost

    played(play, 2)


def test_a_call_that_was_given_up_before_it_was_sent_is_not_sent() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        calls = [asyncio.ensure_future(pool(n)) for n in range(64)]
        await asyncio.sleep(0)  # they come first: from Python 3.12 on wait_for begins at once
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool(99), 0.5)
        await asyncio.gather(*calls)
        assert await pool(7) == 14
        assert model.sizes == [32, 32, 1]

    played(play)


def test_nothing_is_sent_to_a_model_that_is_not_back() -> None:
    async def play(pool: ModelPool, first: FakeModel, second: FakeModel) -> None:
        lost = asyncio.ensure_future(asyncio.wait_for(pool(KILLER), 1.5))
        await asyncio.sleep(1.1)
        assert (first.deaths, second.deaths) == (1, 0)
        assert second.sizes == [1]  # the same call, alone
        await asyncio.gather(lost, return_exceptions=True)
        assert await pool(4) == 8
        assert (first.sizes, second.deaths) == ([1, 1], 1)

    played(play, 2)


def test_nothing_is_sent_to_a_model_that_has_no_room_yet() -> None:
    async def main() -> None:
        room = asyncio.Event()
        late = FakeModel(lambda: room.wait())
        early = FakeModel(lambda: asyncio.sleep(4.0))
        pool = ModelPool([late, early])
        await pool.check()
        assert await asyncio.gather(*map(pool, range(40))) == [2 * n for n in range(40)]
        assert (late.sizes, early.sizes) == ([], [32, 8])
        room.set()
        assert await asyncio.gather(*map(pool, range(64))) == [2 * n for n in range(64)]
        assert (late.sizes, early.sizes) == ([32], [32, 8, 32])
        pool.close()

    run_virtual(main())


def test_where_no_model_can_be_set_up_again_all_calls_fail() -> None:
    async def main() -> None:
        async def once() -> None:
            if model.deaths:
                raise WorkerDied("no model can be set up: no such file")

        model = FakeModel(once)
        pool = ModelPool([model])
        await pool.check()
        first = asyncio.gather(pool(KILLER), pool(1), return_exceptions=True)
        assert ["no such file" in str(each) for each in await first] == [True, True]
        with pytest.raises(WorkerDied, match="no such file"):
            await pool(2)

    run_virtual(main())


def test_a_model_that_hangs_in_a_call_which_was_given_up_is_ended() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        async def given_up() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool(HANGS), 2.0)

        begun = asyncio.get_running_loop().time()
        _, other = await asyncio.gather(given_up(), pool(5))
        assert other == 10  # it was sent with the other, and again alone
        assert asyncio.get_running_loop().time() - begun >= 2.0 + SWALLOW_GRACE
        assert [set(numbers) for _, numbers in model.got] == [{HANGS, 5}, {5}]

    played(play)


def test_a_call_that_was_given_up_in_time_ends_no_model() -> None:
    async def play(pool: ModelPool, model: FakeModel) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool(5), 0.5)
        await asyncio.sleep(2 * SWALLOW_GRACE)
        assert not model._ended.is_set()
        assert await pool(6) == 12

    played(play)


# What a job says


def job(**settings: Any) -> Pipeline:
    pipeline = Pipeline("models")
    pipeline.add_stage("generate", taking, **settings)
    return pipeline


@pytest.mark.parametrize("gpus", [0, -1, 1.5, True, "1"])
def test_a_number_of_gpus_that_can_not_be_is_refused(gpus: Any) -> None:
    with pytest.raises(SettingError, match="gpus must be a number of GPUs"):
        job(run="process", gpus=gpus).plan()


def test_gpus_are_for_processes() -> None:
    pipeline = Pipeline("models")
    pipeline.add_stage("generate", taking, gpus=1)
    with pytest.raises(DefinitionError, match='which is for processes of its own, and runs as "thread"'):
        pipeline.plan()


def taking(n: int) -> int:
    return n


def test_a_stage_with_gpus_runs_elsewhere_only_where_there_is_an_elsewhere() -> None:
    pipeline = Pipeline("models")
    pipeline.add_stage("plain", taking)
    pipeline.add_stage("generate", taking, run="process", gpus=0.5)
    plan = pipeline.plan()
    pool = ModelPool([])
    assert target_of(plan.stages["generate"], None, lambda: None, lambda stage: pool) is pool
    assert target_of(plan.stages["plain"], None, lambda: None, lambda stage: pool) is not pool
    assert _models(plan, Options.of({})) == {"generate": (0.5, 1)}
    assert _models(plan, Options.of({"model_actors": {"generate": 3}})) == {"generate": (0.5, 3)}
    with pytest.raises(RequestError, match='no stage "plain" with gpus='):
        _models(plan, Options.of({"model_actors": {"plain": 3}}))
    with pytest.raises(RequestError, match="model_actors must be positive"):
        Options.of({"model_actors": 0})
