"""Sources and sinks made of Python objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from stageflow.adapters.memory import CallableSink, IterableSource, ListSink
from stageflow.errors import StorageError


async def read(source: IterableSource) -> list[Any]:
    return [entry async for portion in source.read() for entry in portion]


def counting(taken: list[int], n: int = 5) -> Iterator[int]:
    for number in range(n):
        taken.append(number)
        yield number


async def counting_async(taken: list[Any], n: int = 5) -> AsyncIterator[int]:
    try:
        for number in range(n):
            taken.append(number)
            yield number
    finally:
        taken.append("closed")


def test_any_values_get_their_place_as_index() -> None:
    source = IterableSource([{"a": 1}, "text", None])
    assert (source.path, source.numbered) == (None, False)
    assert asyncio.run(read(source)) == [(0, {"a": 1}), (1, "text"), (2, None)]


def test_only_a_sequence_is_looked_into_and_only_what_is_sized_is_counted() -> None:
    assert (IterableSource([5, 6, 7]).peek(2), IterableSource([5, 6, 7]).estimate()) == ([(0, 5), (1, 6)], 3)
    assert (IterableSource({5}).peek(2), IterableSource({5}).estimate()) == ([], 1)
    taken: list[int] = []
    assert (IterableSource(counting(taken)).peek(2), IterableSource(counting(taken)).estimate()) == ([], None)
    assert taken == []


def test_an_iterable_is_one_portion_and_taken_from_as_it_is_iterated() -> None:
    async def scenario() -> None:
        taken: list[int] = []
        portions = IterableSource(counting(taken)).read()
        portion = iter(await anext(portions))
        assert taken == []
        assert next(portion) == (0, 0)
        assert taken == [0]
        assert list(portion) == [(1, 1), (2, 2), (3, 3), (4, 4)]
        with pytest.raises(StopAsyncIteration):
            await anext(portions)

    asyncio.run(scenario())


def test_an_async_iterable_is_taken_from_one_by_one_and_closed_when_left() -> None:
    async def scenario() -> None:
        taken: list[Any] = []
        portions = IterableSource(counting_async(taken)).read()
        assert list(await anext(portions)) == [(0, 0)]
        assert list(await anext(portions)) == [(1, 1)]
        assert taken == [0, 1]
        await portions.aclose()
        assert taken == [0, 1, "closed"]

    asyncio.run(scenario())


def test_an_async_iterable_is_read_to_its_end() -> None:
    taken: list[Any] = []
    assert asyncio.run(read(IterableSource(counting_async(taken, 3)))) == [(0, 0), (1, 1), (2, 2)]
    assert taken == [0, 1, 2, "closed"]


def test_an_async_iterator_without_aclose_is_read() -> None:
    class Once:
        done = False

        def __aiter__(self) -> Once:
            return self

        async def __anext__(self) -> int:
            if self.done:
                raise StopAsyncIteration
            self.done = True
            return 7

    assert asyncio.run(read(IterableSource(Once()))) == [(0, 7)]


def test_a_list_takes_the_records_themselves() -> None:
    records: list[Any] = []
    sink, record = ListSink(records), {"a": {1}}

    async def scenario() -> None:
        sink.open()
        await sink.write([(3, sink.encode(record)), (1, "x")])
        await sink.close(complete=True)

    asyncio.run(scenario())
    assert records == [record, "x"]
    assert records[0] is record


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_function_is_called_with_each_record_in_turn(kind: str) -> None:
    seen: list[Any] = []

    async def take_async(record: Any) -> None:
        await asyncio.sleep(0)
        seen.append(record)

    sink = CallableSink(seen.append if kind == "plain" else take_async)

    async def scenario() -> None:
        sink.open()
        await sink.write([(3, sink.encode("c")), (1, "a")])
        await sink.close(complete=False)

    asyncio.run(scenario())
    assert seen == ["c", "a"]


def test_a_function_that_raises_ends_the_run_with_the_record_named() -> None:
    def refuse(record: Any) -> None:
        raise ValueError(f"no {record}")

    async def scenario() -> None:
        await CallableSink(refuse).write([(4, "thanks")])

    with pytest.raises(StorageError) as caught:
        asyncio.run(scenario())
    assert str(caught.value) == "the sink failed on record 4: ValueError: no thanks"
    assert isinstance(caught.value.__cause__, ValueError)
