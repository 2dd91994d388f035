"""Against quotas that nobody has declared: how many attempts a record takes."""

from __future__ import annotations

import asyncio
from math import ceil

import pytest
from service import ApiError, records, run

from stageflow import Pipeline, Retry


class Quota:
    """So many calls per window of ten seconds; beyond that 429, with the time to the next one."""

    def __init__(self, calls: int, asks: float | None) -> None:
        self.starts: list[float] = []
        self._calls = calls
        self._asks = asks
        self._window, self._used = -1, 0

    async def call(self) -> None:
        now = asyncio.get_running_loop().time()
        self.starts.append(now)
        if self._window != now // 10:
            self._window, self._used = int(now // 10), 0
        if self._used == self._calls:
            await asyncio.sleep(0.3)
            left = (self._window + 1) * 10 - now
            raise ApiError(429, {"Retry-After": str(self._asks or ceil(left))})
        self._used += 1
        await asyncio.sleep(1.0)


# All at once after each pause: 1.3, 4.9 and 5.1 attempts.
@pytest.mark.parametrize(("calls", "asks", "most"), [(100, None, 1.05), (100, 1.0, 1.4), (10, None, 1.4)])
def test_row_85_a_quota_that_nobody_declared_costs_few_attempts_and_no_time(
    calls: int, asks: float | None, most: float
) -> None:
    service, pipeline, count = Quota(calls, asks), Pipeline("quota"), 20 * calls

    @pipeline.stage(max_in_flight=64, retry=Retry(200))
    async def generate(i: int) -> None:
        await service.call()

    outcome = run(pipeline, records(count))
    print(f"{len(service.starts) / count:.3f} attempts per record, {outcome.ended:.1f} s")
    assert len(outcome.written) == count
    assert len(service.starts) <= most * count
    assert outcome.ended <= 1.05 * 200
