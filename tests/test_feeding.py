"""How records come in: all that came before an error, none that comes after it, and one more than there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.testing import run_virtual


class Breaks:
    """An iterator that raises at its tenth value, and would go on after that."""

    def __init__(self) -> None:
        self.asked = 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        return self

    def __next__(self) -> dict[str, int]:
        self.asked += 1
        if self.asked == 10:
            raise LookupError("torn")
        if self.asked > 20:
            raise StopIteration
        return {"x": self.asked}


def pipeline(seconds: float = 0.0, **settings: Any) -> Pipeline:
    async def same(x: int) -> int:
        if seconds:
            await asyncio.sleep(seconds)
        return x

    made = Pipeline("job")
    made.add_stage("s", same, **settings)
    return made


@pytest.mark.parametrize("queue_size", [1, 4, 64])
@pytest.mark.parametrize("options", [{}, {"limit": 100}])
def test_what_came_before_an_error_of_the_source_is_done(queue_size: int, options: dict[str, Any]) -> None:
    source, output = Breaks(), list[dict[str, Any]]()
    with pytest.raises(Exception, match="the source failed: LookupError: torn"):
        run_virtual(pipeline(queue_size=queue_size).run(source, output, **options))
    assert [record["x"] for record in output] == list(range(1, 10))
    assert source.asked == 10


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 1000), (10.0, 8)])
def test_one_more_is_read_than_there_is_room_for(seconds: float, most: int) -> None:
    read: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for x in range(1000):
            read.append(x)
            yield {"x": x}

    async def main() -> None:
        run = asyncio.create_task(pipeline(seconds, max_in_flight=3, queue_size=4).run(source(), []))
        await asyncio.sleep(1)
        assert len(read) == most  # those in progress, those in the channel, and one in the hand
        run.cancel()
        await asyncio.wait([run])

    run_virtual(main())


def test_a_field_that_is_overwritten_is_told_of_once_wherever_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    records = [{"x": 0}, {"x": 1}, {"x": 2, "s": 0}, {"x": 3, "s": 0}, "text"]
    report = run_virtual(pipeline().run(records, []))
    assert (report.written, report.dead) == (4, 1)
    assert sum("is overwritten by the result" in message for message in caplog.messages) == 1
